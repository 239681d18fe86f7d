package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	patience  = 60 * time.Second // for agreement, while nothing changes any more
	pollEvery = 50 * time.Millisecond
)

var errPatience = fmt.Errorf("no answer within %v", patience)

// cluster is the whole run.
type cluster struct {
	options
	screen  *screen
	name    string // of the replicator's cluster: runs beside each other must not mix
	exe     string
	dir     string
	source  string
	files   []string
	expect  *expected
	started time.Time

	running  []*server
	edited   []string
	last     []report          // of the running servers, when last asked
	final    map[string]report // of a server before it was killed
	compared int
	rows     []row
}

type phase struct {
	name string
	run  func(context.Context) (what string, err error)
}

// row is a line of the table at the end.
type row struct {
	phase, what string
	took        time.Duration
}

func (c *cluster) do(ctx context.Context, p phase) error {
	c.screen.heading(p.name)
	start := time.Now()
	what, err := p.run(ctx)
	if err != nil {
		return err
	}
	r := row{p.name, what, time.Since(start)}
	c.rows = append(c.rows, r)
	c.screen.line("  %s (%s)", what, took(r.took))
	return nil
}

func (c *cluster) start(name string) (*server, error) {
	return start(c.exe, serverConfig{Name: name, Cluster: c.name, Dir: filepath.Join(c.dir, name), Multicast: !c.list})
}

// stop ends all servers and removes their directories.
func (c *cluster) stop() error {
	err := c.all(c.running, (*server).stop)
	if c.keep {
		c.screen.line("\nThe data of the servers are in %s.", c.dir)
		return err
	}
	return errors.Join(err, os.RemoveAll(c.dir))
}

// all does the same with each server at the same time.
func (c *cluster) all(servers []*server, do func(*server) error) error {
	errs := make([]error, len(servers))
	var running sync.WaitGroup
	for i, s := range servers {
		running.Go(func() { errs[i] = do(s) })
	}
	running.Wait()
	return errors.Join(errs...)
}

// ask has every running server report.
func (c *cluster) ask(ctx context.Context) ([]report, error) {
	reports := make([]report, len(c.running))
	err := c.all(c.running, func(s *server) error {
		i := slices.Index(c.running, s)
		r, err := s.call(ctx, request{Do: "status"}, nil)
		if err == nil {
			reports[i] = *r.State
		}
		return err
	})
	if err == nil {
		c.last = reports
	}
	return reports, err
}

// met waits until every server has held a session with every other. It gives
// up early when one reports that it has no multicast, if that is relied on.
func (c *cluster) met(ctx context.Context, within time.Duration, multicast bool) (bool, error) {
	b := c.screen.bar("met", len(c.running)*(len(c.running)-1))
	for end := time.Now().Add(within); ; {
		reports, err := c.ask(ctx)
		if err != nil {
			return false, err
		}
		pairs := 0
		for _, r := range reports {
			pairs += len(r.Met)
		}
		if pairs >= b.total {
			b.end(b.total, "every server knows every other")
			return true, nil
		}
		none := slices.ContainsFunc(c.running, func(s *server) bool { return s.multicastError() != "" })
		if time.Now().After(end) || multicast && none {
			b.end(pairs, fmt.Sprintf("%d of %d pairs", pairs, b.total))
			return false, nil
		}
		b.set(pairs, fmt.Sprintf("%d of %d pairs", pairs, b.total))
		if err := pause(ctx); err != nil {
			return false, err
		}
	}
}

// during waits for agreement while work is under way, and for the work.
func (c *cluster) during(ctx context.Context, work func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan error, 1)
	go func() {
		err := work(ctx)
		if err != nil {
			cancel(err)
		}
		done <- err
	}()
	err := c.agree(ctx)
	if err != nil {
		cancel(err)
		<-done // it failed first, or was cancelled: err says which either way
		return err
	}
	return <-done
}

// agree waits until all servers report the number of keys and of conflicts that
// must be, and equal digests. If nothing moves any more it says what is wrong.
func (c *cluster) agree(ctx context.Context) error {
	b := c.screen.bar("agreement", len(c.running)*len(c.expect.values))
	var before string
	var moved time.Time
	for {
		reports, err := c.ask(ctx)
		if err != nil {
			return err
		}
		missing, equal := c.expect.missing(reports), equalDigests(reports)
		note := fmt.Sprintf("%s to go, %d of %d digests equal", count(missing), equal, len(reports))
		if missing == 0 && equal == len(reports) {
			b.end(b.total, note)
			return nil
		}
		b.set(b.total-missing, note)
		if now := standing(reports); now != before {
			before, moved = now, time.Now()
		} else if time.Since(moved) > patience {
			b.end(b.total-missing, note)
			_, err := c.compareAll(ctx)
			return errors.Join(fmt.Errorf("no agreement, and no progress for %v:\n%s", patience, now), err)
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// missing is by how many keys and conflicts the reports are off.
func (e *expected) missing(reports []report) int {
	n := 0
	least := int64(len(e.values))
	most := least + int64(len(e.unsure))
	for _, r := range reports {
		n += int(max(least-r.Keys, r.Keys-most, 0))
		n += int(max(int64(len(e.open))-r.Conflicts, r.Conflicts-int64(len(e.open))))
	}
	return n
}

// equalDigests is the size of the largest group of servers with one digest.
func equalDigests(reports []report) int {
	most, servers := 0, map[string]int{}
	for _, r := range reports {
		servers[r.Digest]++
		most = max(most, servers[r.Digest])
	}
	return most
}

// standing tells what each server holds.
func standing(reports []report) string {
	var lines []string
	for _, r := range reports {
		lines = append(lines, fmt.Sprintf("  %s: %s, %s in conflict, digest %s", r.Name, plural(int(r.Keys), "key"), count(r.Conflicts), r.Digest))
	}
	return strings.Join(lines, "\n")
}

// checkConflicts compares what Conflicts lists on each server with what must be
// in conflict, and the number of versions kept.
func (c *cluster) checkConflicts(ctx context.Context) error {
	return c.all(c.running, func(s *server) error {
		listed := map[string]int{}
		if _, err := s.call(ctx, request{Do: "conflicts"}, func(r reply) { listed[r.Key] = r.N }); err != nil {
			return err
		}
		for key, versions := range listed {
			if !c.expect.open[key] {
				return fmt.Errorf("%s: key %q is in conflict but must not be", s.name, key)
			}
			if versions != len(c.running) {
				return fmt.Errorf("%s: key %q has %s, want one of each server", s.name, key, plural(versions, "version"))
			}
		}
		for key := range c.expect.open {
			if listed[key] == 0 {
				return fmt.Errorf("%s: key %q is not in conflict but must be", s.name, key)
			}
		}
		return nil
	})
}

func (s *server) multicastError() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.noMulticast
}

// pause waits between two polls.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(pollEvery):
		return nil
	}
}
