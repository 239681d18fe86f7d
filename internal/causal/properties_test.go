package causal_test

import (
	"slices"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// Few origins and small seqs, so that what is drawn meets often.
var (
	origins = rapid.Map(rapid.IntRange(0, 5), func(n int) causal.Origin { return causal.Origin{byte(n), 15: byte(3 * n)} })
	seqs    = rapid.Uint64Range(1, 12)
	dots    = rapid.Custom(func(t *rapid.T) causal.Dot {
		return causal.Dot{Origin: origins.Draw(t, "origin"), Seq: seqs.Draw(t, "seq")}
	})
	vectors = rapid.Map(rapid.SliceOfN(dots, 0, 12), func(ds []causal.Dot) causal.Vector {
		var v causal.Vector
		for _, d := range ds {
			v = v.Raise(d)
		}
		return v
	})
)

func requireVector(t *rapid.T, v causal.Vector) {
	for i, d := range v {
		require.NotZero(t, d.Seq)
		if i > 0 {
			require.Negative(t, v[i-1].Origin.Compare(d.Origin))
		}
	}
}

// join leaves its arguments as they are.
func join(a, b causal.Vector) causal.Vector { return a.Clone().Join(b) }

func TestVector_JoinIsASemilattice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := vectors.Draw(t, "a"), vectors.Draw(t, "b"), vectors.Draw(t, "c")
		requireVector(t, join(a, b))
		require.True(t, slices.Equal(join(a, b), join(b, a)), "commutative")
		require.True(t, slices.Equal(join(join(a, b), c), join(a, join(b, c))), "associative")
		require.True(t, slices.Equal(join(a, a), a), "idempotent")
		require.True(t, a.Within(join(a, b)) && b.Within(join(a, b)), "an upper bound")
		if a.Within(c) && b.Within(c) {
			require.True(t, join(a, b).Within(c), "the least one")
		}
	})
}

func TestVector_WithinIsAPartialOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := vectors.Draw(t, "a"), vectors.Draw(t, "b"), vectors.Draw(t, "c")
		require.True(t, a.Within(a))
		require.Equal(t, slices.Equal(a, b), a.Within(b) && b.Within(a))
		if a.Within(b) && b.Within(c) {
			require.True(t, a.Within(c))
		}
		require.Equal(t, a.Within(b), !slices.ContainsFunc(a, func(d causal.Dot) bool { return !b.Contains(d) }))
	})
}

func TestVector_ContainsWhatItWasRaisedToAndAllBefore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v, d, e := vectors.Draw(t, "v"), dots.Draw(t, "d"), dots.Draw(t, "e")
		had := v.Contains(e)
		v = v.Clone().Raise(d)
		require.Equal(t, had || e.Origin == d.Origin && e.Seq <= d.Seq, v.Contains(e))
	})
}

func TestDot_NextFollowsWithNothingBetween(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d, e := dots.Draw(t, "d"), dots.Draw(t, "e")
		if rapid.Bool().Draw(t, "at the end") {
			d.Seq = causal.MaxSeq
		}
		require.Negative(t, d.Compare(d.Next()))
		require.False(t, e.Compare(d) > 0 && e.Compare(d.Next()) < 0)
	})
}

func TestSum_IsOfASetWhateverTheOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ds := rapid.SliceOfDistinct(dots, func(d causal.Dot) causal.Dot { return d }).Draw(t, "dots")
		n := rapid.IntRange(0, len(ds)).Draw(t, "taken away")
		sum := func(ds []causal.Dot) (s causal.Sum) {
			for _, d := range ds {
				s = s.Add(d.Hash())
			}
			return s
		}
		all := sum(ds)
		require.Equal(t, all, sum(rapid.Permutation(ds).Draw(t, "other order")))
		for _, d := range ds[:n] {
			all = all.Sub(d.Hash())
		}
		require.Equal(t, sum(ds[n:]), all)
		require.Equal(t, n == len(ds), all == causal.Sum{}, "another set has another sum")
	})
}

// TestSpans_AreASetOfSeqs compares spans with a plain set.
func TestSpans_AreASetOfSeqs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := map[uint64]bool{}
		var ss causal.Spans
		for range rapid.IntRange(0, 12).Draw(t, "spans") {
			from := rapid.Uint64Range(1, 60).Draw(t, "from")
			to := from + rapid.Uint64Range(0, 9).Draw(t, "length")
			ss = ss.Add(causal.Span{From: from, To: to})
			for n := from; n <= to; n++ {
				set[n] = true
			}
		}
		held := map[uint64]bool{}
		for i, s := range ss {
			require.LessOrEqual(t, s.From, s.To)
			require.True(t, i == 0 || ss[i-1].To+1 < s.From, "sorted, and apart")
			for n := s.From; n <= s.To; n++ {
				held[n] = true
			}
		}
		require.Equal(t, set, held)

		g := causal.Region{From: rapid.Uint64Range(1, 60).Draw(t, "region"), To: rapid.Uint64Range(1, 80).Draw(t, "to")}
		left := map[uint64]bool{}
		for n := g.From; n <= g.To; n++ {
			if !set[n] {
				left[n] = true
			}
		}
		before := uint64(1 << 62)
		for _, r := range ss.Subtract(nil, g) {
			require.Less(t, r.To, before, "the highest first")
			before = r.From
			for n := r.From; n <= r.To; n++ {
				require.True(t, left[n], n)
				delete(left, n)
			}
		}
		require.Empty(t, left)
	})
}

func TestKnowledge_RaisesColumnsAndTellsWhatChanged(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var k causal.Knowledge
		model := [causal.Columns]causal.Vector{}
		rev := uint64(0)
		noted := map[causal.Origin]bool{}
		for range rapid.IntRange(0, 20).Draw(t, "steps") {
			c := causal.Column(rapid.IntRange(0, int(causal.Columns)-1).Draw(t, "column"))
			d := dots.Draw(t, "dot")
			if rapid.IntRange(0, 4).Draw(t, "told") == 0 {
				rev, noted = k.Rev, map[causal.Origin]bool{}
			}
			if c != causal.Covered && !k.Covers(d) {
				continue // Invariant of a row: no column is above covered
			}
			require.Equal(t, !model[c].Contains(d), k.Raise(c, d))
			if !model[c].Contains(d) {
				noted[d.Origin] = true
			}
			model[c] = model[c].Raise(d)
		}
		var sum causal.Sum
		for c := range causal.Columns {
			require.True(t, slices.Equal(model[c], k.Vector(c)))
		}
		for _, d := range model[causal.Covered] {
			sum = sum.Add(d.Hash())
		}
		require.Equal(t, sum, k.VectorSum)
		changed := map[causal.Origin]bool{}
		for _, r := range k.Since(rev) {
			changed[r.Origin] = true
		}
		require.Equal(t, noted, changed)

		other := causal.Knowledge{}
		other.Take(k.Rows)
		require.Equal(t, k.VectorSum, other.VectorSum)
		require.Zero(t, other.Behind(&k))
		require.True(t, other.Within(causal.Covered, &k, causal.Covered))
	})
}

func TestHybridClock_NeverGoesBackAndFollowsWhatItSees(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c causal.HybridClock
		last := causal.Stamp(0)
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			wall := time.UnixMilli(rapid.Int64Range(-5, 1<<40).Draw(t, "wall"))
			if rapid.Bool().Draw(t, "see") {
				s := causal.StampOf(wall)
				c.See(s)
				last = max(last, s)
				continue
			}
			next := c.Next(wall)
			require.Greater(t, next, last)
			require.False(t, next.Time().Before(wall) && wall.UnixMilli() >= 0)
			last = next
		}
	})
}

// knowledge is drawn as a replica comes by it: no column but Pruned is above Covered.
var knowledge = rapid.Custom(func(t *rapid.T) *causal.Knowledge {
	k := &causal.Knowledge{}
	for range rapid.IntRange(0, 15).Draw(t, "steps") {
		c, d := causal.Column(rapid.IntRange(0, int(causal.Columns)-1).Draw(t, "column")), dots.Draw(t, "dot")
		if c == causal.Covered || c == causal.Pruned || k.Covers(d) {
			k.Raise(c, d)
		}
	}
	return k
})

// TestKnowledge_ComparesWithOthersInOnePass looks each origin up instead.
func TestKnowledge_ComparesWithOthersInOnePass(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k, other, v := knowledge.Draw(t, "k"), knowledge.Draw(t, "other"), vectors.Draw(t, "v")
		beyond := func(d causal.Dot) bool { return !other.Covers(d) && !v.Contains(d) }
		require.Equal(t, !slices.ContainsFunc(k.Vector(causal.Covered), beyond), k.CoveredBy(other, v))
		w := vectors.Draw(t, "w")
		require.Equal(t, !slices.ContainsFunc(w, beyond), w.CoveredBy(other, v))
		require.True(t, slices.Equal(slices.DeleteFunc(v.Clone(), k.Covers), k.Uncovered(v)))
		var above []causal.Row
		for _, r := range other.Rows {
			if r.Seqs[causal.Pruned] > k.Seq(causal.Pruned, r.Origin) || r.Seqs[causal.Purged] > k.Seq(causal.Purged, r.Origin) {
				above = append(above, r)
			}
		}
		require.Equal(t, above, k.Watermarks(other))
		rest := v
		for _, d := range w {
			var seq uint64
			rest, seq = rest.Seek(d.Origin)
			require.Equal(t, v.Seq(d.Origin), seq)
		}
	})
}

func TestKnowledge_TakesRowsAsIfOneAfterTheOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k, other := knowledge.Draw(t, "k"), knowledge.Draw(t, "other")
		rows := slices.Clone(other.Rows)
		if len(rows) > 0 && rapid.Bool().Draw(t, "with a row of nothing") {
			rows[0].Seqs = [causal.Columns]uint64{}
		}
		want := k.Clone()
		for _, r := range rows {
			for c := range causal.Columns {
				want.Raise(c, causal.Dot{Origin: r.Origin, Seq: r.Seqs[c]})
			}
		}
		k.Take(rows)
		require.Equal(t, want, *k)
	})
}
