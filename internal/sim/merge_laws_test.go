package sim

import (
	"fmt"
	"slices"
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// keyStates are what a replica once held of some keys, and what it knew then.
type keyStates struct {
	known *causal.Knowledge
	held  map[string]store.Siblings
}

func statesOf(n *node, keys []string) keyStates {
	known := n.r.Known.Clone()
	s := keyStates{&known, map[string]store.Siblings{}}
	for _, k := range keys {
		s.held[k] = n.versions(k)
	}
	return s
}

// mergeStates merges as a pull that ends well does.
func (n *node) mergeStates(keys []string, s keyStates) {
	require.NoError(n.t, n.Commit(func(t *replica.Txn) error {
		for _, k := range keys {
			if len(s.held[k]) == 0 {
				continue
			}
			if _, err := t.Merge([]byte(k), s.held[k], s.known); err != nil {
				return err
			}
		}
		for _, d := range s.known.Vector(causal.Covered) {
			t.Cover(d)
		}
		t.JoinWatermarks(s.known)
		return nil
	}))
}

// survivors is what must be left of a key once all states were merged: each version that everyone
// who covers it holds. It looks at no context.
func survivors(key string, states []keyStates) (dots []causal.Dot) {
	for _, s := range states {
		for _, v := range s.held[key] {
			if !slices.Contains(dots, v.Dot) && !slices.ContainsFunc(states, func(o keyStates) bool {
				return o.known.Covers(v.Dot) && !o.held[key].Has(v.Dot)
			}) {
				dots = append(dots, v.Dot)
			}
		}
	}
	return sorted(dots)
}

func dotsOf(vs []store.Version) (dots []causal.Dot) {
	for _, v := range vs {
		dots = append(dots, v.Dot)
	}
	return sorted(dots)
}

func sorted(dots []causal.Dot) []causal.Dot {
	slices.SortFunc(dots, causal.Dot.Compare)
	return dots
}

// Merging is commutative, associative and idempotent: replicas that have merged the same states, in
// whatever order and however often, hold the same.
//
// design.md: M1, M2, M3, M4, M5
func TestMerge_IsASemilattice(t *testing.T) {
	keys := []string{"a", "b"}
	rapid.Check(t, func(rt *rapid.T) {
		var writers []*node
		for i := range 3 {
			n := newFixedNode(t, fmt.Sprint("writer", i)).node
			defer n.db.Close()
			writers = append(writers, n)
		}
		var states []keyStates
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			n := rapid.SampledFrom(writers).Draw(rt, "writer")
			key := rapid.SampledFrom(keys).Draw(rt, "key")
			switch rapid.SampledFrom([]string{"put", "put", "delete", "merge", "prune", "state"}).Draw(rt, "step") {
			case "put":
				n.put(key, rapid.SampledFrom([]string{"", "x", "y"}).Draw(rt, "value"))
			case "delete":
				n.del(key)
			case "merge":
				n.mergeStates(keys, statesOf(rapid.SampledFrom(writers).Draw(rt, "from"), keys))
			case "prune": // without a purge, all that is covered and not held was superseded
				require.NoError(t, n.Commit(func(t *replica.Txn) error {
					for _, d := range n.r.Known.Vector(causal.Covered) {
						raiseWatermark(t, causal.Pruned, d)
					}
					return nil
				}))
			case "state":
				states = append(states, statesOf(n, keys))
			}
		}
		for _, n := range writers {
			states = append(states, statesOf(n, keys))
		}
		var first *node
		for i := range 3 {
			n := newFixedNode(t, "observer").node
			defer n.db.Close()
			order := slices.Clone(states)
			if i > 0 {
				order = rapid.Permutation(append(order, order[:rapid.IntRange(0, len(order)).Draw(rt, "again")]...)).Draw(rt, "order")
			}
			for _, s := range order {
				n.mergeStates(keys, s)
			}
			if first == nil {
				first = n
			}
			for _, k := range keys {
				require.Equal(rt, survivors(k, states), dotsOf(n.versions(k)), "key %s", k)
				require.Equal(rt, first.versions(k), n.versions(k))
				require.Equal(rt, first.get(k), n.get(k))
			}
			require.Equal(rt, first.r.Counters, n.r.Counters)
			require.Equal(rt, first.r.Known.VectorSum, n.r.Known.VectorSum)
			require.ElementsMatch(rt, first.log(), n.log())
		}
	})
}
