package replicator

import (
	"cmp"
	"errors"
	"reflect"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// Version is one write of one key, as a resolver and [DB.Conflicts] see it.
// Value must not be changed.
type Version struct {
	Value   []byte    // nil if Deleted
	Deleted bool      // the write was a Delete
	Clock   uint64    // the key's logical clock: 0 for its first write, then one more than the greatest its writer had seen
	Time    time.Time // when it was written, by the hybrid clock of its writer, to the millisecond
	Origin  Origin    // the opening of a database that wrote it
	Seq     uint64    // its position in the origin's log, from 1

	stamp causal.Stamp
}

// Resolver decides what a key shows whose writers did not know of each other.
// It gets two versions and returns one of them, or a version with a merged
// Value (or with Deleted set), of which the other fields are ignored. With
// three and more versions it is folded over them in canonical order: by Clock,
// Time, Origin and Seq, the least first.
//
// A resolver only chooses what is shown. It is called on every replica for
// itself, its result is never replicated, and every version is kept until
// somebody writes the key; so replicas converge whatever it does, and show the
// same value if it is deterministic. A resolver that panics is reported, and
// [HighestClock] decides for that key.
//
// It is called by one goroutine at a time, while what a pull brought waits to be
// committed; nobody who writes waits for it, nor does Replicate for more than 0.1 s: after
// an opening keys in conflict may show what they showed before for as long as it takes.
// It must not call the database, nor change or keep the byte slices it is given; those it
// returns are copied.
type Resolver func(key []byte, a, b Version) Version

// HighestClock is the default resolver: the highest logical clock, then the
// latest time, then the greatest origin.
func HighestClock(_ []byte, a, b Version) Version {
	x, y := a.internal(), b.internal()
	if x.Compare(&y) >= 0 {
		return a
	}
	return b
}

// LastWriteWins shows the version with the latest time, whatever the clocks
// say. It is as fair as the replicas' clocks are right.
func LastWriteWins(key []byte, a, b Version) Version {
	switch c := cmp.Compare(a.stamp, b.stamp); {
	case c > 0:
		return a
	case c < 0:
		return b
	}
	return HighestClock(key, a, b)
}

// quick reports whether a resolver is one of this package, which take no time.
func (f Resolver) quick() bool {
	is := func(g Resolver) bool { return reflect.ValueOf(f).Pointer() == reflect.ValueOf(g).Pointer() }
	return is(HighestClock) || is(LastWriteWins)
}

// internal is the resolver as the core calls it.
func (f Resolver) internal() replica.ResolveFunc {
	return func(key []byte, a, b *store.Version) store.Version {
		v := f(key, publicVersion(a), publicVersion(b))
		return v.internal()
	}
}

func (v *Version) internal() store.Version {
	return store.Version{Dot: causal.Dot{Origin: causal.Origin(v.Origin), Seq: v.Seq}, Clock: v.Clock, Stamp: v.stamp, Deleted: v.Deleted, Value: v.Value}
}

// publicVersion is a version as callers see it. It shares its value.
func publicVersion(v *store.Version) Version {
	return Version{Value: v.Value, Deleted: v.Deleted, Clock: v.Clock, Time: v.Stamp.Time(), Origin: Origin(v.Origin), Seq: v.Seq, stamp: v.Stamp}
}

// publicVersions are versions as callers see them. They share their values.
func publicVersions(vs []store.Version) []Version {
	list := make([]Version, len(vs))
	for i := range vs {
		list[i] = publicVersion(&vs[i])
	}
	return list
}

// errUndecided ends the staging of a request that the resolver has to be asked for first.
var errUndecided = errors.New("replicator: the resolver has to be asked first")

// decide asks the resolver for all that is undecided, with the queue free.
func (db *DB) decide(ds *replica.Decisions) error {
	if !ds.Decide(db.decider.resolve, db.isClosing) {
		return leveldb.ErrClosed
	}
	return nil
}

// decider calls the resolver, from one goroutine at a time.
type decider struct {
	resolver Resolver
	quick    bool          // it is one of this package, and may be called with the queue's slot held
	turn     chan struct{} // capacity 1: holds a place while the resolver is called
}

func newDecider(r Resolver) decider {
	return decider{resolver: r, quick: r.quick(), turn: make(chan struct{}, 1)}
}

func (d *decider) resolve(key []byte, a, b *store.Version) store.Version {
	d.turn <- struct{}{}
	defer func() { <-d.turn }()
	return d.resolver.internal()(key, a, b)
}
