package demo

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"
)

const (
	meetPatience = 5 * time.Second // then a list replaces multicast
	editedFiles  = 300
	killAfter    = 1000 // acknowledged puts
	whileAway    = 200  // puts elsewhere while the killed replica is down
)

// meet starts the replicas and waits until each knows all others.
func (c *cluster) meet(ctx context.Context) (string, error) {
	for i := range c.replicas {
		s, err := c.start(fmt.Sprintf("replica-%d", i+1))
		if err != nil {
			return "", err
		}
		c.running = append(c.running, s)
	}
	if err := c.all(c.running, func(s *process) error { return s.open(ctx) }); err != nil {
		return "", err
	}
	for _, s := range c.running {
		c.screen.line("  %s  process %d, takes peers at %s", s.name, s.cmd.Process.Pid, s.addr)
	}
	return c.acquaint(ctx)
}

// acquaint waits until the replicas have met, with a list if need be.
func (c *cluster) acquaint(ctx context.Context) (string, error) {
	if !c.list {
		met, err := c.met(ctx, meetPatience, true)
		if met || err != nil {
			return "by multicast", err
		}
		why := "the replicas have not met within " + meetPatience.String()
		for _, s := range c.running {
			if reason := s.multicastError(); reason != "" {
				why = reason
			}
		}
		c.list = true
		c.screen.line("  no multicast here: %s; falling back to a list", why)
	}
	addrs := make([]string, len(c.running))
	for i, s := range c.running {
		addrs[i] = s.addr
	}
	err := c.all(c.running, func(s *process) error {
		others := slices.DeleteFunc(slices.Clone(addrs), func(a string) bool { return a == s.addr })
		_, err := s.call(ctx, request{Do: "peers", Peers: others}, nil)
		return err
	})
	if err != nil {
		return "", err
	}
	met, err := c.met(ctx, patience, false)
	if err == nil && !met {
		err = fmt.Errorf("the replicas have not met within %v although each was given the others' addresses", patience)
	}
	return "by a list of addresses", err
}

// importFiles has each replica import its share, all at once.
func (c *cluster) importFiles(ctx context.Context) (string, error) {
	shares := make(map[*process][]string)
	for i, key := range c.files {
		s := c.running[i%len(c.running)]
		shares[s] = append(shares[s], key)
		c.expect.values[key] = content{file: filepath.Join(c.source, filepath.FromSlash(key))}
	}
	err := c.during(ctx, func(ctx context.Context) error {
		return c.all(c.running, func(s *process) error {
			_, err := s.call(ctx, request{Do: "import", Source: c.source, Keys: shares[s]}, nil)
			return err
		})
	})
	if err != nil {
		return "", err
	}
	var bytes int64
	for _, r := range c.last {
		bytes += r.WrittenBytes
	}
	return fmt.Sprintf("%s files, %s, a share at each replica", count(len(c.files)), size(bytes)), nil
}

// edit has all replicas sign the same files concurrently.
func (c *cluster) edit(ctx context.Context) (string, error) {
	c.edited = spread(c.files, min(editedFiles, (len(c.files)+1)/2))
	var names []string
	for _, s := range c.running {
		names = append(names, s.name)
	}
	slices.Sort(names)
	for _, key := range c.edited {
		c.expect.values[key] = content{file: c.expect.values[key].file, editors: names}
		c.expect.open[key] = true
	}
	for _, r := range []func(*process) request{
		func(*process) request { return request{Do: "hold"} },
		func(s *process) request { return request{Do: "edit", Keys: c.edited, Prefix: s.name} },
		func(*process) request { return request{Do: "release"} },
	} {
		err := c.all(c.running, func(s *process) error {
			ctx, cancel := context.WithTimeoutCause(ctx, patience, errPatience)
			defer cancel()
			_, err := s.call(ctx, r(s), nil)
			return err
		})
		if err != nil {
			return "", err
		}
	}
	if err := c.agree(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("the same %s on each replica, unseen by the others", plural(len(c.edited), "file")), c.checkConflicts(ctx)
}

// resolve has the first replica write half of the keys in conflict.
func (c *cluster) resolve(ctx context.Context) (string, error) {
	half := spread(c.edited, len(c.edited)/2)
	for _, key := range half {
		delete(c.expect.open, key)
	}
	if _, err := c.running[0].call(ctx, request{Do: "resolve", Keys: half}, nil); err != nil {
		return "", err
	}
	if err := c.agree(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s ended by a write", plural(len(half), "conflict")), c.checkConflicts(ctx)
}

// deleteDirectory has the second replica delete the largest directory.
func (c *cluster) deleteDirectory(ctx context.Context) (string, error) {
	dir, within := largestDirectory(c.files)
	for _, key := range within {
		delete(c.expect.values, key)
		delete(c.expect.open, key)
	}
	r, err := c.running[1].call(ctx, request{Do: "delete", Prefix: dir}, nil)
	if err != nil {
		return "", err
	}
	if r.N != len(within) {
		return "", fmt.Errorf("%s found %s in %s, want %d", c.running[1].name, plural(r.N, "key"), dir, len(within))
	}
	if err := c.agree(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s with %s", dir, plural(r.N, "file")), c.checkConflicts(ctx)
}

// kill kills the last replica in mid-write. All that it has acknowledged must be on every
// replica at the end.
func (c *cluster) kill(ctx context.Context) (string, error) {
	victim := c.running[len(c.running)-1]
	c.final[victim.name] = c.last[len(c.last)-1]
	var acknowledged atomic.Int64
	enough := make(chan struct{})
	ask := request{Do: "series", Prefix: "series/" + victim.name + "/", Count: 1 << 30}
	if _, err := victim.send(ask, func(r reply) {
		acknowledged.Store(int64(r.N))
		if r.N == killAfter {
			close(enough)
		}
	}); err != nil {
		return "", err
	}
	select {
	case <-enough:
	case <-victim.gone:
		return "", fmt.Errorf("%s ended by itself: %w%s", victim.name, victim.err, victim.lastWords())
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if err := victim.kill(); err != nil {
		return "", err
	}
	n := int(acknowledged.Load())
	for i := 1; i <= n+1; i++ {
		key := seriesKey(ask.Prefix, i)
		into := c.expect.values
		if i > n {
			into = c.expect.unsure
		}
		into[key] = content{text: seriesValue(key)}
	}
	return fmt.Sprintf("%s, after %s", victim.name, plural(n, "acknowledged put")), nil
}

// restart starts the killed replica again after another has written more.
func (c *cluster) restart(ctx context.Context) (string, error) {
	last := len(c.running) - 1
	prefix := "series/" + c.running[0].name + "/"
	if _, err := c.running[0].call(ctx, request{Do: "series", Prefix: prefix, Count: whileAway}, nil); err != nil {
		return "", err
	}
	for i := 1; i <= whileAway; i++ {
		key := seriesKey(prefix, i)
		c.expect.values[key] = content{text: seriesValue(key)}
	}
	s, err := c.start(c.running[last].name)
	if err != nil {
		return "", err
	}
	c.running[last] = s
	if err := s.open(ctx); err != nil {
		return "", err
	}
	how, err := c.acquaint(ctx)
	if err != nil {
		return "", err
	}
	if err := c.agree(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("met %s, %s written while it was away", how, plural(whileAway, "value")), c.checkConflicts(ctx)
}

// compareAll has every replica send everything and checks each byte.
func (c *cluster) compareAll(ctx context.Context) (string, error) {
	var checked atomic.Int64
	inspections := make([]*inspection, len(c.running))
	done := make(chan error, 1)
	go func() {
		var replicas sync.WaitGroup
		errs := make([]error, len(c.running))
		for i, s := range c.running {
			inspections[i] = inspect(s, c.expect, &checked)
			replicas.Go(func() { errs[i] = inspections[i].run(ctx) })
		}
		replicas.Wait()
		done <- errors.Join(errs...)
	}()
	b := c.screen.bar("compared", len(c.running)*len(c.expect.values))
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			n := int(checked.Load())
			b.end(n, count(n)+" values")
			if err == nil {
				err = alike(inspections)
			}
			var bytes int64
			for _, i := range inspections {
				bytes += i.bytes
			}
			c.compared = n
			return fmt.Sprintf("%s values, %s, each byte as it must be", count(n), size(bytes)), err
		case <-tick.C:
			n := int(checked.Load())
			b.set(n, count(n)+" values")
		}
	}
}

// serve keeps the replicas running, each with its status page, until ctx ends.
func (c *cluster) serve(ctx context.Context) error {
	c.screen.heading("The replicas go on, in cluster " + c.name)
	w := tabwriter.NewWriter(c.screen.out, 0, 0, 2, ' ', 0)
	for _, s := range c.running {
		r, err := s.call(ctx, request{Do: "page"}, nil)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "  %s\thttp://%s/\ttakes peers at %s\n", s.name, r.Addr, s.addr)
	}
	w.Flush()
	c.screen.line("Ctrl-C ends them.")
	select {
	case <-ctx.Done():
		return nil
	case <-c.anyGone():
		return errors.New("a replica ended by itself")
	}
}

// anyGone is closed when a replica has ended.
func (c *cluster) anyGone() <-chan struct{} {
	gone := make(chan struct{})
	once := sync.OnceFunc(func() { close(gone) })
	for _, s := range c.running {
		go func() {
			<-s.gone
			once()
		}()
	}
	return gone
}
