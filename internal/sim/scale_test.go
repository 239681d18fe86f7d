package sim

import (
	"container/heap"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/schedule"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

var (
	scale    = flag.Bool("scale", false, "run TestScale, and other tests at the size that is promised")
	scaleDoc = flag.String("scale.doc", "", "write table and plot of TestScale into this directory")
)

// scaleStore is a store in memory without anything that could go wrong.
type scaleStore struct{ image simImage }

func (s *scaleStore) Get(key []byte, ro *opt.ReadOptions) ([]byte, error) {
	return (&simReader{image: s.image}).Get(key, ro)
}

func (s *scaleStore) NewIterator(g *util.Range, ro *opt.ReadOptions) iterator.Iterator {
	return (&simReader{image: s.image}).NewIterator(g, ro)
}

func (s *scaleStore) Snapshot() (store.Snapshot, error) { return &simReader{image: s.image}, nil }

// scaleNode is a replica in virtual time: the real state machine, sessions and rounds.
type scaleNode struct {
	w        *scaleWorld
	id       int
	store    scaleStore
	r        *replica.Replica
	velocity schedule.Velocity
	gossip   schedule.Rounds
	peers    []schedule.Candidate // by id
	vectors  []causal.Sum         // of peers, at the end of the last session with them
	news     []time.Time          // when sessions end that brought something
	next     time.Time
	rounds   int
	bytes    int64
	pos      int // in the heap
}

type scaleWorld struct {
	rand  *rand.Rand
	now   time.Time
	nodes []*scaleNode
	order []*scaleNode // heap by next
}

func (w *scaleWorld) Len() int { return len(w.order) }

func (w *scaleWorld) Less(i, j int) bool { return w.order[i].next.Before(w.order[j].next) }

func (w *scaleWorld) Push(any) {}

func (w *scaleWorld) Pop() any { return nil }

func (w *scaleWorld) Swap(i, j int) {
	w.order[i], w.order[j] = w.order[j], w.order[i]
	w.order[i].pos, w.order[j].pos = i, j
}

const (
	scaleLeast   = 20 * time.Millisecond // MinInterval
	scaleMost    = 10 * time.Second      // MaxInterval
	scaleFanout  = 4
	scaleSession = 3 * time.Millisecond // a dial and two round trips
)

func newScaleWorld(t testing.TB, n int, seed uint64) *scaleWorld {
	w := &scaleWorld{rand: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(1_800_000_000, 0)}
	for i := range n {
		x := &scaleNode{w: w, id: i, peers: make([]schedule.Candidate, n), vectors: make([]causal.Sum, n), pos: i}
		x.gossip.Config = schedule.Config{Least: scaleLeast, Most: scaleMost, Fanout: scaleFanout, Rand: w.rand}
		for j := range x.peers {
			x.peers[j] = schedule.Candidate{Answers: true, Busy: i == j, Tried: true}
		}
		x.r = replica.New(replica.Config{
			Store: &x.store, Now: func() time.Time { return w.now }, Resolve: replica.HighestClock, MaxKey: 64, MaxValue: 1 << 10,
			MaxSkew: time.Hour, TombstoneTTL: time.Hour, PeerTTL: time.Hour,
			Draw: func() (o causal.Origin) {
				binary.BigEndian.PutUint64(o[:8], w.rand.Uint64())
				binary.BigEndian.PutUint64(o[8:], w.rand.Uint64())
				return o
			},
		})
		b, err := x.r.Open("")
		require.NoError(t, err)
		x.store.image = x.store.image.with(simPairs(b))
		x.next = w.now.Add(time.Duration(w.rand.Int64N(int64(scaleMost))))
		w.nodes = append(w.nodes, x)
	}
	w.order = slices.Clone(w.nodes)
	heap.Init(w)
	return w
}

func (x *scaleNode) With(f func(r *replica.Replica)) { f(x.r) }

func (x *scaleNode) Commit(stage func(t *replica.Txn) error) error {
	t := x.r.Begin()
	if err := stage(t); err != nil {
		return err
	}
	if t.Empty() {
		return nil
	}
	b := t.Finish()
	x.store.image = x.store.image.with(simPairs(b))
	x.r.Apply(t, t.Sync)
	if len(t.Changes) > 0 {
		x.velocity.Add(x.w.now, len(t.Changes))
		x.news = append(x.news, x.w.now.Add(scaleSession))
		x.plan()
	}
	return nil
}

// plan puts the node where it belongs in the heap.
func (x *scaleNode) plan() {
	x.next = x.gossip.Next()
	if len(x.news) > 0 && x.news[0].Before(x.next) {
		x.next = x.news[0]
	}
	if x.next.Before(x.w.now) {
		x.next = x.w.now
	}
	heap.Fix(x.w, x.pos)
}

func (x *scaleNode) put(t testing.TB, key, value string) {
	require.NoError(t, x.Commit(func(t *replica.Txn) error {
		return t.Put([]store.Write{{Key: []byte(key), Value: []byte(value), Deleted: false}})
	}))
	x.news = x.news[:len(x.news)-1] // it is its own
	x.gossip.LocalChange()
	x.plan()
}

// step has the next thing happen: news arrives, or a round is held.
func (w *scaleWorld) step(t testing.TB) {
	x := w.order[0]
	w.now = x.next
	few := x.gossip.Few(len(w.nodes) - 1)
	for len(x.news) > 0 && !x.news[0].After(w.now) {
		x.news = x.news[1:]
		x.gossip.RemoteChange(w.now, few)
	}
	if !x.gossip.Next().After(w.now) {
		x.round(t, few)
	}
	x.plan()
}

func (x *scaleNode) round(t testing.TB, few bool) {
	x.rounds++
	now := x.w.now
	round := x.gossip.Begin(now, few)
	for i := range x.peers {
		x.peers[i].Current = x.vectors[i] == x.r.Known.VectorSum
	}
	picked, _ := x.gossip.Pick(x.peers, round.Live, 0, now, func(i int) bool { return round.Skips(&x.peers[i], now) })
	for _, i := range picked {
		x.meet(t, x.w.nodes[i])
	}
	x.gossip.End(now, round, len(picked), 0, x.velocity.Pause(now, scaleLeast, scaleMost))
}

// meet holds a session to its end.
func (x *scaleNode) meet(t testing.TB, y *scaleNode) (bytes int64, idle bool) {
	p := session.Params{PageSize: 64 << 10, BatchSize: 1 << 20, MaxValue: 1 << 10, MaxKey: 64, CachedPeer: y.r.Self}
	a, b := session.New(x, true, p), session.New(y, false, p)
	a.Start()
	for !a.Done() || !b.Done() {
		for _, d := range []struct {
			from, to *session.Session
			node     *scaleNode
		}{{a, b, x}, {b, a, y}} {
			for _, f := range speak(t, d.from) {
				n := int64(session.FrameHead + len(f.Payload))
				bytes += n
				d.node.bytes += n
				require.NoError(t, d.to.Receive(f.Kind, f.Payload))
			}
		}
	}
	x.vectors[y.id], y.vectors[x.id] = y.r.Known.VectorSum, x.r.Known.VectorSum
	x.peers[y.id].Reached, y.peers[x.id].Came = x.w.now, x.w.now
	return bytes, a.Result().Idle
}

func (x *scaleNode) Addresses() []string { return nil }

func (x *scaleNode) Learn([]string) {}

func (x *scaleNode) EnterPull(causal.Origin, int64) session.SkipReason { return session.NotSkipped }

func (x *scaleNode) LeavePull(causal.Origin) {}

// spread measures how long a write takes to reach all replicas.
func (w *scaleWorld) spread(t testing.TB, key string) (took []time.Duration, rounds int) {
	start := w.now
	for _, x := range w.nodes {
		x.rounds = 0
	}
	writer := w.nodes[w.rand.IntN(len(w.nodes))]
	writer.put(t, key, "v")
	here := map[int]bool{}
	for len(here) < len(w.nodes) {
		w.step(t)
		for _, x := range w.nodes {
			if !here[x.id] && x.r.Known.VectorSum == writer.r.Known.VectorSum {
				here[x.id] = true
				took = append(took, w.now.Add(scaleSession).Sub(start))
				rounds = max(rounds, x.rounds)
			}
		}
	}
	slices.Sort(took)
	return took, rounds
}

// traffic is how many bytes a replica sends per second, over some virtual time
// during which writes happen at a rate, at random replicas.
func (w *scaleWorld) traffic(t testing.TB, span time.Duration, perSecond float64) float64 {
	for _, x := range w.nodes {
		x.bytes = 0
	}
	start := w.now
	n := 0
	for w.now.Sub(start) < span {
		if float64(n) < perSecond*w.now.Sub(start).Seconds() {
			w.nodes[w.rand.IntN(min(10, len(w.nodes)))].put(t, fmt.Sprint("load", n), "v")
			n++
		}
		w.step(t)
	}
	total := int64(0)
	for _, x := range w.nodes {
		total += x.bytes
	}
	return float64(total) / w.now.Sub(start).Seconds() / float64(len(w.nodes))
}

// handshake measures the first and a later, idle session of two replicas that know
// of many origins.
func handshake(t testing.TB, origins int) (first, idle int64) {
	w := newScaleWorld(t, 2, 1)
	for range origins {
		o := w.nodes[0].r.Draw()
		for _, x := range w.nodes {
			x.r.Known.Raise(causal.Covered, causal.Dot{Origin: o, Seq: 1000})
			x.r.Known.Raise(causal.Durable, causal.Dot{Origin: o, Seq: 1000})
		}
	}
	first, _ = w.nodes[0].meet(t, w.nodes[1])
	w.nodes[0].meet(t, w.nodes[1])
	idle, quiet := w.nodes[0].meet(t, w.nodes[1])
	require.True(t, quiet)
	return first, idle
}

// TestScale measures what docs/scale.md shows:
//
//	go test -run TestScale -v -timeout 0 -scale -scale.doc ../../docs ./internal/sim
func TestScale(t *testing.T) {
	if !*scale {
		t.Skip("only with -scale")
	}
	var doc strings.Builder
	var curves [][]time.Duration
	sizes := []int{10, 100, 1000}
	fmt.Fprintf(&doc, "| replicas | rounds | p50 | p99 | all | idle, B/s per replica | 10 writes/s, B/s per replica |\n|---|---|---|---|---|---|---|\n")
	for _, n := range sizes {
		w := newScaleWorld(t, n, uint64(n))
		for end := w.now.Add(2 * time.Minute); w.now.Before(end); { // they get to know each other
			w.step(t)
		}
		idle := w.traffic(t, time.Minute, 0)
		var all []time.Duration
		rounds := 0
		for i := range 5 {
			took, most := w.spread(t, fmt.Sprint("k", i))
			all, rounds = append(all, took...), max(rounds, most)
			for end := w.now.Add(2 * time.Minute); w.now.Before(end); {
				w.step(t)
			}
		}
		slices.Sort(all)
		load := w.traffic(t, 5*time.Second, 10)
		p99 := all[len(all)*99/100]
		fmt.Fprintf(&doc, "| %d | %d | %v | %v | %v | %.0f | %.0f |\n", n, rounds, ms(all[len(all)/2]), ms(p99), ms(all[len(all)-1]), idle, load)
		curves = append(curves, all)
		t.Logf("%d replicas done", n)
		if n == 1000 {
			require.Less(t, p99, time.Second)
		}
	}
	fmt.Fprintf(&doc, "\n| origins | first session, both ways | idle session, both ways |\n|---|---|---|\n")
	for _, n := range []int{10, 1000, 10000} {
		first, idle := handshake(t, n)
		fmt.Fprintf(&doc, "| %d | %d B | %d B |\n", n, first, idle)
		require.LessOrEqual(t, idle, int64(400))
	}
	t.Logf("\n%s", doc.String())
	if *scaleDoc != "" {
		page := scaleIntro + doc.String() + "\n![Share of replicas that hold a write, over time](scale.svg)\n"
		require.NoError(t, os.WriteFile(*scaleDoc+"/scale.md", []byte(page), 0o644))
		require.NoError(t, os.WriteFile(*scaleDoc+"/scale.svg", []byte(scalePlot(sizes, curves)), 0o644))
	}
}

const scaleIntro = `# Scale

How one write spreads among many replicas, and what replicas cost each other. The simulation runs the real replica
and session code in virtual time with the default pauses. A dial and two round trips take 3 ms, and no
processor is ever busy. ` + "`go test -run TestScale -v -timeout 0 -scale -scale.doc ../../docs ./internal/sim`" + ` writes this page.

A replica writes after minutes of silence. "Rounds" is the greatest number of rounds that any replica began before it had
the write; p50 and p99 are taken over all replicas and five writes.

`

func ms(d time.Duration) string { return fmt.Sprintf("%.0f ms", float64(d)/float64(time.Millisecond)) }

// scalePlot draws the share of replicas that hold a write over time.
func scalePlot(sizes []int, curves [][]time.Duration) string {
	const width, height, left, top = 640, 320, 50, 20
	most := time.Duration(0)
	for _, c := range curves {
		most = max(most, c[len(c)-1])
	}
	most = most.Truncate(50*time.Millisecond) + 50*time.Millisecond
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`, left+width+20, top+height+50)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/><path d="M%d %dV%dH%d" fill="none" stroke="#333"/>`, left, top, top+height, left+width)
	for i := range 5 {
		y, x := top+height-height*i/4, left+width*i/4
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%d %%</text><text x="%d" y="%d" text-anchor="middle">%s</text>`, left-6, y+4, 25*i, x, top+height+18, ms(most*time.Duration(i)/4))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">after the write (virtual time)</text>`, left+width/2, top+height+40)
	colours := []string{"#1b7837", "#2166ac", "#b2182b"}
	for i, c := range curves {
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="2" points="`, colours[i])
		for j := 0; j < len(c); j += max(1, len(c)/200) {
			fmt.Fprintf(&b, "%.1f,%.1f ", left+float64(width)*float64(c[j])/float64(most), top+height-float64(height)*float64(j+1)/float64(len(c)))
		}
		fmt.Fprintf(&b, `"/><text x="%d" y="%d" fill="%s">%d replicas</text>`, left+width-90, top+height-20-18*i, colours[i], sizes[i])
	}
	b.WriteString("</svg>\n")
	return b.String()
}
