package replicator

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// scenario is a simulated cluster in which nothing happens but what the test says.
type scenario struct {
	*simWorld
	t testing.TB
}

func newScenario(t testing.TB, resolver string, nodes int) *scenario {
	w := &simWorld{rand: rand.New(rand.NewPCG(1, 2)), ghost: newGhost(), blocked: map[[2]int]bool{}, healed: true, verbose: *simVerbose}
	w.now = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	w.resolve = simResolvers(w.rand)
	w.conf = simConf{pageSize: 4096, batchSize: 1 << 16, cache: 1 << 20, maxSkew: time.Minute, tombstoneTTL: -1, peerTTL: 1e6 * time.Hour}
	s := &scenario{w, t}
	s.resolver(resolver)
	for range nodes {
		w.addNode(nil).skew = 0
	}
	return s
}

// resolver has all nodes open with this resolver from now on.
func (s *scenario) resolver(name string) {
	s.conf.resolver = slices.IndexFunc(s.resolve, func(r simResolve) bool { return r.name == name })
	require.GreaterOrEqual(s.t, s.conf.resolver, 0, name)
}

func (s *scenario) put(n *simNode, key, value string) {
	s.now = s.now.Add(time.Millisecond)
	require.NoError(s.t, n.commit(func(t *txn) error {
		return t.put([]write{{key: []byte(key), value: []byte(value)}})
	}))
	require.NoError(s.t, s.err)
}

// get gives what a node shows of a key, "-" for nothing.
func (s *scenario) get(n *simNode, key string) string {
	if i, ok := n.disk.now.search(key); ok {
		return string(n.disk.now[i].value)
	}
	return "-"
}

// values gives the values of all versions of a key in canonical order, and checks
// that the node's own reading of its disk agrees.
func (s *scenario) values(n *simNode, key string) (vs []string) {
	require.NoError(s.t, n.check())
	st, err := readIndex(n.r.store, []byte(key), n.r)
	require.NoError(s.t, err)
	full, err := readVersions(n.r.store, []byte(key), st, n.r)
	require.NoError(s.t, err)
	for _, v := range canonical(full) {
		vs = append(vs, string(v.Value))
	}
	return vs
}

// talk holds one conversation and tells how many frames were sent.
func (s *scenario) talk(a, b *simNode) *simConn {
	s.now = s.now.Add(time.Millisecond)
	c := s.dial(a, b)
	s.run(c)
	require.NoError(s.t, s.err)
	return c
}

// gossip lets all talk until nobody has anything to say, and compares the outcome
// with the model's.
func (s *scenario) gossip() {
	before := map[*ghostWrite]bool{}
	for _, v := range s.ghost.writes {
		before[v] = s.counts(v)
		if !before[v] {
			delete(before, v)
		}
	}
	s.settleDown(before)
	require.NoError(s.t, s.err)
}

// flushAll puts everything on disk, and lets the servers know.
func (s *scenario) flushAll() {
	for _, n := range s.up() {
		n.disk.flushAll()
		n.r.checkpoint(nil)
		require.NoError(s.t, n.upkeep())
	}
}

func TestPartitionedWritersAreAllListedUntilSomebodyWrites(t *testing.T) {
	s := newScenario(t, "HighestClock", 3)
	for i, n := range s.nodes {
		for j := range i + 1 {
			s.put(n, "k", fmt.Sprintf("n%d.%d", i, j))
		}
	}
	s.gossip()
	for _, n := range s.nodes {
		require.Equal(t, []string{"n0.0", "n1.1", "n2.2"}, s.values(n, "k"))
		require.Equal(t, "n2.2", s.get(n, "k"))
		require.EqualValues(t, 1, n.r.disputed)
	}
	s.put(s.nodes[0], "k", "settled")
	s.gossip()
	for _, n := range s.nodes {
		require.Equal(t, []string{"settled"}, s.values(n, "k"))
		require.Equal(t, "settled", s.get(n, "k"))
		require.Zero(t, n.r.disputed)
	}
}

func TestAnotherResolverShowsAnotherValueAndLosesNoVersion(t *testing.T) {
	s := newScenario(t, "HighestClock", 3)
	for i, n := range s.nodes {
		for range 3 - i {
			s.put(n, "k", fmt.Sprint("n", i))
		}
	}
	s.gossip()
	before := s.values(s.nodes[0], "k")
	require.Len(t, before, 3)
	for _, n := range s.nodes {
		require.Equal(t, "n0", s.get(n, "k"))
	}
	s.resolver("first")
	for _, n := range s.nodes {
		require.NoError(t, n.close())
		require.NoError(t, n.open())
		require.Equal(t, before, s.values(n, "k"))
		require.Equal(t, before[0], s.get(n, "k"))
	}
	require.NotEqual(t, "n0", before[0])
	s.gossip()
	for _, n := range s.nodes {
		require.Equal(t, before, s.values(n, "k"))
		require.Equal(t, before[0], s.get(n, "k"))
	}
}

func TestConcatenatingResolverConvergesToOneValue(t *testing.T) {
	s := newScenario(t, "concatenate", 5)
	for i, n := range s.nodes {
		s.put(n, "k", fmt.Sprint("n", i))
	}
	s.talk(s.nodes[3], s.nodes[1]) // some hear of each other in this order, some in that
	s.talk(s.nodes[4], s.nodes[3])
	s.talk(s.nodes[0], s.nodes[2])
	s.gossip()
	want := strings.Join(s.values(s.nodes[0], "k"), "|")
	require.Len(t, strings.Split(want, "|"), 5)
	for _, n := range s.nodes {
		require.Equal(t, want, s.get(n, "k"))
	}
}

func TestCoinTossingResolverLeavesVersionsEqualAndCausesNoTraffic(t *testing.T) {
	s := newScenario(t, "coin", 4)
	for i, n := range s.nodes {
		for k := range 20 {
			s.put(n, fmt.Sprint("k", k), fmt.Sprint("n", i))
		}
	}
	s.gossip()
	shown := map[string]bool{}
	for _, n := range s.nodes {
		for k := range 20 {
			key := fmt.Sprint("k", k)
			require.Equal(t, s.values(s.nodes[0], key), s.values(n, key))
			shown[key+s.get(n, key)] = true
		}
	}
	require.Greater(t, len(shown), 20, "the coin always fell the same way: the test proves nothing")
	bytesBefore := s.stats.bytes
	c := s.talk(s.nodes[0], s.nodes[1])
	require.True(t, c.ends[0].s.idle && c.ends[1].s.idle)
	require.LessOrEqual(t, s.stats.bytes-bytesBefore, 400)
}

func TestFortyCopiesOfOneDirectoryAgreeAndLoseNothing(t *testing.T) {
	s := newScenario(t, "HighestClock", 1)
	first := s.nodes[0]
	s.put(first, "common", "0")
	s.put(first, "only at first", "0")
	image := first.disk.now
	for range 39 {
		s.addNode(image).skew = 0
	}
	for i, n := range s.nodes {
		s.put(n, "common", fmt.Sprint(i))
		s.put(n, fmt.Sprint("own ", i), fmt.Sprint(i))
	}
	for round := range 7 { // 2^6 > 40
		for i := range s.nodes {
			s.talk(s.nodes[i], s.nodes[(i+1<<round)%len(s.nodes)])
		}
	}
	for _, n := range s.nodes {
		require.Equal(t, s.nodes[0].r.digest, n.r.digest)
		require.Equal(t, s.nodes[0].r.known.claims, n.r.known.claims)
		require.Len(t, s.values(n, "common"), 40)
		for i := range s.nodes {
			require.Equal(t, fmt.Sprint(i), s.get(n, fmt.Sprint("own ", i)))
		}
	}
	require.NoError(t, s.checkOutcome(nil))
}

func TestRestoredNodeThatWritesFirstLosesAndHidesNothing(t *testing.T) {
	s := newScenario(t, "HighestClock", 2)
	a, b := s.nodes[0], s.nodes[1]
	s.put(a, "k", "old")
	s.gossip()
	backup := b.disk.now
	s.put(b, "k", "lost with the disk, but a has it")
	s.put(b, "other", "likewise")
	s.gossip()
	s.put(a, "a", "since")

	b.down()
	b.disk = newSimDisk(backup)
	require.NoError(t, b.open())
	s.put(b, "k", "new, on top of old")
	s.put(b, "mine", "new")
	s.gossip()
	for _, n := range s.nodes {
		require.ElementsMatch(t, []string{"lost with the disk, but a has it", "new, on top of old"}, s.values(n, "k"))
		require.Equal(t, "likewise", s.get(n, "other"))
		require.Equal(t, "since", s.get(n, "a"))
		require.Equal(t, "new", s.get(n, "mine"))
	}
}

func TestInterruptedPullClaimsNothingAndResumesOnlyWhereReachIsCovered(t *testing.T) {
	s := newScenario(t, "HighestClock", 3)
	s.conf.pageSize, s.conf.batchSize = 1, 1 // a page for each key, and a batch for each page
	from, to, third := s.nodes[0], s.nodes[1], s.nodes[2]
	for i := range 20 {
		s.put(from, fmt.Sprint("k", i), strings.Repeat("v", 100))
	}
	s.talk(third, from) // third covers what from has now …
	s.put(from, "late", "v")

	c := s.dial(to, from) // … but not this, which is the first that an interrupted pull brings
	for len(to.holds) < 10 {
		require.True(t, s.move(c, 0) || s.move(c, 1))
	}
	require.Equal(t, "v", s.get(to, "late"))
	c.broken = true
	s.run(c)
	merged := len(to.holds)
	require.GreaterOrEqual(t, merged, 10)
	require.Less(t, merged, 21)
	require.Zero(t, to.r.known.at(claimed, from.r.self))

	served := s.talk(to, third).ends[1].s.stats.served
	require.Equal(t, 20, served, "third does not cover reach: nothing may be skipped there")
	require.EqualValues(t, 20, to.r.known.at(claimed, from.r.self))

	// The same once more with a server that covers reach.
	fresh := s.addNode(nil)
	fresh.skew = 0
	c = s.dial(fresh, from)
	for len(fresh.holds) < 10 {
		require.True(t, s.move(c, 0) || s.move(c, 1))
	}
	c.broken = true
	s.run(c)
	merged = len(fresh.holds)
	require.Zero(t, fresh.r.known.at(claimed, from.r.self))
	s.talk(third, from)
	served = s.talk(fresh, third).ends[1].s.stats.served
	require.Equal(t, 21-merged, served, "what was merged is sent again")
	require.EqualValues(t, 21, fresh.r.known.at(claimed, from.r.self))
	s.gossip()
}

func TestKeyOfAThousandOpeningsKeepsAShortVector(t *testing.T) {
	s := newScenario(t, "HighestClock", 2)
	a, b := s.nodes[0], s.nodes[1]
	for i := range 1000 {
		s.put(a, "k", fmt.Sprint(i))
		s.talk(a, b)
		s.flushAll()
		s.talk(a, b)
		a.kill()
		require.NoError(t, a.open())
	}
	s.talk(a, b)
	s.put(a, "k", "last")
	s.gossip()
	for _, n := range s.nodes {
		h := n.holds["k"]
		require.Len(t, h.live, 1)
		require.LessOrEqual(t, len(h.live[0].vv), pruneAbove+1)
		require.Equal(t, "last", s.get(n, "k"))
	}
}

func TestHostileEntriesStoreNothing(t *testing.T) {
	s := newScenario(t, "HighestClock", 2)
	a, b := s.nodes[0], s.nodes[1]
	stranger := s.draw()
	page := func(key string, v version) []byte {
		var n names
		return n.frame(func(p []byte) []byte {
			p = append(p, 0, 1) // no marks, one key
			p = appendBytes(p, []byte(key))
			p = append(p, 1)
			p = appendDot(append(p, 0), v.dot, &n)
			p = appendBody(p, &v, &n)
			return appendBytes(p, v.value)
		})
	}
	good := version{dot: dot{stranger, 1}, stamp: stampOf(s.now), count: 1, value: []byte("v")}
	for name, x := range map[string]struct {
		key string
		v   func(v *version)
		is  string
	}{
		"reserved key":      {"\xff\xffi", func(*version) {}, "reserved"},
		"own dot in vv":     {"k", func(v *version) { v.vv = vector{{stranger, 1}} }, "own dot"},
		"seq beyond bounds": {"k", func(v *version) { v.seq = maxSeq + 1 }, "at most"},
		"seq of 0":          {"k", func(v *version) { v.seq = 0 }, "seq"},
		"not in its batch":  {"k", func(v *version) { v.offset = 1 }, "batch"},
		"write of ours":     {"k", func(v *version) { v.dot = dot{b.r.self, 7} }, "this server"},
		"from the future":   {"k", func(v *version) { v.stamp = stampOf(s.now.Add(time.Hour)) }, "future"},
		"key too long":      {strings.Repeat("k", 65), func(*version) {}, "page"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			c := s.dial(b, a)
			for b := c.ends[0]; b.s.expect != wantPage; {
				require.True(t, s.move(c, 0) || s.move(c, 1))
			}
			before, claims := b.disk.now, b.r.known.claims
			v := good
			x.v(&v)
			err := c.ends[0].s.receive(framePage, page(x.key, v))
			require.ErrorContains(t, err, x.is)
			require.True(t, c.ends[0].s.done)
			require.True(t, slices.EqualFunc(before, b.disk.now, func(p, q simPair) bool { return p.key == q.key && bytes.Equal(p.value, q.value) }))
			require.Equal(t, claims, b.r.known.claims)
			s.flush(c, 0)
			s.cut(c)
			s.conns = nil
		})
	}
}
