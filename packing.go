package replicator

import (
	"context"
	"net"

	"github.com/klauspost/compress/s2"
)

// Compression says what is sent to peers in compressed form. Every server can read
// it, whatever its own setting.
type Compression int

const (
	// CompressNothing is the default.
	CompressNothing Compression = iota
	// CompressRemote is for peers on other machines.
	CompressRemote
	// CompressAll is for peers on this machine, too.
	CompressAll
)

// packAbove is the size from which a payload is worth a try.
const packAbove = 1 << 10

// packs tells whether frames over a connection are to be compressed.
func (c Compression) packs(conn net.Conn) bool {
	return c == CompressAll || c == CompressRemote && !isLoopbackAddr(conn.RemoteAddr().String())
}

// pack gives the frame that is sent instead of another: the same, if packing it
// saves less than an eighth. Its payload is valid until the next call.
func (t *conversation) pack(f frame) frame {
	if !t.packs || len(f.payload) < packAbove || !packable(f.kind) {
		return f
	}
	if n := 1 + s2.MaxEncodedLen(len(f.payload)); cap(t.packed) < n {
		t.packed = make([]byte, n)
	}
	b := t.packed[:cap(t.packed)]
	b[0] = byte(f.kind)
	n := 1 + len(s2.Encode(b[1:], f.payload))
	if n > len(f.payload)/8*7 {
		return f
	}
	return frame{framePacked, b[:n]}
}

// packable tells which frames may be packed: those that carry much. What introduces
// a peer, or is its last word, can be read by everybody.
func packable(kind frameType) bool {
	switch kind {
	case frameVectors, frameAddresses, framePull, framePage, frameChunk, frameProbe, frameProbed, frameFetch, frameWant:
		return true
	}
	return false
}

// unpack gives the frame within a packed one. What it will take is looked at, and
// counted among MaxInFlight, before it is unpacked.
func (t *conversation) unpack(ctx context.Context, packed []byte) (frameType, []byte, error) {
	if len(packed) == 0 || !packable(frameType(packed[0])) {
		return 0, nil, protocolErrorf("a packed frame that may not be packed")
	}
	n, err := s2.DecodedLen(packed[1:])
	if err != nil {
		return 0, nil, protocolErrorf("a packed frame: %v", err)
	}
	if n > frameCap {
		return 0, nil, protocolErrorf("a packed frame of %d bytes, at most %d are allowed", n, frameCap)
	}
	if err := t.reserve(ctx, n); err != nil {
		return 0, nil, err
	}
	payload, err := s2.Decode(nil, packed[1:])
	if err != nil {
		return 0, nil, protocolErrorf("a packed frame: %v", err)
	}
	return frameType(packed[0]), payload, nil
}
