package store

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"math"
	"slices"

	"github.com/syndtr/goleveldb/leveldb"
)

// Batch is what a transaction commits as one batch of goleveldb. Of one that is in order, log
// and log-index are staged apart and come last, and the writes are in key order. In the memtable,
// a skip list, each record then lies near the one before, and that much is still in the processor's
// caches. And goleveldb writes what is larger than its write buffer to tables, in the order of
// the batch: so few of them overlap, and those that do not are moved down, not merged.
type Batch struct {
	All        *leveldb.Batch // nil: the last is still needed elsewhere
	inOrder    bool
	Log, Index section // of one that is in order
}

// InOrder reports whether the writes of one caller are many enough to be put in order, or
// large enough: that they are sorted costs less than it saves.
func InOrder(writes []Write) bool {
	const many, large = 128, 256 << 10
	return len(writes) >= many || SizeOf(writes) >= large && len(writes) > 1
}

// KeptBatch is how much memory of a batch is kept for the next.
const KeptBatch = 2 * GroupSize

// section are records staged apart. They take what they take in a leveldb.Batch, without the
// 48 bytes that it has beside each.
type section struct {
	B []byte
	n int
}

const (
	recordDelete = iota
	recordPut
)

// GroupSize bounds the bytes that are committed as one batch, unless one caller's
// batch, or the whole state of one key, is larger. Above its write buffer, 4 MiB
// by default, goleveldb takes another path, which on a failing disk can hang.
const GroupSize = 1 << 20

// section is where a key belongs, nil for the batch itself.
func (b *Batch) section(key []byte) *section {
	if b.inOrder && len(key) > len(ReservedStart) && Reserved(key) {
		switch key[len(ReservedStart)] {
		case KindLog:
			return &b.Log
		case KindIndex:
			return &b.Index
		}
	}
	return nil
}

// Put stages a record. The batch keeps neither key nor value.
func (b *Batch) Put(key, value []byte) {
	if s := b.section(key); s != nil {
		s.put(key, value)
	} else {
		b.All.Put(key, value)
	}
}

// Delete stages a deletion.
func (b *Batch) Delete(key []byte) {
	if s := b.section(key); s != nil {
		s.delete(key)
	} else {
		b.All.Delete(key)
	}
}

// Len is how many records there are.
func (b *Batch) Len() int { return b.All.Len() + b.Log.n + b.Index.n }

// Size is how many bytes they take.
func (b *Batch) Size() int { return len(b.All.Dump()) + len(b.Log.B) + len(b.Index.B) }

// Reset empties the batch for another transaction.
func (b *Batch) Reset() {
	if b.All == nil || cap(b.All.Dump()) > KeptBatch {
		b.All = newBatch(0)
	}
	b.All.Reset()
	b.inOrder = false
	b.Log.reset()
	b.Index.reset()
}

// newBatch makes a batch with room for n bytes. By itself goleveldb grows one of more than
// 3,000 records by ever smaller parts, so that the bytes copied grow with the square of
// their number; without the limit it doubles.
func newBatch(n int) *leveldb.Batch {
	return leveldb.MakeBatchWithConfig(&leveldb.BatchConfig{InitialCapacity: n, GrowLimit: math.MaxInt})
}

// BeginOrder makes room for n bytes in order beside the little that is staged.
func (b *Batch) BeginOrder(n int) {
	b.inOrder = true
	old := b.All
	if staged := old.Dump(); cap(staged)-len(staged) < n {
		b.All = newBatch(len(staged) + n)
		old.Replay(b.All)
	}
}

// Whole puts all together.
func (b *Batch) Whole() *leveldb.Batch {
	b.Log.replay(b.All)
	b.Index.replay(b.All)
	b.Log.reset()
	b.Index.reset()
	return b.All
}

func (s *section) put(key, value []byte) {
	s.B = append(s.B, recordPut)
	s.B = AppendBytes(s.B, key)
	s.B = AppendBytes(s.B, value)
	s.n++
}

func (s *section) delete(key []byte) {
	s.B = append(s.B, recordDelete)
	s.B = AppendBytes(s.B, key)
	s.n++
}

func (s *section) replay(to leveldb.BatchReplay) {
	take := func(b []byte) (taken, left []byte) {
		size, n := binary.Uvarint(b)
		return b[n:][:size], b[n:][size:]
	}
	for b := s.B; len(b) > 0; {
		kind := b[0]
		var key, value []byte
		if key, b = take(b[1:]); kind == recordDelete {
			to.Delete(key)
			continue
		}
		value, b = take(b)
		to.Put(key, value)
	}
}

func (s *section) reset() {
	if s.n = 0; cap(s.B) > KeptBatch {
		s.B = nil
	}
	s.B = s.B[:0]
}

// InKeyOrder sorts writes of different keys. Mostly the first bytes tell keys apart, and
// those lie together.
func InKeyOrder(writes []Write) []Write {
	type place struct {
		start uint64 // of the key
		at    int
	}
	places := make([]place, len(writes))
	for i := range writes {
		var start [8]byte
		copy(start[:], writes[i].Key)
		places[i] = place{binary.BigEndian.Uint64(start[:]), i}
	}
	slices.SortFunc(places, func(a, b place) int {
		if c := cmp.Compare(a.start, b.start); c != 0 {
			return c
		}
		return bytes.Compare(writes[a.at].Key, writes[b.at].Key)
	})
	sorted := make([]Write, len(writes))
	for i := range places {
		sorted[i] = writes[places[i].at]
	}
	return sorted
}
