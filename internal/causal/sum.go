package causal

import (
	"encoding/binary"
	"math/bits"
)

// Sum is a 128-bit sum of hashes. Their order does not matter, and each can be subtracted
// again.
type Sum [2]uint64

// Add returns s + t.
func (s Sum) Add(t Sum) Sum {
	lo, carry := bits.Add64(s[0], t[0], 0)
	hi, _ := bits.Add64(s[1], t[1], carry)
	return Sum{lo, hi}
}

// Sub returns s - t.
func (s Sum) Sub(t Sum) Sum {
	lo, borrow := bits.Sub64(s[0], t[0], 0)
	hi, _ := bits.Sub64(s[1], t[1], borrow)
	return Sum{lo, hi}
}

// Digest returns the sum as bytes, the most significant first.
func (s Sum) Digest() (d [16]byte) {
	binary.BigEndian.PutUint64(d[:8], s[1])
	binary.BigEndian.PutUint64(d[8:], s[0])
	return d
}
