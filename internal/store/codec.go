package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/level-replicator/replicator/internal/causal"
)

// ErrTooLarge refuses a key or value above MaxKey or MaxValue.
var ErrTooLarge = errors.New("replicator: key or value is too large")

var (
	ErrShort    = errors.New("replicator: record ends early")
	ErrTrailing = errors.New("replicator: record has bytes behind its end")
)

// Decoder reads a record. It never panics and never allocates more than what is
// left could fill; the first fault sticks, and what is read after it is zero.
type Decoder struct {
	B    []byte
	Err  error
	dots *Slab[causal.Dot] // for vectors; may be nil
}

// numbering has short names for origins where many dots are written: on disk the
// aliases of the database, on the wire the numbers of the conversation.
type numbering interface {
	Number(o causal.Origin) uint64 // may assign a number
	Origin(n uint64) (causal.Origin, bool)
}

const (
	FlagDeleted  byte = 1 << iota
	flagInline        // the value is in the record: it is not the one at the raw key
	flagInDigest      // the key holds a value: the dot is in the digest
	FlagNameOnly      // only the dot is in the record
	FlagChunked       // the value came ahead, in chunks
	FlagApart         // only the dot is in the record: the rest comes when it is asked for
	FlagLarge         // the value is larger than the receiver takes: its size is in its place
)

// MaxClock bounds a key's logical clock, far above what writing could reach.
const MaxClock = math.MaxUint64 >> 2

func AppendSpanMap(b []byte, m causal.SpanMap) []byte {
	b = binary.AppendUvarint(b, uint64(len(m)))
	for _, o := range causal.SortedOrigins(m) {
		b = append(b, o[:]...)
		b = binary.AppendUvarint(b, uint64(len(m[o])))
		for _, s := range m[o] {
			b = binary.AppendUvarint(b, s.From)
			b = binary.AppendUvarint(b, s.To)
		}
	}
	return b
}

func (d *Decoder) SpanMap() causal.SpanMap {
	m := causal.SpanMap{}
	for range d.Count(17) {
		o := d.Origin()
		m[o] = d.Spans()
	}
	return m
}

// Spans reads spans, which must be in order and apart.
func (d *Decoder) Spans() (ss causal.Spans) {
	n := d.Count(2)
	if n > causal.MaxSpans {
		d.Fail(fmt.Errorf("replicator: %d spans, at most %d are allowed", n, causal.MaxSpans))
	}
	for range n {
		s := causal.Span{From: d.Seq(), To: d.Seq()}
		if k := len(ss); d.Err == nil && (s.From == 0 || s.From > s.To || k > 0 && s.From <= ss[k-1].To+1) {
			d.Fail(errors.New("replicator: spans are out of order"))
		}
		if d.Err != nil {
			return nil
		}
		ss = append(ss, s)
	}
	return ss
}

func Btoi(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func (d *Decoder) Fail(err error) {
	if d.Err == nil {
		d.Err = err
	}
	d.B = nil
}

func (d *Decoder) Uint() uint64 {
	v, n := binary.Uvarint(d.B)
	if n <= 0 || n > 1 && d.B[n-1] == 0 { // one way only to write a number
		d.Fail(ErrShort)
		return 0
	}
	d.B = d.B[n:]
	return v
}

// Int reads a number that may be negative.
func (d *Decoder) Int() int64 {
	v := d.Uint()
	return int64(v>>1) ^ -int64(v&1)
}

// UpTo reads a number that must not exceed limit.
func (d *Decoder) UpTo(limit uint64) uint64 {
	v := d.Uint()
	if v > limit {
		d.Fail(fmt.Errorf("replicator: %d in a record, at most %d is allowed", v, limit))
		return 0
	}
	return v
}

// Count reads how many things follow, each of which takes at least size bytes.
func (d *Decoder) Count(size int) int { return int(d.UpTo(uint64(len(d.B) / size))) }

func (d *Decoder) Byte() byte {
	if len(d.B) < 1 {
		d.Fail(ErrShort)
		return 0
	}
	v := d.B[0]
	d.B = d.B[1:]
	return v
}

// Format reads the first byte of a record, which must name the format of this release.
func (d *Decoder) Format() error {
	if d.Byte() != FormatVersion && d.Err == nil {
		return ErrVersion
	}
	return nil
}

func (d *Decoder) Uint32() uint32 {
	if b := d.Take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (d *Decoder) Uint64() uint64 {
	if len(d.B) < 8 {
		d.Fail(ErrShort)
		return 0
	}
	v := binary.BigEndian.Uint64(d.B)
	d.B = d.B[8:]
	return v
}

// Take reads n bytes, which alias the record.
func (d *Decoder) Take(n int) []byte {
	if n > len(d.B) {
		d.Fail(ErrShort)
		return nil
	}
	v := d.B[:n:n]
	d.B = d.B[n:]
	return v
}

// Bytes reads a byte string of at most limit bytes, which aliases the record.
func (d *Decoder) Bytes(limit int) []byte { return d.Take(int(d.UpTo(uint64(min(limit, len(d.B)))))) }

func (d *Decoder) String(limit int) string { return string(d.Bytes(limit)) }

func (d *Decoder) Origin() (o causal.Origin) {
	copy(o[:], d.Take(len(o)))
	return o
}

func (d *Decoder) Sum() causal.Sum { return causal.Sum{d.Uint64(), d.Uint64()} }

// Seq reads a position in a log.
func (d *Decoder) Seq() uint64 { return d.UpTo(causal.MaxSeq) }

// End returns the first fault, which may be trailing bytes.
func (d *Decoder) End() error {
	if d.Err == nil && len(d.B) > 0 {
		return ErrTrailing
	}
	return d.Err
}

func AppendBytes(b, v []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

func AppendSum(b []byte, s causal.Sum) []byte {
	b = binary.BigEndian.AppendUint64(b, s[0])
	return binary.BigEndian.AppendUint64(b, s[1])
}

func AppendDot(b []byte, d causal.Dot, os numbering) []byte {
	b = binary.AppendUvarint(b, os.Number(d.Origin))
	return binary.AppendUvarint(b, d.Seq)
}

func (d *Decoder) Dot(os numbering) causal.Dot {
	n := d.Uint()
	o, ok := os.Origin(n)
	if !ok {
		d.Fail(fmt.Errorf("replicator: origin %d in a record is not known", n))
	}
	return causal.Dot{Origin: o, Seq: d.Seq()}
}

func AppendVector(b []byte, v causal.Vector, os numbering) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	for _, e := range v {
		b = AppendDot(b, e, os)
	}
	return b
}

// Vector reads a vector, whose origins must be in order: else reading it would
// take time that grows with the square of its length.
func (d *Decoder) Vector(os numbering) causal.Vector {
	n := d.Count(2)
	if n == 0 {
		return nil
	}
	// Not all at once: an entry takes 24 bytes of memory and may take 2 here.
	v := causal.Vector(d.dots.Take(min(n, 64)))
	for range n {
		e := d.Dot(os)
		if d.Err != nil {
			return nil
		}
		if k := len(v); e.Seq == 0 || k > 0 && v[k-1].Origin.Compare(e.Origin) >= 0 {
			d.Fail(errors.New("replicator: a vector names a seq of 0, or origins out of order"))
			return nil
		}
		v = append(v, e)
	}
	return v
}

func (d *Decoder) Body(v *Version, os numbering) {
	v.Clock = d.UpTo(MaxClock)
	v.Stamp = causal.Stamp(d.Uint64())
	v.Offset = d.Seq()
	v.Count = d.Seq()
	v.Context = d.Vector(os)
	d.CheckVersion(v)
}

// CheckVersion refuses a version that nobody can have written.
func (d *Decoder) CheckVersion(v *Version) {
	if d.Err == nil && (v.Seq == 0 || v.Offset >= max(v.Count, 1) || v.Offset >= v.Seq) {
		d.Fail(fmt.Errorf("replicator: entry %d is not in its batch of %d", v.Offset, v.Count))
	}
	if d.Err == nil && v.Context.Contains(v.Dot) {
		d.Fail(errors.New("replicator: a causal context covers its own dot"))
	}
}

// AppendSpelt appends dots with their origins spelt out, for readers that know no aliases.
func AppendSpelt(b []byte, v causal.Vector) []byte {
	for _, d := range v {
		b = binary.AppendUvarint(append(b, d.Origin[:]...), d.Seq)
	}
	return b
}

// Spelt reads one of them and appends it to v, and reports whether it comes behind the others of a vector: if not it
// is left out.
func (d *Decoder) Spelt(v causal.Vector) (_ causal.Vector, ok bool) {
	e := causal.Dot{Origin: d.Origin(), Seq: d.Seq()}
	if n := len(v); e.Seq == 0 || n > 0 && v[n-1].Origin.Compare(e.Origin) >= 0 {
		return v, false
	}
	return append(v, e), true
}
