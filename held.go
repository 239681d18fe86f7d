package replicator

import (
	"cmp"
	"maps"
	"slices"
)

// A value that is larger than MaxValue, or whose key is larger than MaxKey, is held back:
// it is not taken here, all else is. What is claimed must stay true, so of the peer's
// claim all is taken but what such a version is, and what it may have seen: of that
// nothing else may be here. What is known beyond these gaps is remembered, so that it is
// not sent again; the gaps are.

// heldBack are the versions that one peer holds and that are not taken here.
type heldBack struct {
	keys map[string][]version
	n    int  // entries, those of vvs included
	over bool // there were too many: nothing may be claimed
}

// maxHeldBack bounds those of one pull.
const maxHeldBack = 1 << 14

// set notes what is held back of a key, in place of what was noted before.
func (b *heldBack) set(k heldKey) {
	for _, v := range b.keys[string(k.key)] {
		b.n -= 1 + len(v.vv)
	}
	delete(b.keys, string(k.key))
	var back []version
	for i := range k.versions {
		if v := &k.versions[i]; v.large > 0 {
			back = append(back, version{dot: v.dot, vv: v.vv, large: v.large})
			b.n += 1 + len(v.vv)
		}
	}
	if len(back) == 0 {
		return
	}
	if b.n > maxHeldBack {
		b.over = true
		return
	}
	if b.keys == nil {
		b.keys = map[string][]version{}
	}
	b.keys[string(k.key)] = back
}

// each calls f with each version.
func (b *heldBack) each(f func(v *version)) {
	for _, vs := range b.keys {
		for i := range vs {
			f(&vs[i])
		}
	}
}

// cut takes them out of parts of the log.
func (b *heldBack) cut(done spanMap) {
	b.each(func(v *version) { done[v.origin] = done[v.origin].without(v.seq) })
}

// allow gives what may be claimed of a peer's claim, and what is known above that.
func (b *heldBack) allow(known *knowledge, claim vector, peer *knowledge) (may vector, above spanMap) {
	gaps := b.gaps(known, peer)
	above = spanMap{}
	for _, d := range claim {
		from, first := known.at(claimed, d.origin)+1, true
		for _, g := range append(gaps[d.origin], span{d.seq + 1, d.seq + 1}) {
			g.from = min(g.from, d.seq+1)
			switch {
			case g.to < from:
				continue
			case first:
				if g.from > from {
					may = append(may, dot{d.origin, g.from - 1})
				}
			case g.from > from:
				above[d.origin] = above[d.origin].add(span{from, g.from - 1})
			}
			from, first = g.to+1, false
		}
	}
	return may, above
}

// gaps are what may not be claimed, in order: the versions themselves; what they have
// seen that is not claimed here; and, as a vv may leave it out, what the peer can prove.
func (b *heldBack) gaps(known, peer *knowledge) map[Origin][]span {
	gaps := map[Origin][]span{}
	add := func(o Origin, from, to uint64) {
		if from <= to {
			gaps[o] = append(gaps[o], span{from, to})
		}
	}
	b.each(func(v *version) {
		add(v.origin, v.seq, v.seq)
		for _, d := range v.vv {
			add(d.origin, known.at(claimed, d.origin)+1, d.seq)
		}
	})
	for _, w := range peer.rows {
		add(w.origin, known.at(claimed, w.origin)+1, max(w.at[pruned], w.at[purged]))
	}
	for _, g := range gaps {
		slices.SortFunc(g, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	}
	return gaps
}

// holdBack remembers, after a whole pull, what of it is not taken here, and what is known
// above the claim.
func (r *replica) holdBack(b *heldBack, above spanMap) {
	r.resume.rev++
	next := r.above.clone()
	next.add(above)
	for o, ss := range next {
		n := r.known.at(claimed, o)
		if ss = slices.DeleteFunc(ss, func(s span) bool { return s.to <= n }); len(ss) == 0 {
			delete(next, o)
		} else {
			next[o] = ss
		}
	}
	r.above = next
	if r.heldBack == nil {
		r.heldBack = map[dot]uint64{}
	}
	b.each(func(v *version) {
		if len(r.heldBack) < maxHeldBack {
			r.heldBack[v.dot] = v.large
		}
	})
	maps.DeleteFunc(r.heldBack, func(d dot, _ uint64) bool { return r.known.covers(d) || r.above.has(d) })
}
