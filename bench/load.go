package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/perf/benchfmt"
)

// loads are the scenarios of clusters that are written to at a steady rate.
func loads() (list []scenario) {
	for _, nodes := range []int{2, 3, 5, 9} {
		for _, rate := range []int{10, 100, 1000, 5000, 20_000} {
			list = append(list, steady(nodes, rate, 1))
			if rate == 1000 {
				list = append(list, steady(nodes, rate, nodes))
			}
		}
	}
	for _, nodes := range []int{3, 5} {
		for _, rate := range []int{1000, 5000, 20_000} {
			list = append(list, suited.with(steady(nodes, rate, 1))...)
		}
	}
	return list
}

// target is a cluster that a load is put on.
type target interface {
	write(node int, key, value []byte) error // need not wait for other nodes
	sent() (bytes int64, known bool)         // so far, by all nodes, to each other
	close() error
}

// steady is a load of so many puts a second, at the first node or at each in turn. The
// processor time is that of the process, and so includes the load's and the watchers', of
// which the system "none" shows the former.
func steady(nodes, rate, writers int) scenario {
	s := scenario{
		title:   fmt.Sprintf("A steady load on %d replicas, values of 100 bytes (none: the load alone)", nodes),
		line:    fmt.Sprintf("%d a second, one writer", rate),
		name:    fmt.Sprintf("Load/nodes=%d/rate=%d/writers=%d", nodes, rate, writers),
		systems: []string{replicated, secured},
	}
	if writers > 1 {
		s.line = fmt.Sprintf("%d a second, all write", rate)
	}
	if nodes == threeNodes || nodes == 5 {
		s.systems = append(s.systems, natsKV)
	}
	s.systems = append(s.systems, noSystem)
	s.rows = []row{
		{s.name, "p50-sec", "from Put to visible on all, p50", aim{}},
		{s.name, "p99-sec", "p99", aim{}},
		{s.name, "cpu-sec/s", "processor time, of a core", aim{}},
		{s.name, "sent-B/op", "sent for a write, by all", aim{}},
		{s.name, "known/op", "received for a write, though known", aim{}},
		{s.name, "behind-sec", "load behind by at most", aim{}},
	}
	s.run = func(e *env) error {
		writes := max(int(float64(rate)*e.span.Seconds()), 2)
		warm := max(writes/5, nodes)
		seen := newSightings(warm+writes, nodes)
		c, err := e.target(nodes, seen.seen)
		if err != nil {
			return err
		}
		l := &openLoop{e: e, name: s.name, rate: rate, writers: writers, warm: warm, seen: seen}
		return errors.Join(l.run(c), c.close())
	}
	return s
}

func (e *env) target(nodes int, seen func(node int, key []byte)) (target, error) {
	switch e.system {
	case natsKV:
		return startNATS(e, nodes, seen)
	case noSystem:
		return nothing{nodes, seen}, nil
	}
	return newReplicas(e, nodes, e.network(), seen)
}

// nothing is a cluster in which all is visible everywhere at once, for free.
type nothing struct {
	nodes int
	seen  func(node int, key []byte)
}

func (n nothing) write(_ int, key, _ []byte) error {
	for i := range n.nodes {
		n.seen(i, key)
	}
	return nil
}

func (n nothing) sent() (int64, bool) { return 0, false }
func (n nothing) close() error        { return nil }

// openLoop is a load in which each write is due at a fixed time, and those that are late
// follow one another without a pause.
type openLoop struct {
	e       *env
	name    string
	rate    int
	writers int
	warm    int // writes before the measured ones, at the same rate
	seen    *sightings
}

// grain is how close together writes are due. Several that fall into one are due at once.
const grain = 200 * time.Microsecond

// patience is how long the last writes may take to become visible.
const patience = 20 * time.Second

func (l *openLoop) due(i int) time.Duration {
	return (time.Duration(i) * time.Second / time.Duration(l.rate)).Truncate(grain)
}

func (l *openLoop) run(c target) error {
	clock, err := newPace()
	if err != nil {
		return err
	}
	defer clock.close()
	values := newValues(100, 5)
	var from usage
	var behind time.Duration
	l.seen.began = time.Now()
	for i := range l.seen.len() {
		if err := clock.wait(l.due(i) - time.Since(l.seen.began)); err != nil {
			return err
		}
		if i == l.warm {
			from = usageOf(c)
		}
		now := time.Since(l.seen.began)
		if i >= l.warm {
			behind = max(behind, now-l.due(i))
		}
		l.seen.put[i].Store(int64(now))
		if err := c.write(i%l.writers, orderedKey(i), values.next()); err != nil {
			return err
		}
		if l.e.ctx.Err() != nil {
			return l.e.ctx.Err()
		}
	}
	select {
	case <-l.seen.all:
	case <-time.After(patience):
	case <-l.e.ctx.Done():
		return l.e.ctx.Err()
	}
	l.emit(c, from, usageOf(c), behind)
	return nil
}

func (l *openLoop) emit(c target, from, to usage, behind time.Duration) {
	took, unseen := l.seen.took(l.warm)
	n := float64(len(took))
	vs := []benchfmt.Value{
		{Value: (to.cpu - from.cpu).Seconds() / to.at.Sub(from.at).Seconds(), Unit: "cpu-sec/s"},
		{Value: behind.Seconds(), Unit: "behind-sec"},
	}
	if l.e.system != noSystem {
		vs = append(vs, quantile("p50-sec", took, 0.5), quantile("p99-sec", took, 0.99))
	}
	if to.known {
		vs = append(vs, benchfmt.Value{Value: float64(to.sent-from.sent) / n, Unit: "sent-B/op"})
	}
	if _, ok := c.(*replicas); ok {
		vs = append(vs, benchfmt.Value{Value: float64(to.duplicates-from.duplicates) / n, Unit: "known/op"})
	}
	if unseen > 0 {
		vs = append(vs, benchfmt.Value{Value: float64(unseen), Unit: unseenUnit})
	}
	l.e.emit(l.name, len(took), vs...)
}

// unseenUnit counts the writes that did not become visible everywhere within the patience. In the
// latencies they count as of their age by then.
const unseenUnit = "unseen"

// usage is what a cluster has used so far.
type usage struct {
	at         time.Time
	cpu        time.Duration
	sent       int64
	known      bool // sent is
	duplicates int64
}

func usageOf(c target) (u usage) {
	u.at, u.cpu = time.Now(), cpu()
	u.sent, u.known = c.sent()
	if r, ok := c.(*replicas); ok {
		u.duplicates = r.duplicates()
	}
	return u
}

// orderedKey is the key of the i-th write, from which i can be read, at a random place among the
// others.
func orderedKey(i int) []byte {
	x := uint64(i) * 0x9e3779b97f4a7c15
	x = (x ^ x>>32) * 0xd6e8feb86659fd93
	key := binary.BigEndian.AppendUint64(make([]byte, 0, keySize), (x^x>>32)>>1) // below ff ff
	return binary.BigEndian.AppendUint64(key, uint64(i))
}

// sightings notes when each write of a load has become visible at all nodes. It costs a few
// atomic operations for each.
type sightings struct {
	began   time.Time
	put     []atomic.Int64  // by write: when it was put, in nanoseconds since began
	nodes   []atomic.Uint32 // by write: the nodes where it is visible, a bit for each
	visible []atomic.Int64  // by write: when it was at all, or 0
	every   uint32
	left    atomic.Int64
	all     chan struct{} // closed when nothing is left
}

func newSightings(writes, nodes int) *sightings {
	s := &sightings{put: make([]atomic.Int64, writes), nodes: make([]atomic.Uint32, writes), visible: make([]atomic.Int64, writes)}
	s.every, s.all = 1<<nodes-1, make(chan struct{})
	s.left.Store(int64(writes))
	return s
}

func (s *sightings) len() int { return len(s.put) }

func (s *sightings) seen(node int, key []byte) {
	i := binary.BigEndian.Uint64(key[keySize-8:])
	before := s.nodes[i].Or(1 << node)
	if s.every&^before != 1<<node { // seen here before, or still missing elsewhere
		return
	}
	s.visible[i].Store(int64(time.Since(s.began)))
	if s.left.Add(-1) == 0 {
		close(s.all)
	}
}

// took is how long each write from one on took, and how many of them are still not visible.
func (s *sightings) took(from int) (took []time.Duration, unseen int) {
	now := int64(time.Since(s.began))
	for i := from; i < s.len(); i++ {
		at := s.visible[i].Load()
		if at == 0 {
			at = now
			unseen++
		}
		took = append(took, time.Duration(at-s.put[i].Load()))
	}
	return took, unseen
}
