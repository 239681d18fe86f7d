package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/level-replicator/replicator"
)

// soak is a run of the whole cluster.
type soak struct {
	dir       string
	temporary bool
	rng       *rand.Rand
	net       *network
	within    time.Duration // in which replicas must converge once they can reach each other and nobody writes
	replicas  []*process

	kills, stops, partitions, checks int
	samples                          [][]*report   // of each check, by replica
	longest                          time.Duration // until all agreed
}

func newSoak(replicas, rate int, within time.Duration, dir string, seed uint64) (*soak, error) {
	s := &soak{within: within}
	if err := s.prepare(dir, seed); err != nil {
		return nil, err
	}
	var err error
	if s.net, err = newNetwork(replicas); err != nil {
		return nil, err
	}
	secret := replicator.GenerateSecret()
	for i := range replicas {
		addr, err := freeAddr()
		if err != nil {
			return nil, err
		}
		p := newProcess(config{
			Number: i, Dir: filepath.Join(s.dir, fmt.Sprint("replica", i)), Listen: addr, Proxy: s.net.addrs()[i], Peers: s.net.addrs(), Secret: secret,
			Skew: time.Duration(i-replicas/2) * 10 * time.Second, Rate: rate, OwnKeys: 2000, AllKeys: 2000,
		}, "")
		s.replicas = append(s.replicas, p)
		go s.net.forward(i, p.conf.Listen)
	}
	return s, nil
}

// prepare makes the directory, if none is given.
func (s *soak) prepare(dir string, seed uint64) (err error) {
	s.rng, s.dir = rand.New(rand.NewPCG(seed, 0)), dir
	if dir == "" {
		s.temporary = true
		s.dir, err = os.MkdirTemp("", "soak")
	}
	return err
}

// leave ends what still runs, and removes what was written unless something went wrong.
func (s *soak) leave(err error) error {
	for _, p := range s.replicas {
		if p.ended != nil {
			p.kill()
		}
	}
	if s.temporary && err == nil {
		err = os.RemoveAll(s.dir)
	}
	return err
}

// period is how long there is trouble between two checks.
const period = 12 * time.Second

func (s *soak) run(ctx context.Context, d time.Duration) (err error) {
	defer func() { err = s.leave(err) }()
	end := time.Now().Add(d)
	for _, p := range s.replicas {
		if err := p.start(); err != nil {
			return err
		}
	}
	for time.Now().Before(end) {
		for until := time.Now().Add(min(period, time.Until(end))); time.Now().Before(until); {
			if err := s.trouble(); err != nil {
				return err
			}
		}
		if err := s.check(ctx); err != nil {
			return err
		}
	}
	return errors.Join(s.finish(ctx), s.flat())
}

// trouble makes one thing happen, then waits a little.
func (s *soak) trouble() error {
	p := s.replicas[s.rng.IntN(len(s.replicas))]
	pause := time.Duration(s.rng.IntN(2000)) * time.Millisecond
	switch x := s.rng.IntN(10); {
	case x < 3:
		s.kills++
		p.kill()
		time.Sleep(pause)
		return p.start()
	case x < 5:
		s.stops++
		if err := p.stop(); err != nil {
			return err
		}
		time.Sleep(pause)
		return p.start()
	case x < 8:
		s.partitions++
		sides := make([]int, len(s.replicas))
		for i := range sides {
			sides[i] = s.rng.IntN(2)
		}
		s.net.partition(func(i int) int { return sides[i] })
	default:
		s.net.heal()
	}
	time.Sleep(pause)
	return s.failures()
}

func (s *soak) failures() error {
	var errs []error
	for _, p := range s.replicas {
		p.mu.Lock()
		for _, f := range p.failed {
			errs = append(errs, errors.New(f))
		}
		p.mu.Unlock()
	}
	return errors.Join(errs...)
}

func (s *soak) all(word string) {
	for _, p := range s.replicas {
		p.say(word)
	}
}

// check pauses the load and waits until all replicas hold the same.
func (s *soak) check(ctx context.Context) error {
	s.net.heal()
	s.all("pause")
	defer s.all("resume")
	started := time.Now()
	for {
		rs, same, err := s.reports(ctx)
		if err != nil {
			return err
		}
		took := time.Since(started)
		if same {
			s.checks++
			s.longest = max(s.longest, took)
			s.samples = append(s.samples, rs)
			s.print(rs, took)
			return s.failures()
		}
		if took > s.within {
			return fmt.Errorf("after %v without writes and with all links up the replicas do not agree: %s", s.within, s.digests(rs))
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// ask has all do something at once, and waits for all.
func (s *soak) ask(ctx context.Context, word string) (rs []*report, err error) {
	s.all(word)
	for _, p := range s.replicas {
		r, err := p.answer(ctx, word)
		if err != nil {
			return nil, err
		}
		rs = append(rs, r)
	}
	return rs, nil
}

func (s *soak) reports(ctx context.Context) (rs []*report, same bool, err error) {
	if rs, err = s.ask(ctx, "report"); err != nil {
		return nil, false, err
	}
	same = true
	for i, r := range rs {
		same = same && r.Paused && !r.Counting && r.Digest == rs[0].Digest
		if r.Mismatches > 0 {
			return nil, false, fmt.Errorf("replica %d got back %d versions after digests differed", i, r.Mismatches)
		}
	}
	return rs, same, nil
}

func (s *soak) digests(rs []*report) string {
	var b strings.Builder
	for i, r := range rs {
		fmt.Fprintf(&b, "replica %d: %v over %d keys; ", i, r.Digest, r.Keys)
	}
	return b.String()
}

func (s *soak) print(rs []*report, took time.Duration) {
	var t total
	for _, r := range rs {
		t.add(r)
	}
	fmt.Printf("%s check %3d: agreed in %5.1fs, digest %.8s, %d keys, %d tombstones; of %d replicas: %d MiB memory, %d goroutines, %d files, %d MiB disk; %d kills, %d stops, %d partitions so far\n",
		time.Now().Format(time.TimeOnly), s.checks, took.Seconds(), rs[0].Digest, rs[0].Keys, rs[0].Tombstones,
		len(rs), t[0]>>20, t[1], t[2], t[3]>>20, s.kills, s.stops, s.partitions)
}

// total sums memory, goroutines, files and disk of all replicas.
type total [4]int64

var totalNames = [4]string{"memory", "goroutines", "files", "disk"}

func (t *total) add(r *report) {
	for i, n := range []int64{r.RSS, int64(r.Goroutines), int64(r.Files), r.Disk} {
		t[i] += n
	}
}

// flat compares the resources used in the second quarter of the run with those in the last:
// growth without end is a leak.
func (s *soak) flat() error {
	n := len(s.samples)
	if n < 16 {
		return nil
	}
	mean := func(samples [][]*report) (m total) {
		for _, rs := range samples {
			for _, r := range rs {
				m.add(r)
			}
		}
		for i := range m {
			m[i] /= int64(len(samples))
		}
		return m
	}
	early, late := mean(s.samples[n/4:n/2]), mean(s.samples[n-n/4:])
	slack := total{64 << 20, 50, 100, 64 << 20}
	var errs []error
	for i := range early {
		fmt.Printf("soak: %s of all replicas: %d in the second quarter, %d in the last\n", totalNames[i], early[i], late[i])
		if late[i] > early[i]*5/4+slack[i] {
			errs = append(errs, fmt.Errorf("%s grew from %d to %d", totalNames[i], early[i], late[i]))
		}
	}
	return errors.Join(errs...)
}
