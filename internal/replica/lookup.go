package replica

import (
	"errors"
	"fmt"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// View is one state of the database.
type View struct {
	store.Snapshot
	Aliases      store.AliasTable
	Index        map[causal.Origin]uint32
	Rows         []causal.Row // news for the peer
	Rev          uint64
	Cloud        causal.Vector
	Keys         int64           // that hold a value
	MayHaveStale bool            // log entries may be garbage
	sorted       []causal.Origin // the known origins, in order; nil until asked for
}

// Lookup gives the state of a key as committed.
func (r *Replica) Lookup(key []byte) (store.Siblings, error) {
	rec, err := r.indexRecord(key)
	if len(rec) == 0 || err != nil {
		return nil, err
	}
	return r.decodeState(key, rec, nil, nil)
}

// indexRecord gives the log-index of a key as committed, empty if it has none. It is
// valid until the next is asked for.
func (r *Replica) indexRecord(key []byte) ([]byte, error) {
	if r.Filter.Lacks(key) {
		return nil, nil
	}
	if rec, ok := r.Cache.Get(key); ok {
		return rec, nil
	}
	rec, err := r.Store.Get(store.KindKey(store.KindIndex, key), nil)
	if err != nil && err != leveldb.ErrNotFound {
		return nil, err
	}
	r.Cache.Put(key, rec)
	return rec, nil
}

func (r *Replica) decodeState(key, rec []byte, versions *store.Slab[store.Version], dots *store.Slab[causal.Dot]) (store.Siblings, error) {
	s, err := store.DecodeIndexInto(rec, r, versions, dots)
	if err != nil {
		return nil, fmt.Errorf("log-index of key %q: %w", key, err)
	}
	return s, nil
}

// TakeView takes a state of the database. with calls a function while nothing else uses the
// replica; of a database that is closed it calls none. note, which may be nil, is called in the
// moment of that state.
func TakeView(with func(func(r *Replica)), note func(r *Replica)) (*View, error) {
	v, err := View{}, leveldb.ErrClosed
	with(func(r *Replica) {
		if v, err = r.Look(); err == nil && note != nil {
			note(r)
		}
	})
	return &v, err
}

// Look takes a state of the database.
func (r *Replica) Look() (v View, err error) {
	v.Aliases, v.Index = r.Aliases, r.Alias
	v.Snapshot, err = r.Store.Snapshot()
	return v, err
}

func (v *View) Origin(n uint64) (causal.Origin, bool) { return v.Aliases.Origin(n) }

func (v *View) Number(o causal.Origin) uint64 { return v.Aliases.Number(o) }

func (v *View) AliasOf(o causal.Origin) (uint32, bool) {
	a, ok := v.Index[o]
	return a, ok
}

// garbage gives the log keys of entries that no log-index names, of those from a log
// key on, and where to go on, or nil at the end.
func (v *View) garbage(from []byte, limit int) (keys [][]byte, next []byte, err error) {
	rg := store.KindRange(store.KindLog)
	if from != nil {
		rg.Start = from
	}
	it := v.NewIterator(rg, nil)
	defer it.Release()
	for n := 0; it.Next(); n++ {
		if n >= limit {
			return keys, slices.Clone(it.Key()), it.Error()
		}
		e, err := store.DecodeEntry(it.Key(), it.Value(), v)
		if err != nil {
			continue // Verify names it
		}
		s, readable, err := v.indexOf(e.Key)
		if err != nil {
			return nil, nil, err
		}
		if readable && !s.Has(e.Dot) {
			keys = append(keys, slices.Clone(it.Key()))
		}
	}
	return keys, nil, it.Error()
}

// indexOf looks a key up. One whose log-index is damaged, which Verify names, is not
// readable; that the store cannot be read is an error.
func (v *View) indexOf(key []byte) (s store.Siblings, readable bool, err error) {
	rec, err := v.Get(store.KindKey(store.KindIndex, key), nil)
	switch {
	case err == leveldb.ErrNotFound:
		return nil, true, nil
	case err != nil:
		return nil, false, err
	}
	s, err = store.DecodeIndex(rec, v)
	return s, err == nil, nil
}

// unresolved gives keys in conflict, from one on, that do not show what the resolver
// makes of them, and those of which only the mark is left; and where to go on, or nil at
// the end.
func (v *View) unresolved(from []byte, limit int, resolve ResolveFunc, enough func() bool) (keys [][]byte, next []byte, err error) {
	it := v.NewIterator(store.KindRangeFrom(store.KindConflict, from), nil)
	defer it.Release()
	for n := 0; it.Next(); n++ {
		key := slices.Clone(store.UserKey(it.Key()))
		if n >= limit || n > 0 && enough() {
			return keys, key, it.Error()
		}
		s, readable, err := v.indexOf(key)
		if err != nil {
			return nil, nil, err
		}
		if !readable {
			continue
		}
		vs, err := store.ReadVersions(v, key, s, v)
		if errors.Is(err, store.ErrCorrupted) {
			continue
		} else if err != nil {
			return nil, nil, err
		}
		odd, err := showsOther(v, key, vs, func(key []byte, vs []store.Version) store.Version {
			shown, _ := Resolve(resolve, key, vs)
			return shown
		})
		if err != nil {
			return nil, nil, err
		}
		if odd || !InConflict(vs) {
			keys = append(keys, key)
		}
	}
	return keys, nil, it.Error()
}
