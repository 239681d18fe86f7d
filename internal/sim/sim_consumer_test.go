package sim

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/feed"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/util"
)

var simConsumers = flag.Int("sim.consumers", 150, "simulated schedules with consumers of changes")

// TestSimulatedConsumers runs the simulator with consumers that keep an index by the feed of changes.
// They go to another replica after each position that they store, or stay, and are killed; the replicas
// under them crash, are restored, cloned, purged and lose keys. In the end each index must be what a
// scan returns.
//
// design.md: F1, F2, F3, F4, F5, F6
func TestSimulatedConsumers(t *testing.T) {
	schedules := *simConsumers
	if testing.Short() {
		schedules = min(schedules, 100)
	}
	var total simStats
	var consumed consumerStats
	var mu sync.Mutex
	var next atomic.Int64
	var failed atomic.Bool
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for !failed.Load() {
				i := next.Add(1) - 1
				if i >= int64(schedules) {
					return
				}
				w := consumeSimulation(*simFirst+uint64(i), *simOps)
				mu.Lock()
				total.add(&w.stats)
				consumed.add(&w.consumed)
				if w.err != nil {
					failed.Store(true)
					t.Errorf("seed %d, after %d operations: %v\nreplay: go test ./internal/sim -run 'TestSimulatedConsumers$' -sim.first=%d -sim.consumers=1 -sim.ops=%d -sim.check=%d -sim.v=true",
						w.seed, w.stats.ops, w.err, w.seed, *simOps, *simEvery)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("%d operations; %+v", total.ops, consumed)
	if schedules >= 100 && !t.Failed() {
		require.Empty(t, consumed.missing(), "the simulator is meant to meet these")
		require.LessOrEqual(t, float64(consumed.twice), 0.05*float64(consumed.delivered), "deliveries of what the consumer had by the position that it stored last")
	}
}

func consumeSimulation(seed uint64, ops int) *simWorld {
	return runWorld(seed, ops, true, true)
}

// consumerStats are what happened to consumers.
type consumerStats struct {
	consumers, delivered, twice, again, pages, positions, killed, hops, behind, lost, purged, cautious, beginnings, fellBack, scansResumed, excused, hurt int
}

func (s *consumerStats) fields() []*int {
	return []*int{&s.consumers, &s.delivered, &s.twice, &s.again, &s.pages, &s.positions, &s.killed, &s.hops, &s.behind, &s.lost, &s.purged, &s.cautious, &s.beginnings, &s.fellBack, &s.scansResumed, &s.excused, &s.hurt}
}

func (s *consumerStats) add(o *consumerStats) {
	for i, p := range s.fields() {
		*p += *o.fields()[i]
	}
}

func (s *consumerStats) missing() (names []string) {
	for name, n := range map[string]int{"positions": s.positions, "kills": s.killed, "hops": s.hops, "replicas behind": s.behind, "purges that were missed": s.purged,
		"readers that fall back to the log": s.fellBack, "scans that are resumed": s.scansResumed, "keys in conflict that are delivered again": s.again} {
		if n == 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// simConsumer keeps an index of what a feed delivers. It stores a position and, along with it or at
// once, what it was delivered.
type simConsumer struct {
	w      *simWorld
	id     int
	rand   *rand.Rand
	eager  bool // it stores what it is delivered at once; else with the next position
	conf   feed.Config
	node   *simNode
	hub    *feed.Hub
	reader *feed.Reader
	was    bool // the reader was live

	stored feed.Position
	index  map[string]simEntry // what it has stored
	buffer []feed.Page         // what it has been delivered since
	told   map[string]string   // what it was last delivered of each key, as of the stored position
	since  map[string]string   // and since that
	have   map[string]writeSet // what it has seen of each key
	dots   map[string][]causal.Dot
}

type simEntry struct {
	value string
	dots  []causal.Dot
}

// consume lets consumers do something.
func (w *simWorld) consume() {
	for _, c := range w.consumers {
		for w.err == nil && c.rand.IntN(3) == 0 {
			c.step()
		}
	}
}

func (w *simWorld) addConsumers() {
	r := rand.New(rand.NewPCG(w.seed, 11))
	for i := range 1 + r.IntN(3) {
		c := &simConsumer{w: w, id: i, rand: rand.New(rand.NewPCG(w.seed, 12+uint64(i))), eager: r.IntN(2) == 0, index: map[string]simEntry{}, told: map[string]string{}}
		c.conf = feed.Config{PageKeys: pick(r, 1, 4, 10, 100), PageBytes: 1 << 20}
		if r.IntN(4) == 0 {
			c.conf.Ranges = store.NormalRanges([]*util.Range{{Limit: []byte("k2")}, {Start: []byte("k5"), Limit: []byte("k9")}})
		}
		c.forget()
		w.consumers = append(w.consumers, c)
		w.consumed.consumers++
	}
}

// forget is what a kill leaves of a consumer, or a connection that it loses: what it stored.
func (c *simConsumer) forget() {
	if c.reader != nil {
		c.reader.Close()
	}
	c.reader, c.node, c.hub, c.buffer = nil, nil, nil, nil
	c.since, c.have, c.dots, c.was = map[string]string{}, map[string]writeSet{}, map[string][]causal.Dot{}, false
}

func (c *simConsumer) step() {
	if c.reader != nil && (c.node.r == nil || c.node.hub != c.hub) {
		c.forget()
	}
	if c.reader == nil {
		c.connect(c.w.nodes[c.rand.IntN(len(c.w.nodes))])
		return
	}
	if c.rand.IntN(40) == 0 {
		c.w.consumed.killed++
		c.forget()
		return
	}
	c.page()
}

func (c *simConsumer) connect(n *simNode) {
	if n.r == nil || n.paused {
		return
	}
	c.node, c.hub = n, n.hub
	c.reader = feed.NewReader(n.hub, n.With, c.stored.Clone(), c.conf)
	if c.stored.Scanning {
		c.w.consumed.scansResumed++
	}
}

// page takes a page, and returns whether there is more.
func (c *simConsumer) page() (more bool) {
	w, n := c.w, c.node
	p, err := c.reader.Next()
	switch {
	case err == feed.ErrBehind:
		w.consumed.behind++
		c.forget()
		return false
	case errors.Is(err, errSimRead), err != nil && w.conf.corruption && errors.Is(err, store.ErrCorrupted):
		c.forget()
		return true
	case err != nil:
		w.fail(fmt.Errorf("consumer %d at n%d: %w", c.id, n.id, err))
		return false
	}
	w.consumed.pages++
	if c.was && !c.reader.Live() {
		w.consumed.fellBack++
	}
	c.was = c.reader.Live()
	if p.Reset != "" {
		c.countReset(p.Reset)
	}
	for i := range p.Records {
		c.take(&p.Records[i])
	}
	if c.eager {
		c.apply(p)
	} else if p.Reset != "" || len(p.Records) > 0 {
		kept := p
		kept.Records = slices.Clone(p.Records)
		c.buffer = append(c.buffer, kept)
	}
	if w.verbose {
		w.logf("consumer %d at n%d: reset %q, at %v live %v", c.id, n.id, p.Reset, p.At, c.was)
		for i := range p.Records {
			w.logf("   %s %q deleted %v %v", p.Records[i].Key, p.Records[i].Value, p.Records[i].Deleted, p.Records[i].Dots)
		}
	}
	if p.At != nil {
		c.store(p.At)
	}
	return !p.Idle
}

// countReset checks that a reset cannot be avoided.
func (c *simConsumer) countReset(why feed.Why) {
	w := c.w
	c.told, c.since, c.have = map[string]string{}, map[string]string{}, map[string]writeSet{}
	switch v := c.stored.Vector(); why {
	case feed.Beginning:
		w.consumed.beginnings++
		if !c.stored.Zero() {
			w.fail(fmt.Errorf("consumer %d is sent to the beginning, and was at %v", c.id, v))
		}
	case feed.Purged:
		// Somewhere a deletion was purged that the consumer has not been told of. What a watermark
		// covers beside that cannot be known.
		w.consumed.purged++
		for _, k := range w.ghost.keys {
			for _, x := range k.writes {
				if k.forgotten.has(x.nth) && !v.Contains(x.Dot) {
					return
				}
			}
		}
		w.consumed.cautious++
	case feed.Lost:
		w.consumed.lost++
	}
}

// take takes in one record.
func (c *simConsumer) take(rec *feed.Record) {
	w, key := c.w, string(rec.Key)
	w.consumed.delivered++
	print := fmt.Sprint(rec.Dots, rec.Deleted, string(rec.Value))
	last, ok := c.since[key]
	if !ok {
		last = c.told[key]
	}
	switch {
	case rec.Resolver:
		w.consumed.again++
	case last == print:
		w.consumed.twice++
	}
	c.since[key] = print
	k := w.ghost.key(key)
	var live []*ghostWrite
	for _, d := range rec.Dots {
		x := w.ghost.writes[d]
		if x == nil || x.key != k {
			w.fail(fmt.Errorf("consumer %d is delivered %v of key %s, which nobody wrote", c.id, d, key))
			return
		}
		live = append(live, x)
	}
	if len(live) == 1 && (rec.Deleted != live[0].Deleted || string(rec.Value) != string(live[0].Value)) {
		w.fail(fmt.Errorf("consumer %d is delivered %q of key %s, and %v is %q", c.id, rec.Value, key, live[0].Dot, live[0].Value))
	}
	seen := k.hold(live).seen
	if i := c.have[key].without(seen, k.forgotten); i >= 0 && !k.hurt {
		w.fail(fmt.Errorf("consumer %d: key %s runs backwards at n%d, from what has seen %v to %v", c.id, key, c.node.id, k.writes[i].Dot, rec.Dots))
	}
	c.have[key] = seen
}

func (c *simConsumer) apply(p feed.Page) {
	if p.Reset != "" {
		clear(c.index)
	}
	for i := range p.Records {
		rec := &p.Records[i]
		if rec.Deleted {
			c.index[string(rec.Key)] = simEntry{value: "-", dots: rec.Dots}
		} else {
			c.index[string(rec.Key)] = simEntry{value: "=" + string(rec.Value), dots: rec.Dots}
		}
	}
}

// store stores a position, and what was delivered up to it.
func (c *simConsumer) store(at *feed.Position) {
	c.w.consumed.positions++
	for _, p := range c.buffer {
		c.apply(p)
	}
	c.buffer = nil
	maps.Copy(c.told, c.since)
	c.stored = at.Clone()
	c.checkPosition()
	if c.w.err == nil && c.rand.IntN(3) == 0 {
		c.w.consumed.hops++
		c.forget()
	}
}

// checkPosition checks that no write within the position is one that the consumer has not been
// delivered, nor what superseded it (design.md: F1). It knows that only of those that this reader has
// delivered, or left out.
func (c *simConsumer) checkPosition() {
	v := c.stored.Vector()
	for name, k := range c.w.ghost.keys {
		e, ok := c.index[name]
		if !ok || !c.wants(name) || c.stored.Scanning && name >= string(c.stored.Key) || k.hurt {
			continue
		}
		var live []*ghostWrite
		for _, d := range e.dots {
			live = append(live, c.w.ghost.writes[d])
		}
		if e.dots == nil {
			continue
		}
		seen := k.hold(live).seen
		for _, x := range k.writes {
			again := slices.ContainsFunc(live, func(y *ghostWrite) bool { return x.HasSeen(y.Dot) && x.Stamp == y.Stamp && x.Clock == y.Clock })
			if v.Contains(x.Dot) && !again && !seen.has(x.nth) && !k.forgotten.has(x.nth) && c.w.counts(x) && !c.phantom(e) {
				c.w.fail(fmt.Errorf("consumer %d stores a position that covers %v of key %s, and has %v", c.id, x.Dot, name, e.dots))
			}
		}
	}
}

func (c *simConsumer) wants(key string) bool {
	return c.conf.Ranges == nil || store.InRanges(c.conf.Ranges, []byte(key))
}

// phantom reports whether what a consumer was last delivered of a key is lost: a power failure or a
// restored disk took it from all who had it, and the consumer had it before a position covered it.
func (c *simConsumer) phantom(e simEntry) bool {
	return slices.ContainsFunc(e.dots, func(d causal.Dot) bool { return !c.w.counts(c.w.ghost.writes[d]) })
}

// drain has all consumers catch up at some replica, and compares what they have with what that returns.
func (w *simWorld) drain() {
	for _, n := range w.up() {
		n.disk.flushAll()
		n.r.NoteOnDisk(n.r.FlushMark())
		w.ignore(n.commitWith(func(t *replica.Txn) error { t.StageNames(); return nil }, true))
	}
	for _, c := range w.consumers {
		if c.rand.IntN(2) == 0 || c.reader != nil && c.node.hub != c.hub {
			c.forget()
		}
		for pages := 0; w.err == nil; pages++ {
			if c.reader == nil {
				up := w.up()
				c.connect(up[c.rand.IntN(len(up))])
			}
			n, behind := c.node, w.consumed.behind
			more := c.page()
			if w.consumed.behind > behind {
				c.startOver(n)
			} else if !more && c.reader != nil && len(c.buffer) == 0 {
				break
			}
			if pages > 10000 {
				w.fail(fmt.Errorf("consumer %d never catches up", c.id))
			}
		}
		if w.err == nil {
			w.fail(c.compare(c.node))
		}
	}
}

// startOver is what a consumer does whose position covers a write that is lost: only a disk that went
// back to an older state can do that.
func (c *simConsumer) startOver(n *simNode) {
	w := c.w
	if w.stats.restores == 0 {
		w.fail(fmt.Errorf("consumer %d is at %v, which n%d does not cover in the end", c.id, c.stored.Vector(), n.id))
	}
	c.reader = feed.NewReader(n.hub, n.With, c.stored.Clone(), c.conf)
	c.reader.StartOver(feed.Lost)
	c.node, c.hub = n, n.hub
}

func (c *simConsumer) compare(n *simNode) error {
	w := c.w
	for name, k := range w.ghost.keys {
		if !c.wants(name) {
			continue
		}
		want, got := "-", "-"
		if i, ok := n.disk.now.search(name); ok {
			want = "=" + string(n.disk.now[i].value)
		}
		e, ok := c.index[name]
		if ok {
			got = e.value
		}
		switch {
		case want == got:
		case !n.resolves.deterministic && n.holds[name] != nil && len(n.holds[name].live) > 1: // it may have decided anew where nobody wrote
		case k.hurt:
			w.consumed.hurt++
		case c.phantom(e):
			w.consumed.excused++
		default:
			return fmt.Errorf("consumer %d has %q of key %s, by %v, and n%d has %q, %v", c.id, got, name, e.dots, n.id, want, n.holds[name])
		}
	}
	return nil
}
