package replicator

import (
	"context"
	"errors"
	"slices"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// Adopt logs what was written to the handle past this DB: keys whose value is not
// the one that was logged are logged as if they were written now, keys without a
// value as deleted now; a conflict ends with that, as with any write. Replicate does
// it for data that the handle already holds; call it only after writing past the
// wrapper. It may be interrupted and repeated; writes go on meanwhile.
func (db *DB) Adopt(ctx context.Context) error {
	if err := db.admit(nil); err != nil {
		return err
	}
	if err := db.queue.broken(); err != nil {
		return err
	}
	return db.adopt(ctx)
}

// adoptFirst logs what the handle held when it was first opened. A mark in the
// store says that this is still to be done, and goes only when all of it is on disk:
// a power failure could otherwise take what was logged and leave the mark's end.
func (db *DB) adoptFirst(ctx context.Context) error {
	if err := db.adopt(ctx); err != nil {
		return err
	}
	if err := db.flushAll(); err != nil {
		return err
	}
	return db.commit(func(t *txn) error {
		t.batch.Delete(metaAdopt)
		t.sync = true
		return nil
	})
}

const adoptStep = 1000 // keys in one transaction

// adopt goes through the values, and logs those that the log does not know; then
// through the log-index, and logs as deleted what has a value there and none at the
// raw key. Of a key in conflict what it was made to show is compared.
func (db *DB) adopt(ctx context.Context) error {
	progress := Progress{Work: "adopt"}
	values := func(from []byte) (keys [][]byte, next []byte, err error) {
		keys, next, err = db.strangers(from, &progress)
		progress.Done = err == nil && next == nil
		return keys, next, err
	}
	err := db.adoptInTurn(ctx, values, (*txn).adopt, func() { db.progress(progress) })
	if err != nil {
		progress.Done = true
		db.progress(progress)
		return err
	}
	return db.adoptInTurn(ctx, db.missing, (*txn).adoptDeletes, func() {})
}

// adoptInTurn has keys read and logged, a transaction's worth at a time.
func (db *DB) adoptInTurn(ctx context.Context, read func(from []byte) (keys [][]byte, next []byte, err error), log func(t *txn, keys [][]byte) error, logged func()) error {
	for from := []byte(nil); ; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		keys, next, err := read(from)
		if err != nil {
			return err
		}
		if len(keys) > 0 {
			err := db.inSlices(ctx, keys, func(t *txn, keys [][]byte) (int, error) { return len(keys), log(t, keys) })
			if err != nil {
				return err
			}
		}
		logged()
		if next == nil {
			return nil
		}
		from = next
	}
}

// abreast gives iterators over the values and the log-index from a key on.
func (v *view) abreast(from []byte) (values, index iterator.Iterator) {
	values = v.NewIterator(visible(&util.Range{Start: from}), nil)
	return values, v.NewIterator(&util.Range{Start: kindKey(kindIndex, from), Limit: kindRange(kindIndex).Limit}, nil)
}

// strangers reads on in the values until it has found a transaction's worth that
// the log-index does not know, or does not know so.
func (db *DB) strangers(from []byte, p *Progress) (keys [][]byte, next []byte, err error) {
	st, err := db.look()
	if err != nil {
		return nil, nil, err
	}
	defer st.Release()
	values, index := st.abreast(from)
	defer values.Release()
	defer index.Release()
	more := index.Next()
	size := 0 // of what will be committed
	for n := 0; values.Next(); n++ {
		key := values.Key()
		cost := len(values.Value()) + 4*len(key) + writeOverhead
		if len(keys) >= adoptStep || n >= 64*adoptStep || len(keys) > 0 && size+cost > batchLimit {
			return keys, slices.Clone(key), errors.Join(values.Error(), index.Error())
		}
		for more && string(index.Key()[3:]) < string(key) {
			more = index.Next()
		}
		known := false
		if more && string(index.Key()[3:]) == string(key) {
			s, err := decodeIndex(index.Value(), st)
			if err != nil {
				return nil, nil, err
			}
			odd, err := strange(st, st, db.resolve, key, s, shownOf(values.Value(), false))
			if err != nil {
				return nil, nil, err
			}
			known = !odd
		}
		if !known && (db.queue.replica.local == nil || !db.queue.replica.local(key)) {
			keys, size = append(keys, slices.Clone(key)), size+cost
		}
		p.Keys++
		p.Bytes += int64(len(key) + len(values.Value()))
	}
	return keys, nil, errors.Join(values.Error(), index.Error())
}

// strange reports whether the raw key shows something else than what was last logged.
// If what a key in conflict should show cannot be said, it is not.
func strange(rd reader, os namer, resolve resolveFunc, key []byte, s state, now shownValue) (bool, error) {
	if len(s) == 1 && now.deleted {
		return !s[0].deleted, nil
	}
	want, known, err := expected(rd, os, resolve, key, s)
	return known && want != now, err
}

// expected returns what a key shows by its log, and whether that can be said. Of a key
// in conflict its mark tells; in that of an earlier release it is not written, and
// the resolver is asked, if it gives the same twice.
func expected(rd reader, os namer, resolve resolveFunc, key []byte, s state) (want shownValue, known bool, err error) {
	if len(s) > 1 {
		marked, known, err := readShown(rd, key)
		if err != nil || known {
			return marked, known, err
		}
		vs, err := readVersions(rd, key, s, os)
		if errors.Is(err, ErrDamaged) {
			return want, false, nil
		} else if err != nil {
			return want, false, err
		}
		first, _ := resolveAll(resolve, key, vs)
		second, _ := resolveAll(resolve, key, vs)
		return shownOf(first.value, first.deleted), first.sameContent(&second), nil
	}
	if s[0].deleted {
		return shownValue{deleted: true}, true, nil
	}
	e, err := readEntry(rd, key, &s[0], os)
	return shownValue{check: e.check}, err == nil, err
}

// adopt logs the values at some keys, which are in order, as they are now. Of keys
// that lie close together values and log-index are read in passing: that takes a
// tenth of the time that looking each of them up would.
func (t *txn) adopt(keys [][]byte) error {
	span := &util.Range{Start: keys[0], Limit: append(slices.Clone(keys[len(keys)-1]), 0)}
	values := t.r.store.NewIterator(span, nil)
	defer values.Release()
	index := t.r.store.NewIterator(&util.Range{Start: kindKey(kindIndex, span.Start), Limit: kindKey(kindIndex, span.Limit)}, nil)
	defer index.Release()
	ws := make([]write, 0, len(keys))
	for _, key := range keys {
		if !seekNear(values, key) {
			if err := values.Error(); err != nil {
				return err
			}
			break // this and what follows was deleted meanwhile
		}
		if string(values.Key()) != string(key) {
			continue // deleted meanwhile
		}
		if !seekNear(index, kindKey(kindIndex, key)) || string(index.Key()[3:]) != string(key) {
			if err := index.Error(); err != nil {
				return err
			}
			t.r.cache.put(key, nil)
		}
		s, _, err := t.lookup(key)
		if err != nil {
			return err
		}
		if len(s) > 0 { // else it is new: mostly so
			odd, err := strange(t.r.store, t.r, t.r.resolve, key, s, shownOf(values.Value(), false))
			if err != nil {
				return err
			}
			if !odd {
				continue // written meanwhile
			}
		}
		ws = append(ws, write{key: key, value: slices.Clone(values.Value())})
	}
	return t.put(ws)
}

// seekNear moves an iterator forward to a key, or the first above it: step by step,
// if it is near.
func seekNear(it iterator.Iterator, key []byte) bool {
	for n := 0; n < 16; n++ {
		if it.Valid() && string(it.Key()) >= string(key) {
			return true
		}
		if !it.Next() {
			return false
		}
	}
	return it.Seek(key)
}

// adoptDeletes logs keys as deleted, unless they were written meanwhile.
func (t *txn) adoptDeletes(keys [][]byte) error {
	var ws []write
	for _, key := range keys {
		if _, err := t.r.store.Get(key, nil); err == nil {
			continue // written meanwhile
		} else if err != leveldb.ErrNotFound {
			return err
		}
		s, _, err := t.lookup(key)
		if err != nil {
			return err
		}
		if len(s) == 0 {
			continue // forgotten meanwhile
		}
		odd, err := strange(t.r.store, t.r, t.r.resolve, key, s, shownValue{deleted: true})
		if err != nil {
			return err
		}
		if odd {
			ws = append(ws, write{key: key, deleted: true})
		}
	}
	return t.put(ws)
}

// missing reads on in the log-index until it has found a transaction's worth of
// keys whose value is gone.
func (db *DB) missing(from []byte) (keys [][]byte, next []byte, err error) {
	st, err := db.look()
	if err != nil {
		return nil, nil, err
	}
	defer st.Release()
	values, index := st.abreast(from)
	defer values.Release()
	defer index.Release()
	more := values.Next()
	size := 0
	for n := 0; index.Next(); n++ {
		key := index.Key()[3:]
		if len(keys) >= adoptStep || n >= 64*adoptStep || size > batchLimit {
			return keys, slices.Clone(key), errors.Join(values.Error(), index.Error())
		}
		for more && string(values.Key()) < string(key) {
			more = values.Next()
		}
		if more && string(values.Key()) == string(key) {
			continue
		}
		s, err := decodeIndex(index.Value(), st)
		if err != nil {
			return nil, nil, err
		}
		if odd, err := strange(st, st, db.resolve, key, s, shownValue{deleted: true}); err != nil {
			return nil, nil, err
		} else if odd {
			keys, size = append(keys, slices.Clone(key)), size+4*len(key)+writeOverhead
		}
	}
	return keys, nil, errors.Join(values.Error(), index.Error())
}
