package sim

import (
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
)

// holds stages writes and reports whether a condition on the key holds behind them.
func (n *node) holds(behind []store.Write, seen ...causal.Dot) bool {
	t := n.r.Begin()
	require.NoError(n.t, t.Put(behind))
	before := t.Batch.Len()
	i, err := t.Unmet([]replica.Cond{{Key: []byte("k"), Seen: seen}})
	require.NoError(n.t, err)
	require.Equal(n.t, before, t.Batch.Len(), "a condition stages nothing")
	return i < 0
}

// design.md: W6
func TestCond_HoldsWhileTheSiblingsAreThoseThatWereSeen(t *testing.T) {
	a := newNode(t)
	mine := causal.Dot{Origin: a.r.Self, Seq: 1}
	x, y := foreign(1, 1), foreign(2, 1)
	require.True(t, a.holds(nil))
	require.False(t, a.holds(nil, mine))
	a.put("k", "v")
	require.True(t, a.holds(nil, mine))
	require.True(t, a.holds(nil, mine, mine))
	require.False(t, a.holds(nil))
	a.mergeFrom(&causal.Knowledge{}, x)
	require.False(t, a.holds(nil, mine), "another was merged")
	require.False(t, a.holds(nil, x.Dot))
	require.True(t, a.holds(nil, x.Dot, mine))
	require.False(t, a.holds(nil, x.Dot, mine, y.Dot))
	a.put("k", "w")
	require.False(t, a.holds(nil, x.Dot, mine), "both were replaced")
	now := causal.Dot{Origin: a.r.Self, Seq: 2}
	require.True(t, a.holds(nil, now))
	require.False(t, a.holds([]store.Write{{Key: []byte("k"), Value: []byte("w")}}, now), "written before it in the batch")
	require.True(t, a.holds([]store.Write{{Key: []byte("k"), Deleted: true}}))
	a.del("k")
	require.True(t, a.holds(nil), "deleted")
	require.True(t, a.holds(nil, causal.Dot{Origin: a.r.Self, Seq: 3}), "and the deletion was seen")
	require.False(t, a.holds(nil, now))
	a.mergeFrom(&causal.Knowledge{}, y)
	require.False(t, a.holds(nil), "a value beside a deletion is a value, whichever of them wins")
	require.True(t, a.holds(nil, y.Dot, causal.Dot{Origin: a.r.Self, Seq: 3}))
}
