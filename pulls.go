package replicator

import (
	"sync"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/session"
)

// pulls are the pulls under way here. While one brings much, others would bring
// the same again; so a session leaves out its own pull then, and a round follows.
type pulls struct {
	mu     sync.Mutex
	active map[causal.Origin]activePull
	missed bool          // a session left out its pull
	left   chan struct{} // closed when the next of them ends; nil if nobody waits for that
}

// next returns a channel that is closed when a pull ends.
func (ps *pulls) next() <-chan struct{} {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.left == nil {
		ps.left = make(chan struct{})
	}
	return ps.left
}

type activePull struct {
	since time.Time
	bulk  bool // it brings much
}

const (
	bulkWrites = 4096                   // a pull of more brings much,
	bulkAfter  = 100 * time.Millisecond // and so does one that takes longer
	bulkUntil  = 2 * time.Second        // one that takes longer still holds up no other
)

func (db *DB) enterPull(from causal.Origin, writes int64) session.SkipReason {
	if db.queue.broken() != nil {
		return session.SkippedReadOnly
	}
	return db.gossip.pulls.enter(from, writes, time.Now())
}

func (ps *pulls) enter(from causal.Origin, writes int64, now time.Time) session.SkipReason {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	bulk := writes > bulkWrites
	for o, p := range ps.active {
		took := now.Sub(p.since)
		if o == from || took < bulkUntil && (took > bulkAfter || bulk && p.bulk) {
			ps.missed = true
			return session.SkippedBusy
		}
	}
	if ps.active == nil {
		ps.active = map[causal.Origin]activePull{}
	}
	ps.active[from] = activePull{now, bulk}
	return session.NotSkipped
}

func (db *DB) leavePull(from causal.Origin) {
	if db.gossip.pulls.leave(from) {
		db.noteLocalChanges(0)
	}
}

// leave ends a pull, and reports whether another was left out meanwhile.
func (ps *pulls) leave(from causal.Origin) (missed bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.active, from)
	missed, ps.missed = ps.missed, false
	if ps.left != nil {
		close(ps.left)
		ps.left = nil
	}
	return missed
}
