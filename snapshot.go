package replicator

import (
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// Snapshot is the database as it was at one moment. It has the methods of
// *leveldb.Snapshot and is safe for concurrent use. It shows a batch written on
// another replica wholly or not at all, as [DB.Write] says. One that is kept for
// long keeps old files on disk: release it.
type Snapshot struct{ raw *leveldb.Snapshot }

// GetSnapshot returns the database as it is now. It must be released after use.
func (db *DB) GetSnapshot() (*Snapshot, error) {
	s, err := db.raw.GetSnapshot()
	if err != nil {
		return nil, err
	}
	return &Snapshot{s}, nil
}

// Get gets the value of a key, or leveldb.ErrNotFound, or
// leveldb.ErrSnapshotReleased. The caller must not change the slice.
func (s *Snapshot) Get(key []byte, ro *opt.ReadOptions) (value []byte, err error) {
	return get(s.raw, key, ro)
}

// Has reports whether the snapshot holds a value for a key.
func (s *Snapshot) Has(key []byte, ro *opt.ReadOptions) (ret bool, err error) {
	return has(s.raw, key, ro)
}

// NewIterator returns an iterator over the keys in a range, or over all if it is
// nil. It must be released, and stays valid when the snapshot is.
func (s *Snapshot) NewIterator(slice *util.Range, ro *opt.ReadOptions) iterator.Iterator {
	return s.raw.NewIterator(store.Visible(slice), ro)
}

// Release releases the snapshot. A second call does nothing.
func (s *Snapshot) Release() { s.raw.Release() }

// String names the snapshot in logs.
func (s *Snapshot) String() string { return s.raw.String() }
