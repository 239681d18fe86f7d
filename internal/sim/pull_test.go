package sim

import (
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/stretchr/testify/require"
)

// busyNode is a server that is pulling in another session.
type busyNode struct{ *node }

func (busyNode) EnterPull(causal.Origin, int64) session.SkipReason { return session.SkippedBusy }

func TestDialerThatLeavesOutItsPullIsPulledFrom(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("a", "1")
	b.put("b", "1")
	p := session.Params{PageSize: 1 << 10, BatchSize: 1 << 16, MaxValue: 1 << 20, MaxKey: 1 << 10}
	sa, sb := session.NewSession(busyNode{a}, true, p), session.NewSession(b, false, p)
	drive(t, sa, sb, func(_, to *session.Session, f session.Frame) { require.NoError(t, to.Receive(f.Kind, f.Payload)) })
	require.Equal(t, "-", a.get("b"))
	require.Equal(t, "1", b.get("a"))
}

func TestDialerIsToldThatTheAcceptorLeftOutItsPull(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("a", "1")
	p := session.Params{PageSize: 1 << 10, BatchSize: 1 << 16, MaxValue: 1 << 20, MaxKey: 1 << 10}
	sa, sb := session.NewSession(a, true, p), session.NewSession(busyNode{b}, false, p)
	drive(t, sa, sb, func(_, to *session.Session, f session.Frame) { require.NoError(t, to.Receive(f.Kind, f.Payload)) })
	require.Equal(t, "-", b.get("a"))
	require.Equal(t, session.SkippedBusy, sa.TheirSkip)
	require.NotEqual(t, a.r.Known.VectorSum, sa.TheirVectorSum(), "it must not be taken to know what it did not fetch")
}

func TestWaitingHasAnEnd(t *testing.T) {
	a, b := newNode(t), newNode(t)
	p := session.Params{PageSize: 1 << 10, BatchSize: 1 << 16, MaxValue: 1 << 20, MaxKey: 1 << 10}
	sa, sb := session.NewSession(a, true, p), session.NewSession(b, false, p)
	sa.Start()
	require.NoError(t, sb.Receive(sa.Out[0].Kind, sa.Out[0].Payload))
	require.Error(t, sa.Receive(session.FrameKeepalive, nil), "not before it has said who it is")
	for range session.MaxKeepalives {
		require.NoError(t, sb.Receive(session.FrameKeepalive, nil))
	}
	require.Error(t, sb.Receive(session.FrameKeepalive, nil))
}

// kindsOf drives a conversation and gives the kinds of frames that the dialer and the
// acceptor sent.
func kindsOf(t *testing.T, a, b *node) (dialer, acceptor []session.FrameType) {
	p := session.Params{PageSize: 1 << 10, BatchSize: 1 << 16, MaxValue: 1 << 20, MaxKey: 1 << 10, CachedPeer: b.r.Self}
	sa, sb := session.NewSession(a, true, p), session.NewSession(b, false, p)
	drive(t, sa, sb, func(from, to *session.Session, f session.Frame) {
		if from == sa {
			dialer = append(dialer, f.Kind)
		} else {
			acceptor = append(acceptor, f.Kind)
		}
		require.NoError(t, to.Receive(f.Kind, f.Payload))
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
	require.NotContains(t, dialer, session.FramePull)
	require.Contains(t, acceptor, session.FramePull)
	require.Equal(t, "2", b.get("a"))

	b.put("b", "2")
	dialer, acceptor = kindsOf(t, a, b)
	require.Contains(t, dialer, session.FramePull)
	require.NotContains(t, acceptor, session.FramePull)
	require.Equal(t, "2", a.get("b"))
	require.Equal(t, a.r.Digest, b.r.Digest)
}

func TestPullTakesProofsAlsoWhereTheWritesAreKnown(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "1")
	talk(t, a, b)
	require.NoError(t, b.Commit(func(t *replica.Txn) error {
		t.RaiseWatermark(causal.Pruned, causal.Dot{Origin: a.r.Self, Seq: 1})
		return nil
	}))
	a.put("k", "2") // else both would hold the same, and have nothing to talk about
	dialer, _ := kindsOf(t, a, b)
	require.Contains(t, dialer, session.FramePull)
	require.EqualValues(t, 1, a.r.Known.Seq(causal.Pruned, a.r.Self))
}
