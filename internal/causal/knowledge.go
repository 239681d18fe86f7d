package causal

import "slices"

// Column is one of the vectors that a replica keeps of all origins.
type Column int

const (
	Covered Column = iota // the version vector: it holds each write up to here, or one that has seen it
	Durable               // the checkpoint: the part of it that is known to be on disk
	Pruned                // the pruned watermark: what contexts here may leave out; a version not held beside others of its key is superseded
	Purged                // the purged watermark: a key of which nothing is held was deleted
	Columns
)

// Untold is within the pruned watermark where something is held of a peer that does not say what
// its contexts leave out above its version vector: that may be anything.
var Untold = Dot{Origin{}, 1}

// Row is what a replica knows of one origin.
//
// Invariant: no column but Pruned is above Covered. A version comes with what its context leaves
// out, whether or not that is covered here yet; it proves something only as far as it is.
type Row struct {
	Origin Origin
	Seqs   [Columns]uint64
	Rev    uint64 // the revision at which one of the columns last rose
}

// Knowledge is the version vector of a replica, its checkpoint and its watermarks: our own, or
// what a peer last reported. No column falls while a replica runs.
//
// Invariant: Rows is sorted by origin; VectorSum is the sum of the hashes of the dots in
// Covered.
type Knowledge struct {
	Rows         []Row
	Rev          uint64 // grows with every change
	WatermarkRev uint64 // grows with every change of a watermark, and of what it proves
	VectorSum    Sum
}

// Find returns the place of an origin in Rows, and whether it is there.
func (k *Knowledge) Find(o Origin) (int, bool) { return FindRow(k.Rows, o) }

// FindRow returns the place of an origin in sorted rows, and whether it is there.
func FindRow(rows []Row, o Origin) (int, bool) {
	return slices.BinarySearchFunc(rows, o, func(r Row, o Origin) int { return r.Origin.Compare(o) })
}

// Seq returns the seq of an origin in one column.
func (k *Knowledge) Seq(c Column, o Origin) uint64 {
	if i, ok := k.Find(o); ok {
		return k.Rows[i].Seqs[c]
	}
	return 0
}

// Covers reports whether d is within the version vector.
func (k *Knowledge) Covers(d Dot) bool { return d.Seq <= k.Seq(Covered, d.Origin) }

// Superseded reports whether a watermark covers d: a version that is not held beside others of
// its key is superseded then.
func (k *Knowledge) Superseded(d Dot) bool {
	i, ok := k.Find(d.Origin)
	return ok && d.Seq <= k.Rows[i].watermark()
}

// watermark returns how far a version that is not held is known to be superseded.
func (r *Row) watermark() uint64 { return min(r.Seqs[Covered], max(r.Seqs[Pruned], r.Seqs[Purged])) }

// Raise lifts one column of d's origin to d and reports whether that changed it.
func (k *Knowledge) Raise(c Column, d Dot) bool {
	if d.Seq == 0 {
		return false
	}
	i, ok := k.Find(d.Origin)
	if !ok {
		k.Rows = slices.Insert(k.Rows, i, Row{Origin: d.Origin})
	}
	r := &k.Rows[i]
	if d.Seq <= r.Seqs[c] {
		return false
	}
	if c == Covered {
		if r.Seqs[c] > 0 {
			k.VectorSum = k.VectorSum.Sub(Dot{d.Origin, r.Seqs[c]}.Hash())
		}
		k.VectorSum = k.VectorSum.Add(d.Hash())
	}
	watermark, shortened := r.watermark(), r.Seqs[Pruned]
	r.Seqs[c] = d.Seq
	k.Rev++
	if r.watermark() > watermark || r.Seqs[Pruned] > shortened || c == Purged {
		k.WatermarkRev++
	}
	r.Rev = k.Rev
	return true
}

// Take raises every column to that of other rows, which are sorted.
func (k *Knowledge) Take(rows []Row) {
	k.makeRoom(rows)
	for _, r := range rows {
		for c := range Columns {
			k.Raise(c, Dot{r.Origin, r.Seqs[c]})
		}
	}
}

// makeRoom adds empty rows for the origins of others that have none yet, all at once: to insert one after
// the other takes time that grows with the square of their number.
func (k *Knowledge) makeRoom(rows []Row) {
	fresh := 0
	for i := range rows {
		if _, ok := k.Find(rows[i].Origin); !ok && !rows[i].empty() {
			fresh++
		}
	}
	if fresh == 0 {
		return
	}
	// A replica keeps the rows of all members, so none has room to spare.
	joined := make([]Row, 0, len(k.Rows)+fresh)
	rest := k.Rows
	for i := range rows {
		if rows[i].empty() {
			continue
		}
		n, has := FindRow(rest, rows[i].Origin)
		joined = append(joined, rest[:n]...)
		if rest = rest[n:]; !has {
			joined = append(joined, Row{Origin: rows[i].Origin})
		}
	}
	k.Rows = append(joined, rest...)
}

func (r *Row) empty() bool { return r.Seqs == [Columns]uint64{} }

// Since returns the rows that changed after a revision.
func (k *Knowledge) Since(rev uint64) []Row {
	var rows []Row
	for _, r := range k.Rows {
		if r.Rev > rev {
			rows = append(rows, r)
		}
	}
	return rows
}

// Vector copies one column.
func (k *Knowledge) Vector(c Column) Vector {
	v := make(Vector, 0, len(k.Rows))
	for _, r := range k.Rows {
		if r.Seqs[c] > 0 {
			v = append(v, Dot{r.Origin, r.Seqs[c]})
		}
	}
	return v
}

// Within reports whether one column of k is within another of l.
func (k *Knowledge) Within(c Column, l *Knowledge, d Column) bool {
	rest := l.Rows
	for i := range k.Rows {
		r := &k.Rows[i]
		if r.Seqs[c] == 0 {
			continue
		}
		n := uint64(0)
		if rest, n = seek(rest, d, r.Origin); r.Seqs[c] > n {
			return false
		}
	}
	return true
}

// CoveredBy reports whether all that k covers is covered by other or within v.
func (k *Knowledge) CoveredBy(other *Knowledge, v Vector) bool {
	rest := other.Rows
	for i := range k.Rows {
		w := &k.Rows[i]
		var a, b uint64
		rest, a = seek(rest, Covered, w.Origin)
		if v, b = v.Seek(w.Origin); w.Seqs[Covered] > max(a, b) {
			return false
		}
	}
	return true
}

// Uncovered returns what of v is not covered.
func (k *Knowledge) Uncovered(v Vector) (left Vector) {
	rest := k.Rows
	for _, d := range v {
		seq := uint64(0)
		if rest, seq = seek(rest, Covered, d.Origin); d.Seq > seq {
			left = append(left, d)
		}
	}
	return left
}

// Watermarks returns the rows of other one of whose watermarks is above that of k.
func (k *Knowledge) Watermarks(other *Knowledge) (rows []Row) {
	pruned, purged := k.Rows, k.Rows
	for _, w := range other.Rows {
		var a, b uint64
		pruned, a = seek(pruned, Pruned, w.Origin)
		purged, b = seek(purged, Purged, w.Origin)
		if w.Seqs[Pruned] > a || w.Seqs[Purged] > b {
			rows = append(rows, w)
		}
	}
	return rows
}

// Behind counts the writes that other covers and k does not.
func (k *Knowledge) Behind(other *Knowledge) (n int64) {
	rest := k.Rows
	for i := range other.Rows {
		w := &other.Rows[i]
		seq := uint64(0)
		rest, seq = seek(rest, Covered, w.Origin)
		n += Above(w.Seqs[Covered], seq)
	}
	return n
}

// seek returns the rows from an origin on, and the seq of that origin in one column. To go through the rows of
// two replicas at once costs less than to look up one after the other.
func seek(rows []Row, c Column, o Origin) (rest []Row, seq uint64) {
	for len(rows) > 0 {
		switch order := rows[0].Origin.Compare(o); {
		case order == 0:
			return rows[1:], rows[0].Seqs[c]
		case order > 0:
			return rows, 0
		}
		rows = rows[1:]
	}
	return nil, 0
}

// Above returns by how much a seq exceeds another, 0 if it does not.
func Above(n, than uint64) int64 {
	if n <= than {
		return 0
	}
	return int64(n - than)
}

// Clone returns a copy that shares no memory with k.
func (k *Knowledge) Clone() Knowledge {
	c := *k
	c.Rows = slices.Clone(k.Rows)
	return c
}
