package replicator

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cespare/xxhash/v2"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// Everything of ours lives at the end of the keyspace, under the two bytes
// ff ff, so that hiding it from iterators costs nothing. The third byte says
// what a record is.
const (
	kindIndex     = 'i' // user key → the dots of its versions, with what a local write needs
	kindLog       = 'l' // alias (4 bytes), seq (8 bytes) → one version
	kindMeta      = 'm' // name → format version, mark of a clean close, …
	kindMember    = 'n' // origin → a server that counts when deletions are forgotten
	kindOrigin    = 'o' // alias (4 bytes) → origin, checkpoint and proofs
	kindTombstone = 't' // user key → nothing: all its versions are tombstones
	kindConflict  = 'x' // user key → what it shows: it has several versions whose content differs

	formatVersion = 1 // the first byte of every record
)

var reservedStart = []byte{0xff, 0xff}

// reserved tells whether a user may not use a key.
func reserved(key []byte) bool { return bytes.HasPrefix(key, reservedStart) }

func kindRange(kind byte) *util.Range {
	return &util.Range{Start: []byte{0xff, 0xff, kind}, Limit: []byte{0xff, 0xff, kind + 1}}
}

func appendKey(b []byte, kind byte, rest []byte) []byte {
	b = append(b, 0xff, 0xff, kind)
	return append(b, rest...)
}

func kindKey(kind byte, rest []byte) []byte {
	return appendKey(make([]byte, 0, 3+len(rest)), kind, rest)
}

func appendLogKey(b []byte, alias uint32, seq uint64) []byte {
	b = append(b, 0xff, 0xff, kindLog)
	b = binary.BigEndian.AppendUint32(b, alias)
	return binary.BigEndian.AppendUint64(b, seq)
}

// logRange spans the entries of one origin with from ≤ seq ≤ to.
func logRange(alias uint32, from, to uint64) *util.Range {
	return &util.Range{Start: appendLogKey(nil, alias, from), Limit: appendLogKey(nil, alias, to+1)}
}

// reader is what reading needs of a store: a goleveldb handle or snapshot.
type reader interface {
	Get(key []byte, ro *opt.ReadOptions) ([]byte, error)
	NewIterator(slice *util.Range, ro *opt.ReadOptions) iterator.Iterator
}

// aliases are the origins of a database by their short names. Aliases are given
// out in order and never withdrawn, so a copy of the slice made while the
// replica is at rest may be read while it goes on.
type aliases []Origin

func (a aliases) origin(n uint64) (Origin, bool) {
	if n >= uint64(len(a)) {
		return Origin{}, false
	}
	return a[n], true
}

// number is not for a copy: only the replica assigns aliases.
func (a aliases) number(Origin) uint64 { panic("replicator: a copy of the aliases cannot assign one") }

// entry is a log entry as the store has it: the version and what belongs to it
// there.
type entry struct {
	version
	key     []byte
	inline  bool   // the value is in the entry, not at the raw key
	counted bool   // the dot is in the digest
	check   uint32 // of the value
}

// checksum of a value: the low half of xxHash64. It tells whether the value at
// the raw key is still the one that was written here.
func checksum(value []byte) uint32 { return uint32(xxhash.Sum64(value)) }

// shownValue is what stands at a raw key: nothing, or a value of this checksum.
type shownValue struct {
	deleted bool
	check   uint32
}

func shownOf(value []byte, deleted bool) shownValue {
	if deleted {
		return shownValue{deleted: true}
	}
	return shownValue{check: checksum(value)}
}

// append writes the value of a mark of a conflict.
func (s shownValue) append(b []byte) []byte {
	if s.deleted {
		return append(b, formatVersion, flagDeleted)
	}
	return binary.BigEndian.AppendUint32(append(b, formatVersion, 0), s.check)
}

// readShown reads what a key in conflict was last made to show, and whether its mark
// says so: one of an earlier release is empty.
func readShown(rd reader, key []byte) (s shownValue, known bool, err error) {
	rec, err := rd.Get(kindKey(kindConflict, key), nil)
	if err != nil && err != leveldb.ErrNotFound {
		return s, false, err
	}
	s, known = decodeShown(rec)
	return s, known, nil
}

// decodeShown reads a mark of a conflict. One that cannot be read says nothing.
func decodeShown(rec []byte) (s shownValue, known bool) {
	d := decoder{b: rec}
	version := d.byte()
	if s.deleted = d.byte()&flagDeleted != 0; !s.deleted {
		s.check = d.uint32()
	}
	return s, d.end() == nil && version == formatVersion
}

// appendEntry writes a log entry.
func appendEntry(b []byte, e *entry, os origins) []byte {
	flags := byte(0)
	if e.deleted {
		flags |= flagDeleted
	}
	if e.inline {
		flags |= flagInline
	}
	if e.counted {
		flags |= flagCounted
	}
	b = append(b, formatVersion, flags)
	b = appendBody(b, &e.version, os)
	b = appendBytes(b, e.key)
	if !e.deleted {
		b = binary.BigEndian.AppendUint32(b, checksum(e.value))
	}
	if e.inline && !e.deleted {
		b = append(b, e.value...)
	}
	return b
}

var errVersion = errors.New("replicator: record has an unknown format version; it was written by a later release")

// logDot reads the dot in a log key.
func logDot(logKey []byte, os origins) (dot, error) {
	if len(logKey) != 15 {
		return dot{}, fmt.Errorf("replicator: log key has %d bytes, want 15", len(logKey))
	}
	o, ok := os.origin(uint64(binary.BigEndian.Uint32(logKey[3:])))
	if !ok {
		return dot{}, errors.New("replicator: log key has an unknown alias")
	}
	return dot{o, binary.BigEndian.Uint64(logKey[7:])}, nil
}

// decodeEntry reads the log entry at a log key. Its key and value alias the record.
func decodeEntry(logKey, record []byte, os origins) (entry, error) {
	var e entry
	var err error
	if e.dot, err = logDot(logKey, os); err != nil {
		return e, err
	}
	d := decoder{b: record}
	if d.byte() != formatVersion && d.err == nil {
		return e, errVersion
	}
	flags := d.byte()
	e.deleted, e.inline, e.counted = flags&flagDeleted != 0, flags&flagInline != 0, flags&flagCounted != 0
	d.body(&e.version, os)
	e.key = d.bytes(len(d.b))
	if !e.deleted {
		if c := d.take(4); c != nil {
			e.check = binary.BigEndian.Uint32(c)
		}
		if e.inline {
			e.value = d.take(len(d.b))
			if d.err == nil && checksum(e.value) != e.check {
				d.fail(errors.New("replicator: the value in a log entry is damaged"))
			}
		}
	}
	return e, d.end()
}

// ErrDamaged says that log-index, log and value of a key do not fit together: the
// store is damaged, or was written past the wrapper. [DB.Verify] names all such keys,
// [DB.Repair] mends them, and [DB.Adopt] logs what is to stay as it is.
var ErrDamaged = errors.New("replicator: the database is damaged, run Verify")

// damageError tells what is wrong with one version.
type damageError struct {
	key     []byte
	problem string
}

func (e *damageError) Error() string {
	return fmt.Sprintf("%v: key %.40q: %s", ErrDamaged, e.key, e.problem)
}

func (e *damageError) Unwrap() error { return ErrDamaged }

func damaged(key []byte, format string, args ...any) error {
	return &damageError{key, fmt.Sprintf(format, args...)}
}

// readEntry reads the log entry of a version that a log-index names. If there is
// none that fits, the error is [ErrDamaged].
func readEntry(rd reader, key []byte, want *version, os namer) (e entry, err error) {
	a, ok := os.aliasOf(want.origin)
	if !ok {
		return e, damaged(key, "log entry %v is of an unknown origin", want.dot)
	}
	logKey := appendLogKey(nil, a, want.seq)
	rec, err := rd.Get(logKey, nil)
	if errors.Is(err, leveldb.ErrNotFound) {
		return e, damaged(key, "log entry %v is missing", want.dot)
	}
	if err != nil {
		return e, err
	}
	e, err = decodeEntry(logKey, rec, os)
	switch {
	case err == errVersion:
		return e, fmt.Errorf("log entry %v: %w", want.dot, err)
	case err != nil:
		return e, damaged(key, "log entry %v cannot be read: %v", want.dot, err)
	case !bytes.Equal(e.key, key):
		return e, damaged(key, "log entry %v is of key %.40q", want.dot, e.key)
	case e.clock != want.clock || e.deleted != want.deleted || !slices.Equal(e.vv, want.vv):
		return e, damaged(key, "log and log-index differ about version %v", want.dot)
	}
	return e, nil
}

// readValue completes an entry whose value stands at the raw key.
func (e *entry) readValue(rd reader) (err error) {
	if e.deleted || e.inline {
		return nil
	}
	e.value, err = rd.Get(e.key, nil)
	switch {
	case errors.Is(err, leveldb.ErrNotFound):
		return damaged(e.key, "its value is missing")
	case err != nil:
		return err
	}
	return e.checkValue()
}

func (e *entry) checkValue() error {
	if checksum(e.value) != e.check {
		return damaged(e.key, "its value is not the one that was logged; if it was written past the wrapper and is to stay, run Adopt")
	}
	return nil
}
