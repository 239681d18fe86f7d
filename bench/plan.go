package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/perf/benchfmt"
)

// scenario is a piece of user work that is done on several systems.
type scenario struct {
	name    string
	title   string // heading of its rows
	line    string // if set, the scenario is a line of the table with this title, and its rows are the columns
	store   storeOptions
	systems []string
	rows    []row  // what it reports
	steps   []step // if set, the scenario is some lines of the table with this title, one for each step
	keys    int    // that the steps are done with
	large   bool   // measured only if asked for
	run     func(e *env) error
}

// The systems that are compared.
const (
	raw        = "raw" // a bare goleveldb handle
	replicated = "replicator"
	secured    = "replicator-secret" // with a Secret
	blind      = "blind"             // a bare handle that is written what a replica writes
	crdt       = "go-ds-crdt"
	natsKV     = "nats"
	raftDB     = "raft"
	noSystem   = "none" // what the load and its observation take by themselves
)

// storeOptions are what goleveldb is opened with.
type storeOptions string

const (
	defaults storeOptions = ""       // goleveldb's own
	suited   storeOptions = "suited" // replicator.StoreOptions
)

// suffix tells the rows of a scenario from those of the same with goleveldb's defaults.
func (s storeOptions) suffix() string {
	if s == defaults {
		return ""
	}
	return "/store=" + string(s)
}

// with returns the scenarios with other store options.
func (s storeOptions) with(list ...scenario) []scenario {
	for i := range list {
		c := &list[i]
		c.store, c.title = s, c.title+", with StoreOptions"
		c.systems = slices.DeleteFunc(slices.Clone(c.systems), func(system string) bool {
			return system == natsKV || system == noSystem // they have no such options
		})
		rows := slices.Clone(c.rows) // the scenario itself goes on using its own names
		for j := range rows {
			rows[j].name += s.suffix()
		}
		c.name, c.rows = c.name+s.suffix(), rows
	}
	return list
}

// row is one figure of a scenario, in one unit, for each system.
type row struct {
	name  string // as benchmark, without the system
	unit  string
	title string
	aim   aim
}

// scale is how much is done.
type scale struct {
	keys     int // that fit into the index cache
	far      int // that are far beyond the cache of farCache bytes
	farCache int
	farOps   int           // operations on them
	fill     int           // keys of a fill
	big      int           // keys that a tail is among
	changes  []int         // of a tail
	synced   time.Duration // of writing with Sync
	samples  int           // of a latency
	sessions int           // with nothing to do
	window   time.Duration // that an idle cluster is watched
	span     time.Duration // of a steady load
	silence  time.Duration // before a write
	silences int
	burst    map[int]int   // by the replicas of a burst, how many there are
	bursts   int           // one after the other
	calm     time.Duration // before a burst
	origins  int           // at most
	most     int           // keys of a database whose size matters
	still    time.Duration // that files do not change once all is compacted
	buffer   int           // bytes, goleveldb's WriteBuffer beside background work; 0: its default
}

var full = scale{
	keys: 150_000, far: 500_000, farCache: 4 << 20, farOps: 100_000, fill: 200_000, big: 500_000,
	changes: []int{1, 100, 10_000}, synced: time.Second, samples: 100, sessions: 1000, window: 20 * time.Second, still: 500 * time.Millisecond,
	span: 3 * time.Second, silence: 4 * time.Second, silences: 15, burst: map[int]int{50: 50, 200: 200}, bursts: 3, calm: 2 * time.Second, origins: math.MaxInt, most: math.MaxInt,
}

var small = scale{
	keys: 2000, far: 4000, farCache: 32 << 10, farOps: 1000, fill: 2000, big: 4000,
	changes: []int{1, 100, 1000}, synced: 20 * time.Millisecond, samples: 3, sessions: 20, window: 200 * time.Millisecond, still: 20 * time.Millisecond, buffer: 32 << 10,
	span: 20 * time.Millisecond, silence: 50 * time.Millisecond, silences: 3, burst: map[int]int{50: 4, 200: 6}, bursts: 1, calm: 50 * time.Millisecond, origins: 100, most: 4000,
}

// plan is one run of the command.
type plan struct {
	scale   scale
	rounds  int
	run     *regexp.Regexp
	systems *regexp.Regexp
	large   bool
	dir     string
	note    string
	log     io.Writer
	results string // file, or none
	sink    func(*benchfmt.Result) error
}

// env is the environment of a scenario for one system in one round.
type env struct {
	scale
	ctx    context.Context
	system string
	round  int
	dir    string // empty; removed afterwards
	shared *fixtures
	store  storeOptions
	emit   func(name string, iters int, values ...benchfmt.Value)
}

// measure runs the scenarios round after round. In each, the systems take turns in being
// first.
func (p *plan) measure(ctx context.Context) (err error) {
	if p.dir, err = os.MkdirTemp(p.dir, "bench"); err != nil {
		return err
	}
	shared := &fixtures{dir: p.dir}
	defer func() { err = errors.Join(err, os.RemoveAll(p.dir)) }()
	if p.results != "" {
		out, openErr := os.OpenFile(p.results, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if openErr != nil {
			return openErr
		}
		defer func() { err = errors.Join(err, out.Close()) }()
		w := benchfmt.NewWriter(out)
		p.sink = func(r *benchfmt.Result) error { return w.Write(r) }
	}
	for round := range p.rounds {
		for _, s := range scenarios() {
			if !p.run.MatchString(s.name) || s.large && !p.large {
				continue
			}
			if err := p.scenario(ctx, s, round, shared); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	return nil
}

func (p *plan) scenario(ctx context.Context, s scenario, round int, shared *fixtures) error {
	for i := range s.systems {
		system := s.systems[(i+round)%len(s.systems)]
		if !p.systems.MatchString(system) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		dir, err := os.MkdirTemp(p.dir, "run")
		if err != nil {
			return err
		}
		runtime.GC()
		started := time.Now()
		e := &env{scale: p.scale, ctx: ctx, system: system, round: round, dir: dir, shared: shared, store: s.store}
		var sinkErr error
		e.emit = func(name string, iters int, values ...benchfmt.Value) {
			sinkErr = cmp.Or(sinkErr, p.record(name+s.store.suffix(), system, iters, values))
		}
		err = s.run(e)
		if err = errors.Join(err, sinkErr, os.RemoveAll(dir)); err != nil {
			return fmt.Errorf("%s: %w", system, err)
		}
		fmt.Fprintf(p.log, "%d %-40s %-17s %v\n", round+1, s.name, system, time.Since(started).Round(time.Millisecond))
	}
	return nil
}

// record appends a figure to the results.
func (p *plan) record(name, system string, iters int, values []benchfmt.Value) error {
	if p.sink == nil {
		return nil
	}
	r := &benchfmt.Result{Name: benchfmt.Name(fmt.Sprintf("%s/system=%s-%d", name, system, runtime.GOMAXPROCS(0))), Iters: iters, Values: values}
	for _, c := range p.machine() {
		r.Config = append(r.Config, benchfmt.Config{Key: c[0], Value: []byte(c[1]), File: true})
	}
	return p.sink(r)
}

// machine describes the machine that was measured.
func (p *plan) machine() [][2]string {
	cpu := "unknown"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				cpu = strings.TrimSpace(value)
				break
			}
		}
	}
	return [][2]string{
		{"goos", runtime.GOOS}, {"goarch", runtime.GOARCH}, {"cpu", cpu},
		{"go", runtime.Version()}, {"note", cmp.Or(p.note, "none")},
	}
}

// scenarios returns all scenarios, in the order of the document.
func scenarios() []scenario {
	return slices.Concat(writing(), sizes(), besides(), openings(), pulling(), lives(), feeds(), spreading(), loads(), origined(), others())
}
