package replicator

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"math"
	"slices"

	"github.com/syndtr/goleveldb/leveldb"
)

// batch is what a transaction commits as one batch of goleveldb. Of a large one, log and
// log-index are staged apart and come last, and the writes are in key order. goleveldb
// writes what is larger than its write buffer to tables, in the order of the batch: so
// few of them overlap, and those that do not are moved down, not merged.
type batch struct {
	all        *leveldb.Batch // nil: the last is still needed elsewhere
	large      bool
	log, index section // of a large one
}

// largeBatch is from how many bytes on a caller's writes are put in order: goleveldb's
// default write buffer.
const largeBatch = 4 << 20

// keptBatch is how much memory of a batch is kept for the next.
const keptBatch = 2 * groupSize

// section is where a key belongs, nil for the batch itself.
func (b *batch) section(key []byte) *section {
	if b.large && len(key) > len(reservedStart) && reserved(key) {
		switch key[len(reservedStart)] {
		case kindLog:
			return &b.log
		case kindIndex:
			return &b.index
		}
	}
	return nil
}

// Put stages a record. The batch keeps neither key nor value.
func (b *batch) Put(key, value []byte) {
	if s := b.section(key); s != nil {
		s.put(key, value)
	} else {
		b.all.Put(key, value)
	}
}

// Delete stages a deletion.
func (b *batch) Delete(key []byte) {
	if s := b.section(key); s != nil {
		s.delete(key)
	} else {
		b.all.Delete(key)
	}
}

// Len is how many records there are.
func (b *batch) Len() int { return b.all.Len() + b.log.n + b.index.n }

// size is how many bytes they take.
func (b *batch) size() int { return len(b.all.Dump()) + len(b.log.b) + len(b.index.b) }

// reset empties the batch for another transaction.
func (b *batch) reset() {
	if b.all == nil || cap(b.all.Dump()) > keptBatch {
		b.all = newBatch(0)
	}
	b.all.Reset()
	b.large = false
	b.log.reset()
	b.index.reset()
}

// newBatch makes a batch with room for n bytes. By itself goleveldb grows one of more than
// 3,000 records by ever smaller parts, so that the bytes copied grow with the square of
// their number; without the limit it doubles.
func newBatch(n int) *leveldb.Batch {
	return leveldb.MakeBatchWithConfig(&leveldb.BatchConfig{InitialCapacity: n, GrowLimit: math.MaxInt})
}

// enlarge makes room for n bytes beside the little that is staged.
func (b *batch) enlarge(n int) {
	b.large = true
	old := b.all
	b.all = newBatch(len(old.Dump()) + n)
	old.Replay(b.all)
}

// whole puts all together.
func (b *batch) whole() *leveldb.Batch {
	b.log.replay(b.all)
	b.index.replay(b.all)
	b.log.reset()
	b.index.reset()
	return b.all
}

// section are records staged apart. They take what they take in a leveldb.Batch, without the
// 48 bytes that it has beside each.
type section struct {
	b []byte
	n int
}

func (s *section) put(key, value []byte) {
	s.b = append(s.b, recordPut)
	s.b = appendBytes(s.b, key)
	s.b = appendBytes(s.b, value)
	s.n++
}

func (s *section) delete(key []byte) {
	s.b = append(s.b, recordDelete)
	s.b = appendBytes(s.b, key)
	s.n++
}

const (
	recordDelete = iota
	recordPut
)

func (s *section) replay(to leveldb.BatchReplay) {
	take := func(b []byte) (taken, left []byte) {
		size, n := binary.Uvarint(b)
		return b[n:][:size], b[n:][size:]
	}
	for b := s.b; len(b) > 0; {
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
	if s.n = 0; cap(s.b) > keptBatch {
		s.b = nil
	}
	s.b = s.b[:0]
}

// inKeyOrder sorts writes of different keys. Mostly the first bytes tell keys apart, and
// those lie together.
func inKeyOrder(writes []write) []write {
	type place struct {
		start uint64 // of the key
		at    int
	}
	places := make([]place, len(writes))
	for i := range writes {
		var start [8]byte
		copy(start[:], writes[i].key)
		places[i] = place{binary.BigEndian.Uint64(start[:]), i}
	}
	slices.SortFunc(places, func(a, b place) int {
		if c := cmp.Compare(a.start, b.start); c != 0 {
			return c
		}
		return bytes.Compare(writes[a.at].key, writes[b.at].key)
	})
	sorted := make([]write, len(writes))
	for i := range places {
		sorted[i] = writes[places[i].at]
	}
	return sorted
}
