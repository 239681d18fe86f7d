package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/syndtr/goleveldb/leveldb"
)

// Siblings is the log-index of one key: its siblings, the live versions, without
// value and time, which only the log has.
//
// Invariant: sorted by dot; none saw another.
type Siblings []Version

func (s Siblings) Find(d causal.Dot) int {
	return slices.IndexFunc(s, func(v Version) bool { return v.Dot == d })
}

func (s Siblings) Has(d causal.Dot) bool { return s.Find(d) >= 0 }

// Covers reports whether d is one of the versions, or one of them has seen it.
func (s Siblings) Covers(d causal.Dot) bool {
	return slices.ContainsFunc(s, func(v Version) bool { return v.Dot == d || v.HasSeen(d) })
}

// Live returns the versions that no other of s has seen.
func (s Siblings) Live() Siblings {
	live := make(Siblings, 0, len(s))
	for i := range s {
		if !slices.ContainsFunc(s, func(v Version) bool { return v.Dot != s[i].Dot && v.HasSeen(s[i].Dot) }) {
			live = append(live, s[i])
		}
	}
	return live
}

// With appends to dst the versions that x has not seen, and x.
func (s Siblings) With(x *Version, dst Siblings) Siblings {
	for i := range s {
		if !x.HasSeen(s[i].Dot) {
			dst = append(dst, s[i])
		}
	}
	return append(dst, *x)
}

// SameDots reports whether two states name the same versions.
func (s Siblings) SameDots(t Siblings) bool {
	return len(s) == len(t) && !slices.ContainsFunc(s, func(v Version) bool { return !t.Has(v.Dot) })
}

// HasValue reports whether the key holds a value, so that its dots are in the digest.
func (s Siblings) HasValue() bool {
	return slices.ContainsFunc(s, func(v Version) bool { return !v.Deleted })
}

// HasTombstone reports whether all versions are tombstones, so that the key is purged in
// the end.
func (s Siblings) HasTombstone() bool { return len(s) > 0 && !s.HasValue() }

// Hash is what the key adds to the digest.
func (s Siblings) Hash() (h causal.Sum) {
	if !s.HasValue() {
		return h
	}
	return s.DotSum()
}

// DotSum is the sum of the versions' dots.
func (s Siblings) DotSum() (h causal.Sum) {
	for i := range s {
		h = h.Add(s[i].Hash())
	}
	return h
}

func (s Siblings) Sort() { slices.SortFunc(s, func(a, b Version) int { return a.Dot.Compare(b.Dot) }) }

// AppendIndex writes the log-index of a key.
func AppendIndex(b []byte, s Siblings, os numbering) []byte {
	b = append(b, FormatVersion)
	b = binary.AppendUvarint(b, uint64(len(s)))
	for i := range s {
		v := &s[i]
		flags := byte(0)
		if v.Deleted {
			flags |= FlagDeleted
		}
		b = append(b, flags)
		b = AppendDot(b, v.Dot, os)
		b = binary.AppendUvarint(b, v.Clock)
		b = AppendVector(b, v.Context, os)
	}
	return b
}

// DecodeIndex reads the log-index of a key. Nothing of it aliases the record.
func DecodeIndex(record []byte, os numbering) (Siblings, error) {
	return DecodeIndexInto(record, os, nil, nil)
}

// DecodeIndexInto is DecodeIndex with memory for what is read.
func DecodeIndexInto(record []byte, os numbering, versions *Slab[Version], dots *Slab[causal.Dot]) (Siblings, error) {
	d := Decoder{B: record, dots: dots}
	if err := d.Format(); err != nil {
		return nil, err
	}
	n := d.Count(5)
	s := Siblings(versions.Take(n))
	for range n {
		var v Version
		v.Deleted = d.Byte()&FlagDeleted != 0
		v.Dot = d.Dot(os)
		v.Clock = d.UpTo(MaxClock)
		v.Context = d.Vector(os)
		s = append(s, v)
	}
	if err := d.End(); err != nil {
		return nil, err
	}
	if len(s) == 0 {
		return nil, errors.New("replicator: a log-index names no version")
	}
	s.Sort()
	return s, nil
}

// AppendDots appends the dots that a log-index names, and reports whether one of them is of a value, and whether
// the record can be read: DecodeIndex says why not. It is for readers that need nothing else, and allocates
// nothing.
func AppendDots(dots []causal.Dot, record []byte, os numbering) (_ []causal.Dot, hasValue, ok bool) {
	d := Decoder{B: record}
	if d.Format() != nil {
		return dots, false, false
	}
	for range d.Count(5) {
		hasValue = d.Byte()&FlagDeleted == 0 || hasValue
		dots = append(dots, d.Dot(os))
		d.UpTo(MaxClock)
		for range d.Count(2) {
			d.Uint()
			d.Seq()
		}
	}
	return dots, hasValue, d.End() == nil
}

// ReadIndex looks a key up in the store.
func ReadIndex(rd Reader, key []byte, os numbering) (Siblings, error) {
	record, err := rd.Get(KindKey(KindIndex, key), nil)
	if err == leveldb.ErrNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s, err := DecodeIndex(record, os)
	if err != nil {
		return nil, fmt.Errorf("log-index of key %q: %w", key, err)
	}
	return s, nil
}
