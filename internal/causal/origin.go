package causal

import (
	"bytes"
	"encoding/hex"
	"fmt"
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

func (o Origin) Compare(p Origin) int { return bytes.Compare(o[:], p[:]) }
