package replica

import (
	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/indexcache"
	"github.com/level-replicator/replicator/internal/store"
)

// Replica is the algorithm: what a server knows, and what follows from a write
// or from what a peer says. It starts no goroutine, opens no socket, reads no
// clock but the one handed in, and never commits: it stages transactions, and
// takes in those that were committed. All of it is used by one goroutine at a
// time; docs/design.md has the rules.
type Replica struct {
	ReplicaConfig

	Self    causal.Origin // of this opening
	Seq     uint64        // of the last write logged under it
	clock   causal.HybridClock
	Known   causal.Knowledge
	Durable causal.Knowledge // of it the checkpoint and the proofs, as far as they are on disk
	undurable
	Aliases store.AliasTable
	Alias   map[causal.Origin]uint32 // replaced when it grows, so that it may be read while the replica goes on
	opened  bool
	// recorded are the aliases that are in the store. Those beyond were assigned by
	// a transaction that failed, and the next one must write them.
	recorded int
	Own      map[causal.Origin]bool // openings of this database
	Cache    indexcache.Cache
	Filter   indexcache.Filter
	Members  map[causal.Origin]*Member
	// succeeded are members that were opened anew since they were last heard.
	Succeeded map[causal.Origin]bool

	// loose are the greatest dots held that are above the claim: of a pull that
	// is not whole, and orphans of earlier openings.
	Cloud causal.Vector

	Rewound *Rewound // how the store was found, if it was older than when it was closed

	// littered tells that a crash may have left log entries that their keys'
	// log-indexes do not name, until a sweep has gone through the log.
	MayHaveStale bool

	store.Counters

	Pending  *PendingPull          // what an unfinished pull already brought
	Above    causal.SpanMap        // what is held, superseded or forgotten here above the claim, as within it
	HeldBack map[causal.Dot]uint64 // what is not taken here, with the sizes
	Resume   resume                // what is stored of pending and above
	// observers are told of every change, as it is taken in: whoever reads states one after
	// another and must know what went between two of them.
	observers map[observer]struct{}

	flushMarks  []FlushMark // claims that will be durable once goleveldb has flushed often enough
	Commits     uint64      // transactions since the opening
	dirty       uint64      // the last of them that was committed without Sync
	ownDirty    uint64      // the last of them that had own writes and was committed without Sync
	Safe        uint64      // up to which they are known to be on disk
	Unsynced    bool        // dirty is above safe: the checkpoint may be below the claim
	inDoubt     inDoubt
	SavedRev    uint64        // revision up to which checkpoints are stored
	StableCache causal.Vector // see stable; nil if it must be worked out anew

	left  remaining // tombstones that are held, but for
	fresh remaining // those that came lately

	Txn Txn // reused: there is one at a time
}
