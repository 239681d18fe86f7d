package replica

import (
	"encoding/binary"
	"slices"

	"github.com/cespare/xxhash/v2"
	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
)

// ahead are the log entries that a join staged before the values that they belong to (J2): their dots, and of each
// a checksum of what it says, by which the row that belongs to it is known (J4). No log-index names them yet.
type ahead struct {
	logs   map[causal.Origin]*aheadLog
	left   int          // those of which no row has come
	buried causal.Stamp // the least of those that are tombstones
}

// aheadLog are the entries of one origin, in order.
type aheadLog struct {
	first  []uint64 // seq of the first entry of each chunk
	chunks []aheadChunk
}

// aheadChunk are some entries in a row.
type aheadChunk struct {
	above []uint32 // seqs, as far as they are above the first; nil as long as none is missing between them
	sums  []uint32
	done  []uint64 // a bit for each: its row has come, or it was deleted
}

// at returns by how much the seq of an entry is above the first.
func (c *aheadChunk) at(i int) uint32 {
	if c.above == nil {
		return uint32(i)
	}
	return c.above[i]
}

// append notes another entry.
func (c *aheadChunk) append(above uint32, sum uint32) {
	n := len(c.sums)
	if c.above == nil && above != uint32(n) {
		c.above = make([]uint32, n, 2*n)
		for i := range c.above {
			c.above[i] = uint32(i)
		}
	}
	if c.above != nil {
		c.above = append(c.above, above)
	}
	if n%64 == 0 {
		c.done = append(c.done, 0)
	}
	c.sums = append(c.sums, sum)
}

// find returns which entry is so much above the first.
func (c *aheadChunk) find(above uint32) (i int, ok bool) {
	if c.above == nil {
		return int(above), uint64(above) < uint64(len(c.sums))
	}
	return slices.BinarySearch(c.above, above)
}

// isDone reports whether the row of an entry has come.
func (c *aheadChunk) isDone(i int) bool { return c.done[i/64]>>(i%64)&1 != 0 }

const aheadChunkSize = 1 << 12 // entries

// above reports whether a dot may be added: entries come in the order of the log.
func (a *ahead) above(d causal.Dot) bool {
	l := a.logs[d.Origin]
	return l == nil || d.Seq > l.last()
}

func (l *aheadLog) last() uint64 {
	c := &l.chunks[len(l.chunks)-1]
	return l.first[len(l.first)-1] + uint64(c.at(len(c.sums)-1))
}

// add notes an entry that was staged.
func (a *ahead) add(d causal.Dot, sum uint32) {
	l := a.logs[d.Origin]
	if l == nil {
		if a.logs == nil {
			a.logs = map[causal.Origin]*aheadLog{}
		}
		l = &aheadLog{}
		a.logs[d.Origin] = l
	}
	n := len(l.chunks)
	if n == 0 || len(l.chunks[n-1].sums) == aheadChunkSize || d.Seq-l.first[n-1] > 1<<32-1 {
		l.first, l.chunks = append(l.first, d.Seq), append(l.chunks, aheadChunk{})
		n++
	}
	l.chunks[n-1].append(uint32(d.Seq-l.first[n-1]), sum)
	a.left++
}

// find returns where an entry is.
func (a *ahead) find(d causal.Dot) (c *aheadChunk, i int, ok bool) {
	if a == nil {
		return nil, 0, false
	}
	l := a.logs[d.Origin]
	if l == nil {
		return nil, 0, false
	}
	n, ok := l.chunkOf(d.Seq)
	if !ok || d.Seq-l.first[n] > 1<<32-1 {
		return nil, 0, false
	}
	c = &l.chunks[n]
	i, ok = c.find(uint32(d.Seq - l.first[n]))
	return c, i, ok
}

// chunkOf returns the chunk that an entry would be in.
func (l *aheadLog) chunkOf(seq uint64) (n int, ok bool) {
	if seq < l.first[0] {
		return 0, false
	}
	// Each chunk begins so far above the one before at least, and just so far where no entry is missing.
	if n := (seq - l.first[0]) / aheadChunkSize; n < uint64(len(l.first)) && seq >= l.first[n] {
		return int(n), true
	}
	n, exact := slices.BinarySearch(l.first, seq)
	if !exact {
		n--
	}
	return n, true
}

// sum returns the checksum of an entry whose row is still to come.
func (a *ahead) sum(d causal.Dot) (sum uint32, ok bool) {
	c, i, ok := a.find(d)
	if !ok || c.isDone(i) {
		return 0, false
	}
	return c.sums[i], true
}

// has reports whether a dot was added, whatever has become of it.
func (a *ahead) has(d causal.Dot) bool {
	_, _, ok := a.find(d)
	return ok
}

// settle notes that the row of an entry has come, or that the entry is gone.
func (a *ahead) settle(d causal.Dot) {
	if c, i, ok := a.find(d); ok && !c.isDone(i) {
		c.done[i/64] |= 1 << (i % 64)
		a.left--
	}
}

// rest returns some of the entries of which no row has come.
func (a *ahead) rest(most int) (dots []causal.Dot) {
	if a.left == 0 {
		return nil
	}
	for o, l := range a.logs {
		for n := range l.chunks {
			c := &l.chunks[n]
			for i := range c.sums {
				if !c.isDone(i) {
					if dots = append(dots, causal.Dot{Origin: o, Seq: l.first[n] + uint64(c.at(i))}); len(dots) == most {
						return dots
					}
				}
			}
		}
	}
	return dots
}

// sumOf is the checksum of an entry, or of the row that belongs to it: of all that both have in common.
func sumOf(buf, key []byte, v *store.Version, check uint32) (sum uint32, scratch []byte) {
	b := append(buf[:0], byte(store.Btoi(v.Deleted)))
	b = binary.BigEndian.AppendUint64(b, v.Clock)
	b = binary.BigEndian.AppendUint64(b, v.Seq)
	b = append(b, v.Origin[:]...)
	for _, d := range v.Context {
		b = append(b, d.Origin[:]...)
		b = binary.BigEndian.AppendUint64(b, d.Seq)
	}
	b = binary.BigEndian.AppendUint32(b, check)
	b = append(b, key...)
	return uint32(xxhash.Sum64(b)), b
}
