package sim

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
)

func TestPull_ReadsTheLogDownToTheFirstKnownEntry(t *testing.T) {
	a, b := newNode(t), newNode(t)
	for i := range 1000 {
		a.put(fmt.Sprint("old", i), "v")
	}
	talk(t, b, a)
	a.entries = 0
	for i := range 10 {
		a.put(fmt.Sprint("new", i), "v")
	}
	talk(t, b, a)
	requireEqualNodes(t, a, b)
	require.LessOrEqual(t, a.entries, 10, "of 1,010 entries only the unknown ones are read")
}

func TestPull_KeepsTheDotsOfTheWriter(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "v")
	talk(t, b, a)
	require.Equal(t, "v", b.get("k"))
	require.Equal(t, a.log(), b.log(), "under the name that its writer gave it")
	requireEqualNodes(t, a, b)
}

func TestPull_BringsAWriteThroughAThirdReplica(t *testing.T) {
	a, b, c := newNode(t), newNode(t), newNode(t)
	a.put("k", "v")
	talk(t, a, b)
	talk(t, b, c)
	require.Equal(t, "v", c.get("k"))
	c.put("k", "w")
	talk(t, b, c)
	talk(t, a, b)
	require.Equal(t, "w", a.get("k"))
	requireEqualNodes(t, a, c)
}

func TestPull_IdleSessionIsShort(t *testing.T) {
	a, b := newNode(t), newNode(t)
	for i := range 100 {
		a.put(fmt.Sprint(i), "v")
	}
	for range 2 {
		talk(t, a, b)
	}
	sa, sb, bytes := talk(t, a, b)
	require.True(t, sa.Result().Idle && sb.Result().Idle)
	require.Less(t, bytes, 2*200)
}

// design.md: P2, P3
func TestPull_InPagesWhileItsServerIsWrittenTo(t *testing.T) {
	a, b := newNode(t), newNode(t)
	value := string(make([]byte, 300))
	for i := range 50 {
		a.put(fmt.Sprint("k", i), value)
	}
	n := 0
	talkWith(t, b, a, func() { // between any two frames
		if n++; n <= 40 {
			a.put(fmt.Sprint("k", n), "later")
			a.del(fmt.Sprint("k", 50-n))
		}
	})
	for _, d := range b.r.Known.Vector(causal.Covered) {
		require.True(t, a.r.Known.Covers(d))
	}
	for i := range 50 { // what b covers it holds, or something that saw it
		for _, v := range a.versions(fmt.Sprint("k", i)) {
			require.True(t, !b.r.Known.Covers(causal.Dot{Origin: v.Origin, Seq: v.Seq}) || len(b.versions(fmt.Sprint("k", i))) > 0)
		}
	}
	talk(t, b, a)
	requireEqualNodes(t, a, b)
}

// busyNode is a replica that is pulling in another session.
type busyNode struct{ *node }

func (busyNode) EnterPull(causal.Origin, int64) session.SkipReason { return session.SkippedBusy }

// design.md: P7
func TestPull_DialerThatLeavesItOutIsPulledFrom(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("a", "1")
	b.put("b", "1")
	p := session.Params{PageSize: 1 << 10, BatchSize: 1 << 16, MaxValue: 1 << 20, MaxKey: 1 << 10}
	sa, sb := session.New(busyNode{a}, true, p), session.New(b, false, p)
	drive(t, sa, sb, func(_, to *session.Session, f session.Frame) { require.NoError(t, to.Receive(f.Kind, f.Payload)) })
	require.Equal(t, "-", a.get("b"))
	require.Equal(t, "1", b.get("a"))
}

// design.md: P7
func TestPull_DialerLearnsThatTheAcceptorLeftItOut(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("a", "1")
	p := session.Params{PageSize: 1 << 10, BatchSize: 1 << 16, MaxValue: 1 << 20, MaxKey: 1 << 10}
	sa, sb := session.New(a, true, p), session.New(busyNode{b}, false, p)
	drive(t, sa, sb, func(_, to *session.Session, f session.Frame) { require.NoError(t, to.Receive(f.Kind, f.Payload)) })
	require.Equal(t, "-", b.get("a"))
	require.Equal(t, session.SkippedBusy, sa.Result().TheirSkip)
	require.NotEqual(t, a.r.Known.VectorSum, sa.Result().VectorSum, "it must not be taken to know what it did not fetch")
}

// design.md: P7
func TestPull_WaitingHasAnEnd(t *testing.T) {
	a, b := newNode(t), newNode(t)
	p := session.Params{PageSize: 1 << 10, BatchSize: 1 << 16, MaxValue: 1 << 20, MaxKey: 1 << 10}
	sa, sb := session.New(a, true, p), session.New(b, false, p)
	sa.Start()
	hello := sa.Frames()[0]
	require.NoError(t, sb.Receive(hello.Kind, hello.Payload))
	require.Error(t, sa.Receive(session.FrameKeepalive, nil), "not before it has said who it is")
	for range session.MaxKeepalives {
		require.NoError(t, sb.Receive(session.FrameKeepalive, nil))
	}
	require.Error(t, sb.Receive(session.FrameKeepalive, nil))
}

// kindsOf drives a conversation and returns the kinds of frames that the dialer and the
// acceptor sent.
func kindsOf(t *testing.T, a, b *node) (dialer, acceptor []session.FrameType) {
	p := session.Params{PageSize: 1 << 10, BatchSize: 1 << 16, MaxValue: 1 << 20, MaxKey: 1 << 10, CachedPeer: b.r.Self}
	sa, sb := session.New(a, true, p), session.New(b, false, p)
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

// design.md: P6
func TestPull_IsLeftOutIfItWouldBringNothing(t *testing.T) {
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

// design.md: P6
func TestPull_TakesWatermarksWhereTheWritesAreKnown(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "1")
	talk(t, a, b)
	require.NoError(t, b.Commit(func(t *replica.Txn) error {
		raiseWatermark(t, causal.Pruned, causal.Dot{Origin: a.r.Self, Seq: 1})
		return nil
	}))
	a.put("k", "2") // else both would hold the same, and have nothing to talk about
	dialer, _ := kindsOf(t, a, b)
	require.Contains(t, dialer, session.FramePull)
	require.EqualValues(t, 1, a.r.Known.Seq(causal.Pruned, a.r.Self))
}

// design.md: P5
func TestPull_ResumePointStaysWithinItsServersVersionVector(t *testing.T) {
	a, b, c := newNode(t), newNode(t), newNode(t)
	for i := range 50 {
		c.put(fmt.Sprint("k", i), strings.Repeat("x", 300))
	}
	cutTalk(t, b, c, 10)
	require.NotEmpty(t, b.r.Cloud, "b holds what it does not cover")
	cutTalk(t, a, b, 3)
	require.NotNil(t, a.r.Pending)
	require.Empty(t, a.r.Pending.Done[c.r.Self])
	require.True(t, a.r.Pending.Basis.Contains(b.r.Cloud[0]), "and only who covers what b held may be resumed at")
}

func TestPull_EndsAtAWriteFromTheFuture(t *testing.T) {
	a, b := newNode(t), newNode(t)
	b.r.Now = func() time.Time { return time.Now().Add(2 * time.Minute) }
	b.put("k", "v")
	require.ErrorIs(t, quarrel(t, a, b), replica.ErrClockSkew)
	require.Empty(t, a.versions("k"))
	require.Empty(t, a.r.Known.Vector(causal.Covered))
	a.r.Now = func() time.Time { return time.Now().Add(time.Minute + time.Second) }
	talk(t, a, b)
	require.Equal(t, "v", a.get("k"), "it was held back, not dropped")
}

func TestPull_RefusesReservedKeys(t *testing.T) {
	a, b := newNode(t), newNode(t)
	b.put("\xff\xffo\x00\x00\x00\x00", "an alias of the peer's choice") // past what a server would refuse its callers
	before, err := a.db.Get(store.KindKey(store.KindOrigin, []byte{0, 0, 0, 0}), nil)
	require.NoError(t, err)
	require.ErrorContains(t, quarrel(t, a, b), "reserved key")
	after, err := a.db.Get(store.KindKey(store.KindOrigin, []byte{0, 0, 0, 0}), nil)
	require.NoError(t, err)
	require.Equal(t, before, after)
}

func TestPull_ReplicaDoesNotTalkToItself(t *testing.T) {
	a := newNode(t)
	require.ErrorIs(t, quarrel(t, a, a), session.ErrSelf)
}

// design.md: M6
func TestPull_KeyTravelsWithAllItsSiblings(t *testing.T) {
	a, b, c := newNode(t), newNode(t), newNode(t)
	a.put("k", "of a")
	c.put("k", "of c")
	talk(t, a, c)
	for i := range 20 { // between the two in the logs
		a.put(fmt.Sprint("a", i), strings.Repeat("x", 300))
		c.put(fmt.Sprint("c", i), strings.Repeat("x", 300))
	}
	talk(t, a, c)
	talkInWindows(t, b, a, 0, func() {
		require.Contains(t, []int{0, 2}, len(b.versions("k")))
	})
	require.Equal(t, a.versions("k"), b.versions("k"))
}

// design.md: P4
func TestPull_PageCarriesTheWatermarksOfItsState(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("first", "v")
	talk(t, b, a)
	for i := range 20 {
		a.put(fmt.Sprint("k", i), strings.Repeat("x", 300))
	}
	pages := 0
	p := session.Params{PageSize: 1 << 10, BatchSize: 1, MaxValue: 1 << 20, MaxKey: 1 << 16}
	drive(t, session.New(b, true, p), session.New(a, false, p), func(from, to *session.Session, f session.Frame) {
		require.NoError(t, to.Receive(f.Kind, f.Payload))
		if f.Kind != session.FramePage {
			return
		}
		if pages++; pages == 1 { // so the vectors at the start did not say so
			require.NoError(t, a.Commit(func(t *replica.Txn) error {
				raiseWatermark(t, causal.Pruned, causal.Dot{Origin: a.r.Self, Seq: 1})
				return nil
			}))
		} else if pages == 3 {
			require.EqualValues(t, 1, b.r.Known.Seq(causal.Pruned, a.r.Self))
		}
	})
	require.Greater(t, pages, 3)
}
