package causal

import (
	"cmp"
	"encoding/binary"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// MaxSeq bounds a position in a log. Decoders refuse more.
const MaxSeq = 1<<62 - 1

// Dot names one write: an origin and the position in that origin's log, from 1. No dot is used
// twice.
type Dot struct {
	Origin Origin
	Seq    uint64
}

// Compare orders dots by origin and seq.
func (d Dot) Compare(e Dot) int {
	return cmp.Or(d.Origin.Compare(e.Origin), cmp.Compare(d.Seq, e.Seq))
}

func (d Dot) String() string { return fmt.Sprintf("%s/%d", d.Origin.Short(), d.Seq) }

// Hash spreads a dot over 128 bits: xxHash64 of its 24 bytes, and of the same
// with a byte behind them. Members are trusted, so it need only make chance collisions
// of sums unlikely.
func (d Dot) Hash() Sum {
	var b [25]byte
	copy(b[:], d.Origin[:])
	binary.BigEndian.PutUint64(b[16:], d.Seq)
	return Sum{xxhash.Sum64(b[:24]), xxhash.Sum64(b[:25])}
}

// Next returns the dot after d in the order of Compare.
func (d Dot) Next() Dot {
	if d.Seq < MaxSeq {
		return Dot{d.Origin, d.Seq + 1}
	}
	d.Seq = 0
	for i := len(d.Origin) - 1; i >= 0; i-- {
		if d.Origin[i]++; d.Origin[i] != 0 {
			break
		}
	}
	return d
}
