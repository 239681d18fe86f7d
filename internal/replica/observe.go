package replica

import "github.com/level-replicator/replicator/internal/store"

// Change is what a transaction did to one key, for those who watch.
type Change struct {
	Key         []byte
	Old         store.Siblings // what the key held before; values may be missing
	Versions    store.Siblings // what it holds now
	resolved    *store.Version // the resolved value, if these are several
	index       []byte         // its record, nil for none
	Local       bool
	Conflict    bool // it is in conflict now
	WasConflict bool // it was in conflict before
	Panicked    any  // what the resolver panicked with
	Quiet       bool // nobody wrote: something was purged or named again
	Same        bool // nothing is different: it was only written again
	Ahead       bool // its log entry came ahead with a join: Versions leave out the time and the place in a batch
}

// observer learns of the changes that a replica takes in, while nobody else uses the replica.
// Note must not keep c.
type observer interface{ Note(c *Change) }

// Observe registers an observer of all changes from now on, until Unobserve.
func (r *Replica) Observe(o observer) {
	if r.observers == nil {
		r.observers = map[observer]struct{}{}
	}
	r.observers[o] = struct{}{}
}

// Unobserve removes an observer.
func (r *Replica) Unobserve(o observer) { delete(r.observers, o) }

// Winner returns the resolved value of the key, or the deletion if it has none.
func (c *Change) Winner() store.Version {
	switch {
	case c.resolved != nil:
		return *c.resolved
	case len(c.Versions) == 0:
		return store.Version{Deleted: true}
	}
	return c.Versions[0]
}
