package replicator

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/level-replicator/replicator/internal/netaddr"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/transport"
)

// readers and writers are buffers of connections, used again: most sessions are short,
// and end before they fill one.
var (
	readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 64<<10) }}
	writers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, 64<<10) }}
)

// Compression says what is sent to peers in compressed form. Every replica can read
// it, whatever its own setting.
type Compression int

const (
	// NoCompression is the default.
	NoCompression Compression = iota
	// CompressRemote is for peers on other machines.
	CompressRemote
	// CompressAll is for peers on this machine, too.
	CompressAll
)

// packAbove is the size from which a payload is worth a try.
const packAbove = 1 << 10

func (t *conversation) putBuffers() {
	t.w.Reset(nil)
	t.r.Reset(nil)
	writers.Put(t.w)
	readers.Put(t.r)
}

// step reads one frame and has the session take it in.
func (t *conversation) step(ctx context.Context, greeted bool) error {
	limit := session.HelloCap
	if greeted {
		limit = session.FrameCap
	}
	kind, payload, err := t.next(ctx, limit)
	if err != nil {
		var broken replica.ProtocolError
		if errors.As(err, &broken) {
			return t.session.Reject(err) // a frame of no possible length
		}
		if !greeted {
			err = transport.HandshakeError(err)
		}
		return err
	}
	t.pace.FrameDone()
	take := func() error { return t.session.Receive(kind, payload) }
	if greeted {
		err = t.withKeepalive(take)
	} else {
		err = take()
	}
	t.work.follow(t.session, t.pace)
	if kind == session.FrameVectors {
		t.db.reported()
	}
	t.memory.keep(t.session.Retained())
	return err
}

// reported ends the waits that a peer's report has met.
func (db *DB) reported() {
	if db.waiters.any() {
		db.with(func(r *replica.Replica) { db.waiters.wake(r, true) })
	}
}

// next reads one frame, and unpacks it if it is packed. A first frame, which may be no larger than a hello, is not.
func (t *conversation) next(ctx context.Context, limit int) (session.FrameType, []byte, error) {
	kind, payload, err := t.read(ctx, limit)
	if kind == session.FramePacked && err == nil && limit == session.FrameCap {
		return t.unpack(ctx, payload)
	}
	return kind, payload, err
}

func (t *conversation) read(ctx context.Context, limit int) (session.FrameType, []byte, error) {
	head, err := t.r.Peek(session.FrameHead)
	if err != nil {
		if len(head) > 0 && err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	n, err := session.PayloadSize(head, limit)
	if err != nil {
		return 0, nil, err
	}
	if err := t.memory.reserve(ctx, session.FrameHead+n); err != nil {
		return 0, nil, err
	}
	kind, payload, _, err := session.ReadFrame(t.r, nil, limit)
	return kind, payload, err
}

// flush sends what the session has to say.
func (t *conversation) flush() error { return t.send(t.session.Frames()) }

// send sends frames.
func (t *conversation) send(frames []session.Frame) error {
	if len(frames) == 0 {
		return nil
	}
	for _, f := range frames {
		f = t.pack(f)
		if _, err := t.w.Write(session.AppendHead(t.w.AvailableBuffer(), f.Kind, len(f.Payload))); err != nil {
			return err
		}
		if _, err := t.w.Write(f.Payload); err != nil {
			return err
		}
	}
	return t.w.Flush()
}

// withKeepalive does work that may take long, such as adding up a whole log or committing
// while goleveldb is behind, and sends the peer a keepalive now and then. Nothing
// else is sent meanwhile.
func (t *conversation) withKeepalive(work func() error) error {
	var mu sync.Mutex
	over := false
	var again *time.Timer
	mu.Lock()
	again = time.AfterFunc(session.KeepaliveInterval, func() {
		mu.Lock()
		defer mu.Unlock()
		if over {
			return
		}
		if _, err := t.w.Write(session.AppendHead(t.w.AvailableBuffer(), session.FrameKeepalive, 0)); err != nil {
			return // the next flush returns the error
		}
		if t.w.Flush() == nil {
			again.Reset(session.KeepaliveInterval)
		}
	})
	mu.Unlock()
	err := work()
	again.Stop()
	mu.Lock() // a word under way is ended first
	over = true
	mu.Unlock()
	return err
}

// packs reports whether to compress frames over a connection.
func (c Compression) packs(conn net.Conn) bool {
	return c == CompressAll || c == CompressRemote && !netaddr.IsLoopbackAddr(conn.RemoteAddr().String())
}

// pack returns the frame that is sent instead of another: the same, if packing it
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

// packable reports which frames may be packed: those that carry much. What introduces
// a peer, or is its last word, can be read by everybody.
func packable(kind session.FrameType) bool {
	switch kind {
	case session.FrameVectors, session.FrameAddresses, session.FramePull, session.FrameJoin, session.FramePage, session.FrameEntries, session.FrameRows, session.FrameChunk, session.FrameProbe, session.FrameProbeReply, session.FrameFetch, session.FrameWant:
		return true
	}
	return false
}

// unpack returns the frame within a packed one. What it will take is looked at, and
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
	if err := t.memory.reserve(ctx, n); err != nil {
		return 0, nil, err
	}
	payload, err := s2.Decode(nil, packed[1:])
	if err != nil {
		return 0, nil, replica.ProtocolErrorf("a packed frame: %v", err)
	}
	return session.FrameType(packed[0]), payload, nil
}
