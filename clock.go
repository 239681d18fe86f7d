package replicator

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"time"
)

// Origin names one opening of one database: 16 random bytes, drawn afresh at
// every [Replicate]. Each write is named by the origin it was made under and
// its position in that origin's log.
type Origin [16]byte

// String gives the origin as 32 hexadecimal digits.
func (o Origin) String() string { return hex.EncodeToString(o[:]) }

// Short gives the first eight digits of the origin, enough for a person to
// tell the servers of a cluster apart.
func (o Origin) Short() string { return hex.EncodeToString(o[:4]) }

// MarshalText makes an origin a string in JSON.
func (o Origin) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (o *Origin) UnmarshalText(text []byte) error {
	if len(text) != 2*len(o) {
		return fmt.Errorf("replicator: an origin has %d hexadecimal digits, not %d", 2*len(o), len(text))
	}
	_, err := hex.Decode(o[:], text)
	return err
}

func (o Origin) compare(p Origin) int { return bytes.Compare(o[:], p[:]) }

// maxSeq bounds a position in a log. What claims more is not ours.
const maxSeq = 1<<62 - 1

// dot is the name of one write, never used twice: an origin and the position
// in that origin's log, from 1.
type dot struct {
	origin Origin
	seq    uint64
}

func (d dot) compare(e dot) int {
	return cmp.Or(d.origin.compare(e.origin), cmp.Compare(d.seq, e.seq))
}

func (d dot) String() string { return fmt.Sprintf("%s/%d", d.origin.Short(), d.seq) }

// vector is a version vector: for each origin the greatest seq seen. A write
// with that seq or a smaller one is within the vector.
//
// Invariant: sorted by origin, no origin twice, no seq of 0.
type vector []dot

func (v vector) find(o Origin) (int, bool) {
	// Nearly all vectors are short: a version has seen one or two writers.
	if len(v) <= 8 {
		for i := range v {
			if c := v[i].origin.compare(o); c >= 0 {
				return i, c == 0
			}
		}
		return len(v), false
	}
	return slices.BinarySearchFunc(v, o, func(d dot, o Origin) int { return d.origin.compare(o) })
}

// seq is the greatest seq of an origin within v, 0 if there is none.
func (v vector) seq(o Origin) uint64 {
	if i, ok := v.find(o); ok {
		return v[i].seq
	}
	return 0
}

// has tells whether d is within v.
func (v vector) has(d dot) bool { return d.seq <= v.seq(d.origin) }

// raise puts d within v and returns the vector, which may share memory with v.
func (v vector) raise(d dot) vector {
	if d.seq == 0 {
		return v
	}
	i, ok := v.find(d.origin)
	if !ok {
		return slices.Insert(v, i, d)
	}
	v[i].seq = max(v[i].seq, d.seq)
	return v
}

// join puts all of w within v and returns the vector, which may share memory
// with v but not with w.
func (v vector) join(w vector) vector {
	for _, d := range w {
		v = v.raise(d)
	}
	return v
}

// within tells whether all of v is within w.
func (v vector) within(w vector) bool {
	for _, d := range v {
		if !w.has(d) {
			return false
		}
	}
	return true
}

func (v vector) clone() vector { return slices.Clone(v) }

// stamp is hybrid logical time (Kulkarni et al. 2014): 48 bits of milliseconds
// since 1970 above 16 bits of counter. It follows the wall clock where it can and
// never goes back, so that a later write of one server has a greater stamp.
type stamp uint64

func stampOf(t time.Time) stamp { return stamp(max(t.UnixMilli(), 0)) << 16 }

func (s stamp) time() time.Time { return time.UnixMilli(int64(s >> 16)).UTC() }

// hybridClock gives stamps. The wall clock is handed in with each call.
type hybridClock struct{ last stamp }

// next is a stamp greater than every one given or seen before.
func (c *hybridClock) next(wall time.Time) stamp {
	c.last = max(c.last+1, stampOf(wall))
	return c.last
}

// see takes in the stamp of a write from elsewhere.
func (c *hybridClock) see(s stamp) { c.last = max(c.last, s) }
