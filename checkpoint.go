package replicator

import (
	"errors"
	"maps"
	"slices"

	"github.com/syndtr/goleveldb/leveldb"
)

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
		r.inDoubt = inDoubt{}
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
	t.stageResume()
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
	m := mark{count, r.known.vector(claimed), r.commits, r.resumePoint()}
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
		r.resumable(r.resumePoint())
		return
	}
	r.checkpoint(m.claim)
	r.resumable(m.resume)
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

// inDoubt are the keys that were written without Sync since all was known to be on disk,
// and how many bytes they would take in a batch.
type inDoubt struct {
	keys map[string]int
	size int
	much bool // they are too many to be kept, or more than keys was written
}

const (
	maxInDoubt     = batchLimit / 2 // bytes of the batch that writes again what is in doubt,
	maxKeysInDoubt = 512            // and keys, each of which is read for it while others wait
)

// note takes in a transaction that was committed without Sync.
func (d *inDoubt) note(t *txn) {
	for i := range t.changes {
		if d.much = d.much || t.beside; d.much {
			break
		}
		c := &t.changes[i]
		k := heldKey{key: c.key, versions: c.versions}
		n := k.size() + writeOverhead
		if d.keys == nil {
			d.keys = map[string]int{}
		}
		d.size += n - d.keys[string(c.key)]
		d.keys[string(c.key)] = n
		d.much = d.size > maxInDoubt || len(d.keys) > maxKeysInDoubt
	}
	if d.much = d.much || t.beside; d.much {
		d.keys = nil
	}
}

var errMuchInDoubt = errors.New("replicator: too much is in doubt to be written again")

// secureAll writes everything that is in doubt once more, with Sync, and the checkpoint
// along: every batch has the whole state of its keys, so nothing depends any more on the
// batches that a power failure could take. What log entries these had deleted may come
// back, and is swept as ever. It costs one sync, where a flush costs five or so. If it is
// too much, or a key does not fit together, the error says so and a flush must do.
func (t *txn) secureAll() error {
	d := &t.r.inDoubt
	if d.much || len(t.r.known.rows) > originStep {
		return errMuchInDoubt
	}
	for _, key := range slices.Sorted(maps.Keys(d.keys)) {
		if err := t.rewrite([]byte(key)); err != nil {
			return err
		}
	}
	for _, rows := range [][]row{t.r.known.rows, slices.Clone(t.known)} {
		for _, w := range rows {
			n := t.at(claimed, w.origin)
			for c := durable; c < columns && n > 0; c++ {
				if n > t.r.disk.at(durable, w.origin) || t.at(c, w.origin) > t.r.disk.at(c, w.origin) {
					t.raise(durable, dot{w.origin, n}) // so that the origin is written
				}
			}
		}
	}
	t.sync, t.secures = true, true
	return nil
}

// rewrite stages a key as it is, unless that is done already.
func (t *txn) rewrite(key []byte) error {
	s, k, err := t.lookup(key)
	if err != nil || k != nil {
		return err
	}
	if len(s) == 0 {
		t.batch.Delete(key)
		for _, kind := range []byte{kindIndex, kindTombstone, kindConflict} {
			t.batch.Delete(kindKey(kind, key))
		}
		return nil
	}
	raw, err := t.r.store.Get(key, nil)
	if err != nil && err != leveldb.ErrNotFound {
		return err
	}
	odd, err := strange(t.r.store, t.r, t.r.resolve, key, s, shownOf(raw, err == leveldb.ErrNotFound))
	if err != nil {
		return err
	}
	if odd { // written past the wrapper: not to be taken back here
		return damaged(key, "its value is not the one that was logged")
	}
	vs, err := t.full(key, s, k)
	if err != nil {
		return err
	}
	// The batch that took a mark away may be among those that are in doubt.
	if !disputed(vs) {
		t.batch.Delete(kindKey(kindConflict, key))
	}
	if !s.buried() {
		t.batch.Delete(kindKey(kindTombstone, key))
	}
	n := len(t.changes)
	err = t.replaceQuietly(key, s, k, vs)
	for i := range t.changes[n:] {
		t.changes[n+i].same = true
	}
	return err
}
