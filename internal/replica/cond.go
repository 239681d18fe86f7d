package replica

import (
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
)

// Cond is a condition of a write: the siblings that its caller saw of a key, each at least once. None
// stand for no value.
type Cond struct {
	Key  []byte
	Seen []causal.Dot
}

// Unmet returns the index of the first condition that does not hold in the transaction as it is staged so
// far, or -1. It stages nothing itself (W6).
func (t *Txn) Unmet(conds []Cond) (int, error) {
	for i := range conds {
		s, _, err := t.Lookup(conds[i].Key)
		if err != nil {
			return i, err
		}
		if !conds[i].holds(s) {
			return i, nil
		}
	}
	return -1, nil
}

// holds reports whether a key with siblings s is as the caller saw it.
func (c *Cond) holds(s store.Siblings) bool {
	if len(c.Seen) == 0 {
		return !s.HasValue()
	}
	for _, d := range c.Seen {
		if !s.Has(d) {
			return false
		}
	}
	return !slices.ContainsFunc(s, func(v store.Version) bool { return !slices.Contains(c.Seen, v.Dot) })
}

// SameTo reports whether a key with siblings s is to its readers what one with siblings t is: the same
// versions, or no value.
func SameTo(s, t store.Siblings) bool {
	return !s.HasValue() && !t.HasValue() || s.SameDots(t)
}
