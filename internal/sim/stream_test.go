package sim

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
)

// live is a session of two nodes that has become a stream. Nothing is sent before it is asked for.
type live struct {
	t   testing.TB
	s   [2]*session.Session // of the dialer, and of the acceptor
	in  [2][]session.Frame  // on their way to them
	got [2][]session.Frame  // that they took in since the stream began

	overhears func(f session.Frame, dialer bool) // called with all that is said; may be nil
}

func stayParams() session.Params {
	return session.Params{PageSize: 1 << 10, BatchSize: 1 << 16, MaxValue: 1 << 20, MaxKey: 1 << 16,
		Stay: func(causal.Origin) (may, news bool) { return true, true }}
}

// stay holds a session after which both replicas stay.
func stay(t testing.TB, a, b session.Host) *live {
	return stayWith(t, a, b, stayParams(), stayParams())
}

// streaming returns two nodes that stay, after a session that brought a write.
func streaming(t testing.TB) (a, b *node, l *live) {
	a, b = newNode(t), newNode(t)
	a.put("k", "v")
	return a, b, stay(t, a, b)
}

// putLarge writes some keys that do not fit into one page together.
func (n *node) putLarge(keys int) {
	for i := range keys {
		n.put(fmt.Sprint("k", i), strings.Repeat("x", 300))
	}
}

func stayWith(t testing.TB, a, b session.Host, pa, pb session.Params) *live {
	l := converse(t, a, b, pa, pb, func(f session.Frame) session.Frame { return f })
	require.NotNil(t, l.s[0].Stream(), "the dialer does not stay")
	require.NotNil(t, l.s[1].Stream(), "the acceptor does not stay")
	l.got = [2][]session.Frame{}
	return l
}

// converse holds a session until both replicas stay, or neither does.
func converse(t testing.TB, a, b session.Host, pa, pb session.Params, tamper func(session.Frame) session.Frame) *live {
	l := &live{t: t, s: [2]*session.Session{session.New(a, true, pa), session.New(b, false, pb)}}
	l.s[0].Start()
	for moved := true; moved; {
		moved = false
		for i := range l.s {
			l.say(i)
			for j := range l.in[1-i] {
				l.in[1-i][j] = tamper(l.in[1-i][j])
			}
			moved = l.take(1-i, -1) > 0 || moved
		}
	}
	return l
}

// stream returns one end.
func (l *live) stream(i int) *session.Stream {
	l.t.Helper()
	require.NotNil(l.t, l.s[i].Stream(), "the stream has ended")
	return l.s[i].Stream()
}

// say has one end send all that it has to say.
func (l *live) say(i int) {
	for {
		l.in[1-i] = append(l.in[1-i], l.s[i].Frames()...)
		if !l.s[i].More() {
			return
		}
		require.NoError(l.t, l.s[i].Produce())
	}
}

// page has one end send one page at most.
func (l *live) page(i int) {
	if l.s[i].More() {
		require.NoError(l.t, l.s[i].Produce())
	}
	l.in[1-i] = append(l.in[1-i], l.s[i].Frames()...)
}

// take has one end take in some of what is on its way to it: all, if n is negative.
func (l *live) take(i, n int) (taken int) {
	for ; len(l.in[i]) > 0 && taken != n && !l.s[i].Done(); taken++ {
		f := l.in[i][0]
		l.in[i] = l.in[i][1:]
		l.got[i] = append(l.got[i], f)
		if l.overhears != nil {
			l.overhears(f, i == 1)
		}
		require.NoError(l.t, l.s[i].Receive(f.Kind, f.Payload), "frame %d", f.Kind)
	}
	return taken
}

// flow carries everything, both ways, until nothing moves.
func (l *live) flow() {
	for moved := true; moved; {
		moved = false
		for i := range l.s {
			l.say(i)
			moved = l.take(1-i, -1) > 0 || moved
		}
	}
}

// push has one end push all that there is, and the other take it in, and returns the versions that came.
func (l *live) push(i int) int {
	l.t.Helper()
	require.True(l.t, l.stream(i).Push(), "there is nothing to push")
	l.flow()
	return l.events(1 - i).Versions
}

// pushOwn is the same of its own writes.
func (l *live) pushOwn(i int) int {
	l.t.Helper()
	require.True(l.t, l.stream(i).PushOwn(), "there is nothing to push")
	l.flow()
	return l.events(1 - i).Versions
}

func (l *live) events(i int) session.Events {
	if s := l.s[i].Stream(); s != nil {
		return s.Events()
	}
	return session.Events{}
}

// kinds returns what one end took in.
func (l *live) kinds(i int) (kinds []session.FrameType) {
	for _, f := range l.got[i] {
		kinds = append(kinds, f.Kind)
	}
	return kinds
}

// bye returns what an end was told with the last word.
func (l *live) bye(i int) byte {
	l.t.Helper()
	j := slices.IndexFunc(l.got[i], func(f session.Frame) bool { return f.Kind == session.FrameBye })
	require.GreaterOrEqual(l.t, j, 0, "nobody said bye")
	return l.got[i][j].Payload[0]
}

// requireOver demands that both ends have parted.
func (l *live) requireOver() {
	l.t.Helper()
	require.True(l.t, l.s[0].Done() && l.s[1].Done(), "they have not parted")
}

// covers is how many writes of a node another covers.
func (n *node) covers(of *node) int { return int(n.r.Known.Seq(causal.Covered, of.r.Self)) }

// design.md: L1
func TestStream_PushBringsWhatThePeerLacks(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "first")
	l := stay(t, a, b)
	a.put("k", "second")
	a.del("k")
	a.put("l", strings.Repeat("large", 1000)) // in chunks
	b.put("m", "of b")
	require.Equal(t, 2, l.push(0))
	require.Equal(t, 1, l.push(1))
	requireEqualNodes(t, a, b)
	require.Equal(t, "-", b.get("k"))
	require.ElementsMatch(t, a.log(), b.log())
	for i := range 2 {
		require.False(t, l.stream(i).Push(), "both have everything")
	}
}

// design.md: L1
func TestStream_PushCoversItsFirstStateAtItsEnd(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("first", "v")
	l := stay(t, a, b)
	a.putLarge(20)
	before := a.covers(a)
	require.True(t, l.stream(0).Push())
	for n := 0; l.s[0].More(); n++ {
		l.page(0)
		if n == 1 {
			a.put("k0", "later") // k0 has not been sent, and goes when it is the last
			a.del("k19")
			a.put("late", "v")
		}
		require.Equal(t, 1, b.covers(a), "nothing is covered before the end")
		l.take(1, -1)
	}
	require.Equal(t, before, b.covers(a), "what is newer than the first state is left to the next push")
	require.Equal(t, "later", b.get("k0"), "a key that changed is sent as it is")
	l.push(0)
	requireEqualNodes(t, a, b)
}

// design.md: L2
func TestStream_PushGoesByReportsAndEarlierPushes(t *testing.T) {
	a, b, c := newNode(t), newNode(t), newNode(t)
	a.put("k", "v")
	l := stay(t, a, b)
	for i := range 10 {
		a.put(fmt.Sprint("k", i), "v")
		require.Equal(t, 1, l.push(0), "what was pushed before is not sent again")
	}
	// What both got from a third replica, and the one has heard of from the other, is not pushed.
	c.put("c", "v")
	talk(t, a, c)
	talk(t, b, c)
	l.stream(1).Report()
	l.flow()
	require.True(t, l.events(0).Heard)
	require.False(t, l.stream(0).Push())
	// But what the peer was only told of, it lacks.
	a.put("k", "w")
	l.stream(0).Report()
	l.flow()
	require.True(t, l.events(1).Heard)
	require.Positive(t, l.stream(1).Behind())
	l.stream(1).Request()
	l.flow()
	require.True(t, l.events(0).Requested)
	require.Equal(t, 1, l.push(0))
	require.Zero(t, l.stream(1).Behind())
	requireEqualNodes(t, a, b)
}

// What the peer reported in a session beside the stream, its own writes first of all, is not pushed back to it.
//
// design.md: L2
func TestStream_PushGoesByReportsOverOtherConnections(t *testing.T) {
	a, b, l := streaming(t)
	b.put("own", "v")
	talk(t, a, b)
	require.Equal(t, "v", a.get("own"))
	require.False(t, l.stream(0).Push())
	a.put("k", "w")
	require.Equal(t, 1, l.push(0))
	requireEqualNodes(t, a, b)
}

// A report that comes while a push is under way is noticed when that ends: there may be news that the push did not bring.
//
// design.md: L2
func TestStream_ReportInThePushIsNoticed(t *testing.T) {
	a, _, l := streaming(t)
	a.putLarge(10)
	require.True(t, l.stream(0).Push())
	l.page(0)
	a.put("news", "v")
	l.stream(0).Report()
	l.flow()
	require.True(t, l.events(1).Heard)
	require.EqualValues(t, 1, l.stream(1).Behind())
}

// purgedBehind are two nodes with a stream of which the first has purged a deletion that the second never heard of.
func purgedBehind(t *testing.T) (a, b *node, l *live) {
	a, b = newNode(t), newNode(t)
	a.put("k", "v")
	gossip(t, a, b)
	l = stay(t, a, b)
	a.r.TombstoneTTL = 0
	a.del("k")
	a.saved()
	a.purge()
	require.Empty(t, a.log())
	return a, b, l
}

// design.md: L3
func TestStream_RepairIsLeftToASession(t *testing.T) {
	a, b, l := purgedBehind(t)
	a.put("other", "v")
	l.push(0)
	require.Equal(t, "v", b.get("other"), "what came is merged,")
	require.Equal(t, 1, b.covers(a), "and covers nothing")
	require.EqualValues(t, 1, l.bye(0))
	l.requireOver()
	require.Equal(t, "v", b.get("k"))
	talk(t, b, a)
	require.Equal(t, "-", b.get("k"))
	requireEqualNodes(t, a, b)
}

// design.md: L3
func TestStream_LaterPushesArePassedOver(t *testing.T) {
	a, b, l := purgedBehind(t)
	a.put("one", "v")
	require.True(t, l.stream(0).Push())
	l.say(0)
	a.put("two", "v") // and the peer has not read the first yet
	require.True(t, l.stream(0).Push())
	l.flow()
	require.Equal(t, "v", b.get("one"))
	require.Equal(t, "-", b.get("two"))
	require.Equal(t, 1, b.covers(a))
	l.requireOver()
	talk(t, b, a)
	requireEqualNodes(t, a, b)
}

// A replica that does not ask for values is sent them with their key, as far as it takes them. What is left is
// left to a session.
//
// design.md: L2, L3
func TestStream_PushThatIsNotWholeDoesNotCount(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "v")
	pa, pb := stayParams(), stayParams()
	pa.MaxValue = 100
	l := converse(t, a, b, pa, pb, func(f session.Frame) session.Frame {
		if h, err := session.DecodeHello(f.Payload); f.Kind == session.FrameHello && err == nil {
			h.Apart = false
			f.Payload = h.Append(nil)
		}
		return f
	})
	before := l.stream(0).PeerCovers(a.r)
	a.mergeFrom(&causal.Knowledge{}, siblingsOf(6, 200)...)
	require.NoError(t, a.Commit(func(t *replica.Txn) error {
		for _, v := range siblingsOf(6, 200) {
			t.Cover(v.Dot)
		}
		return nil
	}))
	require.True(t, l.stream(0).Push())
	l.say(0)
	require.Equal(t, before, l.stream(0).PeerCovers(a.r))
	require.True(t, l.stream(0).Leaving(), "and it leaves")
	l.flow()
	require.EqualValues(t, 1, l.bye(1))
	require.False(t, b.r.Known.Covers(siblingsOf(1, 1)[0].Dot))
	l.requireOver()
}

// siblingsOf are concurrent versions of one key, by so many replicas.
func siblingsOf(n, size int) (vs []store.Version) {
	for i := range n {
		v := foreign(byte(10+i), 1)
		v.Value = Incompressible(uint64(i), size)
		vs = append(vs, v)
	}
	return vs
}

// design.md: L3
func TestStream_NamedValuesAreLeftToASession(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("other", "v")
	l := stay(t, a, b)
	a.mergeFrom(&causal.Knowledge{}, siblingsOf(6, 2000)...)
	require.NoError(t, a.Commit(func(t *replica.Txn) error {
		for _, v := range siblingsOf(6, 1) {
			t.Cover(v.Dot)
		}
		return nil
	}))
	a.put("other", "w")
	l.push(0)
	require.Equal(t, "w", b.get("other"))
	require.Equal(t, 1, b.covers(a))
	require.False(t, b.r.Known.Covers(siblingsOf(1, 1)[0].Dot))
	require.EqualValues(t, 1, l.bye(0))
	l.requireOver()
	talk(t, b, a)
	require.Len(t, b.versions("k"), 6)
	requireEqualNodes(t, a, b)
}

// design.md: L3
func TestStream_HeldBackValuesAreLeftToASession(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("other", "v")
	small := stayParams()
	small.MaxValue = 100
	l := stayWith(t, a, b, stayParams(), small)
	a.put("large", strings.Repeat("x", 101))
	a.put("other", "w")
	l.push(0)
	require.Equal(t, "w", b.get("other"))
	require.Equal(t, 1, b.covers(a))
	require.EqualValues(t, 1, l.bye(0))
	l.requireOver()
	// And a replica that holds something back does not stay again.
	l = converse(t, a, b, stayParams(), small, func(f session.Frame) session.Frame { return f })
	require.Len(t, b.r.HeldBack, 1)
	l.requireOver()
	a.put("other", "x")
	converse(t, a, b, stayParams(), small, func(f session.Frame) session.Frame { return f }).requireOver()
}

// What lies above the first gap would be pushed again with every push.
//
// design.md: L3
func TestStream_ReplicaThatHoldsSomethingBackLeaves(t *testing.T) {
	for name, act := range map[string]func(s *session.Stream){
		"pushing":   func(s *session.Stream) { require.False(t, s.Push()) },
		"reporting": func(s *session.Stream) { s.Report() },
	} {
		t.Run(name, func(t *testing.T) {
			a, b, c := newNode(t), newNode(t), newNode(t)
			b.put("b", "v")
			l := stay(t, b, c)
			a.put("large", strings.Repeat("x", 101))
			small := stayParams()
			small.MaxValue = 100
			converse(t, b, a, small, stayParams(), func(f session.Frame) session.Frame { return f })
			require.Len(t, b.r.HeldBack, 1)
			b.put("b", "w")
			act(l.stream(0))
			l.flow()
			require.EqualValues(t, 1, l.bye(1))
			l.requireOver()
		})
	}
}

// Of a push that the peer would pass over, no more is sent.
//
// design.md: L3, L6
func TestStream_PushThatWouldBePassedOverIsCutShort(t *testing.T) {
	for _, begun := range []bool{false, true} {
		t.Run(fmt.Sprint("begun ", begun), func(t *testing.T) {
			a, b, l := purgedBehind(t)
			a.put("one", "v")
			require.True(t, l.stream(0).Push())
			l.say(0)
			for i := range 100 {
				a.put(fmt.Sprint("k", i), strings.Repeat("x", 300))
			}
			require.True(t, l.stream(0).Push())
			if begun {
				l.page(0)
			}
			l.take(1, -1)
			l.say(1) // bye, with the need of a session
			l.take(0, -1)
			l.got[1] = nil
			l.flow()
			require.Equal(t, 1-b2i(begun), 1-strings.Count(fmt.Sprint(l.kinds(1)), "8 10"), "an end, and then bye")
			require.NotContains(t, l.kinds(1), session.FramePage)
			l.requireOver()
			talk(t, b, a)
			requireEqualNodes(t, a, b)
		})
	}
}

func b2i(b bool) int { return int(store.Btoi(b)) }

// While a pull is unfinished, what it has brought is pushed once, not with every write.
//
// design.md: L4
func TestStream_DotCloudIsPushedOnce(t *testing.T) {
	a, b, c := newNode(t), newNode(t), newNode(t)
	for i := range 300 {
		c.put(fmt.Sprint("k", i), strings.Repeat("x", 100))
	}
	b.put("b", "v")
	l := stay(t, b, a)
	cutTalk(t, b, c, 5)
	require.NotEmpty(t, b.r.Cloud)
	held := len(b.log()) - 1
	b.put("b", "1")
	require.Equal(t, held+1, l.push(0), "all of it, since what it replaced may be covered")
	for i := range 5 {
		b.put("b", fmt.Sprint(i))
		require.Equal(t, 1, l.push(0))
	}
	// The pull goes on, and breaks off again: that is pushed, and no more.
	cutTalk(t, b, c, 5)
	more := len(b.log()) - 1 - held
	require.Positive(t, more)
	b.put("b", "2")
	require.Equal(t, more+1, l.push(0))
	b.put("b", "3")
	require.Equal(t, 1, l.push(0))
	require.Zero(t, a.covers(c), "it can cover none of it")
	require.ElementsMatch(t, b.log(), a.log())
	// And once the pull is whole, so is the peer.
	talk(t, b, c)
	l.push(0)
	requireEqualNodes(t, a, b)
	require.Equal(t, 300, a.covers(c))
}

// A key of which a version came within what was pushed already is pushed again, with all its siblings.
//
// design.md: L4
func TestStream_DotCloudThatGrewIsPushed(t *testing.T) {
	a, b := newNode(t), newNode(t)
	b.put("b", "v")
	l := stay(t, b, a)
	b.mergeFrom(&causal.Knowledge{}, foreign(1, 9))
	b.put("b", "1")
	l.push(0)
	require.Equal(t, []string{"1/9"}, a.values("k"))
	b.mergeFrom(&causal.Knowledge{}, foreign(1, 5, causal.Dot{Origin: causal.Origin{1}, Seq: 2}), foreign(1, 9))
	require.Len(t, b.versions("k"), 2)
	b.put("b", "2")
	l.push(0)
	require.Equal(t, b.versions("k"), a.versions("k"))
	b.mergeFrom(&causal.Knowledge{}, foreign(1, 12), foreign(1, 5), foreign(1, 9))
	b.put("b", "3")
	l.push(0)
	require.Equal(t, b.versions("k"), a.versions("k"))
}

// design.md: L5
func TestStream_PushesCross(t *testing.T) {
	a, b, l := streaming(t)
	for i := range 20 {
		a.put(fmt.Sprint("k", i), strings.Repeat("a", 300))
		b.put(fmt.Sprint("k", i), strings.Repeat("b", 300))
	}
	require.True(t, l.stream(0).Push())
	require.True(t, l.stream(1).Push())
	for l.s[0].More() || l.s[1].More() {
		for i := range 2 {
			l.page(i)
		}
		for i := range 2 {
			l.take(i, 1)
		}
	}
	l.flow()
	requireEqualNodes(t, a, b)
	require.Len(t, a.versions("k7"), 2)
}

// turns is a node that counts its pulls.
type turns struct {
	*node
	entered, left int
}

func (n *turns) EnterPull(causal.Origin, int64) session.SkipReason {
	n.entered++
	return session.NotSkipped
}

func (n *turns) LeavePull(causal.Origin) { n.left++ }

// What came of a push that is cut off is kept, and covers nothing.
//
// design.md: L5
func TestStream_CutPushIsKept(t *testing.T) {
	a, b := newNode(t), &turns{node: newNode(t)}
	a.put("k", "v")
	p := stayParams()
	p.BatchSize = 1
	l := stayWith(t, a, b, stayParams(), p)
	a.putLarge(20)
	require.True(t, l.stream(0).Push())
	l.page(0)
	l.take(1, -1)
	require.NoError(t, l.s[0].Abandon())
	require.NoError(t, l.s[1].Abandon())
	require.Equal(t, 1, b.covers(a))
	require.NotEmpty(t, b.r.Cloud)
	require.NotNil(t, b.r.Pending, "and a pull goes on there")
	require.Equal(t, []int{1, 1}, []int{b.entered, b.left}, "it takes no pull's turn")
	_, server, _ := talk(t, b.node, a)
	require.Less(t, server.Result().Served, 20)
	requireEqualNodes(t, a, b.node)
}

// design.md: L5
func TestStream_PushLeavesTheResumePoint(t *testing.T) {
	a, b, c := newNode(t), newNode(t), newNode(t)
	c.putLarge(100)
	a.put("a", "v")
	l := stay(t, a, b)
	cutTalk(t, b, c, 20)
	require.NotNil(t, b.r.Pending)
	a.put("a", "w")
	l.push(0)
	require.Equal(t, 2, b.covers(a))
	require.NotNil(t, b.r.Pending)
	_, server, _ := talk(t, b, c)
	require.Less(t, server.Result().Served, 80, "what came is not sent again")
	require.Equal(t, 100, b.covers(c))
}

// design.md: L6
func TestStream_ByeFollowsThePushUnderWay(t *testing.T) {
	a, b, l := streaming(t)
	a.putLarge(20)
	require.True(t, l.stream(0).Push())
	l.page(0)
	l.stream(0).Leave()
	require.True(t, l.stream(0).Leaving())
	require.NotContains(t, l.in[1], session.Frame{Kind: session.FrameBye, Payload: []byte{0}})
	l.flow()
	l.requireOver()
	requireEqualNodes(t, a, b)
	require.Zero(t, l.bye(1))
}

// design.md: L6
func TestStream_ByesCross(t *testing.T) {
	a, b, l := streaming(t)
	a.putLarge(20)
	b.put("l", "v")
	require.True(t, l.stream(0).Push())
	require.True(t, l.stream(1).Push())
	l.page(0)
	for i := range 2 {
		l.stream(i).Leave()
		require.False(t, l.stream(i).Push(), "nothing begins after that")
		l.stream(i).Request()
		l.stream(i).Spare()
	}
	l.flow()
	l.requireOver()
	requireEqualNodes(t, a, b)
	for i := range 2 {
		require.NotContains(t, l.kinds(i), session.FrameRequest)
		require.NotContains(t, l.kinds(i), session.FrameSpare)
	}
}

// The one that is left ends its push, and its peer takes that in before it goes.
//
// design.md: L6
func TestStream_PushUnderWayIsTakenInAfterBye(t *testing.T) {
	a, b, l := streaming(t)
	a.putLarge(20)
	require.True(t, l.stream(0).Push())
	l.page(0)
	l.stream(1).Leave()
	l.flow()
	l.requireOver()
	requireEqualNodes(t, a, b)
}

// design.md: L6
func TestStream_PeerThatNeverAnswersAByeIsRefused(t *testing.T) {
	_, _, l := streaming(t)
	l.stream(0).Leave()
	n := 0
	for ; l.s[0].Receive(session.FrameRequest, nil) == nil; n++ {
		require.Less(t, n, 1<<14)
	}
	require.True(t, l.s[0].Done())
	require.Equal(t, 1<<14, n)
}

// durable is a node that brings to disk what a peer waits for.
type durable struct {
	*node
	flushes int
}

func (d *durable) MakeDurable() error {
	d.flushes++
	d.saved()
	return nil
}

// design.md: L7
func TestStream_PeerThatReadsNothingFillsNoMemory(t *testing.T) {
	a, b := newNode(t), &durable{node: newNode(t)}
	a.put("k", "v")
	l := stay(t, a, b)
	frames := 0
	for range 1000 {
		for _, f := range []session.Frame{{Kind: session.FramePush, Payload: []byte{1}}, {Kind: session.FrameVectors, Payload: []byte{0, 0, 0, 0, 0}}, {Kind: session.FrameEnd, Payload: []byte{1}}, {Kind: session.FrameRequest}, {Kind: session.FrameSpare}} {
			require.NoError(t, l.s[1].Receive(f.Kind, f.Payload))
		}
		l.stream(1).Spare()
		l.stream(1).Request()
		frames = max(frames, l.s[1].Queued())
	}
	require.Zero(t, frames, "nothing is queued before what went before was sent")
	require.Equal(t, 1000, b.flushes)
	l.say(1)
	require.Len(t, l.in[0], 3, "a report, a request and a spare: each once")
	l.flow()
	require.True(t, l.events(0).Heard)
}

// A push has the bounds of a pull: what has not been committed, and the values that belong to one page.
//
// design.md: L7
func TestStream_PushHoldsAsMuchAsAPull(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "v")
	p := shellParams(1 << 20)
	p.Stay = stayParams().Stay
	l := stayWith(t, a, b, p, p)
	for i := range 40 {
		a.put(fmt.Sprint("k", i), string(Incompressible(uint64(i), 1<<20)))
	}
	require.True(t, l.stream(0).Push())
	retained, queued := 0, 0
	for l.s[0].More() {
		queued = max(queued, l.s[0].Queued())
		l.page(0)
		for l.take(1, 1) > 0 {
			retained = max(retained, l.s[1].Retained())
		}
	}
	requireEqualNodes(t, a, b)
	require.LessOrEqual(t, queued, 4<<20, "a sender holds what it reads of one state")
	require.LessOrEqual(t, retained, replica.BatchLimit+4<<20)
	require.Zero(t, l.s[1].Retained())
}

// design.md: L7
func TestStream_FramesThatDoNotBelongEndIt(t *testing.T) {
	push, vectors, end, bye := session.Frame{Kind: session.FramePush, Payload: []byte{0}}, session.Frame{Kind: session.FrameVectors, Payload: []byte{0, 0, 0, 0, 0}}, session.Frame{Kind: session.FrameEnd, Payload: []byte{1}}, session.Frame{Kind: session.FrameBye, Payload: []byte{0}}
	for name, frames := range map[string][]session.Frame{
		"page before a push":    {{Kind: session.FramePage, Payload: []byte{0, 0, 0}}},
		"chunk before a push":   {{Kind: session.FrameChunk, Payload: []byte{1, 1}}},
		"end before a push":     {end},
		"push in a push":        {push, push},
		"bye in a push":         {push, vectors, bye},
		"push after bye":        {bye, push},
		"bye after bye":         {bye, bye},
		"push of something":     {{Kind: session.FramePush, Payload: []byte{4}}},
		"push of nothing":       {{Kind: session.FramePush}},
		"bye of something":      {{Kind: session.FrameBye, Payload: []byte{2}}},
		"request of something":  {{Kind: session.FrameRequest, Payload: []byte{0}}},
		"spare of something":    {{Kind: session.FrameSpare, Payload: []byte{0}}},
		"pull":                  {{Kind: session.FramePull, Payload: []byte{0, 0}}},
		"want":                  {{Kind: session.FrameWant, Payload: []byte{0, 0, 0}}},
		"fetch":                 {{Kind: session.FrameFetch, Payload: []byte{0, 0, 0}}},
		"probe":                 {{Kind: session.FrameProbe, Payload: []byte{0, 0, 0}}},
		"probed in a push":      {push, vectors, {Kind: session.FrameProbeReply, Payload: []byte{0}}},
		"turn":                  {{Kind: session.FrameTurn}},
		"stay":                  {{Kind: session.FrameStay}},
		"hello":                 {{Kind: session.FrameHello}},
		"addresses":             {{Kind: session.FrameAddresses, Payload: []byte{0}}},
		"end of something more": {push, vectors, {Kind: session.FrameEnd, Payload: []byte{1, 1}}},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			a, b := newNode(t), newNode(t)
			a.put("k", "v")
			l := stay(t, a, b)
			for i := range 20 { // a push of its own is under way meanwhile
				b.put(fmt.Sprint("k", i), strings.Repeat("x", 300))
			}
			require.True(t, l.stream(1).Push())
			require.NoError(t, l.s[1].Produce())
			var err error
			for _, f := range frames {
				require.NoError(t, err)
				err = l.s[1].Receive(f.Kind, f.Payload)
			}
			var broken replica.ProtocolError
			require.ErrorAs(t, err, &broken)
			require.True(t, l.s[1].Done())
			require.True(t, l.s[1].Result().Refused)
			require.False(t, l.s[1].More())
			require.Equal(t, session.FrameRefuse, last(l.s[1].Frames()).Kind)
		})
	}
}

func last[T any](s []T) T { return s[len(s)-1] }

// A push without vectors, or with an end that says so, covers nothing.
//
// design.md: L1
func TestStream_PushWithoutAFirstStateCoversNothing(t *testing.T) {
	for _, frames := range [][]session.Frame{
		{{Kind: session.FramePush, Payload: []byte{0}}, {Kind: session.FrameEnd, Payload: []byte{1}}},
		{{Kind: session.FramePush, Payload: []byte{0}}, {Kind: session.FrameVectors, Payload: []byte{0, 9, 0, 0, 0}}, {Kind: session.FrameEnd, Payload: []byte{0}}},
	} {
		a, b := newNode(t), newNode(t)
		a.put("k", "v")
		l := stay(t, a, b)
		a.put("k", "w")
		l.stream(0).Report()
		l.flow()
		for _, f := range frames {
			require.NoError(t, l.s[1].Receive(f.Kind, f.Payload))
		}
		require.Equal(t, 1, b.covers(a))
		require.True(t, l.stream(1).Leaving())
	}
}

// design.md: L7
func TestStream_RestsAsLongAsItLikes(t *testing.T) {
	_, _, l := streaming(t)
	for range 2 * session.MaxKeepalives {
		require.NoError(t, l.s[1].Receive(session.FrameKeepalive, nil))
	}
	require.NoError(t, l.s[1].Receive(session.FramePush, []byte{0}))
	for range session.MaxKeepalives {
		require.NoError(t, l.s[1].Receive(session.FrameKeepalive, nil))
	}
	require.Error(t, l.s[1].Receive(session.FrameKeepalive, nil), "but a push has an end")
}

// design.md: L8
func TestStream_BothStayOnlyIfNothingIsLeftOver(t *testing.T) {
	none := func(f session.Frame) session.Frame { return f }
	say := func(may, news bool) session.Params {
		p := stayParams()
		p.Stay = func(causal.Origin) (bool, bool) { return may, news }
		return p
	}
	for name, c := range map[string]struct {
		dialer, acceptor func(n *node) session.Host
		pd, pa           session.Params
		tamper           func(session.Frame) session.Frame
		idle, stays      bool
	}{
		"both may":                            {pd: say(true, false), pa: say(true, false), stays: true},
		"the dialer may not":                  {pd: say(false, true), pa: say(true, true)},
		"the acceptor may not":                {pd: say(true, true), pa: say(false, true)},
		"no news":                             {pd: say(true, false), pa: say(true, false), idle: true},
		"the dialer had news":                 {pd: say(true, true), pa: say(true, false), idle: true, stays: true},
		"the acceptor had news":               {pd: say(true, false), pa: say(true, true), idle: true, stays: true},
		"version 1":                           {tamper: func(f session.Frame) session.Frame { f.Payload = firstVersion(f); return f }},
		"version 1, idle":                     {tamper: func(f session.Frame) session.Frame { f.Payload = firstVersion(f); return f }, idle: true},
		"the dialer leaves its pull out":      {dialer: func(n *node) session.Host { return busyNode{n} }},
		"the acceptor leaves its pull out":    {acceptor: func(n *node) session.Host { return busyNode{n} }},
		"the dialer takes no such values":     {pd: tiny(stayParams())},
		"the acceptor takes no such values":   {pa: tiny(stayParams())},
		"there are questions":                 {pd: asking(stayParams())},
		"a later version, with fields behind": {tamper: func(f session.Frame) session.Frame { f.Payload = laterHello(f); return f }, stays: true},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			a, b := newNode(t), newNode(t)
			a.put("a", "of a")
			b.put("b", "of b")
			if c.idle {
				gossip(t, a, b)
				gossip(t, b, a)
			}
			hosts := []session.Host{a, b}
			for i, f := range []func(n *node) session.Host{c.dialer, c.acceptor} {
				if f != nil {
					hosts[i] = f([]*node{a, b}[i])
				}
			}
			for _, p := range []*session.Params{&c.pd, &c.pa} {
				if p.PageSize == 0 {
					*p = stayParams()
				}
			}
			if c.tamper == nil {
				c.tamper = none
			}
			c.pd.CachedPeer = b.r.Self
			l := converse(t, hosts[0], hosts[1], c.pd, c.pa, c.tamper)
			require.Equal(t, c.idle, l.s[0].Result().Idle)
			for i := range 2 {
				require.Equal(t, c.stays, l.s[i].Stream() != nil)
				require.Equal(t, !c.stays, l.s[i].Done())
			}
		})
	}
}

func tiny(p session.Params) session.Params {
	p.MaxValue = 1
	return p
}

func asking(p session.Params) session.Params {
	p.Goal.Compare = &session.Comparison{}
	return p
}

// firstVersion is a hello as a replica of version 1 says it, which knows nothing of streams.
func firstVersion(f session.Frame) []byte {
	if f.Kind != session.FrameHello {
		return f.Payload
	}
	h, err := session.DecodeHello(f.Payload)
	if err != nil {
		panic(err)
	}
	h.Max = 1
	return h.Append(nil)
}

// laterHello is the hello of a version that does not exist yet.
func laterHello(f session.Frame) []byte {
	if f.Kind != session.FrameHello {
		return f.Payload
	}
	h, err := session.DecodeHello(f.Payload)
	if err != nil {
		panic(err)
	}
	return later(h)
}

// Replicas that stay after nothing but hellos know of each other what they did before.
//
// design.md: L8
func TestStream_AfterHellosAloneLittleIsTold(t *testing.T) {
	a, b := newNode(t), newNode(t)
	for i := range 50 { // origins
		require.NoError(t, a.Commit(func(t *replica.Txn) error {
			v := foreign(byte(100+i), 1)
			_, err := t.Merge([]byte(fmt.Sprint("k", i)), []store.Version{v}, &causal.Knowledge{})
			t.Cover(v.Dot)
			return err
		}))
	}
	gossip(t, a, b)
	gossip(t, b, a)
	p := stayParams()
	p.CachedPeer = b.r.Self
	l := stayWith(t, a, b, p, stayParams())
	require.True(t, l.s[0].Result().Idle)
	a.put("k", "v")
	require.Equal(t, 1, l.push(0))
	for _, f := range l.got[1] {
		require.Less(t, len(f.Payload), 200, "one row of the vectors, not all")
	}
	requireEqualNodes(t, a, b)
}

// design.md: L9
func TestStream_PushMayAskForAReportOfWhatIsOnDisk(t *testing.T) {
	a, b := newNode(t), &durable{node: newNode(t)}
	a.put("k", "v")
	waits := false
	p := stayParams()
	p.Wants = func(*replica.Replica, causal.Origin) bool { return waits }
	l := stayWith(t, a, b, p, stayParams())
	a.put("k", "w")
	l.push(0)
	require.EqualValues(t, 1, l.stream(0).Known().Seq(causal.Durable, a.r.Self))
	require.Zero(t, b.flushes)
	waits = true
	require.True(t, l.stream(0).Push(), "though there is nothing to send")
	l.flow()
	require.Equal(t, 1, b.flushes)
	require.EqualValues(t, 2, l.stream(0).Known().Seq(causal.Durable, a.r.Self))
	waits = false
	require.False(t, l.stream(0).Push())
}

// design.md: L10
func TestStream_OwnPushBringsOwnWritesOnly(t *testing.T) {
	a, b, l := streaming(t)
	c := newNode(t)
	c.put("c", "of another")
	c.put("both", "of another")
	talk(t, a, c)
	a.put("own", "v")
	require.Equal(t, 1, l.pushOwn(0))
	require.Equal(t, "-", b.get("c"))
	require.Equal(t, a.covers(a), b.covers(a))
	require.Zero(t, b.covers(c))
	require.False(t, l.stream(0).PushOwn())
	a.put("both", "over another's") // which is not needed any more
	require.Equal(t, 1, l.pushOwn(0))
	require.Equal(t, 1, l.push(0), "what is left")
	requireEqualNodes(t, a, b)
	require.Equal(t, 2, b.covers(c))
}

// What another replica has overwritten of the own writes is not in the own log, so the write that did it has to come as well.
//
// design.md: L10
func TestStream_OwnPushBringsWhatHasOverwrittenOwnWrites(t *testing.T) {
	a, b, l := streaming(t)
	c := newNode(t)
	a.put("k", "v")
	talk(t, a, c)
	c.put("k", "over it")
	talk(t, a, c)
	require.Equal(t, 1, l.pushOwn(0))
	require.Equal(t, "over it", b.get("k"))
	requireEqualNodes(t, a, b)
	a.put("l", "v")
	c.put("m", "v")
	talk(t, a, c)
	require.Equal(t, 1, l.pushOwn(0), "that is over")
}

// failing is a node whose disk fails to write.
type failing struct {
	*node
	fails bool
}

var errDisk = errors.New("the disk fails")

func (f *failing) Commit(stage func(t *replica.Txn) error) error {
	if f.fails {
		return errDisk
	}
	return f.node.Commit(stage)
}

// A receiver that cannot write says so, and covers nothing; its peer learns nothing else from it.
//
// design.md: L1
func TestStream_PushThatCannotBeWrittenCoversNothing(t *testing.T) {
	a, b := newNode(t), &failing{node: newNode(t)}
	a.put("k", "v")
	l := stay(t, a, b)
	b.fails = true
	a.put("k", "w")
	require.True(t, l.stream(0).Push())
	l.say(0)
	var err error
	for _, f := range l.in[1] {
		require.NoError(t, err)
		err = l.s[1].Receive(f.Kind, f.Payload)
	}
	require.ErrorIs(t, err, errDisk)
	require.Equal(t, 1, b.covers(a))
	var refused *session.RefusedError
	for _, f := range l.s[1].Frames() {
		err = l.s[0].Receive(f.Kind, f.Payload)
	}
	require.ErrorAs(t, err, &refused)
	require.True(t, l.s[0].Done())
	b.fails = false
	talk(t, b.node, a)
	requireEqualNodes(t, a, b.node)
}
