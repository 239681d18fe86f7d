package sim

import (
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
)

func TestKeyThatGrewWhileItsResolverWasAskedIsResolvedAnew(t *testing.T) {
	a := newNode(t)
	a.put("k", "v")
	ds := &replica.Decisions{Made: map[replica.Question]replica.Decision{}}
	stage := func(vs ...store.Version) {
		tx := a.r.Begin()
		tx.Decisions, ds.Open = ds, nil
		for _, v := range vs {
			_, err := tx.Merge([]byte("k"), []store.Version{v}, &causal.Knowledge{})
			require.NoError(t, err)
		}
	}
	answer := func() {
		for _, o := range ds.Open {
			ds.Made[replica.Question{Key: string(o.Key), Names: store.Siblings(o.Vs).DotSum()}] = replica.Decision{Shown: o.Vs[0]}
		}
	}
	stage(foreign(1, 1))
	require.Len(t, ds.Open, 1)
	answer()
	stage(foreign(1, 1))
	require.Empty(t, ds.Open, "it was asked")
	stage(foreign(1, 1), foreign(2, 1))
	require.Len(t, ds.Open, 1, "but not of these three")
	require.Len(t, ds.Open[0].Vs, 3)
	ds.Rounds = replica.DecisionRounds
	stage(foreign(3, 1))
	require.Empty(t, ds.Open, "in the end it is asked at once")
}
