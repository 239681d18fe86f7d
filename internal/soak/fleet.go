package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/level-replicator/replicator"
)

// fleet is a run of many replicas, each in a network namespace of its own: all know the
// addresses of a few, and now and then one of them is killed.
type fleet struct {
	soak
	spaces  *namespaces
	most    handles     // of any process at any time
	mostAt  int         // the number of that replica
	due     []time.Time // the next to be killed
	down    *process    // the one that was killed and is not started yet
	back    time.Time   // when it is
	sampled time.Time
}

// fleetSeeds is how many of the replicas the others are told of.
const fleetSeeds = 3

// sampleEach is the pause between two looks at what the processes use.
const sampleEach = 15 * time.Second

func newFleet(replicas, rate int, within time.Duration, dir string, seed uint64) (*fleet, error) {
	f := &fleet{soak: soak{within: within}}
	var err error
	if f.spaces, err = newNamespaces(replicas); err != nil {
		f.spaces.remove()
		return nil, err
	}
	if err := f.prepare(dir, seed); err != nil {
		f.spaces.remove()
		return nil, err
	}
	f.net = &network{}
	secret := replicator.GenerateSecret()
	var addrs []string
	for i := range replicas {
		addrs = append(addrs, f.spaces.host(i)+":9000")
	}
	for i, addr := range addrs {
		f.replicas = append(f.replicas, newProcess(config{
			Number: i, Dir: filepath.Join(f.dir, fmt.Sprint("replica", i)), Listen: addr, Peers: addrs[:min(fleetSeeds, replicas)],
			Secret: secret, Rate: rate, OwnKeys: 2000, AllKeys: 500,
		}, f.spaces.names[i]))
	}
	return f, nil
}

// run has the replicas live for some time, of which a percentage is killed each minute,
// and ends early with ctx.
func (f *fleet) run(ctx context.Context, d time.Duration, percent float64) (err error) {
	defer f.spaces.remove()
	defer func() { err = f.leave(err) }()
	for _, p := range f.replicas {
		if err := p.start(); err != nil || ctx.Err() != nil {
			return cmp.Or(err, context.Cause(ctx))
		}
	}
	start := time.Now()
	fmt.Printf("%s all %d are open\n", start.Format(time.TimeOnly), len(f.replicas))
	kills := int(math.Ceil(percent / 100 * float64(len(f.replicas)) * d.Minutes()))
	for i := range kills {
		f.due = append(f.due, start.Add(d*time.Duration(2*i+1)/time.Duration(2*kills)))
	}
	f.sampled = start
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for now := start; now.Before(start.Add(d)) || f.down != nil; {
		select {
		case now = <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := f.tick(ctx, now); err != nil {
			return err
		}
	}
	cpu := f.cpu()
	fmt.Printf("%s of all processes: %.2f processors, %v since they were opened\n", time.Now().Format(time.TimeOnly),
		cpu.Seconds()/time.Since(start).Seconds(), cpu.Round(time.Second))
	if err := f.check(ctx); err != nil {
		return err
	}
	f.handles()
	fmt.Printf("soak: at most %d file handles, of replica %d, and %d sockets of one process\n", f.most.files, f.mostAt, f.most.sockets)
	return errors.Join(f.acquainted(), f.finish(ctx), f.bounded(), f.flat())
}

// tick does what is due.
func (f *fleet) tick(ctx context.Context, now time.Time) error {
	f.handles()
	if f.down != nil && now.After(f.back) {
		if err := f.down.start(); err != nil {
			return err
		}
		f.down = nil
	}
	if f.down == nil && len(f.due) > 0 && now.After(f.due[0]) {
		f.due, f.kills = f.due[1:], f.kills+1
		f.down = f.replicas[f.rng.IntN(len(f.replicas))]
		f.back = now.Add(time.Second + rand.N(9*time.Second))
		fmt.Printf("%s replica %d is killed\n", now.Format(time.TimeOnly), f.down.conf.Number)
		f.down.kill()
	}
	if f.down == nil && now.After(f.sampled.Add(sampleEach)) {
		f.sampled = now
		rs, _, err := f.reports(ctx)
		if err != nil {
			return err
		}
		f.samples = append(f.samples, rs)
		f.printSample(rs)
	}
	return f.failures()
}

func (f *fleet) printSample(rs []*report) {
	var t total
	var sessions, held, writes int64
	digests := map[replicator.Digest]bool{}
	for _, r := range rs {
		t.add(r)
		sessions, held, writes = sessions+r.Sessions, max(held, r.Keys), writes+r.Writes
		digests[r.Digest] = true
	}
	fmt.Printf("%s %d sessions so far, %d keys, %d writes, %d states; %d MiB memory, %d goroutines, %d files; at most %d files and %d sockets of one process\n",
		time.Now().Format(time.TimeOnly), sessions, held, writes, len(digests), t[0]>>20, t[1], t[2], f.most.files, f.most.sockets)
}

// handles are the file handles of a process.
type handles struct{ files, sockets int }

// handles looks at those of all processes.
func (f *fleet) handles() {
	for i, p := range f.replicas {
		if p == f.down {
			continue
		}
		dir := fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid)
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended, which failures are about
		}
		h := handles{files: len(fds)}
		for _, fd := range fds {
			if to, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && strings.HasPrefix(to, "socket:") {
				h.sockets++
			}
		}
		if h.files > f.most.files {
			f.mostAt = i
		}
		f.most.files, f.most.sockets = max(f.most.files, h.files), max(f.most.sockets, h.sockets)
	}
}

// bounded reports more handles than a replica should ever need: two sessions with each of
// the others, the listener, and what goleveldb has open.
func (f *fleet) bounded() error {
	sockets := 2*len(f.replicas) + 2
	if f.most.sockets > sockets || f.most.files > sockets+60 {
		return fmt.Errorf("a process had %d file handles, of them %d sockets, want at most %d and %d", f.most.files, f.most.sockets, sockets+60, sockets)
	}
	return nil
}

// acquainted reports a replica that does not know all others, at the last check.
func (f *fleet) acquainted() error {
	for i, r := range f.samples[len(f.samples)-1] {
		if r.Peers < len(f.replicas)-1 {
			return fmt.Errorf("replica %d knows %d others, want %d", i, r.Peers, len(f.replicas)-1)
		}
	}
	return nil
}

// cpu is the processor time of all processes that run.
func (f *fleet) cpu() (t time.Duration) {
	for _, p := range f.replicas {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		if err != nil {
			continue
		}
		// The name, which may hold anything, is in parentheses.
		_, rest, _ := strings.Cut(string(b), ") ")
		var user, system time.Duration
		if fields := strings.Fields(rest); len(fields) > 12 {
			fmt.Sscan(fields[11], &user)
			fmt.Sscan(fields[12], &system)
		}
		t += (user + system) * 10 * time.Millisecond // as the kernel counts for other processes, everywhere
	}
	return t
}
