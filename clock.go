package replicator

import (
	"errors"
	"fmt"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// Origin names one incarnation of a replica: 16 random bytes, drawn afresh at every
// [Replicate] and each time that a write has to be reissued. Each write is named by the
// origin that it was made under and its position in that origin's log.
type Origin [16]byte

// String returns the origin as 32 hexadecimal digits.
func (o Origin) String() string { return causal.Origin(o).String() }

// Short returns the first eight digits of the origin, enough for a person to tell the
// replicas of a cluster apart.
func (o Origin) Short() string { return causal.Origin(o).Short() }

// MarshalText makes an origin a string in JSON.
func (o Origin) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (o *Origin) UnmarshalText(text []byte) error { return (*causal.Origin)(o).UnmarshalText(text) }

// Digest is a 128-bit sum of a hash of every version that a replica holds under keys with a
// value. Two replicas that know of the same writes have the same digest exactly if they hold
// the same. Compare with ==.
type Digest [16]byte

// String returns the digest as 32 hexadecimal digits.
func (d Digest) String() string { return causal.Origin(d).String() }

// MarshalText makes a digest a string in JSON.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (d *Digest) UnmarshalText(text []byte) error { return (*causal.Origin)(d).UnmarshalText(text) }

// Token is what a replica knew at one moment: for every opening of a database that
// it had heard of, how many of its writes. A client that wrote, or read, at one
// replica takes the token along to another, and that one waits with
// [DB.WaitFor] until it knows as much. It is opaque and comparable only as text.
//
// One of [DB.Token] takes 18 to 26 bytes per opening of a database in the life of the
// cluster, a third more as text: after 300 openings it is too large for a cookie (4 kB)
// and for the headers that many proxies take (8 kB). One of [DB.WriteToken] takes as
// many bytes in all. The zero Token is one that every replica covers.
type Token struct{ claim causal.Vector }

const tokenVersion = 1

// Digest is a sum of what this replica holds. See [Digest]. It is zero while that is not known,
// see [DB.Counted].
func (db *DB) Digest() Digest {
	var s causal.Sum
	db.with(func(r *replica.Replica) {
		if _, counting := r.Counting(); !counting {
			s = r.Digest
		}
	})
	return Digest(s.Digest())
}

// MarshalBinary returns the token as bytes.
func (t Token) MarshalBinary() ([]byte, error) {
	return store.AppendSpelt([]byte{tokenVersion}, t.claim), nil
}

// ErrToken refuses a token: it is damaged, or of a later release, or no replica of this cluster can have given it. The
// text says which.
var ErrToken = errors.New("replicator: the token cannot be used")

// UnmarshalBinary reads what MarshalBinary returned. The error is [ErrToken].
func (t *Token) UnmarshalBinary(b []byte) error {
	claim, err := decodeToken(b)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrToken, err)
	}
	t.claim = claim
	return nil
}

func decodeToken(b []byte) (causal.Vector, error) {
	if err := checkVersion(b, tokenVersion); err != nil {
		return nil, err
	}
	d := store.Decoder{B: b[1:]}
	return readSpelt(&d, -1)
}

// String returns the token as text that may stand in an HTTP header, a cookie or a
// URL: letters, digits, '-' and '_'.
func (t Token) String() string {
	b, _ := t.MarshalBinary()
	return encodeText(b)
}

// MarshalText makes a token a string in JSON.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads what String and MarshalText returned. The error is [ErrToken].
func (t *Token) UnmarshalText(text []byte) error {
	b, err := decodeText(text)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrToken, err)
	}
	return t.UnmarshalBinary(b)
}

// ParseToken reads what [Token.String] returned. Text that comes from a client may be
// anything: the error is [ErrToken] for what is no token.
func ParseToken(text string) (t Token, err error) {
	err = t.UnmarshalText([]byte(text))
	return t, err
}

// Token is what this replica knows now: its own writes that have returned, and all
// that can be read here.
func (db *DB) Token() Token {
	var t Token
	db.with(func(r *replica.Replica) { t.claim = r.Known.Vector(causal.Covered) })
	return t
}
