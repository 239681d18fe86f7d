package main

import (
	"encoding/json"
	"maps"

	"github.com/level-replicator/replicator"
)

// cart is a document in which every field has its own rule for a merge.
type cart struct {
	Coupon string         `json:"coupon,omitempty"` // of the newer version, if it has one
	Items  map[string]int `json:"items"`            // all, each with the greater count
}

// mergeCarts is a [replicator.Resolver]. Its result is the same on every replica and in
// either order of its arguments: JSON has maps sorted, and HighestClock picks the newer
// version.
//
// It does not merge deletions and values that are not carts: HighestClock decides.
func mergeCarts(key []byte, a, b replicator.Version) replicator.Version {
	newer := replicator.HighestClock(key, a, b)
	var carts [2]cart
	if a.Deleted || b.Deleted || json.Unmarshal(a.Value, &carts[0]) != nil || json.Unmarshal(b.Value, &carts[1]) != nil {
		return newer
	}
	last, other := carts[0], carts[1]
	if newer.Origin == b.Origin && newer.Seq == b.Seq {
		last, other = other, last
	}
	merged, err := json.Marshal(last.join(other))
	if err != nil {
		return newer
	}
	return replicator.Version{Value: merged}
}

// join merges an older cart into c.
func (c cart) join(older cart) cart {
	if c.Coupon == "" {
		c.Coupon = older.Coupon
	}
	items := maps.Clone(older.Items)
	if items == nil {
		items = map[string]int{}
	}
	for name, n := range c.Items {
		items[name] = max(items[name], n)
	}
	c.Items = items
	return c
}
