package replicator

import (
	"encoding/binary"
	"math/bits"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// sum is a 128-bit sum of hashes. It does not depend on the order in which they
// were added, and what was added can be taken away again.
type sum [2]uint64

func (s sum) add(t sum) sum {
	lo, carry := bits.Add64(s[0], t[0], 0)
	hi, _ := bits.Add64(s[1], t[1], carry)
	return sum{lo, hi}
}

func (s sum) sub(t sum) sum {
	lo, borrow := bits.Sub64(s[0], t[0], 0)
	hi, _ := bits.Sub64(s[1], t[1], borrow)
	return sum{lo, hi}
}

func (s sum) digest() (d Digest) {
	binary.BigEndian.PutUint64(d[:8], s[1])
	binary.BigEndian.PutUint64(d[8:], s[0])
	return d
}

// hash spreads a dot over 128 bits: xxHash64 of its 24 bytes, and of the same
// with a byte behind them. Members are trusted, so no more is asked of it than
// that chance does not make two sums equal.
func (d dot) hash() sum {
	var b [25]byte
	copy(b[:], d.origin[:])
	binary.BigEndian.PutUint64(b[16:], d.seq)
	return sum{xxhash.Sum64(b[:24]), xxhash.Sum64(b[:25])}
}

// column is one of the vectors that a server keeps about all origins.
type column int

const (
	claimed column = iota // of every write up to here it holds it, or something that saw it
	durable               // the checkpoint: what of the claim is known to be on disk
	pruned                // up to here, a version not held beside others of its key is superseded
	purged                // up to here, a key not held at all was deleted
	columns
)

// row is what a server knows about one origin.
//
// Invariant: no column is above claimed.
type row struct {
	origin Origin
	at     [columns]uint64
	rev    uint64 // the revision at which one of the columns last rose
}

// knowledge is the claim of a server, its checkpoint and its proofs: our own, or
// what a peer last told us of its own. No column ever falls while a server runs.
//
// Invariant: rows are sorted by origin; claims is the sum of the hashes of the
// dots at claimed.
type knowledge struct {
	rows   []row
	rev    uint64 // grows with every change
	proofs uint64 // grows with every change of pruned and purged
	claims sum
}

func (k *knowledge) find(o Origin) (int, bool) { return findRow(k.rows, o) }

func findRow(rows []row, o Origin) (int, bool) {
	return slices.BinarySearchFunc(rows, o, func(r row, o Origin) int { return r.origin.compare(o) })
}

// at is the seq of an origin in one column.
func (k *knowledge) at(c column, o Origin) uint64 {
	if i, ok := k.find(o); ok {
		return k.rows[i].at[c]
	}
	return 0
}

// covers tells whether d is within the claim.
func (k *knowledge) covers(d dot) bool { return d.seq <= k.at(claimed, d.origin) }

// proves tells whether a version that is not held beside others of its key is
// known to be superseded.
func (k *knowledge) proves(d dot) bool {
	i, ok := k.find(d.origin)
	return ok && d.seq <= max(k.rows[i].at[pruned], k.rows[i].at[purged])
}

// raise lifts one column of d's origin to d and tells whether that was a change.
func (k *knowledge) raise(c column, d dot) bool {
	if d.seq == 0 {
		return false
	}
	i, ok := k.find(d.origin)
	if !ok {
		k.rows = slices.Insert(k.rows, i, row{origin: d.origin})
	}
	r := &k.rows[i]
	if d.seq <= r.at[c] {
		return false
	}
	if c == claimed {
		if r.at[c] > 0 {
			k.claims = k.claims.sub(dot{d.origin, r.at[c]}.hash())
		}
		k.claims = k.claims.add(d.hash())
	}
	r.at[c] = d.seq
	k.rev++
	if c >= pruned {
		k.proofs++
	}
	r.rev = k.rev
	return true
}

// take raises every column to that of other.
func (k *knowledge) take(rows []row) {
	for _, r := range rows {
		for c := range columns {
			k.raise(c, dot{r.origin, r.at[c]})
		}
	}
}

// since gives the rows that changed after a revision.
func (k *knowledge) since(rev uint64) []row {
	var rows []row
	for _, r := range k.rows {
		if r.rev > rev {
			rows = append(rows, r)
		}
	}
	return rows
}

// vector copies one column.
func (k *knowledge) vector(c column) vector {
	v := make(vector, 0, len(k.rows))
	for _, r := range k.rows {
		if r.at[c] > 0 {
			v = append(v, dot{r.origin, r.at[c]})
		}
	}
	return v
}

// within tells whether one column of k is within another of l.
func (k *knowledge) within(c column, l *knowledge, d column) bool {
	for _, r := range k.rows {
		if r.at[c] > 0 && r.at[c] > l.at(d, r.origin) {
			return false
		}
	}
	return true
}

// behind counts the writes that other claims and k does not.
func (k *knowledge) behind(other *knowledge) (n int64) {
	for _, w := range other.rows {
		n += above(w.at[claimed], k.at(claimed, w.origin))
	}
	return n
}

// above is by how much a seq is above another, if it is.
func above(n, than uint64) int64 {
	if n <= than {
		return 0
	}
	return int64(n - than)
}

func (k *knowledge) clone() knowledge {
	c := *k
	c.rows = slices.Clone(k.rows)
	return c
}
