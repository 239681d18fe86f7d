package replicator

import (
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// Get gets the value of a key, or leveldb.ErrNotFound. The caller owns the slice.
func (db *DB) Get(key []byte, ro *opt.ReadOptions) (value []byte, err error) {
	return get(db.raw, key, ro)
}

// Has reports whether the database holds a value for a key.
func (db *DB) Has(key []byte, ro *opt.ReadOptions) (bool, error) { return has(db.raw, key, ro) }

func get(rd store.Reader, key []byte, ro *opt.ReadOptions) ([]byte, error) {
	v, err := rd.Get(key, ro)
	if err == nil && store.Reserved(key) {
		return nil, leveldb.ErrNotFound
	}
	return v, err
}

func has(rd interface {
	Has(key []byte, ro *opt.ReadOptions) (bool, error)
}, key []byte, ro *opt.ReadOptions) (bool, error) {
	ok, err := rd.Has(key, ro)
	return ok && !store.Reserved(key), err
}

// NewIterator returns an iterator over the keys in a range, or over all if it is nil,
// with goleveldb's rules: it sees the database as it is now, must be released, and
// is used by one goroutine at a time.
func (db *DB) NewIterator(slice *util.Range, ro *opt.ReadOptions) iterator.Iterator {
	return db.raw.NewIterator(store.Visible(slice), ro)
}

// Put sets the value of a key. Value, log entry and log-index are committed in one
// batch. It is safe to modify key and value after Put returns. It replaces all that this replica holds
// of the key, also what came in since the caller read it: [DB.PutIf] and [DB.Update] do not.
//
// It waits until the first attempt to replicate is over, see [DB.Ready]. Beside
// goleveldb's errors it returns ErrReservedKey, ErrTooLarge, ErrFollower, and
// ErrFailed after the store once failed to write.
func (db *DB) Put(key, value []byte, wo *opt.WriteOptions) error {
	return db.write([]store.Write{{Key: key, Value: value}}, wo)
}

// Delete deletes the value of a key. It is no error if there is none. The deletion
// is replicated; it waits and fails as Put does.
func (db *DB) Delete(key []byte, wo *opt.WriteOptions) error {
	return db.write([]store.Write{{Key: key, Deleted: true}}, wo)
}

// Write applies a batch: all of it or, on an error, nothing. Of several writes of
// one key the last counts. Other replicas see it at once, too, if it is not larger
// than 512 KiB, where each write counts as its value, four times its key and 160
// bytes, and if none of its keys was written again before it was pulled.
func (db *DB) Write(batch *leveldb.Batch, wo *opt.WriteOptions) error {
	if db.isClosing() {
		return leveldb.ErrClosed
	}
	if batch == nil || batch.Len() == 0 {
		return nil
	}
	ws := writes{make([]store.Write, 0, batch.Len())}
	if err := batch.Replay(&ws); err != nil {
		return err
	}
	return db.write(ws.list, wo)
}

// writes collects the operations of a batch.
type writes struct{ list []store.Write }

func (w *writes) Put(key, value []byte) { w.list = append(w.list, store.Write{Key: key, Value: value}) }

func (w *writes) Delete(key []byte) { w.list = append(w.list, store.Write{Key: key, Deleted: true}) }

func (db *DB) write(ws []store.Write, wo *opt.WriteOptions) error { return db.writeIf(ws, nil, wo) }

// writeIf has writes committed unless check, which may be nil, refuses them.
func (db *DB) writeIf(ws []store.Write, check func(t *replica.Txn) error, wo *opt.WriteOptions) error {
	if err := db.admit(ws); err != nil {
		return err
	}
	req := db.queue.request()
	req.writes, req.check, req.sync = ws, check, wo.GetSync()
	err := db.queue.do(req)
	if !req.answered {
		return err
	}
	db.emitEvents(req.notable)
	req.writes, req.check, req.refused, req.notable, req.answered = nil, nil, nil, nil, false
	db.queue.requests.Put(req)
	return err
}

// admit refuses writes that are not to be, and waits until the first attempt to
// replicate is over.
func (db *DB) admit(ws []store.Write) error {
	if db.isClosing() {
		return leveldb.ErrClosed
	}
	if db.opts.Follower {
		return ErrFollower
	}
	for i := range ws {
		if err := db.queue.replica.CheckUser(ws[i].Key, ws[i].Value); err != nil {
			return err
		}
	}
	select {
	case <-db.ready:
		return nil
	default:
	}
	select {
	case <-db.ready:
		return nil
	case <-db.ending:
		return leveldb.ErrClosed
	}
}

// CompactRange compacts the tables of a key range, as in goleveldb. A zero range
// is all.
func (db *DB) CompactRange(r util.Range) error { return db.raw.CompactRange(r) }

// SizeOf estimates the sizes of key ranges on disk, as in goleveldb. The log of
// their keys is not part of them.
func (db *DB) SizeOf(ranges []util.Range) (leveldb.Sizes, error) {
	cut := make([]util.Range, len(ranges))
	for i := range ranges {
		cut[i] = *store.Visible(&ranges[i])
	}
	return db.raw.SizeOf(cut)
}

// GetProperty returns a property of the store, as in goleveldb.
func (db *DB) GetProperty(name string) (string, error) { return db.raw.GetProperty(name) }

// Stats fills in the store's statistics, as in goleveldb.
func (db *DB) Stats(s *leveldb.DBStats) error { return db.raw.Stats(s) }

// SetReadOnly makes the database read-only until it is opened again: writes fail
// with leveldb.ErrReadOnly. It goes on serving peers what it has, and takes nothing.
func (db *DB) SetReadOnly() error {
	err := leveldb.ErrClosed
	db.with(func(r *replica.Replica) {
		if err = db.raw.SetReadOnly(); err != nil {
			return
		}
		db.queue.close(leveldb.ErrReadOnly)
		db.waiters.bar(r, leveldb.ErrReadOnly)
		db.links.leave() // what peers push would be refused
	})
	return err
}
