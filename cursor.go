package replicator

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/feed"
	"github.com/level-replicator/replicator/internal/store"
)

// Cursor is how far a consumer of [DB.Changes] has come: a version vector, which means the same at
// every replica of the cluster. The zero Cursor is the beginning. Cursors are opaque, and may be stored
// as bytes or as text.
//
// One takes 18 to 26 bytes per opening of a database in the life of the cluster, a third more as text.
// A consumer that stores cursors often stores one whole now and then, and of the others what differs
// from it, with [Cursor.MarshalSince]: that is some 40 bytes and 20 more for each replica that has
// written meanwhile.
type Cursor struct {
	cluster clusterHash
	at      feed.Position
}

// clusterHash stands for the name of a cluster.
type clusterHash [8]byte

func hashCluster(name string) (h clusterHash) {
	sum := sha256.Sum256([]byte("replicator cursor\x00" + name))
	copy(h[:], sum[:])
	return h
}

const (
	cursorVersion  = 1
	cursorScanning = 1 // flags: of keys from one on, which follows, nothing was delivered yet
	cursorSince    = 2 // the rest is what differs from a cursor with the checksum that follows
)

// ErrCursor refuses a cursor: what was stored is damaged, or of a later release, or of another cluster.
// The text says which. A consumer that has no other begins with the zero Cursor.
var ErrCursor = errors.New("replicator: the cursor cannot be used")

// IsZero reports whether c is the beginning.
func (c Cursor) IsZero() bool { return c.at.Zero() }

// MarshalBinary returns the cursor as bytes, none for the zero Cursor.
func (c Cursor) MarshalBinary() ([]byte, error) {
	if c.IsZero() {
		return nil, nil
	}
	return c.appendTo(0, nil, c.at.Vector()), nil
}

// appendTo writes a cursor, with some bytes behind the flags and some part of its vector.
func (c Cursor) appendTo(flags byte, more []byte, v causal.Vector) []byte {
	if c.at.Scanning {
		flags |= cursorScanning
	}
	b := append([]byte{cursorVersion}, c.cluster[:]...)
	b = append(append(b, flags), more...)
	if c.at.Scanning {
		b = store.AppendBytes(b, c.at.Key)
	}
	b = binary.AppendUvarint(b, uint64(len(v)))
	b = store.AppendSpelt(b, v)
	return binary.BigEndian.AppendUint32(b, store.Checksum(b))
}

// MarshalSince returns what of the cursor differs from an earlier one of the same consumer, to be read with
// UnmarshalSince of that.
func (c Cursor) MarshalSince(base Cursor) ([]byte, error) {
	v, w := c.at.Vector(), base.at.Vector()
	if c.IsZero() || base.IsZero() || c.cluster != base.cluster || c.at.Scanning || base.at.Scanning || !w.Within(v) {
		return c.MarshalBinary()
	}
	var more causal.Vector
	for _, d := range v {
		if d.Seq > w.Seq(d.Origin) {
			more = append(more, d)
		}
	}
	return c.appendTo(cursorSince, binary.BigEndian.AppendUint64(nil, base.sum()), more), nil
}

// sum is a checksum of the whole cursor.
func (c Cursor) sum() uint64 {
	b, _ := c.MarshalBinary()
	return xxhash.Sum64(b)
}

// UnmarshalSince returns the cursor that MarshalSince was called of; c is what it was called with. The error is [ErrCursor].
func (c Cursor) UnmarshalSince(b []byte) (Cursor, error) {
	n, since, err := decodeCursor(b)
	if err == nil && since != 0 && since != c.sum() {
		err = errors.New("it was stored as what differs from another one")
	}
	if err != nil {
		return Cursor{}, fmt.Errorf("%w: %w", ErrCursor, err)
	}
	if since == 0 {
		return n, nil
	}
	n.at.Root = c.at.Vector().Clone().Join(n.at.Root)
	return n, nil
}

// UnmarshalBinary reads what MarshalBinary returned. The error is [ErrCursor].
func (c *Cursor) UnmarshalBinary(b []byte) error {
	n, since, err := decodeCursor(b)
	if err == nil && since != 0 {
		err = errors.New("it was stored as what differs from another one, and is to be read with UnmarshalSince of that")
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCursor, err)
	}
	*c = n
	return nil
}

// decodeCursor reads a cursor, or what differs from one whose sum is since.
func decodeCursor(b []byte) (c Cursor, since uint64, err error) {
	if len(b) == 0 {
		return c, 0, nil
	}
	if err := checkVersion(b, cursorVersion); err != nil {
		return c, 0, err
	}
	end := len(b) - 4
	if end < 1 || binary.BigEndian.Uint32(b[end:]) != store.Checksum(b[:end]) {
		return c, 0, errCutShort
	}
	d := store.Decoder{B: b[1:end]}
	copy(c.cluster[:], d.Take(len(c.cluster)))
	flags := d.Byte()
	if flags&^(cursorScanning|cursorSince) != 0 {
		return Cursor{}, 0, errors.New("it is of a later release")
	}
	if flags&cursorSince != 0 {
		if since = d.Uint64(); since == 0 {
			since = 1
		}
	}
	if c.at.Scanning = flags&cursorScanning != 0; c.at.Scanning {
		c.at.Key = bytes.Clone(d.Bytes(len(d.B)))
	}
	if c.at.Root, err = readSpelt(&d, d.Count(17)); err != nil {
		return Cursor{}, 0, err
	}
	if d.End() != nil || len(c.at.Root) == 0 && !c.at.Scanning && since == 0 {
		return Cursor{}, 0, errCutShort
	}
	return c, since, nil
}

// String returns the cursor as text that may stand in an HTTP header, a cookie or a URL: letters,
// digits, '-' and '_', or nothing for the zero Cursor.
func (c Cursor) String() string {
	b, _ := c.MarshalBinary()
	return encodeText(b)
}

// MarshalText makes a cursor a string in JSON.
func (c Cursor) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads what String and MarshalText returned. The error is [ErrCursor].
func (c *Cursor) UnmarshalText(text []byte) error {
	b, err := decodeText(text)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCursor, err)
	}
	return c.UnmarshalBinary(b)
}

// ParseCursor reads what [Cursor.String] returned. Text that comes from a client may be anything: the error is
// [ErrCursor] for what is no cursor.
func ParseCursor(text string) (c Cursor, err error) {
	err = c.UnmarshalText([]byte(text))
	return c, err
}
