package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/perf/benchfmt"
)

// step is one of those that a scenario goes through.
type step struct {
	name  string
	title string
	units []string // of what is measured
}

var (
	wholeStep = []string{"sec", "sec/op", cpuUnit, "peak-B", "disk-B"}
	onlyTime  = []string{"sec/op"}
)

var lifeSteps = []step{
	{"load", "load, in batches of 1,000", wholeStep},
	{"join", "an empty replica joins; both (raw: a copy in key order)", wholeStep},
	{"open", "after kill -9: goleveldb's own opening", wholeStep},
	{"replicate", "Replicate, beyond that", wholeStep},
	{"first", "then the first Put", onlyTime},
	{"counted", "since Replicate, until the digest is known", wholeStep},
	{"rest", "heap of the replica then", []string{"peak-B"}},
	{"verify", "Verify (raw: a full scan)", wholeStep},
	{"compare", "Compare; both", wholeStep},
	{"delete", "1 % deleted, in batches of 1,000; for each of those", wholeStep},
	{"pull", "the other replica pulls that; both", wholeStep},
	{"purge", "opened again, which reads all keys for the filter, and tombstones purged; for each of those", wholeStep},
	{"put", "overwrites, uniform", wholeStep},
	{"put-p50", "– half within", onlyTime},
	{"put-p99", "– 99 of 100 within", onlyTime},
	{"get", "Get, uniform", wholeStep},
	{"get-p50", "– half within", onlyTime},
	{"get-p99", "– 99 of 100 within", onlyTime},
}

// lives are the scenarios of what two replicas go through with so many keys, opened with
// StoreOptions. Each has ten times as many as the one before: what grows faster than the data shows.
func lives() (list []scenario) {
	for _, n := range []int{200_000, 2_000_000, 20_000_000} {
		list = append(list, life(n))
	}
	return list
}

func life(n int) scenario {
	s := scenario{
		name: fmt.Sprintf("Life/keys=%d", n), title: "The life of a database, values of 100 bytes, with StoreOptions",
		systems: local, large: n > 1_000_000, steps: lifeSteps, keys: n,
	}
	for _, st := range lifeSteps {
		for _, unit := range st.units {
			s.rows = append(s.rows, row{lifeName(st.name, n), unit, st.title, aim{}})
		}
	}
	s.run = func(e *env) error {
		l := &lifetime{env: e, keys: n, n: min(n, e.most), a: filepath.Join(e.dir, "a"), b: filepath.Join(e.dir, "b")}
		if err := l.loadAndKill(); err != nil {
			return err
		}
		if e.system == raw {
			return l.bare()
		}
		return l.replicated()
	}
	return s
}

func lifeName(step string, n int) string { return fmt.Sprintf("Life/step=%s/keys=%d", step, n) }

// lifetime is one database, and the replica that joins it.
type lifetime struct {
	*env
	keys int // by name
	n    int // indeed
	a, b string
}

// spent is what a step took.
type spent struct {
	Seconds, CPU float64
	Peak         int64 // bytes of memory
}

// measure begins to measure what this process uses.
func measure() (end func() spent) {
	memory := peak()
	began, used := time.Now(), cpu()
	return func() spent {
		return spent{time.Since(began).Seconds(), (cpu() - used).Seconds(), memory()}
	}
}

// report reports what a step of so many keys or operations took.
func (l *lifetime) report(name string, ops int, u spent) error {
	dir := l.a
	if name == "join" {
		dir = l.b
	}
	disk, err := diskSize(dir)
	l.emitStep(name, ops, map[string]float64{
		"sec": u.Seconds, "sec/op": u.Seconds / float64(ops), cpuUnit: u.CPU / float64(ops), "peak-B": float64(u.Peak), "disk-B": float64(disk),
	})
	return err
}

// emitStep emits what a step has of these values.
func (l *lifetime) emitStep(name string, ops int, values map[string]float64) {
	var vs []benchfmt.Value
	for _, unit := range lifeSteps[slices.IndexFunc(lifeSteps, func(s step) bool { return s.name == name })].units {
		vs = append(vs, benchfmt.Value{Value: values[unit], Unit: unit})
	}
	l.emit(lifeName(name, l.keys), ops, vs...)
}

// step does a step and reports it.
func (l *lifetime) step(name string, ops int, work func() error) error {
	u, err := l.used(work)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return l.report(name, ops, u)
}

// used does some work and returns what it took. The processor time includes what goleveldb compacts afterwards.
func (l *lifetime) used(work func() error) (spent, error) {
	end, began := measure(), time.Now()
	err := work()
	took := time.Since(began)
	if err == nil {
		_, err = l.compacted(l.dir)
	}
	u := end()
	u.Seconds = took.Seconds()
	return u, err
}
