package session

import (
	"encoding/binary"
	"io"
	"time"

	"github.com/level-replicator/replicator/internal/replica"
)

const (
	HandshakeTimeout = 5 * time.Second // TLS, and then the peer's hello
	PageSize         = 256 << 10       // bytes after which a page ends
	smallPage        = 16 << 10        // and after a session that broke off
	InFlightTimeout  = 10 * time.Second
	LingerTimeout    = time.Second // for a last word to be read before the connection goes
)

// A conversation is a sequence of frames: a length of four bytes (big endian,
// of what follows it), a type, a payload. Integers are unsigned varints, byte
// strings have their length in front, unless said. testdata/format has samples.
//
//	dialer                              acceptor
//	hello                       →
//	                            ←       hello, and vectors, addresses if they are news
//	(equal: both are done)
//	vectors, addresses, pull    →
//	                            ←       vectors, chunk…, page …, end
//	(probe, probed …, fetch, page …: a repair)
//	turn                        →
//	                            ←       pull
//	vectors, chunk…, page …, end →
//	                            ←       bye
//
// A side that has nothing to pull says turn, or bye, at once.
//
// refuse may come at any time, from either side, as the last word; wait after both
// have said hello, from a side that has something to say and is not ready.
type FrameType byte

const (
	FrameHello      FrameType = 1  // who speaks, and digests of what it knows and holds
	FrameRefuse     FrameType = 2  // code, text: why the conversation ends
	FrameVectors    FrameType = 3  // what the speaker claims, has on disk and can prove, as far as it is news
	FrameAddresses  FrameType = 4  // addresses of servers the speaker knows
	FramePull       FrameType = 5  // send me what I lack; with what may be skipped
	FramePage       FrameType = 6  // keys with all their versions, as of one state
	FrameChunk      FrameType = 7  // a part of a value too large for a page
	FrameEnd        FrameType = 8  // the pull is whole
	FrameTurn       FrameType = 9  // now you may pull
	FrameBye        FrameType = 10 // that was all
	FrameProbe      FrameType = 11 // ranges of the log with their sums: do you hold the same?
	FrameProbeReply FrameType = 12 // the answer: split sums, or dots
	FrameFetch      FrameType = 13 // keys and dots whose state is asked for
	FrameKeepalive  FrameType = 14 // the speaker is still at work
	FramePacked     FrameType = 15 // another frame, compressed
	FrameWant       FrameType = 16 // keys whose values were not sent with their names: some of those values
)

const (
	ProtocolMin = 1 // the oldest version spoken
	ProtocolMax = 1 // the newest

	FrameCap  = 4 << 20  // greatest frame
	HelloCap  = 64 << 10 // greatest frame before the peer has proved who it is
	FrameHead = 5        // length and type
)

// AppendHead writes what stands in front of a payload of some size.
func AppendHead(b []byte, t FrameType, size int) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(1+size))
	return append(b, byte(t))
}

// PayloadSize returns how many bytes of payload the head of a frame announces, if that
// is within a limit. It compares before it converts: on 32 bits an int would wrap.
func PayloadSize(head []byte, limit int) (int, error) {
	n := binary.BigEndian.Uint32(head)
	if n == 0 || uint64(n)-1 > uint64(limit) {
		return 0, replica.ProtocolErrorf("a frame of %d bytes, at most %d are allowed", n, limit)
	}
	return int(n - 1), nil
}

// ReadFrame reads one frame into buf, which grows with what arrives, never with
// what is announced. The payload is valid until buf is used again.
func ReadFrame(r io.Reader, buf []byte, limit int) (t FrameType, payload, newBuf []byte, err error) {
	var head [FrameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, buf, err
	}
	n, err := PayloadSize(head[:], limit)
	if err != nil {
		return 0, nil, buf, err
	}
	buf = buf[:0]
	for len(buf) < n {
		step := min(n-len(buf), max(64<<10, len(buf)))
		start := len(buf)
		buf = append(buf, make([]byte, step)...)
		if _, err := io.ReadFull(r, buf[start:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, nil, buf, err
		}
	}
	return FrameType(head[4]), buf, buf, nil
}
