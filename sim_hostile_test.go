package replicator

import (
	"bytes"
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
	w := &simWorld{rand: rand.New(rand.NewPCG(1, 2)), sizes: rand.New(rand.NewPCG(1, 9)), ghost: newGhost(), blocked: map[[2]int]bool{}, healed: true, verbose: *simVerbose}
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

func TestHostileEntriesStoreNothing(t *testing.T) {
	s := newScenario(t, "HighestClock", 2)
	a, b := s.nodes[0], s.nodes[1]
	s.put(a, "news", "v") // or b would not pull
	stranger := s.draw()
	page := func(named []Origin, key string, v version) []byte {
		n := names{list: slices.Clone(named), fresh: len(named)}
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
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			c := s.dial(b, a)
			for b := c.ends[0]; b.s.expect != wantPage; {
				require.True(t, s.move(c, 0) || s.move(c, 1))
			}
			before, claims := b.disk.now, b.r.known.claims
			v := good
			x.v(&v)
			err := c.ends[0].s.receive(framePage, page(c.ends[0].s.reading.list, x.key, v))
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
