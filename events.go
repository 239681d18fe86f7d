package replicator

import (
	"slices"

	"github.com/level-replicator/replicator/internal/replica"
)

// emitEvents calls the events for what a commit did.
func (db *DB) emitEvents(changes []replica.Change) {
	ev := db.opts.Events
	for i := range changes {
		c := &changes[i]
		if c.Panicked != nil {
			db.opts.Logger.Error("replicator: a resolver panicked; the default decided", "panic", c.Panicked)
			if ev.ResolverPanic != nil {
				ev.ResolverPanic(slices.Clone(c.Key), c.Panicked)
			}
		}
		if c.Conflict && ev.Conflict != nil {
			ev.Conflict(slices.Clone(c.Key), copyVersions(publicVersions(replica.Canonical(c.Versions))))
		}
		if c.WasConflict && !c.Conflict && ev.Resolved != nil {
			ev.Resolved(slices.Clone(c.Key))
		}
	}
}

func copyVersions(vs []Version) []Version {
	for i := range vs {
		vs[i].Value = slices.Clone(vs[i].Value)
	}
	return vs
}
