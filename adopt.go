package replicator

import (
	"context"
	"slices"

	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
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
	return db.commit(func(t *replica.Txn) error {
		t.Batch.Delete(store.MetaAdopt)
		t.Sync = true
		return nil
	})
}

const adoptStep = 1000 // keys in one transaction

// adopt goes through the values, and logs those that the log does not know; then
// through the log-index, and logs as deleted what has a value there and none at the
// raw key. Of a key in conflict what it was made to show is compared.
func (db *DB) adopt(ctx context.Context) error {
	progress := Progress{Work: WorkAdopt}
	values := func(from []byte) (keys [][]byte, next []byte, err error) {
		keys, next, err = db.unlogged(from, &progress)
		progress.Done = err == nil && next == nil
		return keys, next, err
	}
	err := db.adoptInTurn(ctx, values, (*replica.Txn).Adopt, func() { db.progress(progress) })
	if err != nil {
		progress.Done = true
		db.progress(progress)
		return err
	}
	return db.adoptInTurn(ctx, db.missing, (*replica.Txn).AdoptDeletes, func() {})
}

// adoptInTurn has keys read and logged, a transaction's worth at a time.
func (db *DB) adoptInTurn(ctx context.Context, read func(from []byte) (keys [][]byte, next []byte, err error), log func(t *replica.Txn, keys [][]byte) error, logged func()) error {
	for from := []byte(nil); ; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		keys, next, err := read(from)
		if err != nil {
			return err
		}
		if len(keys) > 0 {
			err := db.inSlices(ctx, keys, func(t *replica.Txn, keys [][]byte) (int, error) { return len(keys), log(t, keys) })
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

// unlogged reads on in the values until it has found a transaction's worth that
// the log-index does not know, or does not know so.
func (db *DB) unlogged(from []byte, p *Progress) (keys [][]byte, next []byte, err error) {
	st, err := db.look()
	if err != nil {
		return nil, nil, err
	}
	defer st.Release()
	local := db.queue.replica.Local
	n, size := 0, 0 // keys read, bytes that will be committed
	for row, err := range store.Rows(st, from) {
		if err != nil {
			return nil, nil, err
		}
		if !row.HasValue {
			continue
		}
		cost := len(row.Value) + 4*len(row.Key) + store.WriteOverhead
		if len(keys) >= adoptStep || n >= 64*adoptStep || len(keys) > 0 && size+cost > replica.BatchLimit {
			return keys, slices.Clone(row.Key), nil
		}
		n++
		strange, err := db.strange(st, row)
		if err != nil {
			return nil, nil, err
		}
		if strange && (local == nil || !local(row.Key)) {
			keys, size = append(keys, slices.Clone(row.Key)), size+cost
		}
		p.Keys++
		p.Bytes += int64(len(row.Key) + len(row.Value))
	}
	return keys, nil, nil
}

// missing reads on in the log-index until it has found a transaction's worth of
// keys whose value is gone.
func (db *DB) missing(from []byte) (keys [][]byte, next []byte, err error) {
	st, err := db.look()
	if err != nil {
		return nil, nil, err
	}
	defer st.Release()
	n, size := 0, 0
	for row, err := range store.Rows(st, from) {
		if err != nil {
			return nil, nil, err
		}
		if !row.Indexed {
			continue
		}
		if len(keys) >= adoptStep || n >= 64*adoptStep || size > replica.BatchLimit {
			return keys, slices.Clone(row.Key), nil
		}
		n++
		if row.HasValue {
			continue
		}
		strange, err := db.strange(st, row)
		if err != nil {
			return nil, nil, err
		}
		if strange {
			keys, size = append(keys, slices.Clone(row.Key)), size+4*len(row.Key)+store.WriteOverhead
		}
	}
	return keys, nil, nil
}

// strange reports whether the value of a row, or that there is none, is not what was last
// logged.
func (db *DB) strange(v *replica.View, row store.Row) (bool, error) {
	if !row.Indexed {
		return true, nil
	}
	s, err := store.DecodeIndex(row.Index, v)
	if err != nil {
		return false, err
	}
	return replica.Unlogged(v, v, db.decider.resolve, row.Key, s, store.FingerprintOf(row.Value, !row.HasValue))
}
