package replica

import (
	"slices"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
)

// LineageLimit is how many of its earlier origins a replica names to its peers.
const LineageLimit = 64

// Lineage are the latest origins of this database: who knew it by one of them
// knows it still.
func (r *Replica) Lineage(limit int) []causal.Origin {
	var os []causal.Origin
	for i := len(r.aliases) - 1; i >= 0 && len(os) < limit; i-- {
		if o := r.aliases[i]; r.Own[o] && o != r.Self {
			os = append(os, o)
		}
	}
	return os
}

// NoteSuccession drops the members that a peer says were its earlier incarnations (G4).
func (r *Replica) NoteSuccession(now causal.Origin, earlier []causal.Origin) {
	for _, o := range earlier {
		if o != now && r.Members[o] != nil {
			r.Members[o].Seen = time.Time{}
			r.Succeeded[o] = true
			r.StableCache = nil
		}
	}
	if m := r.Members[now]; m != nil && len(earlier) > 0 {
		m.earlier = slices.Clone(earlier[:min(len(earlier), LineageLimit)])
	}
}

// ended reports whether an incarnation writes no more, as far as is known: it is an earlier
// one of this database, or a peer said that it was its own, and nobody has answered
// under it since.
func (r *Replica) ended(o causal.Origin) bool {
	if m := r.Members[o]; m != nil && !m.Seen.IsZero() {
		return false
	}
	if r.Own[o] {
		return o != r.Self
	}
	return r.hasMetSuccessor(o)
}

// hasMetSuccessor reports whether a member that was met says that an origin was its own before.
func (r *Replica) hasMetSuccessor(o causal.Origin) bool {
	for _, m := range r.Members {
		if m.Met && slices.Contains(m.earlier, o) {
			return true
		}
	}
	return false
}

// Lost reports whether a write that is not covered here never will be, under this name (O5),
// as far as the peers that were heard know: its incarnation has ended, none of them covers
// it, and nothing of it is held here. If something is, it may still be covered, or it
// is an orphan that will be reissued.
func (r *Replica) Lost(d causal.Dot) (bool, error) {
	if !r.ended(d.Origin) {
		return false, nil
	}
	for _, m := range r.Members {
		if m.Known.Covers(d) {
			return false, nil
		}
	}
	a, ok := r.Alias[d.Origin]
	if !ok {
		return true, nil
	}
	it := r.Store.NewIterator(store.LogRange(a, r.Known.Seq(causal.Covered, d.Origin)+1, causal.MaxSeq), nil)
	defer it.Release()
	held := it.Next()
	return !held, it.Error()
}
