package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/perf/benchfmt"
)

// TestMain lets the test binary be the processes that are killed.
func TestMain(m *testing.M) {
	if !fillUntilKilled() && !liveUntilKilled() {
		os.Exit(m.Run())
	}
}

// TestEveryWorkloadRuns does all of the work once, small. It times nothing: what is
// checked is that each system reports each figure that has a row.
func TestEveryWorkloadRuns(t *testing.T) {
	got := map[figureKey]int{}
	p := plan{scale: small, rounds: 1, large: true, run: regexp.MustCompile(""), systems: regexp.MustCompile(""), dir: t.TempDir(), log: t.Output()}
	rs := &results{figures: map[figureKey][]float64{}, machine: map[string][]string{}}
	p.sink = func(r *benchfmt.Result) error { return rs.add(r) }
	require.NoError(t, p.measure(t.Context()))
	for k, figures := range rs.figures {
		got[k] = len(figures)
		require.Len(t, figures, 1, "%v", k)
	}
	for _, s := range scenarios() {
		for _, r := range s.rows {
			require.Contains(t, got, figureKey{r.name, r.unit, replicated}, "%s, %s", s.name, r.title)
		}
	}
	for k := range got {
		if k.unit == cpuUnit || k.unit == "sec" {
			continue // of these not every row shows what is measured
		}
		require.True(t, slices.ContainsFunc(scenarios(), func(s scenario) bool {
			return slices.ContainsFunc(s.rows, func(r row) bool { return r.name == k.name && r.unit == k.unit })
		}), "%v has no row", k)
	}
}

func TestTablesAreMadeFromTheResultsFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "results.txt")
	require.NoError(t, os.WriteFile(file, []byte(`go: go1.26
note: a test
BenchmarkPut/keys=new/value=100/writers=1/system=raw-2 10 200 op/s 2 cpu-sec/op
BenchmarkPut/keys=new/value=100/writers=1/system=replicator-2 10 100 op/s 5 cpu-sec/op
BenchmarkPut/keys=new/value=100/writers=1/system=raw-2 10 100 op/s 2 cpu-sec/op
BenchmarkPut/keys=new/value=100/writers=1/system=replicator-2 10 70 op/s 5 cpu-sec/op
BenchmarkLatency/nodes=2/net=tcp/system=replicator-2 10 0.002 p50-sec
`), 0o600))
	doc := filepath.Join(dir, "performance.md")
	require.ErrorContains(t, writeDocs(dir, file), "performance.md")
	require.NoError(t, os.WriteFile(doc, []byte("before\n"+beginMark+"\nold\n"+endMark+"\nafter\n"), 0o600))
	require.NoError(t, writeDocs(dir, file))
	text, err := os.ReadFile(doc)
	require.NoError(t, err)
	require.Contains(t, string(text), "| new keys | 150 /s (100 /s – 200 /s) | 85 /s (70 /s – 100 /s) | **0.60** (0.50 – 0.70) | 2.50 | ≥ 0.55 × | met |")
	require.Contains(t, string(text), "| 2 replicas, p50 | 2 ms | ≤ 1 ms | missed |")
	require.NotContains(t, string(text), "old")
	require.Regexp(t, `(?s)^before\n.*\nafter\n$`, string(text))
	svg, err := os.ReadFile(filepath.Join(dir, "performance-ratios.svg"))
	require.NoError(t, err)
	require.Contains(t, string(svg), ">0.60<")
}

func TestScenariosOfOneTableAreItsLines(t *testing.T) {
	file := filepath.Join(t.TempDir(), "results.txt")
	require.NoError(t, os.WriteFile(file, []byte(`go: go1.26
BenchmarkLoad/nodes=3/rate=1000/writers=1/system=replicator-2 10 0.25 cpu-sec/s 0.002 p50-sec 0.004 p99-sec 300 sent-B/op 0.5 known/op 0.001 behind-sec
BenchmarkLoad/nodes=3/rate=1000/writers=1/system=nats-2 10 0.5 cpu-sec/s 0.003 p50-sec 1 p99-sec 900 sent-B/op 0.001 behind-sec 7 unseen
BenchmarkLoad/nodes=3/rate=1000/writers=3/system=replicator-secret-2 10 1.5 cpu-sec/s
`), 0o600))
	rs, err := readResults(file)
	require.NoError(t, err)
	require.Contains(t, rs.tables(), `
### A steady load on 3 replicas, values of 100 bytes (none: the load alone)

|  | system | from Put to visible on all, p50 | p99 | processor time, of a core | sent for a write, by all | received for a write, though known | load behind by at most |
|---|---|---|---|---|---|---|---|
| 1000 a second, one writer | replicator | 2 ms | 4 ms | 25.00 % | 300 B | 0.50 | 1 ms |
| 1000 a second, one writer | nats | over 3 ms | over 1.00 s | 50.00 % | 900 B |  | 1 ms |
| 1000 a second, all write | replicator-secret |  |  | 150.00 % |  |  |  |
`)
	require.NotContains(t, rs.tables(), "A steady load on 5 replicas")
}

func TestSightings(t *testing.T) {
	s := newSightings(3, 2)
	s.began = time.Now().Add(-time.Second)
	for i := range 3 {
		s.put[i].Store(int64(100 * time.Millisecond))
	}
	for _, i := range []int{2, 1} {
		s.seen(0, orderedKey(i))
		s.seen(0, orderedKey(i)) // once more, which is not the second node
	}
	took, unseen := s.took(1)
	require.Len(t, took, 2)
	require.Equal(t, 2, unseen)
	require.GreaterOrEqual(t, took[0], 900*time.Millisecond)

	s.seen(1, orderedKey(1))
	s.seen(1, orderedKey(1)) // which does not count for another key
	s.seen(1, orderedKey(2))
	_, unseen = s.took(0)
	require.Equal(t, 1, unseen)
	require.EqualValues(t, 1, s.left.Load())
	s.seen(1, orderedKey(0))
	s.seen(0, orderedKey(0))
	require.Zero(t, s.left.Load())
	<-s.all
}

func TestALoadIsDueAtFixedTimes(t *testing.T) {
	for rate, perGrain := range map[int]int{10: 1, 1000: 1, 5000: 1, 20_000: 4} {
		l := openLoop{rate: rate}
		require.Equal(t, time.Second, l.due(rate), "%d", rate)
		at := map[time.Duration]int{}
		for i := range rate {
			at[l.due(i)]++
		}
		for due, n := range at {
			require.Equal(t, perGrain, n, "%d a second, at %v", rate, due)
		}
	}
}
