package replicator

import (
	"cmp"
	"slices"
)

// pendingPull is what an unfinished pull already brought, so that it need not be
// sent again.
type pendingPull struct {
	done  spanMap // all live entries in these were merged
	reach vector  // but only at a peer that claims all of this may they be skipped
}

// spanMap are parts of the logs of some origins.
type spanMap map[Origin]spans

func (m spanMap) has(d dot) bool {
	ss := m[d.origin]
	i, _ := slices.BinarySearchFunc(ss, d.seq, func(s span, n uint64) int { return cmp.Compare(s.to, n) })
	return i < len(ss) && ss[i].from <= d.seq
}

func (m spanMap) clone() spanMap {
	c := make(spanMap, len(m))
	for o, ss := range m {
		c[o] = slices.Clone(ss)
	}
	return c
}

// add takes in other parts.
func (m spanMap) add(other spanMap) {
	for o, ss := range other {
		for _, s := range ss {
			m[o] = m[o].add(s)
		}
	}
}

// remember notes what an unfinished pull brought: the regions of the log that are merged, but
// for what is held back, and all that the peer claimed or held then. A pull that needs a
// repair cannot be resumed.
func (r *replica) remember(done []region, reach vector, back *heldBack, peer *knowledge) {
	if !peer.within(purged, &r.known, claimed) {
		r.pending = nil
		return
	}
	if back.over { // who knows whether a region has something that is held back
		return
	}
	if r.pending == nil {
		r.pending = &pendingPull{done: spanMap{}}
	}
	for _, m := range done {
		r.pending.done[m.origin] = r.pending.done[m.origin].add(span{m.from, m.to})
	}
	back.cut(r.pending.done)
	r.pending.reach = r.pending.reach.join(reach)
}

// skippable is what need not be sent by a peer: what is known here above the claim, and
// what an unfinished pull brought, if the peer claims all that its server knew and that
// is not claimed here.
func (r *replica) skippable(peer *knowledge) spanMap {
	skip := r.above.clone()
	if p := r.pending; p != nil && !slices.ContainsFunc(p.reach, func(d dot) bool { return !peer.covers(d) && !r.known.covers(d) }) {
		skip.add(p.done)
	}
	return skip
}
