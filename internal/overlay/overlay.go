package overlay

import (
	"bytes"
	"slices"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// Iterator merges several sorted sources: of a key that is in several the first source
// wins. All but the last hold staged values, which may say that the key is deleted.
type Iterator struct {
	util.BasicReleaser
	Sources []iterator.Iterator

	where place
	key   []byte // valid if where is within
	value []byte
	err   error
}

// place is where an iterator stands.
type place int

const (
	before   place = iota // the first
	behind                // the last
	forward               // on a key; every source is at the least of its keys not below it
	backward              // on a key; every source is at the greatest of its keys not above it
)

const (
	layerSize  = 4 << 10 // bytes to begin with; it grows
	stagedPut  = 'p'     // the first byte of a staged value
	stagedGone = 'd'
)

func (it *Iterator) usable() bool {
	if it.err == nil && it.Released() {
		it.err = leveldb.ErrIterReleased
	}
	return it.err == nil
}

// Valid reports whether the iterator is on a key.
func (it *Iterator) Valid() bool { return it.err == nil && it.where >= forward }

// First moves to the first key.
func (it *Iterator) First() bool {
	if !it.usable() {
		return false
	}
	for _, s := range it.Sources {
		s.First()
	}
	return it.land(forward)
}

// Last moves to the last key.
func (it *Iterator) Last() bool {
	if !it.usable() {
		return false
	}
	for _, s := range it.Sources {
		s.Last()
	}
	return it.land(backward)
}

// Seek moves to the first key that is not below the given one.
func (it *Iterator) Seek(key []byte) bool {
	if !it.usable() {
		return false
	}
	for _, s := range it.Sources {
		s.Seek(key)
	}
	return it.land(forward)
}

// Next moves to the next key.
func (it *Iterator) Next() bool {
	if !it.usable() || it.where == behind {
		return false
	}
	switch it.where {
	case before:
		return it.First()
	case backward:
		for _, s := range it.Sources {
			s.Seek(it.key)
		}
	}
	it.leave(forward)
	return it.land(forward)
}

// Prev moves to the previous key.
func (it *Iterator) Prev() bool {
	if !it.usable() || it.where == before {
		return false
	}
	switch it.where {
	case behind:
		return it.Last()
	case forward:
		for _, s := range it.Sources {
			if !s.Seek(it.key) {
				s.Last()
			} else if !bytes.Equal(s.Key(), it.key) {
				s.Prev()
			}
		}
	}
	it.leave(backward)
	return it.land(backward)
}

// leave moves the sources off the current key.
func (it *Iterator) leave(to place) {
	for _, s := range it.Sources {
		if !s.Valid() || !bytes.Equal(s.Key(), it.key) {
			continue
		}
		if to == forward {
			s.Next()
		} else {
			s.Prev()
		}
	}
}

// land stops at the nearest key in a direction that is not deleted.
func (it *Iterator) land(to place) bool {
	for {
		var from iterator.Iterator
		last := false
		for i, s := range it.Sources {
			if !s.Valid() {
				if it.err = s.Error(); it.err != nil {
					return false
				}
				continue
			}
			if from != nil {
				if c := bytes.Compare(s.Key(), from.Key()); c == 0 || (c > 0) == (to == forward) {
					continue
				}
			}
			from, last = s, i == len(it.Sources)-1
		}
		if from == nil {
			it.where = behind
			if to == backward {
				it.where = before
			}
			return false
		}
		it.where = to
		it.key = append(it.key[:0], from.Key()...)
		it.value = append(it.value[:0], from.Value()...)
		if last {
			return true
		}
		gone := it.value[0] == stagedGone
		if it.value = slices.Delete(it.value, 0, 1); !gone {
			return true
		}
		it.leave(to)
	}
}

// Key returns the current key, nil if there is none. It is valid until the next move.
func (it *Iterator) Key() []byte {
	if !it.Valid() || it.Released() {
		return nil
	}
	return it.key
}

// Value returns the current value, nil if there is none. It is valid until the next move.
func (it *Iterator) Value() []byte {
	if !it.Valid() || it.Released() {
		return nil
	}
	return it.value
}

// Error returns the error that ended the iteration, if one did.
func (it *Iterator) Error() error { return it.err }

// Release frees the iterator. A second call does nothing.
func (it *Iterator) Release() {
	if it.Released() {
		return
	}
	for _, s := range it.Sources {
		s.Release()
	}
	it.where, it.key, it.value = before, nil, nil
	it.BasicReleaser.Release()
}
