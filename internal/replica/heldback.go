package replica

import (
	"cmp"
	"maps"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
)

// M10: a value that is larger than MaxValue, or whose key is larger than MaxKey, is held back: it is
// not taken, all else is. What is covered must stay true, so the peer's version vector is taken in
// but for gaps: such a version itself, and what it may have seen, as nothing else here need have
// seen that. What is known beyond the gaps is remembered, so that it is not sent again; the
// gaps are.
//
// The gaps suffice because of M11: what a version that is held has seen is named in its context or
// within its holder's pruned watermark. Let d be within the peer's version vector and in no gap.
// The peer holds a version that is d or has seen d, or d was purged, within a purged watermark
// that is known by now. If that version was held back, d is the version itself, or in its
// context, or within the pruned watermark of the peer: in a gap. So it was merged, or was known
// here before, and d with it.
//
// The pruned watermark cut down to the peer's version vector would not be enough: a replica that
// took a version from an interrupted pull and wrote over it has a context that leaves out what it
// does not cover yet, and will cover once another replica that has it says so.

// HeldBack are the versions that one peer holds and that are not taken here.
type HeldBack struct {
	Keys map[string][]store.Version
	n    int  // entries, those of contexts included
	Over bool // there were too many: nothing may be covered
}

// maxHeldBack bounds those of one pull.
const maxHeldBack = 1 << 14

// Set notes what is held back of a key, in place of what was noted before.
func (b *HeldBack) Set(k RemoteKey) {
	for _, v := range b.Keys[string(k.Key)] {
		b.n -= 1 + len(v.Context)
	}
	delete(b.Keys, string(k.Key))
	var back []store.Version
	for i := range k.Versions {
		if v := &k.Versions[i]; v.Large > 0 {
			back = append(back, store.Version{Dot: v.Dot, Context: v.Context, Large: v.Large})
			b.n += 1 + len(v.Context)
		}
	}
	if len(back) == 0 {
		return
	}
	if b.n > maxHeldBack {
		b.Over = true
		return
	}
	if b.Keys == nil {
		b.Keys = map[string][]store.Version{}
	}
	b.Keys[string(k.Key)] = back
}

// each calls f with each version.
func (b *HeldBack) each(f func(v *store.Version)) {
	for _, vs := range b.Keys {
		for i := range vs {
			f(&vs[i])
		}
	}
}

// cut takes them out of parts of the log.
func (b *HeldBack) cut(done causal.SpanMap) {
	b.each(func(v *store.Version) { done[v.Origin] = done[v.Origin].Without(v.Seq) })
}

// Allow returns what may be covered of a peer's version vector, and what is known above that: nothing,
// if what the peer's versions have seen may be anything.
func (b *HeldBack) Allow(known *causal.Knowledge, vector causal.Vector, peer *causal.Knowledge) (may causal.Vector, above causal.SpanMap) {
	if peer.Seq(causal.Pruned, causal.Untold.Origin) > 0 {
		return nil, nil
	}
	gaps := b.gaps(known, peer)
	above = causal.SpanMap{}
	for _, d := range vector {
		from, first := known.Seq(causal.Covered, d.Origin)+1, true
		for _, g := range append(gaps[d.Origin], causal.Span{From: d.Seq + 1, To: d.Seq + 1}) {
			g.From = min(g.From, d.Seq+1)
			switch {
			case g.To < from:
				continue
			case first:
				if g.From > from {
					may = append(may, causal.Dot{Origin: d.Origin, Seq: g.From - 1})
				}
			case g.From > from:
				above[d.Origin] = above[d.Origin].Add(causal.Span{From: from, To: g.From - 1})
			}
			from, first = g.To+1, false
		}
	}
	return may, above
}

// gaps are what may not be covered, in order: the versions themselves; what they have
// seen that is not covered here; and what a context may leave out.
func (b *HeldBack) gaps(known, peer *causal.Knowledge) map[causal.Origin][]causal.Span {
	gaps := map[causal.Origin][]causal.Span{}
	add := func(o causal.Origin, from, to uint64) {
		if from <= to {
			gaps[o] = append(gaps[o], causal.Span{From: from, To: to})
		}
	}
	b.each(func(v *store.Version) {
		add(v.Origin, v.Seq, v.Seq)
		for _, d := range v.Context {
			add(d.Origin, known.Seq(causal.Covered, d.Origin)+1, d.Seq)
		}
	})
	for _, w := range peer.Rows {
		add(w.Origin, known.Seq(causal.Covered, w.Origin)+1, max(w.Seqs[causal.Pruned], w.Seqs[causal.Purged]))
	}
	for _, g := range gaps {
		slices.SortFunc(g, func(a, b causal.Span) int { return cmp.Compare(a.From, b.From) })
	}
	return gaps
}

// HoldBack remembers, after a whole pull, what of it is not taken here, and what is known
// above the version vector.
func (r *Replica) HoldBack(b *HeldBack, above causal.SpanMap) {
	r.Resume.Rev++
	next := r.Above.Clone()
	next.Add(above)
	for o, ss := range next {
		n := r.Known.Seq(causal.Covered, o)
		if ss = slices.DeleteFunc(ss, func(s causal.Span) bool { return s.To <= n }); len(ss) == 0 {
			delete(next, o)
		} else {
			next[o] = ss
		}
	}
	r.Above = next
	if r.HeldBack == nil {
		r.HeldBack = map[causal.Dot]uint64{}
	}
	b.each(func(v *store.Version) {
		if len(r.HeldBack) < maxHeldBack {
			r.HeldBack[v.Dot] = v.Large
		}
	})
	maps.DeleteFunc(r.HeldBack, func(d causal.Dot, _ uint64) bool { return r.Known.Covers(d) || r.Above.Has(d) })
}
