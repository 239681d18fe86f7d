package replicator

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestKeyThatGrewWhileItsResolverWasAskedIsResolvedAnew(t *testing.T) {
	a := newNode(t)
	a.put("k", "v")
	ds := &decisions{made: map[question]decision{}}
	stage := func(vs ...version) {
		tx := a.r.begin()
		tx.decisions, ds.open = ds, nil
		for _, v := range vs {
			_, err := tx.merge([]byte("k"), []version{v}, &knowledge{})
			require.NoError(t, err)
		}
	}
	answer := func() {
		for _, o := range ds.open {
			ds.made[question{string(o.key), state(o.vs).names()}] = decision{shown: o.vs[0]}
		}
	}
	stage(foreign(1, 1))
	require.Len(t, ds.open, 1)
	answer()
	stage(foreign(1, 1))
	require.Empty(t, ds.open, "it was asked")
	stage(foreign(1, 1), foreign(2, 1))
	require.Len(t, ds.open, 1, "but not of these three")
	require.Len(t, ds.open[0].vs, 3)
	ds.rounds = decisionRounds
	stage(foreign(3, 1))
	require.Empty(t, ds.open, "in the end it is asked at once")
}
