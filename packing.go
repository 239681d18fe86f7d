package replicator

import (
	"context"
	"net"

	"github.com/klauspost/compress/s2"
	"github.com/level-replicator/replicator/internal/netaddr"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
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
	return c == CompressAll || c == CompressRemote && !netaddr.IsLoopbackAddr(conn.RemoteAddr().String())
}

// pack gives the frame that is sent instead of another: the same, if packing it
// saves less than an eighth. Its payload is valid until the next call.
func (t *conversation) pack(f session.Frame) session.Frame {
	if !t.packs || len(f.Payload) < packAbove || !packable(f.Kind) {
		return f
	}
	if n := 1 + s2.MaxEncodedLen(len(f.Payload)); cap(t.packed) < n {
		t.packed = make([]byte, n)
	}
	b := t.packed[:cap(t.packed)]
	b[0] = byte(f.Kind)
	n := 1 + len(s2.Encode(b[1:], f.Payload))
	if n > len(f.Payload)/8*7 {
		return f
	}
	return session.Frame{Kind: session.FramePacked, Payload: b[:n]}
}

// packable tells which frames may be packed: those that carry much. What introduces
// a peer, or is its last word, can be read by everybody.
func packable(kind session.FrameType) bool {
	switch kind {
	case session.FrameVectors, session.FrameAddresses, session.FramePull, session.FramePage, session.FrameChunk, session.FrameProbe, session.FrameProbeReply, session.FrameFetch, session.FrameWant:
		return true
	}
	return false
}

// unpack gives the frame within a packed one. What it will take is looked at, and
// counted among MaxInFlight, before it is unpacked.
func (t *conversation) unpack(ctx context.Context, packed []byte) (session.FrameType, []byte, error) {
	if len(packed) == 0 || !packable(session.FrameType(packed[0])) {
		return 0, nil, replica.ProtocolErrorf("a packed frame that may not be packed")
	}
	n, err := s2.DecodedLen(packed[1:])
	if err != nil {
		return 0, nil, replica.ProtocolErrorf("a packed frame: %v", err)
	}
	if n > session.FrameCap {
		return 0, nil, replica.ProtocolErrorf("a packed frame of %d bytes, at most %d are allowed", n, session.FrameCap)
	}
	if err := t.reserve(ctx, n); err != nil {
		return 0, nil, err
	}
	payload, err := s2.Decode(nil, packed[1:])
	if err != nil {
		return 0, nil, replica.ProtocolErrorf("a packed frame: %v", err)
	}
	return session.FrameType(packed[0]), payload, nil
}
