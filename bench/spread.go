package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
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
	return append(list, idleCluster())
}

// cluster is a number of nodes on loopback, of this system or another. It calls the function
// that it was made with for every key that becomes visible at a node.
type cluster interface {
	put(key, value []byte) error // at the first node
	close() error
}

// replicas is a cluster of replicas.
type replicas struct {
	dbs     []*replicator.DB
	joining string // directory of one that may join
	cancel  context.CancelFunc
	wg      sync.WaitGroup
}

// newReplicas starts a cluster with default options in which all know the first, and waits
// until all know each other.
func newReplicas(e *env, nodes int, network string, seen func(node int, key []byte)) (_ *replicas, err error) {
	s := &replicas{joining: filepath.Join(e.dir, "joining"), cancel: func() {}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	o, _, err := over(network, replicator.Options{})
	if err != nil {
		return nil, err
	}
	for i := range nodes {
		if i > 0 {
			o.Peers = []string{s.dbs[0].Addr().String()}
		}
		db, err := replicate(filepath.Join(e.dir, fmt.Sprint(i)), o)
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
					continue // such a key counts as not seen
				}
				seen(i, c.Key)
			}
		})
	}
	return s, nil
}

// meet waits until every replica has had a session with every other.
func (s *replicas) meet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
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

func (s *replicas) put(key, value []byte) error { return s.dbs[0].Put(key, value, nil) }

func (s *replicas) close() error {
	s.cancel()
	s.wg.Wait()
	var errs []error
	for _, db := range s.dbs {
		errs = append(errs, db.Close())
	}
	return errors.Join(errs...)
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

func (e *env) latency(name string, nodes int, start func(seen func(node int, key []byte)) (cluster, error)) (err error) {
	a := &arrivals{want: nodes, all: make(chan time.Time, 1)}
	c, err := start(a.seen)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	ks, v := newKeys(e.samples+10, uint64(e.round)), newValues(100, 5)
	r := rand.New(rand.NewPCG(uint64(e.round), 3))
	var took []time.Duration
	for i := range uint32(ks.len()) {
		time.Sleep(40*time.Millisecond + time.Duration(r.Int64N(int64(20*time.Millisecond))))
		a.await(ks.at(i))
		began := time.Now()
		if err := c.put(ks.at(i), v.next()); err != nil {
			return err
		}
		select {
		case at := <-a.all:
			took = append(took, at.Sub(began))
		case <-time.After(20 * time.Second):
			return fmt.Errorf("key %d is not visible on all %d nodes after 20 s", i, nodes)
		case <-e.ctx.Done():
			return e.ctx.Err()
		}
	}
	took = slices.Clone(took[10:]) // the first warm up
	e.emit(name, len(took), quantile("p50-sec", took, 0.5), quantile("p99-sec", took, 0.99))
	return nil
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
	sent := func() (n int64) {
		for _, db := range c.dbs {
			_, out := bytesOf(db)
			n += out
		}
		return n
	}
	time.Sleep(min(e.window/10, time.Second))
	bytes, used, began := sent(), cpu(), time.Now()
	select {
	case <-e.ctx.Done():
		return e.ctx.Err()
	case <-time.After(e.window):
	}
	took := time.Since(began).Seconds()
	e.emit(name, 1, benchfmt.Value{Value: float64(sent()-bytes) / took, Unit: "B/s"}, benchfmt.Value{Value: (cpu() - used).Seconds() / took, Unit: "cpu-sec/s"})
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
	db, err := replicate(s.joining, replicator.Options{Peers: []string{s.dbs[0].Addr().String(), s.dbs[1].Addr().String()}})
	if err != nil {
		return err
	}
	s.dbs = append(s.dbs, db)
	return agree(context.Background(), s.dbs[0], db)
}
