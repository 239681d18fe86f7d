package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/perf/benchfmt"

	"github.com/level-replicator/replicator"
)

// spreading are the scenarios of clusters whose replicas talk by their own schedule.
func spreading() (list []scenario) {
	for _, nodes := range []int{2, 5, 9} {
		for _, network := range []string{"tcp", "tls"} {
			list = append(list, latency(nodes, network))
		}
	}
	return append(list, silence(), burst(50), burst(200), idleCluster())
}

// cluster is a number of nodes on loopback, of this system or another. It calls the function
// that it was made with for every key that becomes visible at a node.
type cluster interface {
	put(key, value []byte) error // at the first node
	close() error
}

// replicas is a cluster of replicas.
type replicas struct {
	e       *env
	dbs     []*replicator.DB
	joining string // directory of one that may join
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	sessions atomic.Int64 // that have ended, each counted once
}

// newReplicas starts a cluster with default options in which all know the first, and waits
// until all know each other.
func newReplicas(e *env, nodes int, network string, seen func(node int, key []byte)) (_ *replicas, err error) {
	s := &replicas{e: e, joining: filepath.Join(e.dir, "joining"), cancel: func() {}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	o, _, err := over(network, replicator.Options{Events: &replicator.Events{Session: func(ev replicator.SessionEvent) {
		if ev.Dialed {
			s.sessions.Add(1)
		}
	}}})
	if err != nil {
		return nil, err
	}
	for i := range nodes {
		if i > 0 {
			o.Peers = []string{s.dbs[0].Addr().String()}
		}
		db, err := e.replicate(filepath.Join(e.dir, fmt.Sprint(i)), o)
		if err != nil {
			return nil, err
		}
		s.dbs = append(s.dbs, db)
	}
	if err := s.meet(e.ctx); err != nil {
		return nil, err
	}
	if seen == nil {
		return s, nil
	}
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(e.ctx)
	for i, db := range s.dbs {
		changes := db.Watch(ctx, nil)
		s.wg.Go(func() {
			for c, err := range changes {
				if err != nil {
					s.reread(i, seen)
					continue
				}
				seen(i, c.Key)
			}
		})
	}
	return s, nil
}

// reread reads all keys, since changes were left out. What cannot be read counts as not seen.
func (s *replicas) reread(node int, seen func(node int, key []byte)) {
	it := s.dbs[node].NewIterator(nil, nil)
	defer it.Release()
	for it.Next() {
		seen(node, it.Key())
	}
}

// meet waits until every replica has had a session with every other.
func (s *replicas) meet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second+time.Duration(len(s.dbs))*time.Second)
	defer cancel()
	for _, db := range s.dbs {
		for {
			met := 0
			for _, p := range db.Status().Peers {
				if p.State == replicator.PeerOK {
					met++
				}
			}
			if met >= len(s.dbs)-1 {
				break
			}
			if err := db.Sync(ctx); ctx.Err() != nil {
				return fmt.Errorf("a replica has met only %d of %d others: %w", met, len(s.dbs)-1, errors.Join(err, ctx.Err()))
			}
		}
	}
	return nil
}

func (s *replicas) put(key, value []byte) error { return s.write(0, key, value) }

func (s *replicas) write(node int, key, value []byte) error { return s.dbs[node].Put(key, value, nil) }

func (s *replicas) sent() (n int64, known bool) {
	for _, db := range s.dbs {
		_, out := bytesOf(db)
		n += out
	}
	return n, true
}

// duplicates is how many versions have come to the replicas with their payload that they
// knew already.
func (s *replicas) duplicates() (n int64) {
	for _, db := range s.dbs {
		n += db.Status().Duplicates
	}
	return n
}

func (s *replicas) close() error {
	s.cancel()
	s.wg.Wait()
	return each(len(s.dbs), func(i int) error { return s.dbs[i].Close() })
}

// each does the same for n replicas at once.
func each(n int, do func(i int) error) error {
	return share(n, n, func(i, _, _ int) error { return do(i) })
}

// latency is the time from a Put at one node until it is visible at all others. The
// puts are far apart, so that the cluster is idle at each.
func latency(nodes int, network string) scenario {
	where := fmt.Sprintf("nodes=%d/net=%s", nodes, network)
	s := scenario{name: "Latency/" + where, systems: []string{replicated}, title: "From Put to visible on all, default options, " + netTitle(network)}
	p50, p99 := aim{}, aim{}
	switch {
	case network != "tcp":
	case nodes == 2:
		p50, p99 = atMost(0.001), atMost(0.005)
	case nodes == 5:
		p50, p99 = atMost(0.0024), atMost(0.0057)
	}
	s.rows = []row{{s.name, "p50-sec", fmt.Sprintf("%d replicas, p50", nodes), p50}, {s.name, "p99-sec", fmt.Sprintf("%d replicas, p99", nodes), p99}}
	s.run = func(e *env) error {
		return e.latency(s.name, nodes, func(seen func(int, []byte)) (cluster, error) { return newReplicas(e, nodes, network, seen) })
	}
	return s
}

// silence is the time that a write takes after so much silence that nothing of the last one is
// left to be used.
func silence() scenario {
	s := scenario{name: "Silence", systems: []string{replicated, secured}, title: "From the first Put after 4 s of silence to visible on all three replicas"}
	s.rows = []row{{s.name, "p50-sec", "p50", aim{}}}
	s.run = func(e *env) error {
		took, err := e.latencies(3, e.silences, func() time.Duration { return e.silence }, func(seen func(int, []byte)) (cluster, error) {
			return newReplicas(e, 3, e.network(), seen)
		})
		if err == nil {
			e.emit(s.name, len(took), quantile("p50-sec", took, 0.5))
		}
		return err
	}
	return s
}

// network is what the replicas of the system that is measured talk over.
func (e *env) network() string {
	if e.system == secured {
		return "tls"
	}
	return "tcp"
}

// arrivals counts the nodes at which the awaited key has become visible.
type arrivals struct {
	mu   sync.Mutex
	key  string
	at   map[int]bool
	want int
	all  chan time.Time
}

func (a *arrivals) seen(node int, key []byte) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if string(key) != a.key || a.at[node] {
		return
	}
	a.at[node] = true
	if len(a.at) == a.want {
		a.all <- now
	}
}

func (a *arrivals) await(key []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.key, a.at = string(key), map[int]bool{}
}

func (e *env) latency(name string, nodes int, start func(seen func(node int, key []byte)) (cluster, error)) error {
	r := rand.New(rand.NewPCG(uint64(e.round), 3))
	pause := func() time.Duration { return 40*time.Millisecond + time.Duration(r.Int64N(int64(20*time.Millisecond))) }
	took, err := e.latencies(nodes, e.samples+10, pause, start)
	if err != nil {
		return err
	}
	took = took[10:] // the first warm up
	e.emit(name, len(took), quantile("p50-sec", took, 0.5), quantile("p99-sec", took, 0.99))
	return nil
}

// latencies are those of n puts, each after a pause.
func (e *env) latencies(nodes, n int, pause func() time.Duration, start func(seen func(node int, key []byte)) (cluster, error)) (took []time.Duration, err error) {
	a := &arrivals{want: nodes, all: make(chan time.Time, 1)}
	c, err := start(a.seen)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	ks, v := newKeys(n, uint64(e.round)), newValues(100, 5)
	for i := range uint32(n) {
		if err := e.wait(pause()); err != nil {
			return nil, err
		}
		a.await(ks.at(i))
		began := time.Now()
		if err := c.put(ks.at(i), v.next()); err != nil {
			return nil, err
		}
		select {
		case at := <-a.all:
			took = append(took, at.Sub(began))
		case <-time.After(20 * time.Second):
			return nil, fmt.Errorf("key %d is not visible on all %d nodes after 20 s", i, nodes)
		case <-e.ctx.Done():
			return nil, e.ctx.Err()
		}
	}
	return took, nil
}

func (e *env) wait(d time.Duration) error {
	select {
	case <-e.ctx.Done():
		return e.ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// idleCluster is five idle replicas.
func idleCluster() scenario {
	s := scenario{name: "IdleCluster", systems: []string{replicated}, title: "Five replicas with nothing to do, default options, in one process"}
	s.rows = []row{
		{s.name, "B/s", "bytes a second, sent by all together", aim{}},
		{s.name, "cpu-sec/s", "processor time a second, of all together", aim{}},
	}
	s.run = func(e *env) error {
		c, err := newReplicas(e, 5, "tcp", nil)
		if err != nil {
			return err
		}
		return errors.Join(e.idleCluster(s.name, c), c.close())
	}
	return s
}

func (e *env) idleCluster(name string, c *replicas) error {
	if err := e.wait(min(e.window/10, time.Second)); err != nil {
		return err
	}
	bytes, _ := c.sent()
	used, began := cpu(), time.Now()
	if err := e.wait(e.window); err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	sent, _ := c.sent()
	e.emit(name, 1, benchfmt.Value{Value: float64(sent-bytes) / took, Unit: "B/s"}, benchfmt.Value{Value: (cpu() - used).Seconds() / took, Unit: "cpu-sec/s"})
	return nil
}

func (s *replicas) load(ks keys) error {
	if err := load(s.dbs[0], ks, 100); err != nil {
		return err
	}
	for _, db := range s.dbs[1:] {
		if err := agree(context.Background(), s.dbs[0], db); err != nil {
			return err
		}
	}
	return nil
}

func (s *replicas) join() error {
	db, err := s.e.replicate(s.joining, replicator.Options{Peers: []string{s.dbs[0].Addr().String(), s.dbs[1].Addr().String()}})
	if err != nil {
		return err
	}
	s.dbs = append(s.dbs, db)
	return agree(context.Background(), s.dbs[0], db)
}
