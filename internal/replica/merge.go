package replica

import (
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
)

// JoinWatermarks takes in the watermarks of a peer. A version may rely on them, so they come with
// the first that is merged (M7).
func (t *Txn) JoinWatermarks(peer *causal.Knowledge) {
	for _, w := range t.R.Known.Watermarks(peer) {
		t.raiseWatermark(causal.Pruned, causal.Dot{Origin: w.Origin, Seq: w.Seqs[causal.Pruned]})
		t.raiseWatermark(causal.Purged, causal.Dot{Origin: w.Origin, Seq: w.Seqs[causal.Purged]})
	}
}

// DropPurged takes in what the peer holds of a key, and then drops what the peer has
// purged: held here, not there, and within both its purged watermark and its version vector (R1).
func (t *Txn) DropPurged(key []byte, theirs []store.Version, peer *causal.Knowledge) error {
	if _, err := t.Merge(key, theirs, peer); err != nil {
		return err
	}
	old, k, err := t.Lookup(key)
	if err != nil {
		return err
	}
	full, err := t.full(key, old, k)
	if err != nil {
		return err
	}
	kept := make(store.Siblings, 0, len(full))
	for _, v := range full {
		if store.Siblings(theirs).Has(v.Dot) || v.Seq > peer.Seq(causal.Purged, v.Origin) || v.Seq > peer.Seq(causal.Covered, v.Origin) {
			kept = append(kept, v)
		}
	}
	if kept.SameDots(old) {
		return nil
	}
	return t.replace(key, old, k, kept, false)
}

// Reconcile merges a key with the state of a peer that has an equal version vector and holds
// something else. Where the peer holds versions of the key, its watermarks count (R2). Where a
// whole key is missing, a purge cannot be told from corruption, and what is held comes back (R3):
// a deleted key that returns is the lesser evil. It returns how many versions came back.
func (t *Txn) Reconcile(key []byte, theirs []store.Version, peer *causal.Knowledge) (back int, err error) {
	old, k, err := t.Lookup(key)
	if err != nil {
		return 0, err
	}
	full, lost, err := t.Intact(key, old, k)
	if err != nil {
		return 0, err
	}
	now := slices.Clone(full)
	if len(theirs) > 0 {
		now = slices.DeleteFunc(now, func(y store.Version) bool { return !store.Siblings(theirs).Has(y.Dot) && peer.Superseded(y.Dot) })
	}
	now = now.Live()
	had := len(now) > 0
	for _, x := range theirs {
		if had && !lost.Has(x.Dot) && t.superseded(x.Dot) {
			continue
		}
		if now.Covers(x.Dot) {
			continue
		}
		now = now.With(&x, make(store.Siblings, 0, len(now)+1))
		if t.Covers(x.Dot) {
			back++
		} else {
			t.merged = t.merged.Raise(x.Dot)
		}
	}
	if now.SameDots(old) && len(lost) == 0 {
		return 0, nil
	}
	for _, y := range lost { // what nothing replaces stays, for somebody else to repair
		superseded := len(theirs) > 0 && peer.Superseded(y.Dot)
		if !superseded && !now.Covers(y.Dot) {
			return 0, nil
		}
	}
	return back, t.stage(key, old, k, now, false)
}

// Merge takes in the state that a peer holds of one key; peer has its watermarks at that state. All siblings are named (M6). Contents that are missing are left to a later merge, and
// so is dropping what only the watermarks are against: what has seen it may be what is missing.
func (t *Txn) Merge(key []byte, theirs []store.Version, peer *causal.Knowledge) (fresh int, err error) {
	news, whole := false, true
	for i := range theirs {
		news = news || !t.has(theirs[i].Dot)
		whole = whole && theirs[i].Whole()
	}
	if !news { // it came with another session, say
		return 0, nil
	}
	old, k, err := t.Lookup(key)
	if err != nil {
		return 0, err
	}
	now := old
	for i := range theirs {
		x := &theirs[i]
		if t.has(x.Dot) || !x.Whole() {
			continue // M1: held, superseded or purged here; or not here yet
		}
		if now.Covers(x.Dot) { // M2
			continue
		}
		if x.NameOnly && x.Listed {
			continue // it was held, and is superseded
		}
		if x.NameOnly {
			return fresh, ProtocolErrorf("key %q: version %v was sent without its content", key, x.Dot)
		}
		// M3, M5: x replaces what it has seen.
		now = now.With(x, t.versions.Take(len(now)+1))
		fresh++
		t.R.clock.See(x.Stamp)
		t.merged = t.merged.Raise(x.Dot)
	}
	if whole {
		now = t.dropSuperseded(now, theirs, peer)
	}
	if fresh == 0 && len(now) == len(old) {
		return 0, nil
	}
	return fresh, t.replace(key, old, k, now, false)
}

// dropSuperseded drops of a key, all of whose versions at the peer are merged, what the peer's
// watermarks cover and the peer does not hold: something there has seen it (M4).
func (t *Txn) dropSuperseded(now store.Siblings, theirs []store.Version, peer *causal.Knowledge) store.Siblings {
	superseded := func(y store.Version) bool { return peer.Superseded(y.Dot) && !store.Siblings(theirs).Has(y.Dot) }
	if !slices.ContainsFunc(now, superseded) {
		return now
	}
	kept := store.Siblings(t.versions.Take(len(now)))
	for _, y := range now {
		if !superseded(y) {
			kept = append(kept, y)
			continue
		}
		for _, d := range y.Context {
			t.raiseWatermark(causal.Pruned, d)
		}
		t.raiseWatermark(causal.Pruned, y.Dot)
	}
	return kept
}
