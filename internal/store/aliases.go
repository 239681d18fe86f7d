package store

import "github.com/level-replicator/replicator/internal/causal"

// AliasTable are the origins of a database by their short names. Aliases are given
// out in order and never withdrawn, so a copy of the slice made while the
// replica is at rest may be read while it goes on.
type AliasTable []causal.Origin

// Aliasing maps the origins of a store to their aliases, and back.
type Aliasing interface {
	numbering
	AliasOf(causal.Origin) (uint32, bool)
}

func (a AliasTable) Origin(n uint64) (causal.Origin, bool) {
	if n >= uint64(len(a)) {
		return causal.Origin{}, false
	}
	return a[n], true
}

// Number is not for a copy: only the replica assigns aliases.
func (a AliasTable) Number(causal.Origin) uint64 {
	panic("replicator: a copy of the aliases cannot assign one")
}
