package replicator

import (
	"bytes"
	"cmp"
	"slices"
)

// resolveFunc decides between two siblings of a key. It returns one of them, or one whose
// value is merged or which is deleted, of which only that counts.
type resolveFunc func(key []byte, a, b *version) version

// highestClock decides where a resolver panicked.
func highestClock(_ []byte, a, b *version) version {
	if a.compare(b) >= 0 {
		return *a
	}
	return *b
}

// compare is the canonical order of the versions of one key.
func (v *version) compare(w *version) int {
	return cmp.Or(
		cmp.Compare(v.clock, w.clock),
		cmp.Compare(v.stamp, w.stamp),
		v.dot.compare(w.dot),
	)
}

func (v *version) sameContent(w *version) bool {
	return v.deleted == w.deleted && bytes.Equal(v.value, w.value)
}

// disputed reports whether the versions of a key differ in content. Equal content
// written in several places is no conflict.
func disputed(vs []version) bool {
	for i := range vs {
		if !vs[i].sameContent(&vs[0]) {
			return true
		}
	}
	return false
}

// canonical returns the versions of a key in the order that all servers agree on.
func canonical(vs []version) []version {
	return slices.SortedFunc(slices.Values(vs), func(a, b version) int { return a.compare(&b) })
}

// resolveAll folds a resolver over the versions of a key. Of versions with equal
// content only the last in canonical order takes part. If the resolver panics,
// highestClock decides, and what it panicked with is returned.
func resolveAll(resolve resolveFunc, key []byte, vs []version) (shown version, panicked any) {
	sorted := canonical(vs)
	distinct := sorted[:0:0]
	for i, v := range sorted {
		if !slices.ContainsFunc(sorted[i+1:], func(w version) bool { return v.sameContent(&w) }) {
			distinct = append(distinct, v)
		}
	}
	defer func() {
		if panicked = recover(); panicked != nil {
			shown = fold(highestClock, key, distinct)
		}
	}()
	return fold(resolve, key, distinct), nil
}

func fold(resolve resolveFunc, key []byte, vs []version) version {
	shown := vs[0]
	for _, v := range vs[1:] {
		r := resolve(key, &shown, &v)
		switch {
		case r.dot == shown.dot && r.sameContent(&shown):
		case r.sameContent(&v):
			shown = v
		default: // merged: it stands where the greater version does
			shown, shown.value, shown.deleted = v, r.value, r.deleted
		}
		if shown.deleted {
			shown.value = nil
		}
	}
	return shown
}
