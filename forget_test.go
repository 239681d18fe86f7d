package replicator

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPurgedConflictIsNoDamage(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "base")
	a.put("other", "x")
	talk(t, a, b)
	b.put("k", "v") // clock 1
	a.put("k", "w")
	a.put("k", "w2")
	a.del("k") // clock 3: shown
	talk(t, a, b)
	require.Equal(t, "-", a.get("k"))
	require.Len(t, a.versions("k"), 2)
	for range 3 {
		a.r.checkpoint(nil)
		b.r.checkpoint(nil)
		talk(t, a, b)
	}
	require.NoError(t, a.commit(func(t *txn) error { _, err := t.purge(nil, 10); return err }))
	require.Len(t, a.versions("k"), 2, "a value that nobody has decided against is not forgotten")
	sa, sb, _ := talk(t, a, b)
	require.Zero(t, sa.stats.repaired+sb.stats.repaired)
	a.del("k")
	for range 3 {
		talk(t, a, b)
		a.r.checkpoint(nil)
		b.r.checkpoint(nil)
	}
	require.NoError(t, a.commit(func(t *txn) error { _, err := t.purge(nil, 10); return err }))
	require.Empty(t, a.versions("k"))
	sa, sb, _ = talk(t, a, b)
	require.Zero(t, sa.stats.repaired+sb.stats.repaired)
	requireEqualNodes(t, a, b)
}
