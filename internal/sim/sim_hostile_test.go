package sim

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
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

func TestPull_HostileEntriesStoreNothing(t *testing.T) {
	s := newScenario(t, "HighestClock", 2)
	a, b := s.nodes[0], s.nodes[1]
	s.put(a, "news", "v") // or b would not pull
	stranger := s.draw()
	page := func(n session.Names, key string, v store.Version) []byte {
		return n.Frame(func(p []byte) []byte {
			p = append(p, 0, 1) // no marks, one key
			p = store.AppendBytes(p, []byte(key))
			p = append(p, 1)
			p = store.AppendDot(append(p, 0), v.Dot, &n)
			p = store.AppendBody(p, &v, &n)
			return store.AppendBytes(p, v.Value)
		})
	}
	good := store.Version{Dot: causal.Dot{Origin: stranger, Seq: 1}, Stamp: causal.StampOf(s.now), Count: 1, Value: []byte("v")}
	for name, x := range map[string]struct {
		key string
		v   func(v *store.Version)
		is  string
	}{
		"reserved key":       {"\xff\xffi", func(*store.Version) {}, "reserved"},
		"own dot in context": {"k", func(v *store.Version) { v.Context = causal.Vector{{Origin: stranger, Seq: 1}} }, "own dot"},
		"seq beyond bounds":  {"k", func(v *store.Version) { v.Seq = causal.MaxSeq + 1 }, "at most"},
		"seq of 0":           {"k", func(v *store.Version) { v.Seq = 0 }, "seq"},
		"not in its batch":   {"k", func(v *store.Version) { v.Offset = 1 }, "batch"},
		"write of ours":      {"k", func(v *store.Version) { v.Dot = causal.Dot{Origin: b.r.Self, Seq: 7} }, "this replica"},
		"from the future":    {"k", func(v *store.Version) { v.Stamp = causal.StampOf(s.now.Add(time.Hour)) }, "future"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			c := s.dial(b, a)
			for b := c.ends[0]; b.s.Step() != session.WaitAnswer; {
				require.True(t, s.move(c, 0) || s.move(c, 1))
			}
			before, vector := b.disk.now, b.r.Known.VectorSum
			v := good
			x.v(&v)
			err := c.ends[0].s.Receive(session.FramePage, page(c.ends[0].s.PeerNames(), x.key, v))
			require.ErrorContains(t, err, x.is)
			require.True(t, c.ends[0].s.Done())
			require.True(t, slices.EqualFunc(before, b.disk.now, func(p, q simPair) bool { return p.key == q.key && bytes.Equal(p.value, q.value) }))
			require.Equal(t, vector, b.r.Known.VectorSum)
			s.flush(c, 0)
			s.cut(c)
			s.conns = nil
		})
	}
}
