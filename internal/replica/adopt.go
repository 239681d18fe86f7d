package replica

import (
	"errors"
	"slices"

	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// Unlogged reports whether a raw key holds something else than the resolved value of what was
// logged. If the resolved value of a key in conflict cannot be said, it does not.
func Unlogged(rd store.Reader, os store.Aliasing, resolve ResolveFunc, key []byte, s store.Siblings, now store.Fingerprint) (bool, error) {
	if len(s) == 1 && now.Deleted {
		return !s[0].Deleted, nil
	}
	want, known, err := expected(rd, os, resolve, key, s)
	return known && want != now, err
}

// expected returns the resolved value of a key by its log, and whether that can be said. Of a
// key in conflict its hint has it; that of an earlier release has not, and the resolver
// is asked, if it decides the same twice.
func expected(rd store.Reader, os store.Aliasing, resolve ResolveFunc, key []byte, s store.Siblings) (want store.Fingerprint, known bool, err error) {
	if len(s) > 1 {
		marked, known, err := store.ReadResolved(rd, key)
		if err != nil || known {
			return marked, known, err
		}
		vs, err := store.ReadVersions(rd, key, s, os)
		if errors.Is(err, store.ErrCorrupted) {
			return want, false, nil
		} else if err != nil {
			return want, false, err
		}
		first, _ := Resolve(resolve, key, vs)
		second, _ := Resolve(resolve, key, vs)
		return store.FingerprintOf(first.Value, first.Deleted), first.SameContent(&second), nil
	}
	if s[0].Deleted {
		return store.Fingerprint{Deleted: true}, true, nil
	}
	e, err := store.ReadEntry(rd, key, &s[0], os)
	return store.Fingerprint{Check: e.Check}, err == nil, err
}

// Adopt logs the values at some keys, which are in order, as they are now. Of keys
// that lie close together values and log-index are read in passing: that takes a
// tenth of the time that looking each of them up would.
func (t *Txn) Adopt(keys [][]byte) error {
	span := &util.Range{Start: keys[0], Limit: append(slices.Clone(keys[len(keys)-1]), 0)}
	values := t.R.Store.NewIterator(span, nil)
	defer values.Release()
	index := t.R.Store.NewIterator(&util.Range{Start: store.KindKey(store.KindIndex, span.Start), Limit: store.KindKey(store.KindIndex, span.Limit)}, nil)
	defer index.Release()
	ws := make([]store.Write, 0, len(keys))
	for _, key := range keys {
		if !store.SeekNear(values, key) {
			if err := values.Error(); err != nil {
				return err
			}
			break // this and what follows was deleted meanwhile
		}
		if string(values.Key()) != string(key) {
			continue // deleted meanwhile
		}
		if _, ok, err := store.SeekIndex(index, key); err != nil {
			return err
		} else if !ok {
			t.R.cacheRecord(key, nil)
		}
		s, _, err := t.Lookup(key)
		if err != nil {
			return err
		}
		if len(s) > 0 { // else it is new: mostly so
			odd, err := Unlogged(t.R.Store, t.R, t.R.Resolve, key, s, store.FingerprintOf(values.Value(), false))
			if err != nil {
				return err
			}
			if !odd {
				continue // written meanwhile
			}
		}
		ws = append(ws, store.Write{Key: key, Value: slices.Clone(values.Value())})
	}
	return t.Put(ws)
}

// AdoptDeletes logs keys as deleted, unless they were written meanwhile.
func (t *Txn) AdoptDeletes(keys [][]byte) error {
	var ws []store.Write
	for _, key := range keys {
		if _, err := t.R.Store.Get(key, nil); err == nil {
			continue // written meanwhile
		} else if err != leveldb.ErrNotFound {
			return err
		}
		s, _, err := t.Lookup(key)
		if err != nil {
			return err
		}
		if len(s) == 0 {
			continue // purged meanwhile
		}
		odd, err := Unlogged(t.R.Store, t.R, t.R.Resolve, key, s, store.Fingerprint{Deleted: true})
		if err != nil {
			return err
		}
		if odd {
			ws = append(ws, store.Write{Key: key, Deleted: true})
		}
	}
	return t.Put(ws)
}
