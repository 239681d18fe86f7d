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
	drive(t, sa, sb, func(_, to *session, f frame) { require.NoError(t, to.receive(f.kind, f.payload)) })
	require.Equal(t, "-", a.get("b"))
	require.Equal(t, "1", b.get("a"))
}
