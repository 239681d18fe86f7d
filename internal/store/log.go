package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cespare/xxhash/v2"
	"github.com/level-replicator/replicator/internal/causal"
	"github.com/syndtr/goleveldb/leveldb"
)

// Entry is a log entry as the store has it: the version and what belongs to it
// there.
type Entry struct {
	Version
	Key      []byte
	Inline   bool   // the value is in the entry, not at the raw key
	InDigest bool   // the dot is in the digest
	Check    uint32 // of the value
}

// Fingerprint stands for what is at a raw key: nothing, or a value of this checksum.
type Fingerprint struct {
	Deleted bool
	Check   uint32
}

var ErrVersion = errors.New("replicator: record has an unknown format version; it was written by a later release")

// Checksum of a value: the low half of xxHash64. By it the value at the
// raw key is known to be the one that was logged.
func Checksum(value []byte) uint32 { return uint32(xxhash.Sum64(value)) }

// FingerprintOf returns the fingerprint of a value, or of none.
func FingerprintOf(value []byte, deleted bool) Fingerprint {
	if deleted {
		return Fingerprint{Deleted: true}
	}
	return Fingerprint{Check: Checksum(value)}
}

// Append writes the hint of a conflict, which holds the fingerprint of the resolved value (M9).
func (f Fingerprint) Append(b []byte) []byte {
	if f.Deleted {
		return append(b, FormatVersion, FlagDeleted)
	}
	return binary.BigEndian.AppendUint32(append(b, FormatVersion, 0), f.Check)
}

// ReadResolved reads the hint of a conflict, and whether it says what the key resolved to: one of
// an earlier release is empty.
func ReadResolved(rd Reader, key []byte) (f Fingerprint, known bool, err error) {
	rec, err := rd.Get(KindKey(KindConflict, key), nil)
	if err != nil && err != leveldb.ErrNotFound {
		return f, false, err
	}
	f, known = DecodeResolved(rec)
	return f, known, nil
}

// DecodeResolved decodes the hint of a conflict. One that cannot be read says nothing.
func DecodeResolved(rec []byte) (f Fingerprint, known bool) {
	d := Decoder{B: rec}
	err := d.Format()
	if f.Deleted = d.Byte()&FlagDeleted != 0; !f.Deleted {
		f.Check = d.Uint32()
	}
	return f, err == nil && d.End() == nil
}

// AppendEntry writes a log entry.
func AppendEntry(b []byte, e *Entry, os numbering) []byte {
	if e.Check = 0; !e.Deleted {
		e.Check = Checksum(e.Value)
	}
	return AppendLogged(b, e, os)
}

// AppendLogged writes a log entry whose checksum is known.
func AppendLogged(b []byte, e *Entry, os numbering) []byte {
	flags := byte(0)
	if e.Deleted {
		flags |= FlagDeleted
	}
	if e.Inline {
		flags |= flagInline
	}
	if e.InDigest {
		flags |= flagInDigest
	}
	b = append(b, FormatVersion, flags)
	b = AppendBody(b, &e.Version, os)
	b = AppendBytes(b, e.Key)
	if !e.Deleted {
		b = binary.BigEndian.AppendUint32(b, e.Check)
	}
	if e.Inline && !e.Deleted {
		b = append(b, e.Value...)
	}
	return b
}

// DecodeEntry reads the log entry at a log key. Its key and value alias the record.
func DecodeEntry(logKey, record []byte, os numbering) (Entry, error) {
	return DecodeEntryInto(logKey, record, os, nil)
}

// DecodeEntryInto is DecodeEntry with memory for the causal context.
func DecodeEntryInto(logKey, record []byte, os numbering, dots *Slab[causal.Dot]) (Entry, error) {
	var e Entry
	var err error
	if e.Dot, err = LogDot(logKey, os); err != nil {
		return e, err
	}
	d := Decoder{B: record, dots: dots}
	if err := d.Format(); err != nil {
		return e, err
	}
	flags := d.Byte()
	e.Deleted, e.Inline, e.InDigest = flags&FlagDeleted != 0, flags&flagInline != 0, flags&flagInDigest != 0
	d.Body(&e.Version, os)
	e.Key = d.Bytes(len(d.B))
	if !e.Deleted {
		if c := d.Take(4); c != nil {
			e.Check = binary.BigEndian.Uint32(c)
		}
		if e.Inline {
			e.Value = d.Take(len(d.B))
			if d.Err == nil && Checksum(e.Value) != e.Check {
				d.Fail(errors.New("replicator: the value in a log entry is corrupted"))
			}
		}
	}
	return e, d.End()
}

// ReadEntry reads the log entry of a version that a log-index names. If there is
// none that fits, the error is [ErrCorrupted].
func ReadEntry(rd Reader, key []byte, want *Version, os Aliasing) (e Entry, err error) {
	a, ok := os.AliasOf(want.Origin)
	if !ok {
		return e, Corrupted(key, "log entry %v is of an unknown origin", want.Dot)
	}
	logKey := AppendLogKey(nil, a, want.Seq)
	rec, err := rd.Get(logKey, nil)
	if errors.Is(err, leveldb.ErrNotFound) {
		return e, Corrupted(key, "log entry %v is missing", want.Dot)
	}
	if err != nil {
		return e, err
	}
	e, err = DecodeEntry(logKey, rec, os)
	switch {
	case err == ErrVersion:
		return e, fmt.Errorf("log entry %v: %w", want.Dot, err)
	case err != nil:
		return e, Corrupted(key, "log entry %v cannot be read: %v", want.Dot, err)
	case !bytes.Equal(e.Key, key):
		return e, Corrupted(key, "log entry %v is of key %.40q", want.Dot, e.Key)
	case e.Clock != want.Clock || e.Deleted != want.Deleted || !slices.Equal(e.Context, want.Context):
		return e, Corrupted(key, "log and log-index differ about version %v", want.Dot)
	}
	return e, nil
}

// ReadValue completes an entry whose value stands at the raw key.
func (e *Entry) ReadValue(rd Reader) (err error) {
	if e.Deleted || e.Inline {
		return nil
	}
	value, err := rd.Get(e.Key, nil)
	if err != nil && !errors.Is(err, leveldb.ErrNotFound) {
		return err
	}
	return e.TakeValue(value, err == nil)
}

// TakeValue completes an entry with what stands at the raw key, if there is something. It keeps that.
func (e *Entry) TakeValue(value []byte, there bool) error {
	if e.Deleted || e.Inline {
		return nil
	}
	if !there {
		return Corrupted(e.Key, "its value is missing")
	}
	e.Value = value
	return e.CheckValue()
}

func (e *Entry) CheckValue() error {
	if Checksum(e.Value) != e.Check {
		return Corrupted(e.Key, "its value is not the one that was logged; if it was written past the wrapper and is to stay, run Adopt")
	}
	return nil
}

// ReadVersions reads the versions that a state names, with their values. If one of
// them is not what was logged the error is [ErrCorrupted].
func ReadVersions(rd Reader, key []byte, s Siblings, os Aliasing) ([]Version, error) {
	vs := make([]Version, 0, len(s))
	for i := range s {
		e, err := ReadEntry(rd, key, &s[i], os)
		if err == nil {
			err = e.ReadValue(rd)
		}
		if err != nil {
			return nil, err
		}
		vs = append(vs, e.Version)
	}
	return vs, nil
}
