package sim

import (
	"strings"
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// pair is two replicas that meet, and a third of whose writes only the first hears.
type pair struct {
	a, b, c  fixedNode
	pageSize int
	kinds    map[session.FrameType]bool // that they sent each other
}

func newPair(t testing.TB, pageSize int) *pair {
	return &pair{newFixedNode(t, "alpha"), newFixedNode(t, "beta"), newFixedNode(t, "gamma"), pageSize, map[session.FrameType]bool{}}
}

func (p *pair) close() {
	for _, n := range []fixedNode{p.a, p.b, p.c} {
		n.db.Close()
	}
}

// sessions returns the two ends of one, which the first replica dials.
func (p *pair) sessions() (sa, sb *session.Session) {
	pa, pb := p.a.params(), p.b.params()
	pa.PageSize, pb.PageSize, pa.BatchSize, pb.BatchSize = p.pageSize, p.pageSize, 1, 1
	if p.a.r.Members[p.b.r.Self] != nil {
		pa.CachedPeer = p.b.r.Self
	}
	return session.New(p.a, true, pa), session.New(p.b, false, pb)
}

func (p *pair) meet(t testing.TB) {
	sa, sb := p.sessions()
	drive(t, sa, sb, func(_, to *session.Session, f session.Frame) {
		p.kinds[f.Kind] = true
		require.NoError(t, to.Receive(f.Kind, f.Payload))
	})
}

// sibling makes a write of the third replica, which the first hears of.
func (p *pair) sibling(key string) {
	p.c.put(key, strings.Repeat("c", 900))
	p.a.mergeStates([]string{key}, statesOf(p.c.node, []string{key}))
}

// A session sends every kind of frame where there is occasion for it: for the first contact, a large
// value, siblings that are too large together, and a key that was lost.
func TestFrames_AllKindsAreSent(t *testing.T) {
	p := newPair(t, 60)
	p.a.put("large", strings.Repeat("v", 900))
	p.a.put("conflict", strings.Repeat("v", 900))
	p.sibling("conflict")
	p.meet(t)
	p.b.lose("large")
	p.meet(t)
	requireEqualNodes(t, p.a.node, p.b.node)
	for _, kind := range []session.FrameType{session.FrameHello, session.FrameVectors, session.FrameAddresses, session.FramePull, session.FramePage,
		session.FrameChunk, session.FrameEnd, session.FrameTurn, session.FrameBye, session.FrameProbe, session.FrameProbeReply, session.FrameFetch, session.FrameWant} {
		require.True(t, p.kinds[kind], "no session has sent a frame %d", kind)
	}
}

// Every kind of frame says what was meant: whatever two replicas hold, lost or have of a pull that
// broke off, in pages of whatever size, they are equal after a few sessions, and each knows of the
// other what that knows.
func TestFrames_BringAcrossWhateverThereIs(t *testing.T) {
	keys := []string{"k0", "k1", "k2", "k3", "k4"}
	rapid.Check(t, func(rt *rapid.T) {
		p := newPair(t, rapid.SampledFrom([]int{1, 60, 256, 4096}).Draw(rt, "page size"))
		defer p.close()
		a, b := p.a.node, p.b.node
		for range rapid.IntRange(1, 20).Draw(rt, "steps") {
			n := rapid.SampledFrom([]*node{a, b}).Draw(rt, "node")
			key := rapid.SampledFrom(keys).Draw(rt, "key")
			switch rapid.SampledFrom([]string{"put", "put", "put", "delete", "sibling", "meet", "cut", "lose"}).Draw(rt, "step") {
			case "put":
				n.put(key, strings.Repeat("v", rapid.SampledFrom([]int{0, 1, 50, 900}).Draw(rt, "length"))+rapid.StringN(0, 2, -1).Draw(rt, "value"))
			case "delete":
				n.del(key)
			case "sibling":
				p.sibling(key)
			case "meet":
				p.meet(t)
			case "cut":
				sa, sb := p.sessions()
				breakOff(t, sa, sb, rapid.IntRange(1, 40).Draw(rt, "frames"))
			case "lose":
				other := a
				if n == other {
					other = b
				}
				if s := n.versionsNamed(key); len(s) == 1 && !s[0].Deleted && other.versionsNamed(key).Has(s[0].Dot) {
					n.lose(key)
				}
			}
		}
		for range 4 {
			p.meet(t)
		}
		requireEqualNodes(t, a, b)
		for _, k := range keys {
			require.Equal(rt, a.versions(k), b.versions(k))
		}
		for _, x := range [][2]*node{{a, b}, {b, a}} {
			known := x[0].r.Members[x[1].r.Self].Known
			require.Equal(rt, x[1].r.Known.Vector(causal.Covered), known.Vector(causal.Covered))
			require.Equal(rt, x[1].r.Known.Vector(causal.Pruned), known.Vector(causal.Pruned))
		}
	})
}

// breakOff carries so many frames between two sessions, or fewer if both end before, and then breaks
// the connection.
func breakOff(t testing.TB, sa, sb *session.Session, frames int) {
	sa.Start()
	for frames > 0 && (!sa.Done() || !sb.Done()) {
		for _, x := range []struct{ from, to *session.Session }{{sa, sb}, {sb, sa}} {
			for _, f := range speak(t, x.from) {
				if frames--; frames >= 0 {
					require.NoError(t, x.to.Receive(f.Kind, f.Payload))
				}
			}
		}
	}
	require.NoError(t, sa.Abandon())
	require.NoError(t, sb.Abandon())
}
