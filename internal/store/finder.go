package store

import (
	"bytes"
	"errors"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// Finder looks up keys of a range in ascending order: while they lie near one another by an iterator that steps from
// one to the next, and otherwise each by itself. For a lookup ends in the first table that has the key, and an
// iterator moves in all of them.
type Finder struct {
	rd    Reader
	slice *util.Range
	it    iterator.Iterator // nil until one is needed
	at    bool              // it stands at a key
	wait  int               // keys that are looked up before it is moved again,
	next  int               // and as many once that was in vain
}

const (
	finderSteps = 32  // keys that are passed over rather than sought
	finderWait  = 128 // the most keys that are looked up before the iterator is tried again
)

// NewFinder returns a finder in a range. Release must be called in the end.
func NewFinder(rd Reader, slice *util.Range) *Finder { return &Finder{rd: rd, slice: slice} }

// Release ends the finder.
func (f *Finder) Release() {
	if f.it != nil {
		f.it.Release()
	}
}

// Find returns the value of a key, which is not below the one before. keep copies values that do not
// belong to the caller.
func (f *Finder) Find(key []byte, keep func(value []byte) []byte) (value []byte, ok bool, err error) {
	if f.at && f.step(key) {
		f.next = 0
		return f.found(key, keep)
	}
	if f.at { // it is far
		f.at, f.wait, f.next = false, f.next, min(2*f.next+1, finderWait)
	}
	if f.wait > 0 {
		f.wait--
		value, err = f.rd.Get(key, nil)
		if errors.Is(err, leveldb.ErrNotFound) {
			return nil, false, nil
		}
		return value, err == nil, err
	}
	if f.it == nil {
		f.it = f.rd.NewIterator(f.slice, &opt.ReadOptions{DontFillCache: true})
	}
	f.at = f.it.Seek(key)
	return f.found(key, keep)
}

// step moves the iterator forward, and reports whether it has come to a key, or behind it, in a few steps.
func (f *Finder) step(key []byte) bool {
	for n := 0; f.at; n++ {
		if bytes.Compare(f.it.Key(), key) >= 0 {
			return true
		}
		if n == finderSteps {
			return false
		}
		f.at = f.it.Next()
	}
	return true // at the end of the range
}

func (f *Finder) found(key []byte, keep func(value []byte) []byte) ([]byte, bool, error) {
	if !f.at || !bytes.Equal(f.it.Key(), key) {
		return nil, false, f.it.Error()
	}
	return keep(f.it.Value()), true, nil
}
