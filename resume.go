package replicator

import "slices"

// pendingPull is what an unfinished pull already brought, so that it need not be
// sent again.
type pendingPull struct {
	done  map[Origin]spans // all live entries in these were merged
	reach vector           // but only at a peer that claims all of this may they be skipped
}

func (p *pendingPull) copy() map[Origin]spans {
	c := make(map[Origin]spans, len(p.done))
	for o, ss := range p.done {
		c[o] = slices.Clone(ss)
	}
	return c
}

// remember notes what an unfinished pull brought: the regions of the log that are merged,
// and all that the peer claimed or held then. A pull that needs a repair cannot be resumed.
func (r *replica) remember(done []region, reach vector, peer *knowledge) {
	if !peer.within(purged, &r.known, claimed) {
		r.pending = nil
		return
	}
	if r.pending == nil {
		r.pending = &pendingPull{done: map[Origin]spans{}}
	}
	for _, m := range done {
		r.pending.done[m.origin] = r.pending.done[m.origin].add(span{m.from, m.to})
	}
	r.pending.reach = r.pending.reach.join(reach)
}
