package replicator

import "slices"

// rely raises a proof and has it written with Sync, unless it is on disk already.
// What is no longer held, or no longer named in a vv, and all later versions of the
// key rely on it, so a power failure must not take it and leave them. That it is
// known here is not enough: it may have come with a pull that was not synced.
func (t *txn) rely(c column, d dot) {
	t.prove(c, d)
	if t.r.secure(c, d) {
		return
	}
	if n := t.at(c, d.origin); n > 0 {
		t.raise(c, dot{d.origin, n}) // so that the origin is written
	}
	t.stageCheckpoint(vector{d})
	t.sync = true
}

// stageCheckpoint has the checkpoint of some origins written along with a proof
// that relies on it: after a crash the proof counts no further than the claim,
// which restarts from there.
func (t *txn) stageCheckpoint(v vector) {
	for _, d := range v {
		if n := t.r.known.at(durable, d.origin); n > 0 {
			t.raise(durable, dot{d.origin, n})
		}
	}
}

// secure tells whether a proof survives a power failure: it is on disk, and so is a
// checkpoint that goes as far.
func (r *replica) secure(c column, d dot) bool {
	return d.seq <= min(r.disk.at(c, d.origin), r.disk.at(durable, d.origin))
}

// secured notes the proofs and checkpoints that a synced transaction wrote.
func (r *replica) secured(t *txn) {
	wrote := func(o Origin) {
		for c := durable; c < columns; c++ {
			r.disk.raise(c, dot{o, r.known.at(c, o)})
		}
	}
	for _, w := range t.known {
		if w.at[durable]|w.at[pruned]|w.at[purged] != 0 { // else it was not written
			wrote(w.origin)
		}
	}
	for _, o := range t.proofs {
		wrote(o)
	}
	if t.saved > 0 {
		for _, w := range r.known.rows {
			if w.rev > t.savedFrom && w.rev <= t.saved {
				wrote(w.origin)
			}
		}
	}
	r.moved++
}

// unprovedOrigins are worked out anew when something changed that they depend on.
func (r *replica) unprovedOrigins() []Origin {
	now := [2]uint64{r.known.proofs, r.moved}
	if r.unproved.asOf == now {
		return r.unproved.origins
	}
	r.unproved.asOf, r.unproved.origins = now, nil
	for i := range r.known.rows {
		w := &r.known.rows[i]
		for c := pruned; c < columns; c++ {
			if n := min(w.at[c], w.at[durable]); n > 0 && !r.secure(c, dot{w.origin, n}) {
				r.unproved.origins = append(r.unproved.origins, w.origin)
				break
			}
		}
	}
	return r.unproved.origins
}

// checkpoint raises the checkpoint to a claim that is known to be on disk, or to
// the whole claim if v is nil.
func (r *replica) checkpoint(v vector) {
	if v == nil {
		v = r.known.vector(claimed)
		r.marks = r.marks[:0]
		r.safe, r.unsynced = r.commits, false
	}
	for _, d := range v {
		r.known.raise(durable, d)
	}
	r.stableVec = nil
	r.moved++
}

// stageCheckpoints writes the checkpoint where it rose since it was last written.
func (t *txn) stageCheckpoints() {
	for _, w := range t.r.known.since(t.r.savedRev) {
		t.r.stageOrigin(&t.batch, w.origin, w)
	}
	t.savedFrom, t.saved = t.r.savedRev, t.r.known.rev
}

// flushed tells the replica how often goleveldb has flushed its memtable so far.
// It has one frozen memtable at most, so once it has flushed twice since a batch
// was acknowledged, that batch and all before it are on disk.
func (r *replica) flushed(count uint64) {
	for len(r.marks) > 0 && count >= r.marks[0].count+2 {
		m := r.marks[0]
		r.marks = r.marks[1:]
		r.onDisk(m)
	}
	if !r.unsynced {
		return
	}
	m := mark{count, r.known.vector(claimed), r.commits}
	if n := len(r.marks); n > 0 && r.marks[n-1].count == count {
		r.marks[n-1] = m // a later claim, due no later
	} else {
		r.marks = append(r.marks, m)
	}
}

// onDisk raises the checkpoint to what a mark vouches for. If nothing was
// committed without Sync since it was taken, that is the whole claim.
func (r *replica) onDisk(m mark) {
	if r.safe = max(r.safe, m.commits); r.safe >= r.dirty {
		r.checkpoint(nil)
		return
	}
	r.checkpoint(m.claim)
}

// stable is what every member is known to have on disk, and we too.
func (r *replica) stable() vector {
	if r.stableVec == nil {
		v := r.known.vector(durable)
		for _, m := range r.counted() {
			v = slices.DeleteFunc(v, func(d dot) bool { return m.known.at(durable, d.origin) == 0 })
			for i := range v {
				v[i].seq = min(v[i].seq, m.known.at(durable, v[i].origin))
			}
		}
		r.stableVec = v
	}
	return r.stableVec
}
