package session

import (
	"encoding/binary"
	"io"

	"github.com/level-replicator/replicator/internal/replica"
)

// FrameType is the type of a frame. A frame is a length of four bytes (big endian, of what follows it), a
// type and a payload. Integers are unsigned varints, byte strings have their length in front, unless said
// otherwise. docs/format.md has them all.
type FrameType byte

const (
	FrameHello      FrameType = 1  // who speaks, and digests of what it knows and holds
	FrameRefuse     FrameType = 2  // code, text: why the session ends
	FrameVectors    FrameType = 3  // version vector, checkpoint and watermarks of the speaker, as far as they are news
	FrameAddresses  FrameType = 4  // addresses of replicas that the speaker knows
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

	// Since version 2.
	FrameStay    FrameType = 17 // that was all, and the connection stays
	FramePush    FrameType = 18 // news follows as in the answer to a pull
	FrameRequest FrameType = 19 // push me what I lack, and news at once from now on
	FrameSpare   FrameType = 20 // what you pushed had come another way

	FrameJoin     FrameType = 21 // as pull, and it may be answered in sections
	FrameSections FrameType = 22 // it is: log entries follow, and then rows
	FrameEntries  FrameType = 23 // log entries, in the order of the log
	FrameRows     FrameType = 24 // keys with their values, in the order of the keys
)

const (
	ProtocolMin = 1 // the oldest version spoken
	ProtocolMax = 2 // the newest

	streamVersion = 2 // the first that has streams,
	joinVersion   = 2 // and joins

	FrameCap  = 4 << 20  // greatest frame
	HelloCap  = 64 << 10 // greatest frame before the peer has proved who it is
	FrameHead = 5        // length and type
)

// Frame is one frame as a session sends it.
type Frame struct {
	Kind    FrameType
	Payload []byte
}

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
