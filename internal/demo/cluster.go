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
	patience  = 60 * time.Second // for agreement, without any progress
	pollEvery = 50 * time.Millisecond
)

var errPatience = fmt.Errorf("no answer within %v", patience)

// cluster is the whole run.
type cluster struct {
	options
	screen  *screen
	name    string // of the cluster, so that concurrent runs do not mix
	exe     string
	dir     string
	source  string
	files   []string
	expect  *expected
	started time.Time

	running  []*process
	edited   []string
	last     []report          // of the running replicas, when last asked
	final    map[string]report // of a replica before it was killed
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

func (c *cluster) start(name string) (*process, error) {
	return start(c.exe, config{Name: name, Cluster: c.name, Dir: filepath.Join(c.dir, name), Multicast: !c.list})
}

// stop ends all replicas and removes their directories.
func (c *cluster) stop() error {
	err := c.all(c.running, (*process).stop)
	if c.keep {
		c.screen.line("\nThe replicas' data is in %s.", c.dir)
		return err
	}
	return errors.Join(err, os.RemoveAll(c.dir))
}

// all calls do for every replica concurrently.
func (c *cluster) all(replicas []*process, do func(*process) error) error {
	errs := make([]error, len(replicas))
	var running sync.WaitGroup
	for i, s := range replicas {
		running.Go(func() { errs[i] = do(s) })
	}
	running.Wait()
	return errors.Join(errs...)
}

// ask returns a report of every running replica.
func (c *cluster) ask(ctx context.Context) ([]report, error) {
	reports := make([]report, len(c.running))
	err := c.all(c.running, func(s *process) error {
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

// met waits until every replica has had a session with every other. If they depend on
// multicast, it gives up as soon as one reports that there is none.
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
			b.end(b.total, "every replica knows every other")
			return true, nil
		}
		none := slices.ContainsFunc(c.running, func(s *process) bool { return s.multicastError() != "" })
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

// agree waits until all replicas report equal digests and as many keys and conflicts as
// expected. If there is no progress any more, it returns what is wrong.
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

// missing returns by how many keys and conflicts the reports are off.
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

// equalDigests returns the size of the largest group of replicas with one digest.
func equalDigests(reports []report) int {
	most, replicas := 0, map[string]int{}
	for _, r := range reports {
		replicas[r.Digest]++
		most = max(most, replicas[r.Digest])
	}
	return most
}

// standing describes what each replica holds.
func standing(reports []report) string {
	var lines []string
	for _, r := range reports {
		lines = append(lines, fmt.Sprintf("  %s: %s, %s in conflict, digest %s", r.Name, plural(int(r.Keys), "key"), count(r.Conflicts), r.Digest))
	}
	return strings.Join(lines, "\n")
}

// checkConflicts checks that Conflicts lists the expected keys on each replica, with a
// version of each.
func (c *cluster) checkConflicts(ctx context.Context) error {
	return c.all(c.running, func(s *process) error {
		listed := map[string]int{}
		if _, err := s.call(ctx, request{Do: "conflicts"}, func(r reply) { listed[r.Key] = r.N }); err != nil {
			return err
		}
		for key, versions := range listed {
			if !c.expect.open[key] {
				return fmt.Errorf("%s: key %q is in conflict but must not be", s.name, key)
			}
			if versions != len(c.running) {
				return fmt.Errorf("%s: key %q has %s, want one of each replica", s.name, key, plural(versions, "version"))
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

func (s *process) multicastError() string {
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
