package session

import (
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
)

// Host is what a session needs of the replica that it runs at.
type Host interface {
	// With calls f while nothing else uses the replica. f must not wait.
	With(f func(r *replica.Replica))
	// Commit stages a transaction and commits it. It may call stage again.
	Commit(stage func(t *replica.Txn) error) error
	// Addresses returns the addresses of replicas that are known here.
	Addresses() []string
	// Learn takes in addresses that the peer knows.
	Learn(addrs []string)
	// EnterPull reports whether a pull from a peer that holds some number of writes which are not known
	// here may begin, or why not. If it may, LeavePull follows when the pull has ended.
	EnterPull(from causal.Origin, writes int64) SkipReason
	LeavePull(from causal.Origin)
}

// A Flusher is a Host that can bring everything its replica covers to disk. MakeDurable returns when it
// is there.
type Flusher interface{ MakeDurable() error }

// A Pacer is a Host whose store may fall behind. Pace waits, with nothing held, until it takes more without holding up
// those who write, but no longer than it may, and returns how long it did.
type Pacer interface {
	Pace(most time.Duration) time.Duration
}

// Params say how a session is held.
type Params struct {
	// What the hello says.
	Name, Cluster, Addr string
	CachedPeer          causal.Origin // who was last met at this address; zero if nobody was

	// Bounds.
	PageSize         int    // bytes after which a page ends
	Window           int    // bytes that may be sent of one state; if less than a page, that is one page
	BatchSize        int    // bytes of pages that are committed as one batch
	MaxValue, MaxKey int    // bytes of what is taken here
	RoundKeys        int64  // keys in one round of a join; 0 means the constant
	JoinAbove        int64  // writes that must be lacked before a join is asked for; 0 means the constant
	ListBelow        uint64 // dots that a repair lists rather than splits; 0 means replica.MaxListed

	// OnHello is called once the peer has said who it is, and reports whether the last session with it
	// broke off. Nil: nobody wants to know.
	OnHello func(h *Hello) (broke bool)
	// Wants reports whether the peer should bring to disk what it covers, and report it. It is called
	// within Host.With. Nil: never.
	Wants func(r *replica.Replica, peer causal.Origin) bool
	// Stay reports whether the connection to a peer may stay open after the session, see Stream, and whether there was
	// news here lately, so that there is a reason to. A dialer may not know the peer yet. It is called within Host.With.
	// Nil: never.
	Stay  func(peer causal.Origin) (may, news bool)
	Asked uint64 // names the latest of those who wanted that when the session began: see Result

	Goal
}

// Goal is what a dialer wants beyond bringing both sides up to date.
type Goal struct {
	Repair  [][]byte    // keys that are corrupted here
	Compare *Comparison // to be filled in
}

func (g *Goal) any() bool { return len(g.Repair) > 0 || g.Compare != nil }
