package replicator

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// busyNode is a server that is pulling in another session.
type busyNode struct{ *node }

func (busyNode) enterPull(Origin) bool { return false }

func TestDialerThatLeavesOutItsPullIsPulledFrom(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("a", "1")
	b.put("b", "1")
	p := sessionParams{pageSize: 1 << 10, batchSize: 1 << 16, maxValue: 1 << 20, maxKey: 1 << 10}
	sa, sb := newSession(busyNode{a}, true, p), newSession(b, false, p)
	sa.start()
	for !sa.done || !sb.done {
		moved := false
		for _, x := range []struct{ from, to *session }{{sa, sb}, {sb, sa}} {
			for x.from.more() && len(x.from.out) == 0 {
				require.NoError(t, x.from.produce())
			}
			for len(x.from.out) > 0 {
				f := x.from.out[0]
				x.from.out = x.from.out[1:]
				moved = true
				require.NoError(t, x.to.receive(f.kind, f.payload))
			}
		}
		require.True(t, moved, "stuck: %v %v", sa.expect, sb.expect)
	}
	require.Equal(t, "-", a.get("b"))
	require.Equal(t, "1", b.get("a"))
}
