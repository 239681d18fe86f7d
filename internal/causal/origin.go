package causal

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// Origin names one incarnation: one opening of one database. It is 16 random bytes, drawn at
// every [Replicate]. Origin and position in the origin's log name a write.
type Origin [16]byte

// String returns the origin as 32 hexadecimal digits.
func (o Origin) String() string { return hex.EncodeToString(o[:]) }

// Short returns the first eight digits of the origin, enough for a person to tell the replicas
// of a cluster apart.
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

// Compare orders origins by their bytes.
func (o Origin) Compare(p Origin) int {
	if c := cmp.Compare(binary.BigEndian.Uint64(o[:8]), binary.BigEndian.Uint64(p[:8])); c != 0 {
		return c
	}
	return cmp.Compare(binary.BigEndian.Uint64(o[8:]), binary.BigEndian.Uint64(p[8:]))
}
