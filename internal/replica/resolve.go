package replica

import (
	"slices"

	"github.com/level-replicator/replicator/internal/store"
)

// ResolveFunc decides between two siblings of a key. It returns one of them, or one whose
// value is merged or which is deleted, of which only that counts.
type ResolveFunc func(key []byte, a, b *store.Version) store.Version

// HighestClock decides where a resolver panicked.
func HighestClock(_ []byte, a, b *store.Version) store.Version {
	if a.Compare(b) >= 0 {
		return *a
	}
	return *b
}

// InConflict reports whether the versions of a key differ in content. Equal content
// written in several places is no conflict.
func InConflict(vs []store.Version) bool {
	for i := range vs {
		if !vs[i].SameContent(&vs[0]) {
			return true
		}
	}
	return false
}

// Canonical returns the versions of a key in the order that all replicas agree on.
func Canonical(vs []store.Version) []store.Version {
	return slices.SortedFunc(slices.Values(vs), func(a, b store.Version) int { return a.Compare(&b) })
}

// Resolve folds a resolver over the versions of a key. Of versions with equal
// content only the last in canonical order takes part. If the resolver panics,
// HighestClock decides, and what it panicked with is returned (M8).
func Resolve(resolve ResolveFunc, key []byte, vs []store.Version) (resolved store.Version, panicked any) {
	sorted := Canonical(vs)
	distinct := sorted[:0:0]
	for i, v := range sorted {
		if !slices.ContainsFunc(sorted[i+1:], func(w store.Version) bool { return v.SameContent(&w) }) {
			distinct = append(distinct, v)
		}
	}
	defer func() {
		if panicked = recover(); panicked != nil {
			resolved = fold(HighestClock, key, distinct)
		}
	}()
	return fold(resolve, key, distinct), nil
}

func fold(resolve ResolveFunc, key []byte, vs []store.Version) store.Version {
	winner := vs[0]
	for _, v := range vs[1:] {
		r := resolve(key, &winner, &v)
		switch {
		case r.Dot == winner.Dot && r.SameContent(&winner):
		case r.SameContent(&v):
			winner = v
		default: // merged: it stands where the greater version does
			winner, winner.Value, winner.Deleted = v, r.Value, r.Deleted
		}
		if winner.Deleted {
			winner.Value = nil
		}
	}
	return winner
}
