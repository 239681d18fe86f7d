package overlay

import (
	"bytes"
	"slices"
	"sync"

	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// Reads remembers what was read of a state: keys that were looked up, and ranges that iterators passed, also
// where there was nothing. It holds each key that was looked up once, and two keys of each range; ranges that
// meet are joined. It is safe for concurrent use.
type Reads struct {
	mu     sync.Mutex
	keys   map[string]struct{}
	ranges []util.Range // closed, in no order
	joined int          // of ranges, those that are in order and apart: the first ones
	open   map[*Recorder]struct{}
}

// joinAt is how many ranges there may be, beside twice as many as were left the last time, before they are
// joined.
const joinAt = 256

// Note remembers a key that was looked up.
func (rs *Reads) Note(key []byte) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if _, ok := rs.keys[string(key)]; ok {
		return
	}
	if rs.keys == nil {
		rs.keys = map[string]struct{}{}
	}
	rs.keys[string(key)] = struct{}{}
}

// Spans are ranges in order that do not meet. A range from a key to the same with a zero byte
// is that key alone.
type Spans []util.Range

// Spans returns what has been read so far.
func (rs *Reads) Spans() Spans {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	all := slices.Clone(rs.ranges)
	for r := range rs.open {
		if r.passed.Start != nil {
			all = append(all, util.Range{Start: slices.Clone(r.passed.Start), Limit: slices.Clone(r.passed.Limit)})
		}
	}
	for key := range rs.keys {
		all = append(all, alone([]byte(key)))
	}
	return store.JoinRanges(all)
}

// IsKey reports whether a range is one key.
func IsKey(r *util.Range) bool {
	n := len(r.Start)
	return len(r.Limit) == n+1 && r.Limit[n] == 0 && bytes.Equal(r.Limit[:n], r.Start)
}

func alone(key []byte) util.Range { return util.Range{Start: key, Limit: behind0(nil, key)} }

// behind0 appends the first key that is above a key.
func behind0(b, key []byte) []byte { return append(append(b, key...), 0) }

// Contains reports whether a key is in one of the ranges.
func (ss Spans) Contains(key []byte) bool {
	i, found := slices.BinarySearchFunc(ss, key, func(r util.Range, key []byte) int { return bytes.Compare(r.Start, key) })
	return found || i > 0 && bytes.Compare(key, ss[i-1].Limit) < 0
}

// Recorder is an iterator that notes the ranges that it passes.
type Recorder struct {
	iterator.Iterator
	reads  *Reads
	within util.Range
	passed util.Range // since the last jump; empty if Start is nil
}

// Record returns an iterator over a range, which has both ends, that notes what it passes.
func (rs *Reads) Record(it iterator.Iterator, within *util.Range) *Recorder {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.open == nil {
		rs.open = map[*Recorder]struct{}{}
	}
	r := &Recorder{Iterator: it, reads: rs, within: util.Range{Start: append([]byte{}, within.Start...), Limit: within.Limit}}
	rs.open[r] = struct{}{}
	return r
}

// First moves to the first key.
func (r *Recorder) First() bool { return r.jumped(r.within.Start, nil, r.Iterator.First()) }

// Last moves to the last key.
func (r *Recorder) Last() bool { return r.jumped(nil, r.within.Limit, r.Iterator.Last()) }

// Seek moves to the first key that is not below the given one.
func (r *Recorder) Seek(key []byte) bool {
	from := r.within.Start
	if bytes.Compare(key, from) > 0 {
		from = key
	}
	if bytes.Compare(from, r.within.Limit) > 0 {
		from = r.within.Limit
	}
	return r.jumped(from, nil, r.Iterator.Seek(key))
}

// Next moves to the next key.
func (r *Recorder) Next() bool { return r.stepped(r.Iterator.Next(), true) }

// Prev moves to the previous key.
func (r *Recorder) Prev() bool { return r.stepped(r.Iterator.Prev(), false) }

// jumped begins a range: from a key up to where the iterator is, or from there up to a limit.
func (r *Recorder) jumped(from, limit []byte, ok bool) bool {
	r.reads.mu.Lock()
	defer r.reads.mu.Unlock()
	r.reads.closeLocked(r)
	switch {
	case r.Iterator.Error() != nil:
		return ok
	case from == nil && ok:
		from = r.Iterator.Key()
	case from == nil:
		from = r.within.Start
	case ok:
		limit = behind0(nil, r.Iterator.Key())
	default:
		limit = r.within.Limit
	}
	r.passed = util.Range{Start: append([]byte{}, from...), Limit: append([]byte{}, limit...)}
	return ok
}

// stepped widens the range to where the iterator is now, or to the end in that direction.
func (r *Recorder) stepped(ok, up bool) bool {
	r.reads.mu.Lock()
	defer r.reads.mu.Unlock()
	if r.Iterator.Error() != nil {
		return ok
	}
	if r.passed.Start == nil { // Next before First is First, and Prev is nothing
		if !up {
			return ok
		}
		r.passed = util.Range{Start: append([]byte{}, r.within.Start...), Limit: append([]byte{}, r.within.Start...)}
	}
	key := r.Iterator.Key()
	switch {
	case up && !ok:
		r.passed.Limit = append(r.passed.Limit[:0], r.within.Limit...)
	case up && bytes.Compare(key, r.passed.Limit) >= 0:
		r.passed.Limit = behind0(r.passed.Limit[:0], key)
	case !up && !ok:
		r.passed.Start = append(r.passed.Start[:0], r.within.Start...)
	case !up && bytes.Compare(key, r.passed.Start) < 0:
		r.passed.Start = append(r.passed.Start[:0], key...)
	}
	return ok
}

// closeLocked keeps the range that a recorder is in.
func (rs *Reads) closeLocked(r *Recorder) {
	if r.passed.Start == nil {
		return
	}
	rs.ranges = append(rs.ranges, r.passed)
	r.passed = util.Range{} // its slices are the list's now
	if len(rs.ranges) > 2*rs.joined+joinAt {
		rs.ranges = store.JoinRanges(rs.ranges)
		rs.joined = len(rs.ranges)
	}
}

// Release frees the iterator. What it has passed stays noted.
func (r *Recorder) Release() {
	r.reads.mu.Lock()
	r.reads.closeLocked(r)
	delete(r.reads.open, r)
	r.reads.mu.Unlock()
	r.Iterator.Release()
}
