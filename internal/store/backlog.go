package store

import (
	"strconv"
	"sync/atomic"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
)

// Backlog is what goleveldb has to compact: tables of the first level, which it merges with all that they
// overlap. The more of them it merges at a time, the less often the next level is written anew. From some number
// on it delays each write by a millisecond, and from another on it holds up all of them until some are
// merged, which may take seconds. Both are options of whoever opened the handle, which it does not tell:
// by default they are 8 and 12. Its methods may be called concurrently.
type Backlog struct {
	raw   *leveldb.DB
	swift atomic.Int64 // so many tables delay no write,
	slow  atomic.Int64 // and so many do; 0 if that is not known
}

// delaysFrom is how many tables of the first level goleveldb has by default when it begins to delay writes.
const delaysFrom = 8

// NewBacklog returns the backlog of a handle, of whose options nothing is known yet.
func NewBacklog(raw *leveldb.DB) *Backlog {
	b := &Backlog{raw: raw}
	b.swift.Store(delaysFrom)
	return b
}

// IsBehind reports whether there are so many tables that goleveldb delays writes.
func (b *Backlog) IsBehind() (bool, error) {
	n, err := b.tables()
	if err != nil {
		return false, err
	}
	tables := int64(n)
	if tables <= b.swift.Load() {
		b.slow.Store(0) // what was taken for a delay may have been another, so that is tried again
		return false, nil
	}
	if slow := b.slow.Load(); slow > 0 && slow <= tables {
		return true, nil
	}
	delays, err := b.delays()
	switch {
	case err != nil:
		return false, err
	case delays:
		b.slow.Store(tables)
	default:
		b.swift.Store(tables)
	}
	return delays, nil
}

func (b *Backlog) tables() (int, error) {
	s, err := b.raw.GetProperty("leveldb.num-files-at-level0")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(s)
}

// delays tries whether writes are delayed, with some that change nothing. One may be slow for another reason.
func (b *Backlog) delays() (bool, error) {
	for range 3 {
		began := time.Now()
		if err := b.raw.Delete(MetaFlush, nil); err != nil {
			return false, err
		}
		if time.Since(began) < time.Millisecond {
			return false, nil
		}
	}
	return true, nil
}
