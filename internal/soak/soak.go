package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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
	replicas  []*process

	kills, stops, partitions, checks int
	samples                          [][]*report   // of each check, by replica
	longest                          time.Duration // until all agreed
}

func newSoak(replicas, rate int, dir string, seed uint64) (*soak, error) {
	s := &soak{}
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

func (s *soak) run(d time.Duration) (err error) {
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
		if err := s.check(); err != nil {
			return err
		}
	}
	return errors.Join(s.finish(), s.flat())
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

// agreeWithin is how long the replicas may take to converge once they can reach each other
// and nobody writes.
const agreeWithin = 45 * time.Second

// check pauses the load and waits until all replicas hold the same.
func (s *soak) check() error {
	s.net.heal()
	s.all("pause")
	defer s.all("resume")
	started := time.Now()
	for {
		rs, same, err := s.reports()
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
		if took > agreeWithin {
			return fmt.Errorf("after %v without writes and with all links up the replicas do not agree: %s", agreeWithin, s.digests(rs))
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (s *soak) reports() (rs []*report, same bool, err error) {
	same = true
	for _, p := range s.replicas {
		r, err := p.ask("report")
		if err != nil {
			return nil, false, err
		}
		rs = append(rs, r)
		same = same && r.Paused && r.Digest == rs[0].Digest
		if r.Mismatches > 0 {
			return nil, false, fmt.Errorf("replica %d got back %d versions after digests differed", p.conf.Number, r.Mismatches)
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

// finish compares the contents of all replicas byte by byte, and with what was
// acknowledged, and closes them.
func (s *soak) finish() error {
	s.all("pause")
	if err := s.check(); err != nil {
		return err
	}
	s.all("pause")
	for {
		_, same, err := s.reports()
		if err != nil {
			return err
		}
		if same {
			break
		}
	}
	for _, p := range s.replicas {
		if _, err := p.ask("dump"); err != nil {
			return err
		}
	}
	keys := 0
	for i, p := range s.replicas {
		if err := p.stop(); err != nil {
			return err
		}
		p.ended = nil
		n, err := sameFiles(dumpPath(s.replicas[0].conf.Dir), dumpPath(p.conf.Dir))
		if err != nil {
			return fmt.Errorf("replicas 0 and %d: %w", i, err)
		}
		keys = n
	}
	writes, opened, err := s.acknowledged()
	if err != nil {
		return err
	}
	slices.Sort(opened)
	fmt.Printf("soak: %d checks, slowest agreement %v; %d writes, %d kills, %d stops, %d partitions; %d keys equal byte by byte on %d replicas; no acknowledged write lost; %d openings, %v at p99\n",
		s.checks, s.longest.Round(time.Millisecond), writes, s.kills, s.stops, s.partitions, keys, len(s.replicas), len(opened), opened[(len(opened)*99-1)/100].Round(time.Millisecond))
	return s.failures()
}

// sameFiles compares two dumps and counts their lines.
func sameFiles(a, b string) (lines int, err error) {
	fa, err := os.ReadFile(a)
	if err != nil {
		return 0, err
	}
	fb, err := os.ReadFile(b)
	if err != nil {
		return 0, err
	}
	if !bytes.Equal(fa, fb) {
		return 0, fmt.Errorf("contents differ: compare %s and %s", a, b)
	}
	return bytes.Count(fa, []byte("\n")), nil
}

// acknowledged checks that each own key has at least the last acknowledged write.
func (s *soak) acknowledged() (writes int64, opened []time.Duration, err error) {
	f, err := os.Open(dumpPath(s.replicas[0].conf.Dir))
	if err != nil {
		return 0, nil, err
	}
	defer f.Close()
	held := map[string]int64{}
	for r := bufio.NewReader(f); ; {
		line, err := r.ReadString('\n')
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, nil, err
		}
		k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		key, _ := strconv.Unquote(k)
		value, _ := strconv.Unquote(v)
		number, _, _ := strings.Cut(value, "-")
		if n, err := strconv.ParseInt(number, 10, 64); err == nil && strings.HasPrefix(key, "own/") {
			held[key] = n
		}
	}
	for _, p := range s.replicas {
		for key, n := range p.atLeast() {
			if held[key] < n {
				return 0, nil, fmt.Errorf("key %s holds write %d; write %d was acknowledged", key, held[key], n)
			}
		}
		writes, opened = writes+p.writes, append(opened, p.opened...)
	}
	return writes, opened, nil
}
