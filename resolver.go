package replicator

import (
	"bytes"
	"cmp"
	"slices"
	"time"
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

	stamp stamp
}

// Resolver decides what a key shows whose writers did not know of each other.
// It gets two versions and returns one of them, or a version with a merged
// Value (or with Deleted set), of which the other fields are ignored. With
// three and more versions it is folded over them in canonical order: by Clock,
// Time, Origin and Seq, the least first.
//
// A resolver only chooses what is shown. It is called on every server for
// itself, its result is never replicated, and every version is kept until
// somebody writes the key; so replicas converge whatever it does, and show the
// same value if it is deterministic. A resolver that panics is reported, and
// [HighestClock] decides for that key.
//
// It is called while a write or a pull is being committed, from one goroutine
// at a time: it must be quick and must not call the database. It must not change
// or keep the byte slices it is given; those it returns are copied.
type Resolver func(key []byte, a, b Version) Version

// HighestClock is the default resolver: the highest logical clock, then the
// latest time, then the greatest origin.
func HighestClock(_ []byte, a, b Version) Version {
	if compareVersions(a, b) >= 0 {
		return a
	}
	return b
}

// LastWriteWins shows the version with the latest time, whatever the clocks
// say. It is as fair as the servers' clocks are right.
func LastWriteWins(key []byte, a, b Version) Version {
	switch c := cmp.Compare(a.stamp, b.stamp); {
	case c > 0:
		return a
	case c < 0:
		return b
	}
	return HighestClock(key, a, b)
}

// compareVersions is the canonical order of the versions of one key.
func compareVersions(a, b Version) int {
	return cmp.Or(
		cmp.Compare(a.Clock, b.Clock),
		cmp.Compare(a.stamp, b.stamp),
		a.Origin.compare(b.Origin),
		cmp.Compare(a.Seq, b.Seq),
	)
}

func sameContent(a, b Version) bool {
	return a.Deleted == b.Deleted && bytes.Equal(a.Value, b.Value)
}

// disputed tells whether the versions of a key differ in content. Equal content
// written in several places is no conflict.
func disputed(vs []version) bool {
	for i := range vs {
		if vs[i].deleted != vs[0].deleted || !bytes.Equal(vs[i].value, vs[0].value) {
			return true
		}
	}
	return false
}

// canonical gives the versions of a key in the order that all servers agree on.
func canonical(vs []version) []Version {
	sorted := make([]Version, len(vs))
	for i := range vs {
		sorted[i] = vs[i].public()
	}
	slices.SortFunc(sorted, compareVersions)
	return sorted
}

// resolveAll folds a resolver over the versions of a key. Of versions with equal
// content only the last in canonical order takes part. If the resolver panics,
// HighestClock decides, and what it panicked with is returned.
func resolveAll(resolve Resolver, key []byte, vs []version) (shown Version, panicked any) {
	sorted := canonical(vs)
	distinct := sorted[:0:0]
	for i, v := range sorted {
		if !slices.ContainsFunc(sorted[i+1:], func(w Version) bool { return sameContent(v, w) }) {
			distinct = append(distinct, v)
		}
	}
	defer func() {
		if panicked = recover(); panicked != nil {
			shown = fold(HighestClock, key, distinct)
		}
	}()
	return fold(resolve, key, distinct), nil
}

func fold(resolve Resolver, key []byte, vs []Version) Version {
	shown := vs[0]
	for _, v := range vs[1:] {
		r := resolve(key, shown, v)
		switch {
		case r.Origin == shown.Origin && r.Seq == shown.Seq && sameContent(r, shown):
		case sameContent(r, v):
			shown = v
		default: // merged: it stands where the greater version does
			shown, shown.Value, shown.Deleted = v, r.Value, r.Deleted
		}
		if shown.Deleted {
			shown.Value = nil
		}
	}
	return shown
}
