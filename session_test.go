package replicator

import (
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/stretchr/testify/require"
)

func TestSyncWaitsForAPullThatIsOnItsWayInAnotherSession(t *testing.T) {
	a := serve(t, Options{})
	b := serve(t, Options{Peers: []string{a.Addr().String()}})
	require.Eventually(t, func() bool { return a.enterPull(b.self, 0) == session.NotSkipped }, 5*time.Second, time.Millisecond)
	require.NoError(t, b.Put([]byte("k"), []byte("v"), nil))

	before := b.Status().Sessions
	synced := make(chan error, 1)
	go func() { synced <- b.Sync(t.Context()) }()
	require.Eventually(t, func() bool { return b.Status().Sessions > before+3 }, 5*time.Second, time.Millisecond)
	require.Empty(t, synced)
	a.leavePull(b.self)
	require.NoError(t, <-synced)
	require.Equal(t, map[string]string{"k": "v"}, shown(t, a))
}

func TestPullThatBringsMuchIsHeldOnce(t *testing.T) {
	a, b := causal.Origin{1}, causal.Origin{2}
	now := time.Unix(0, 0)
	var ps pulls
	require.Equal(t, session.NotSkipped, ps.enter(a, bulkWrites+1, now))
	require.Equal(t, session.SkippedBusy, ps.enter(b, bulkWrites+1, now), "the other brings the same")
	require.True(t, ps.missed)
	require.Equal(t, session.SkippedBusy, ps.enter(b, 1, now.Add(bulkAfter+1)))
	require.Equal(t, session.NotSkipped, ps.enter(b, bulkWrites+1, now.Add(bulkUntil)), "nobody waits long for a slow one")

	ps = pulls{}
	require.Equal(t, session.NotSkipped, ps.enter(a, 1, now))
	require.Equal(t, session.NotSkipped, ps.enter(b, bulkWrites+1, now), "a few writes do not hold up many")
	require.Equal(t, session.SkippedBusy, ps.enter(a, 1, now), "the same session's server twice")
}

func TestWhoWaitsForAPullIsToldWhenItEnds(t *testing.T) {
	db := serve(t, Options{})
	require.Equal(t, session.NotSkipped, db.enterPull(causal.Origin{1}, 0))
	ended := db.pulls.next()
	select {
	case <-ended:
		t.Fatal("it has not ended")
	default:
	}
	db.leavePull(causal.Origin{1})
	<-ended
}
