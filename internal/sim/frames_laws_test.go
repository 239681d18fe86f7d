package sim

import (
	"strings"
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// Every kind of frame says what was meant: whatever two replicas hold, lost or have of a pull that
// broke off, in pages of whatever size, they are equal after a few sessions, and each knows of the
// other what that knows.
func TestFrames_BringAcrossWhateverThereIs(t *testing.T) {
	kinds := map[session.FrameType]bool{}
	keys := []string{"k0", "k1", "k2", "k3", "k4"}
	rapid.Check(t, func(rt *rapid.T) {
		a, b, c := newFixedNode(t, "alpha"), newFixedNode(t, "beta"), newFixedNode(t, "gamma")
		defer a.db.Close()
		defer b.db.Close()
		defer c.db.Close()
		pageSize := rapid.SampledFrom([]int{1, 60, 256, 4096}).Draw(rt, "page size")
		meet := func(frames int) {
			pa, pb := a.params(), b.params()
			pa.PageSize, pb.PageSize, pa.BatchSize, pb.BatchSize = pageSize, pageSize, 1, 1
			if a.r.Members[b.r.Self] != nil {
				pa.CachedPeer = b.r.Self
			}
			sa, sb := session.New(a, true, pa), session.New(b, false, pb)
			if frames == 0 {
				drive(t, sa, sb, func(_, to *session.Session, f session.Frame) {
					kinds[f.Kind] = true
					require.NoError(rt, to.Receive(f.Kind, f.Payload))
				})
				return
			}
			breakOff(t, sa, sb, frames)
		}
		for range rapid.IntRange(1, 20).Draw(rt, "steps") {
			n := rapid.SampledFrom([]*node{a.node, b.node}).Draw(rt, "node")
			key := rapid.SampledFrom(keys).Draw(rt, "key")
			switch rapid.SampledFrom([]string{"put", "put", "put", "delete", "sibling", "meet", "cut", "lose"}).Draw(rt, "step") {
			case "put":
				n.put(key, strings.Repeat("v", rapid.SampledFrom([]int{0, 1, 50, 900}).Draw(rt, "length"))+rapid.StringN(0, 2, -1).Draw(rt, "value"))
			case "delete":
				n.del(key)
			case "sibling": // of a third replica, which only a knows
				c.put(key, strings.Repeat("c", 900))
				a.mergeStates(keys, statesOf(c.node, keys))
			case "meet":
				meet(0)
			case "cut":
				meet(rapid.IntRange(1, 40).Draw(rt, "frames"))
			case "lose":
				other := a.node
				if n == other {
					other = b.node
				}
				if s := n.versionsNamed(key); len(s) == 1 && !s[0].Deleted && other.versionsNamed(key).Has(s[0].Dot) {
					n.lose(key)
				}
			}
		}
		for range 4 {
			meet(0)
		}
		requireEqualNodes(t, a.node, b.node)
		for _, k := range keys {
			require.Equal(rt, a.versions(k), b.versions(k))
		}
		for _, x := range [][2]*node{{a.node, b.node}, {b.node, a.node}} {
			known := x[0].r.Members[x[1].r.Self].Known
			require.Equal(rt, x[1].r.Known.Vector(causal.Covered), known.Vector(causal.Covered))
			require.Equal(rt, x[1].r.Known.Vector(causal.Pruned), known.Vector(causal.Pruned))
		}
	})
	if testing.Short() {
		return // too few histories to have met every frame
	}
	for _, kind := range []session.FrameType{session.FrameHello, session.FrameVectors, session.FrameAddresses, session.FramePull, session.FramePage,
		session.FrameChunk, session.FrameEnd, session.FrameTurn, session.FrameBye, session.FrameProbe, session.FrameProbeReply, session.FrameFetch, session.FrameWant} {
		require.True(t, kinds[kind], "no session has sent a frame %d", kind)
	}
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
