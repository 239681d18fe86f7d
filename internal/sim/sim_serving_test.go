package sim

import (
	"testing"

	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
)

// put writes a key at a node.
func (s *scenario) put(n *simNode, key, value string) {
	require.NoError(s.t, n.Commit(func(t *replica.Txn) error {
		return t.Put([]store.Write{{Key: []byte(key), Value: []byte(value)}})
	}))
	require.NoError(s.t, s.err)
}

// talk holds one conversation.
func (s *scenario) talk(a, b *simNode) *simConn {
	c := s.dial(a, b)
	s.run(c)
	require.NoError(s.t, s.err)
	return c
}

// pullUntil has a pull from b until a holds what is asked for, and then waits.
func (s *scenario) pullUntil(a, b *simNode, enough func() bool) *simConn {
	c := s.dial(a, b)
	for !enough() {
		require.True(s.t, s.move(c, 0) || s.move(c, 1), "the pull ended before that")
	}
	return c
}

func (s *scenario) cutOff(c *simConn) {
	c.broken = true
	c.ends[0].in, c.ends[1].in = nil, nil
	s.run(c)
	require.NoError(s.t, s.err)
}

// design.md: P3, P5
func TestPull_ResumeSendsAKeyThatGrew(t *testing.T) {
	s := newScenario(t, "HighestClock", 5)
	s.conf.pageSize, s.conf.batchSize = 20, 1 // a page for each key, and its siblings with it
	p, q, o, server, to := s.nodes[0], s.nodes[1], s.nodes[2], s.nodes[3], s.nodes[4]
	s.put(o, "first", "o")
	s.talk(server, o)
	s.put(p, "last", "p")
	s.put(p, "k", "p")
	s.put(q, "k", "q")
	s.talk(server, p)
	s.talk(server, q)
	s.put(o, "k", "o")
	s.put(o, "later", "o")
	// The replica holds o's third write and not the second.
	half := s.pullUntil(server, o, func() bool { return server.holds["later"] != nil })
	require.Len(t, server.holds["k"].live, 2)
	// It has sent the key when it hears of o's second write, which joins the key …
	c := s.pullUntil(to, server, func() bool { return to.holds["k"] != nil })
	s.run(half)
	require.Len(t, server.holds["k"].live, 3)
	// … and is cut off when it has gone through the rest of the log.
	for to.holds["first"] == nil || to.holds["last"] == nil {
		require.True(t, s.move(c, 0) || s.move(c, 1))
	}
	s.cutOff(c)
	s.talk(to, server)
	require.Len(t, to.holds["k"].live, 3)
}
