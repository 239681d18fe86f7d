package store

import (
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// Reader is what reading needs of a store: a goleveldb handle or snapshot.
type Reader interface {
	Get(key []byte, ro *opt.ReadOptions) ([]byte, error)
	NewIterator(slice *util.Range, ro *opt.ReadOptions) iterator.Iterator
}

// Store is what the replica needs of a database. Snapshots are short: none is
// held while anything waits for the network.
type Store interface {
	Reader
	Snapshot() (Snapshot, error)
}

// Sizer is a Store that estimates how large ranges of it are.
type Sizer interface {
	SizeOf(ranges []util.Range) (leveldb.Sizes, error)
}

type Snapshot interface {
	Reader
	Release()
}

// Handle makes a goleveldb handle a store.
type Handle struct{ *leveldb.DB }

func (h Handle) Snapshot() (Snapshot, error) {
	s, err := h.DB.GetSnapshot()
	if err != nil {
		return nil, err
	}
	return s, nil
}
