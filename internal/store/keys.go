// Package store is what a replica keeps in goleveldb: the layout of keys, the codecs of records,
// the readers of values, log and log-index, and the batch that a transaction commits.
package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// ErrReservedKey refuses a user key in the range that starts with ff ff,
// where the log and its index live.
var ErrReservedKey = errors.New("replicator: key is in the reserved range (ff ff …)")

// Everything of ours lives at the end of the keyspace, under the two bytes
// ff ff, so that hiding it from iterators costs nothing. The third byte says
// what a record is.
const (
	KindIndex     = 'i' // user key → the dots of its versions, with what a local write needs
	KindLog       = 'l' // alias (4 bytes), seq (8 bytes) → one version
	KindMeta      = 'm' // name → format version, mark of a clean close, …
	KindMember    = 'n' // origin → a member, whose reports count before anything is purged
	KindOrigin    = 'o' // alias (4 bytes) → origin, checkpoint and watermarks
	KindTombstone = 't' // user key → nothing: all its versions are tombstones
	KindConflict  = 'x' // user key → what it shows: it has several versions whose content differs

	FormatVersion = 1 // the first byte of every record

	kindPrefix = 3 // bytes of a key before what names the record
)

var ReservedStart = []byte{0xff, 0xff}

// Visible cuts the reserved range, which is the end of the keyspace, off a range.
func Visible(slice *util.Range) *util.Range {
	r := util.Range{Limit: ReservedStart}
	if slice != nil {
		r.Start = slice.Start
		if slice.Limit != nil && string(slice.Limit) < string(ReservedStart) {
			r.Limit = slice.Limit
		}
		if string(r.Start) > string(ReservedStart) {
			r.Start = ReservedStart
		}
	}
	return &r
}

// Reserved reports whether a user may not use a key.
func Reserved(key []byte) bool { return bytes.HasPrefix(key, ReservedStart) }

func KindRange(kind byte) *util.Range {
	return &util.Range{Start: []byte{0xff, 0xff, kind}, Limit: []byte{0xff, 0xff, kind + 1}}
}

// KindRangeFrom spans the records of one kind from a user key on.
func KindRangeFrom(kind byte, key []byte) *util.Range {
	return &util.Range{Start: KindKey(kind, key), Limit: KindRange(kind).Limit}
}

// UserKey returns the user key, or the name, in the key of a record.
func UserKey(recordKey []byte) []byte { return recordKey[min(kindPrefix, len(recordKey)):] }

// AppendKey appends the key of a record of one kind.
func AppendKey(b []byte, kind byte, rest []byte) []byte {
	b = append(b, 0xff, 0xff, kind)
	return append(b, rest...)
}

func KindKey(kind byte, rest []byte) []byte {
	return AppendKey(make([]byte, 0, kindPrefix+len(rest)), kind, rest)
}

func AppendLogKey(b []byte, alias uint32, seq uint64) []byte {
	b = append(b, 0xff, 0xff, KindLog)
	b = binary.BigEndian.AppendUint32(b, alias)
	return binary.BigEndian.AppendUint64(b, seq)
}

// LogRange spans the entries of one origin with from ≤ seq ≤ to.
func LogRange(alias uint32, from, to uint64) *util.Range {
	return &util.Range{Start: AppendLogKey(nil, alias, from), Limit: AppendLogKey(nil, alias, to+1)}
}

// LogDot reads the dot in a log key.
func LogDot(logKey []byte, os numbering) (causal.Dot, error) {
	if len(logKey) != 15 {
		return causal.Dot{}, fmt.Errorf("replicator: log key has %d bytes, want 15", len(logKey))
	}
	o, ok := os.Origin(uint64(binary.BigEndian.Uint32(logKey[3:])))
	if !ok {
		return causal.Dot{}, errors.New("replicator: log key has an unknown alias")
	}
	return causal.Dot{Origin: o, Seq: binary.BigEndian.Uint64(logKey[7:])}, nil
}
