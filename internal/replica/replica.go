// Package replica is the state machine: what a replica knows, and what follows from a write or
// from what a peer says. It stages transactions and takes in those that were committed. It starts no
// goroutine, opens no socket, reads no clock but the one handed in, and never commits.
// docs/design.md has the rules; the code names them by their ids.
package replica

import (
	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
)

// Replica is the state of one replica between transactions. It has no lock: one goroutine at a
// time uses it, in a DB the one that holds the slot of the commit queue. Others read a View, or call
// Peek and Aliases.
type Replica struct {
	Config // fixed once it is open

	// What it knows. Stored with the transactions that change it, the version vector with the
	// checkpoint only.
	identity   // its own origins, and the aliases of all; Views share those, which are added to, not changed
	clock      causal.HybridClock
	Known      causal.Knowledge // version vector, checkpoint and watermarks
	Cloud      causal.Vector    // the dot cloud: of each origin the greatest dot held above the version vector
	membership                  // whose reports count before anything is purged

	// How far work has come that goes on between transactions. What is stored of it is true after a
	// crash, and may be less than was done.
	durability            // what is on disk
	resumption            // what unfinished pulls brought, and what is held back
	joins                 // log entries that came ahead of their values
	tombstones            // what a purge waits for
	orphanRev    uint64   // grows when there may be new orphans, see Reissuing
	census       *census  // counts what the store holds; nil once that is known
	Unreadable   int64    // records that it could not read
	MayHaveStale bool     // a crash may have left stale log entries, until a census has found none or a sweep has ended
	mayHaveHints bool     // a crash may have left hints of conflicts that are none, until all were resolved again
	rewound      *rewound // how the store was found, if it was older than when it was closed

	// What the store says as well, kept in memory to spare reading it.
	store.Counters // of what a census has counted so far, while there is one
	caches
	outside *outside

	// observers learn of every change as it is taken in: whoever reads states one after another
	// must know what went between two of them.
	observers map[observer]struct{}

	Txn Txn // reused: there is one at a time
}
