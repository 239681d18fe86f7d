// Package replica is the state machine: what a replica knows, and what follows from a write or
// from what a peer says. It stages transactions and takes in those that were committed. It starts no
// goroutine, opens no socket, reads no clock but the one handed in, and never commits.
// docs/design.md has the rules; the code names them by their ids.
package replica

import (
	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
)

// Replica is the state of one replica between transactions. One goroutine at a time uses it.
type Replica struct {
	Config

	identity   // who it is, and the origins of its store
	membership // whose reports count
	durability // what of it is on disk
	resumption // what unfinished pulls brought, and what is held back
	tombstones // what a purge waits for
	caches

	clock causal.HybridClock
	Known causal.Knowledge // version vector, checkpoint and watermarks
	Cloud causal.Vector    // the dot cloud: of each origin the greatest dot held above the version vector

	store.Counters

	rewound      *rewound // how the store was found, if it was older than when it was closed
	MayHaveStale bool     // a crash may have left stale log entries, until a sweep has ended

	// observers learn of every change as it is taken in: whoever reads states one after another
	// must know what went between two of them.
	observers map[observer]struct{}

	Txn Txn // reused: there is one at a time
}
