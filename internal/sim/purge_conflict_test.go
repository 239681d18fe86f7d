package sim

import (
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
)

// design.md: G2
func TestPurge_OfAConflictNeedsNoRepair(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "base")
	a.put("other", "x")
	talk(t, a, b)
	b.put("k", "v") // clock 1
	a.put("k", "w")
	a.put("k", "w2")
	a.del("k") // clock 3: the winner
	talk(t, a, b)
	require.Equal(t, "-", a.get("k"))
	require.Len(t, a.versions("k"), 2)
	for range 3 {
		a.r.NoteOnDisk(a.r.FlushMark())
		b.r.NoteOnDisk(b.r.FlushMark())
		talk(t, a, b)
	}
	a.purge()
	require.Len(t, a.versions("k"), 2, "a value that nobody has decided against is not forgotten")
	sa, sb, _ := talk(t, a, b)
	require.Zero(t, sa.Result().Repaired+sb.Result().Repaired)
	a.del("k")
	for range 3 {
		talk(t, a, b)
		a.r.NoteOnDisk(a.r.FlushMark())
		b.r.NoteOnDisk(b.r.FlushMark())
	}
	a.purge()
	require.Empty(t, a.versions("k"))
	sa, sb, _ = talk(t, a, b)
	require.Zero(t, sa.Result().Repaired+sb.Result().Repaired)
	requireEqualNodes(t, a, b)
}

// design.md: G2
func TestPurge_KeepsAConflictWhicheverSiblingWins(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "base")
	talk(t, a, b)
	a.del("k")
	b.put("k", "v")
	b.put("k", "w") // clock 2: the winner
	for range 3 {
		talk(t, a, b)
		a.r.NoteOnDisk(a.r.FlushMark())
		b.r.NoteOnDisk(b.r.FlushMark())
	}
	for _, n := range []*node{a, b} {
		require.False(t, n.due(), "nothing is to be looked at")
		n.purge()
		require.Equal(t, "w", n.get("k"))
		require.Len(t, n.versions("k"), 2, "nobody has written the key since")
		require.EqualValues(t, 1, n.r.Conflicts)
	}
	sa, sb, _ := talk(t, a, b)
	require.Zero(t, sa.Result().Repaired+sb.Result().Repaired)
	requireEqualNodes(t, a, b)
	a.put("k", "chosen")
	talk(t, a, b)
	for _, n := range []*node{a, b} {
		require.Len(t, n.versions("k"), 1)
		require.Zero(t, n.r.Conflicts)
	}
	requireEqualNodes(t, a, b)
}

// Releases before took the tombstone from beside the value.
// design.md: G2, R2
func TestPurge_ConflictThatAPeerPurgedEndsHereToo(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "base")
	talk(t, a, b)
	a.del("k")
	b.put("k", "v")
	b.put("k", "w")
	for range 3 {
		talk(t, a, b)
		a.r.NoteOnDisk(a.r.FlushMark())
		b.r.NoteOnDisk(b.r.FlushMark())
	}
	require.NoError(t, a.Commit(func(t *replica.Txn) error {
		old, _, err := t.Lookup([]byte("k"))
		if err != nil {
			return err
		}
		var kept []store.Version
		var purged causal.Knowledge
		for _, v := range old {
			if !v.Deleted {
				kept = append(kept, v)
				continue
			}
			purged.Raise(causal.Covered, v.Dot)
			purged.Raise(causal.Purged, v.Dot)
		}
		t.JoinWatermarks(&purged)
		return t.DropPurged([]byte("k"), kept, &purged)
	}))
	require.Len(t, a.versions("k"), 1)
	for range 2 {
		sa, sb, _ := talk(t, b, a)
		require.Zero(t, sa.Result().Repaired+sb.Result().Repaired, "nothing was corrupted")
	}
	require.Len(t, b.versions("k"), 1)
	requireEqualNodes(t, a, b)
}
