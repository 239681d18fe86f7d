package store

import (
	"bytes"
	"errors"
	"iter"

	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// Row is one user key: the value that stands there and the record of its log-index. Either
// may be missing. The slices are valid until the next row.
type Row struct {
	Key               []byte
	Value, Index      []byte
	HasValue, Indexed bool
}

// Rows returns the user keys from a key on, in order: the merge-join of values and log-index.
// An error of the store is the last that it yields, with an empty row.
func Rows(rd Reader, from []byte) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		values := rd.NewIterator(Visible(&util.Range{Start: from}), nil)
		defer values.Release()
		index := rd.NewIterator(KindRangeFrom(KindIndex, from), nil)
		defer index.Release()
		hasValue, indexed := values.Next(), index.Next()
		for {
			// One that fails looks like one that has ended, and the rows would be taken for what they are not.
			if err := errors.Join(values.Error(), index.Error()); err != nil {
				yield(Row{}, err)
				return
			}
			if !hasValue && !indexed {
				return
			}
			r := joined(values, index, hasValue, indexed)
			if !yield(r, nil) {
				return
			}
			if r.HasValue {
				hasValue = values.Next()
			}
			if r.Indexed {
				indexed = index.Next()
			}
		}
	}
}

// joined returns the row of the lesser of two keys, or of both if they are equal.
func joined(values, index iterator.Iterator, hasValue, indexed bool) (r Row) {
	order := 0
	switch {
	case !indexed:
		order = -1
	case !hasValue:
		order = 1
	default:
		order = bytes.Compare(values.Key(), UserKey(index.Key()))
	}
	if order <= 0 {
		r.Key, r.Value, r.HasValue = values.Key(), values.Value(), true
	}
	if order >= 0 {
		r.Key, r.Index, r.Indexed = UserKey(index.Key()), index.Value(), true
	}
	return r
}

// SeekIndex moves an iterator over the log-index forward to a user key and returns its record.
func SeekIndex(index iterator.Iterator, key []byte) (record []byte, ok bool, err error) {
	if !SeekNear(index, KindKey(KindIndex, key)) {
		return nil, false, index.Error()
	}
	if !bytes.Equal(UserKey(index.Key()), key) {
		return nil, false, nil
	}
	return index.Value(), true, nil
}

// SeekNear moves an iterator forward to a key, or to the first above it: step by step
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
