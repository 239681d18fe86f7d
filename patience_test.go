package replicator_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
)

func TestPeerThatIsAtWorkForLongIsWaitedFor(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		thinking := 0
		slow := func(key []byte, a, b replicator.Version) replicator.Version {
			thinking++
			time.Sleep(40 * time.Second) // four times as long as a peer may be silent
			return replicator.HighestClock(key, a, b)
		}
		a := c.start("a")
		b := c.open("b", replicatortest.MemDB(t), &replicator.Options{Resolver: slow, MaxInterval: time.Hour})
		put(t, a, "k", "by a")
		put(t, b, "k", "by b")
		b.AddPeer("a:9000")
		require.NoError(t, b.Sync(t.Context()))
		require.Positive(t, thinking)
		require.Equal(t, a.Digest(), b.Digest())
		require.Len(t, b.Status().Peers, 1)
		require.Empty(t, b.Status().Peers[0].Error)
	})
}
