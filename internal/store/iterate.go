package store

import "github.com/syndtr/goleveldb/leveldb/iterator"

// SeekNear moves an iterator forward to a key, or the first above it: step by step,
// if it is near.
func SeekNear(it iterator.Iterator, key []byte) bool {
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
