package replicator

import (
	"testing"

	"github.com/level-replicator/replicator/internal/sim"
	"github.com/stretchr/testify/require"
)

func TestStatusSaysWhatIsHeldBack(t *testing.T) {
	a := serve(t, Options{})
	require.NoError(t, a.Put([]byte("large"), sim.Incompressible(1, 1<<20), nil))
	require.NoError(t, a.Put([]byte("small"), []byte("v"), nil))
	b := serve(t, Options{MaxValue: 1000, Peers: []string{a.Addr().String()}})
	require.NoError(t, b.Sync(t.Context()))
	v, err := b.Get([]byte("small"), nil)
	require.NoError(t, err)
	require.Equal(t, "v", string(v))
	s := b.Status()
	require.EqualValues(t, 1, s.HeldBack)
	require.EqualValues(t, 1<<20, s.Largest)
	require.Equal(t, "ok", s.Peers[0].State)
	for _, p := range a.Status().Peers {
		require.Positive(t, p.Lag, "it must not be taken to hold what it was not sent")
	}
	require.NoError(t, a.Put([]byte("large"), []byte("small now"), nil))
	require.NoError(t, b.Sync(t.Context()))
	require.Zero(t, b.Status().HeldBack)
	agree(t, a, b)
}
