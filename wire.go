package replicator

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
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
type frameType byte

const (
	frameHello     frameType = 1  // who speaks, and digests of what it knows and holds
	frameRefuse    frameType = 2  // code, text: why the conversation ends
	frameVectors   frameType = 3  // what the speaker claims, has on disk and can prove, as far as it is news
	frameAddresses frameType = 4  // addresses of servers the speaker knows
	framePull      frameType = 5  // send me what I lack; with what may be skipped
	framePage      frameType = 6  // keys with all their versions, as of one state
	frameChunk     frameType = 7  // a part of a value too large for a page
	frameEnd       frameType = 8  // the pull is whole
	frameTurn      frameType = 9  // now you may pull
	frameBye       frameType = 10 // that was all
	frameProbe     frameType = 11 // ranges of the log with their sums: do you hold the same?
	frameProbed    frameType = 12 // the answer: split sums, or dots
	frameFetch     frameType = 13 // keys and dots whose state is asked for
	frameWait      frameType = 14 // the speaker is still at work
	framePacked    frameType = 15 // another frame, compressed
	frameWant      frameType = 16 // keys whose values were not sent with their names: some of those values
)

const (
	protocolMin = 1 // the oldest version spoken
	protocolMax = 1 // the newest

	frameCap  = 4 << 20  // greatest frame
	helloCap  = 64 << 10 // greatest frame before the peer has proved who it is
	frameHead = 5        // length and type
)

var (
	errShort    = errors.New("replicator: record ends early")
	errTrailing = errors.New("replicator: record has bytes behind its end")
)

// protocolError is what a peer must not send.
type protocolError string

func (e protocolError) Error() string { return "replicator: protocol error: " + string(e) }

func protocolErrorf(format string, args ...any) error {
	return protocolError(fmt.Sprintf(format, args...))
}

// appendHead writes what stands in front of a payload of some size.
func appendHead(b []byte, t frameType, size int) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(1+size))
	return append(b, byte(t))
}

// payloadSize returns how many bytes of payload the head of a frame announces, if that
// is within a limit. It compares before it converts: on 32 bits an int would wrap.
func payloadSize(head []byte, limit int) (int, error) {
	n := binary.BigEndian.Uint32(head)
	if n == 0 || uint64(n)-1 > uint64(limit) {
		return 0, protocolErrorf("a frame of %d bytes, at most %d are allowed", n, limit)
	}
	return int(n - 1), nil
}

// readFrame reads one frame into buf, which grows with what arrives, never with
// what is announced. The payload is valid until buf is used again.
func readFrame(r io.Reader, buf []byte, limit int) (t frameType, payload, newBuf []byte, err error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, buf, err
	}
	n, err := payloadSize(head[:], limit)
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
	return frameType(head[4]), buf, buf, nil
}

// decoder reads a record. It never panics and never allocates more than what is
// left could fill; the first fault sticks, and what is read after it is zero.
type decoder struct {
	b    []byte
	err  error
	dots *slab[dot] // for vectors; may be nil
}

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
	d.b = nil
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || n > 1 && d.b[n-1] == 0 { // one way only to write a number
		d.fail(errShort)
		return 0
	}
	d.b = d.b[n:]
	return v
}

// below reads a number that must be less than or equal to limit.
func (d *decoder) upTo(limit uint64) uint64 {
	v := d.uint()
	if v > limit {
		d.fail(fmt.Errorf("replicator: %d in a record, at most %d is allowed", v, limit))
		return 0
	}
	return v
}

// count reads how many things follow, each of which takes at least size bytes.
func (d *decoder) count(size int) int { return int(d.upTo(uint64(len(d.b) / size))) }

func (d *decoder) byte() byte {
	if len(d.b) < 1 {
		d.fail(errShort)
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *decoder) uint32() uint32 {
	if b := d.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) uint64() uint64 {
	if len(d.b) < 8 {
		d.fail(errShort)
		return 0
	}
	v := binary.BigEndian.Uint64(d.b)
	d.b = d.b[8:]
	return v
}

// take reads n bytes, which alias the record.
func (d *decoder) take(n int) []byte {
	if n > len(d.b) {
		d.fail(errShort)
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

// bytes reads a byte string of at most limit bytes, which aliases the record.
func (d *decoder) bytes(limit int) []byte { return d.take(int(d.upTo(uint64(min(limit, len(d.b)))))) }

// sized reads a byte string whose length an option bounds, and says so if it is
// longer: the option may just be another on the other side.
func (d *decoder) sized(what, option string, limit int) ([]byte, error) {
	n := d.uint()
	if d.err == nil && n > uint64(limit) {
		return nil, fmt.Errorf("%w: %s of %d bytes, %s is %d", ErrTooLarge, what, n, option, limit)
	}
	return d.take(int(n)), nil
}

func (d *decoder) string(limit int) string { return string(d.bytes(limit)) }

func (d *decoder) origin() (o Origin) {
	copy(o[:], d.take(len(o)))
	return o
}

func (d *decoder) sum() sum { return sum{d.uint64(), d.uint64()} }

// seq reads a position in a log.
func (d *decoder) seq() uint64 { return d.upTo(maxSeq) }

// end gives the first fault, which may be that something is left over.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		return errTrailing
	}
	return d.err
}

func appendBytes(b, v []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

func appendSum(b []byte, s sum) []byte {
	b = binary.BigEndian.AppendUint64(b, s[0])
	return binary.BigEndian.AppendUint64(b, s[1])
}

// version is one write of one key, as the log has it. Immutable once made.
type version struct {
	dot
	vv      vector // what its writer had seen of this key, its own dot left out
	clock   uint64
	stamp   stamp
	deleted bool
	value   []byte // nil if deleted, or if only the rest is known

	// The batch it was written in: its entries have the seqs from seq-offset
	// on, and there are count of them.
	offset, count uint64

	// Of the state of a peer: only the dot was sent,
	known  bool   // as the rest is known here
	apart  bool   // as the rest comes when it is asked for
	large  uint64 // or all but the value, as it is larger than is taken here, of so many bytes
	listed bool   // it is known because we said so when we asked for the key
}

// saw tells whether the writer of v had seen the write d of the same key.
func (v *version) saw(d dot) bool { return v.vv.has(d) }

// origins gives short names to origins where many dots are written: on disk the
// aliases of the database, on the wire the numbers of the conversation.
type origins interface {
	number(o Origin) uint64 // may assign a number
	origin(n uint64) (Origin, bool)
}

func appendDot(b []byte, d dot, os origins) []byte {
	b = binary.AppendUvarint(b, os.number(d.origin))
	return binary.AppendUvarint(b, d.seq)
}

func (d *decoder) dot(os origins) dot {
	n := d.uint()
	o, ok := os.origin(n)
	if !ok {
		d.fail(fmt.Errorf("replicator: origin %d in a record is not known", n))
	}
	return dot{o, d.seq()}
}

func appendVector(b []byte, v vector, os origins) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	for _, e := range v {
		b = appendDot(b, e, os)
	}
	return b
}

// vector reads a vector, whose origins must be in order: else reading it would
// take time that grows with the square of its length.
func (d *decoder) vector(os origins) vector {
	n := d.count(2)
	if n == 0 {
		return nil
	}
	// Not all at once: an entry takes 24 bytes of memory and may take 2 here.
	v := vector(d.dots.take(min(n, 64)))
	for range n {
		e := d.dot(os)
		if d.err != nil {
			return nil
		}
		if k := len(v); e.seq == 0 || k > 0 && v[k-1].origin.compare(e.origin) >= 0 {
			d.fail(errors.New("replicator: a vector names a seq of 0, or origins out of order"))
			return nil
		}
		v = append(v, e)
	}
	return v
}

const (
	flagDeleted byte = 1 << iota
	flagInline       // the value is in the record: it is not the one at the raw key
	flagCounted      // the key holds a value: the dot is in the digest
	flagKnown        // only the dot is in the record
	flagChunked      // the value came ahead, in chunks
	flagApart        // only the dot is in the record: the rest comes when it is asked for
	flagLarge        // the value is larger than the receiver takes: its size is in its place
)

// maxClock bounds a key's logical clock, far above what writing could reach.
const maxClock = math.MaxUint64 >> 2

// appendBody writes what an entry has beside dot, key and value: the same bytes
// in the log and on the wire, but for the numbers of the origins.
func appendBody(b []byte, v *version, os origins) []byte {
	b = binary.AppendUvarint(b, v.clock)
	b = binary.BigEndian.AppendUint64(b, uint64(v.stamp))
	b = binary.AppendUvarint(b, v.offset)
	b = binary.AppendUvarint(b, v.count)
	return appendVector(b, v.vv, os)
}

func (d *decoder) body(v *version, os origins) {
	v.clock = d.upTo(maxClock)
	v.stamp = stamp(d.uint64())
	v.offset = d.seq()
	v.count = d.seq()
	v.vv = d.vector(os)
	if d.err == nil && (v.seq == 0 || v.offset >= max(v.count, 1) || v.offset >= v.seq) {
		d.fail(fmt.Errorf("replicator: entry %d is not in its batch of %d", v.offset, v.count))
	}
	if d.err == nil && v.vv.has(v.dot) {
		d.fail(errors.New("replicator: a vv reaches its own dot"))
	}
}
