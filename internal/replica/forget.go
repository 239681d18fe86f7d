package replica

import (
	"slices"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
)

// unseenFor returns how long ago a member was last seen. One that was seen later than now
// was seen while this replica's clock was ahead, and would count for as long: its time
// starts anew.
func (m *Member) unseenFor(now time.Time) time.Duration {
	if m.Seen.After(now) {
		m.Seen = now
	}
	return now.Sub(m.Seen)
}

// Ended reports whether an opening writes no more, as far as is known: it is an earlier
// one of this database, or a peer said that it was its own, and nobody has answered
// under it since.
func (r *Replica) Ended(o causal.Origin) bool {
	if m := r.Members[o]; m != nil && !m.Seen.IsZero() {
		return false
	}
	if r.Own[o] {
		return o != r.Self
	}
	for _, m := range r.Members {
		if m.Met && slices.Contains(m.earlier, o) {
			return true
		}
	}
	return false
}

// Lost reports whether a write that is not claimed here never will be, under this name,
// as far as the peers that were heard know: its opening has ended, none of them claims
// it, and nothing of it is held here. If something is, it may still be claimed, or it
// is an orphan that is to be issued again.
func (r *Replica) Lost(d causal.Dot) (bool, error) {
	if !r.Ended(d.Origin) {
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

// LineageLimit is how many of its earlier origins a replica names to its peers.
const LineageLimit = 64
