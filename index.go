package replicator

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/syndtr/goleveldb/leveldb"
)

// state is the log-index of one key: its siblings, the live versions, without
// value and time, which only the log has.
//
// Invariant: sorted by dot; none saw another.
type state []version

func (s state) find(d dot) int {
	return slices.IndexFunc(s, func(v version) bool { return v.dot == d })
}

func (s state) has(d dot) bool { return s.find(d) >= 0 }

// sameDots tells whether two states name the same versions.
func (s state) sameDots(t state) bool {
	return len(s) == len(t) && !slices.ContainsFunc(s, func(v version) bool { return !t.has(v.dot) })
}

// counted tells whether the key holds a value, so that its dots are in the digest.
func (s state) counted() bool {
	return slices.ContainsFunc(s, func(v version) bool { return !v.deleted })
}

// buried reports whether all versions are tombstones, so that the key is forgotten in
// the end.
func (s state) buried() bool { return len(s) > 0 && !s.counted() }

// hash is what the key adds to the digest.
func (s state) hash() (h sum) {
	if !s.counted() {
		return h
	}
	return s.names()
}

// names is the sum of the versions' dots.
func (s state) names() (h sum) {
	for i := range s {
		h = h.add(s[i].hash())
	}
	return h
}

func (s state) sort() { slices.SortFunc(s, func(a, b version) int { return a.dot.compare(b.dot) }) }

// figures are what is counted of all keys: of a database, or by how much a
// transaction changes them.
type figures struct {
	digest     sum
	keys       int64 // that hold a value
	tombstones int64 // keys of which all versions are tombstones
	disputed   int64 // keys in conflict; count leaves them alone
}

// count adds the state of a key to the figures (n is 1), or takes it away (-1).
func (f *figures) count(s state, n int64) {
	switch {
	case len(s) == 0:
	case !s.counted():
		f.tombstones += n
	case n > 0:
		f.keys += n
		f.digest = f.digest.add(s.hash())
	default:
		f.keys += n
		f.digest = f.digest.sub(s.hash())
	}
}

func (f *figures) add(g figures) {
	f.digest = f.digest.add(g.digest)
	f.keys += g.keys
	f.tombstones += g.tombstones
	f.disputed += g.disputed
}

// appendIndex writes the log-index of a key.
func appendIndex(b []byte, s state, os origins) []byte {
	b = append(b, formatVersion)
	b = binary.AppendUvarint(b, uint64(len(s)))
	for i := range s {
		v := &s[i]
		flags := byte(0)
		if v.deleted {
			flags |= flagDeleted
		}
		b = append(b, flags)
		b = appendDot(b, v.dot, os)
		b = binary.AppendUvarint(b, v.clock)
		b = appendVector(b, v.vv, os)
	}
	return b
}

// decodeIndex reads the log-index of a key. Nothing of it aliases the record.
func decodeIndex(record []byte, os origins) (state, error) {
	return decodeIndexIn(record, os, nil, nil)
}

// decodeIndexIn is decodeIndex with memory for what is read.
func decodeIndexIn(record []byte, os origins, versions *slab[version], dots *slab[dot]) (state, error) {
	d := decoder{b: record, dots: dots}
	if d.byte() != formatVersion && d.err == nil {
		return nil, errVersion
	}
	n := d.count(5)
	s := state(versions.take(n))
	for range n {
		var v version
		v.deleted = d.byte()&flagDeleted != 0
		v.dot = d.dot(os)
		v.clock = d.upTo(maxClock)
		v.vv = d.vector(os)
		s = append(s, v)
	}
	if err := d.end(); err != nil {
		return nil, err
	}
	if len(s) == 0 {
		return nil, errors.New("replicator: a log-index names no version")
	}
	s.sort()
	return s, nil
}

// readIndex looks a key up in the store.
func readIndex(rd reader, key []byte, os origins) (state, error) {
	record, err := rd.Get(kindKey(kindIndex, key), nil)
	if err == leveldb.ErrNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s, err := decodeIndex(record, os)
	if err != nil {
		return nil, fmt.Errorf("log-index of key %q: %w", key, err)
	}
	return s, nil
}
