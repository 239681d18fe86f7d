package replica

import (
	"encoding/binary"
	"slices"

	"github.com/cespare/xxhash/v2"
	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
)

// Ahead are the log entries that a join staged before the values that they belong to (J2): their dots, and of each
// a checksum of what it says, by which the row that belongs to it is known (J4). No log-index names them yet.
type Ahead struct {
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
	above []uint32 // seqs, as far as they are above the first
	sums  []uint32
	done  []uint64 // a bit for each: its row has come, or it was deleted
}

const aheadChunkSize = 1 << 12 // entries

// Above reports whether a dot may be added: entries come in the order of the log.
func (a *Ahead) Above(d causal.Dot) bool {
	l := a.logs[d.Origin]
	return l == nil || d.Seq > l.last()
}

func (l *aheadLog) last() uint64 {
	c := &l.chunks[len(l.chunks)-1]
	return l.first[len(l.first)-1] + uint64(c.above[len(c.above)-1])
}

// add notes an entry that was staged.
func (a *Ahead) add(d causal.Dot, sum uint32) {
	l := a.logs[d.Origin]
	if l == nil {
		if a.logs == nil {
			a.logs = map[causal.Origin]*aheadLog{}
		}
		l = &aheadLog{}
		a.logs[d.Origin] = l
	}
	n := len(l.chunks)
	if n == 0 || len(l.chunks[n-1].above) == aheadChunkSize || d.Seq-l.first[n-1] > 1<<32-1 {
		l.first, l.chunks = append(l.first, d.Seq), append(l.chunks, aheadChunk{})
		n++
	}
	c := &l.chunks[n-1]
	if len(c.above)%64 == 0 {
		c.done = append(c.done, 0)
	}
	c.above, c.sums = append(c.above, uint32(d.Seq-l.first[n-1])), append(c.sums, sum)
	a.left++
}

// find returns where an entry is.
func (a *Ahead) find(d causal.Dot) (c *aheadChunk, i int, ok bool) {
	if a == nil {
		return nil, 0, false
	}
	l := a.logs[d.Origin]
	if l == nil {
		return nil, 0, false
	}
	n, exact := slices.BinarySearch(l.first, d.Seq)
	if !exact {
		if n--; n < 0 {
			return nil, 0, false
		}
	}
	c = &l.chunks[n]
	at := d.Seq - l.first[n]
	if at < uint64(len(c.above)) && uint64(c.above[at]) == at { // mostly none is missing
		return c, int(at), true
	}
	if at > 1<<32-1 {
		return nil, 0, false
	}
	i, ok = slices.BinarySearch(c.above, uint32(at))
	return c, i, ok
}

// Sum returns the checksum of an entry whose row is still to come.
func (a *Ahead) Sum(d causal.Dot) (sum uint32, ok bool) {
	c, i, ok := a.find(d)
	if !ok || c.done[i/64]>>(i%64)&1 != 0 {
		return 0, false
	}
	return c.sums[i], true
}

// has reports whether a dot was added, whatever has become of it.
func (a *Ahead) has(d causal.Dot) bool {
	_, _, ok := a.find(d)
	return ok
}

// settle notes that the row of an entry has come, or that the entry is gone.
func (a *Ahead) settle(d causal.Dot) {
	if c, i, ok := a.find(d); ok && c.done[i/64]>>(i%64)&1 == 0 {
		c.done[i/64] |= 1 << (i % 64)
		a.left--
	}
}

// rest returns some of the entries of which no row has come.
func (a *Ahead) rest(most int) (dots []causal.Dot) {
	if a.left == 0 {
		return nil
	}
	for o, l := range a.logs {
		for n := range l.chunks {
			c := &l.chunks[n]
			for i := range c.above {
				if c.done[i/64] == 1<<64-1 {
					continue
				}
				if c.done[i/64]>>(i%64)&1 == 0 {
					if dots = append(dots, causal.Dot{Origin: o, Seq: l.first[n] + uint64(c.above[i])}); len(dots) == most {
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
