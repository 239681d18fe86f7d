package store

import "github.com/level-replicator/replicator/internal/causal"

// Counters are what is counted of all keys: of a database, or by how much a
// transaction changes them.
type Counters struct {
	Digest     causal.Sum
	Keys       int64 // that hold a value
	Tombstones int64 // keys of which all versions are tombstones
	Conflicts  int64 // keys in conflict; Count leaves them alone
}

// Count adds the state of a key to the counters (n is 1), or subtracts it (-1).
func (f *Counters) Count(s Siblings, n int64) {
	switch {
	case len(s) == 0:
	case !s.HasValue():
		f.Tombstones += n
	case n > 0:
		f.Keys += n
		f.Digest = f.Digest.Add(s.Hash())
	default:
		f.Keys += n
		f.Digest = f.Digest.Sub(s.Hash())
	}
}

// Add adds other counters.
func (f *Counters) Add(g Counters) {
	f.Digest = f.Digest.Add(g.Digest)
	f.Keys += g.Keys
	f.Tombstones += g.Tombstones
	f.Conflicts += g.Conflicts
}
