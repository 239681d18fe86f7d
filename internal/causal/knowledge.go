package causal

import "slices"

// Column is one of the vectors that a server keeps about all origins.
type Column int

const (
	Covered Column = iota // of every write up to here it holds it, or something that saw it
	Durable               // the checkpoint: what of the claim is known to be on disk
	Pruned                // up to here, what is held may have seen more than its vvs say; and a version not held beside others of its key is superseded
	Purged                // up to here, a key not held at all was deleted
	Columns
)

// Untold is among those that are pruned where something is held that came from a peer which
// does not say what its vvs leave out above its claim: that may be anything.
var Untold = Dot{Origin{}, 1}

// Row is what a server knows about one origin.
//
// Invariant: no column but Pruned is above Covered. A version comes with what its vv leaves
// out, whether or not that is claimed here yet; it proves something only as far as it is.
type Row struct {
	Origin Origin
	Seqs   [Columns]uint64
	Rev    uint64 // the revision at which one of the columns last rose
}

// Knowledge is the claim of a server, its checkpoint and its proofs: our own, or
// what a peer last told us of its own. No column ever falls while a server runs.
//
// Invariant: rows are sorted by origin; claims is the sum of the hashes of the
// dots at claimed.
type Knowledge struct {
	Rows         []Row
	Rev          uint64 // grows with every change
	WatermarkRev uint64 // grows with every change of pruned and purged, and of what they prove
	VectorSum    Sum
}

func (k *Knowledge) Find(o Origin) (int, bool) { return FindRow(k.Rows, o) }

func FindRow(rows []Row, o Origin) (int, bool) {
	return slices.BinarySearchFunc(rows, o, func(r Row, o Origin) int { return r.Origin.Compare(o) })
}

// Seq is the seq of an origin in one column.
func (k *Knowledge) Seq(c Column, o Origin) uint64 {
	if i, ok := k.Find(o); ok {
		return k.Rows[i].Seqs[c]
	}
	return 0
}

// Covers tells whether d is within the claim.
func (k *Knowledge) Covers(d Dot) bool { return d.Seq <= k.Seq(Covered, d.Origin) }

// Superseded tells whether a version that is not held beside others of its key is
// known to be superseded.
func (k *Knowledge) Superseded(d Dot) bool {
	i, ok := k.Find(d.Origin)
	return ok && d.Seq <= k.Rows[i].proof()
}

// proof is up to where the row proves something.
func (r *Row) proof() uint64 { return min(r.Seqs[Covered], max(r.Seqs[Pruned], r.Seqs[Purged])) }

// Raise lifts one column of d's origin to d and tells whether that was a change.
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
	proof, shortened := r.proof(), r.Seqs[Pruned]
	r.Seqs[c] = d.Seq
	k.Rev++
	if r.proof() > proof || r.Seqs[Pruned] > shortened || c == Purged {
		k.WatermarkRev++
	}
	r.Rev = k.Rev
	return true
}

// Take raises every column to that of other.
func (k *Knowledge) Take(rows []Row) {
	for _, r := range rows {
		for c := range Columns {
			k.Raise(c, Dot{r.Origin, r.Seqs[c]})
		}
	}
}

// Since gives the rows that changed after a revision.
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

// Within tells whether one column of k is within another of l.
func (k *Knowledge) Within(c Column, l *Knowledge, d Column) bool {
	for _, r := range k.Rows {
		if r.Seqs[c] > 0 && r.Seqs[c] > l.Seq(d, r.Origin) {
			return false
		}
	}
	return true
}

// Behind counts the writes that other claims and k does not.
func (k *Knowledge) Behind(other *Knowledge) (n int64) {
	for _, w := range other.Rows {
		n += Above(w.Seqs[Covered], k.Seq(Covered, w.Origin))
	}
	return n
}

// Above is by how much a seq is above another, if it is.
func Above(n, than uint64) int64 {
	if n <= than {
		return 0
	}
	return int64(n - than)
}

func (k *Knowledge) Clone() Knowledge {
	c := *k
	c.Rows = slices.Clone(k.Rows)
	return c
}
