package replicator

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// busyNode is a server that is pulling in another session.
type busyNode struct{ *node }

func (busyNode) enterPull(Origin, int64) leftOut { return pullLater }

func TestDialerThatLeavesOutItsPullIsPulledFrom(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("a", "1")
	b.put("b", "1")
	p := sessionParams{pageSize: 1 << 10, batchSize: 1 << 16, maxValue: 1 << 20, maxKey: 1 << 10}
	sa, sb := newSession(busyNode{a}, true, p), newSession(b, false, p)
	drive(t, sa, sb, func(_, to *session, f frame) { require.NoError(t, to.receive(f.kind, f.payload)) })
	require.Equal(t, "-", a.get("b"))
	require.Equal(t, "1", b.get("a"))
}

func TestDialerIsToldThatTheAcceptorLeftOutItsPull(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("a", "1")
	p := sessionParams{pageSize: 1 << 10, batchSize: 1 << 16, maxValue: 1 << 20, maxKey: 1 << 10}
	sa, sb := newSession(a, true, p), newSession(busyNode{b}, false, p)
	drive(t, sa, sb, func(_, to *session, f frame) { require.NoError(t, to.receive(f.kind, f.payload)) })
	require.Equal(t, "-", b.get("a"))
	require.Equal(t, pullLater, sa.theyLeft)
	require.NotEqual(t, a.r.known.claims, sa.theirsNow(), "it must not be taken to know what it did not fetch")
}

func TestSyncWaitsForAPullThatIsOnItsWayInAnotherSession(t *testing.T) {
	a := serve(t, Options{})
	b := serve(t, Options{Peers: []string{a.Addr().String()}})
	require.Eventually(t, func() bool { return a.enterPull(b.self, 0) == pullNow }, 5*time.Second, time.Millisecond)
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

func TestWaitingHasAnEnd(t *testing.T) {
	a, b := newNode(t), newNode(t)
	p := sessionParams{pageSize: 1 << 10, batchSize: 1 << 16, maxValue: 1 << 20, maxKey: 1 << 10}
	sa, sb := newSession(a, true, p), newSession(b, false, p)
	sa.start()
	require.NoError(t, sb.receive(sa.out[0].kind, sa.out[0].payload))
	require.Error(t, sa.receive(frameWait, nil), "not before it has said who it is")
	for range maxWaits {
		require.NoError(t, sb.receive(frameWait, nil))
	}
	require.Error(t, sb.receive(frameWait, nil))
}

func TestPullThatBringsMuchIsHeldOnce(t *testing.T) {
	a, b := Origin{1}, Origin{2}
	now := time.Unix(0, 0)
	var ps pulls
	require.Equal(t, pullNow, ps.enter(a, bulkWrites+1, now))
	require.Equal(t, pullLater, ps.enter(b, bulkWrites+1, now), "the other brings the same")
	require.True(t, ps.missed)
	require.Equal(t, pullLater, ps.enter(b, 1, now.Add(bulkAfter+1)))
	require.Equal(t, pullNow, ps.enter(b, bulkWrites+1, now.Add(bulkUntil)), "nobody waits long for a slow one")

	ps = pulls{}
	require.Equal(t, pullNow, ps.enter(a, 1, now))
	require.Equal(t, pullNow, ps.enter(b, bulkWrites+1, now), "a few writes do not hold up many")
	require.Equal(t, pullLater, ps.enter(a, 1, now), "the same session's server twice")
}

// kindsOf drives a conversation and gives the kinds of frames that the dialer and the
// acceptor sent.
func kindsOf(t *testing.T, a, b *node) (dialer, acceptor []frameType) {
	p := sessionParams{pageSize: 1 << 10, batchSize: 1 << 16, maxValue: 1 << 20, maxKey: 1 << 10, remembered: b.r.self}
	sa, sb := newSession(a, true, p), newSession(b, false, p)
	drive(t, sa, sb, func(from, to *session, f frame) {
		if from == sa {
			dialer = append(dialer, f.kind)
		} else {
			acceptor = append(acceptor, f.kind)
		}
		require.NoError(t, to.receive(f.kind, f.payload))
	})
	return dialer, acceptor
}

func TestWhoHasNothingNewIsNotPulledFrom(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("a", "1")
	b.put("b", "1")
	talk(t, a, b)

	a.put("a", "2")
	dialer, acceptor := kindsOf(t, a, b)
	require.NotContains(t, dialer, framePull)
	require.Contains(t, acceptor, framePull)
	require.Equal(t, "2", b.get("a"))

	b.put("b", "2")
	dialer, acceptor = kindsOf(t, a, b)
	require.Contains(t, dialer, framePull)
	require.NotContains(t, acceptor, framePull)
	require.Equal(t, "2", a.get("b"))
	require.Equal(t, a.r.digest, b.r.digest)
}

func TestPullTakesProofsAlsoWhereTheWritesAreKnown(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "1")
	talk(t, a, b)
	require.NoError(t, b.commit(func(t *txn) error {
		t.prove(pruned, dot{a.r.self, 1})
		return nil
	}))
	a.put("k", "2") // else both would hold the same, and have nothing to talk about
	dialer, _ := kindsOf(t, a, b)
	require.Contains(t, dialer, framePull)
	require.EqualValues(t, 1, a.r.known.at(pruned, a.r.self))
}

func TestWhoWaitsForAPullIsToldWhenItEnds(t *testing.T) {
	db := serve(t, Options{})
	require.Equal(t, pullNow, db.enterPull(Origin{1}, 0))
	ended := db.pulls.next()
	select {
	case <-ended:
		t.Fatal("it has not ended")
	default:
	}
	db.leavePull(Origin{1})
	<-ended
}
