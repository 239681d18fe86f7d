package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/perf/benchfmt"
)

// TestEveryWorkloadRuns does all of the work once, small. It times nothing: what is
// checked is that each system reports each figure that has a row.
func TestEveryWorkloadRuns(t *testing.T) {
	got := map[figureKey]int{}
	p := plan{scale: small, rounds: 1, run: regexp.MustCompile(""), systems: regexp.MustCompile(""), dir: t.TempDir(), log: t.Output()}
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
