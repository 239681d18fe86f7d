package main

import (
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheLifeOfADatabaseIsATableOfStepsAndSizes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "results.txt")
	require.NoError(t, os.WriteFile(file, []byte(`go: go1.26
BenchmarkLife/step=load/keys=200000/system=raw-2 1 0.5 sec 2.5e-06 sec/op 2e-06 cpu-sec/op 5e7 peak-B 3e7 disk-B
BenchmarkLife/step=load/keys=200000/system=replicator-2 1 1 sec 5e-06 sec/op 6e-06 cpu-sec/op 1e8 peak-B 4e7 disk-B
BenchmarkLife/step=load/keys=2000000/system=raw-2 1 6 sec 3e-06 sec/op 3e-06 cpu-sec/op 5e7 peak-B 3e8 disk-B
BenchmarkLife/step=load/keys=2000000/system=replicator-2 1 20 sec 1e-05 sec/op 9e-06 cpu-sec/op 2e8 peak-B 4e8 disk-B
BenchmarkLife/step=get-p99/keys=2000000/system=replicator-2 1 0.002 sec/op
`), 0o600))
	rs, err := readResults(file)
	require.NoError(t, err)
	require.Contains(t, rs.tables(), `
|  | keys | time | for a key | × | processor time for a key | × | raw | × | memory at most | files |
|---|---|---|---|---|---|---|---|---|---|---|
| load, in batches of 1,000 | 200,000 | 1.00 s | 5 µs |  | 6 µs |  | 2 µs |  | 100 MB | 40 MB |
| load, in batches of 1,000 | 2,000,000 | 20.00 s | 10 µs | 2.00 | 9 µs | 1.50 | 3 µs | 1.50 | 200 MB | 400 MB |
| – 99 of 100 within | 2,000,000 |  | 2 ms |  |  |  |  |  |  |  |
`)
}

func TestGrowthIsDrawnOverALogarithmicAxis(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "results.txt")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "performance.md"), []byte(beginMark+endMark), 0o600))
	require.NoError(t, os.WriteFile(file, []byte(`go: go1.26
BenchmarkSize/do=put/value=100/keys=200000/store=suited/system=raw-2 10 3e-06 cpu-sec/op
BenchmarkSize/do=put/value=100/keys=200000/store=suited/system=replicator-2 10 6e-06 cpu-sec/op
BenchmarkSize/do=put/value=100/keys=2000000/store=suited/system=raw-2 10 2e-06 cpu-sec/op
BenchmarkSize/do=put/value=100/keys=2000000/store=suited/system=replicator-2 10 5e-06 cpu-sec/op
BenchmarkSize/do=put/value=100/keys=20000000/store=suited/system=raw-2 10 2e-06 cpu-sec/op
BenchmarkSize/do=put/value=100/keys=20000000/store=suited/system=replicator-2 10 8e-06 cpu-sec/op
BenchmarkJoin/keys=1000000/system=replicator-2 10 1.5e-05 cpu-sec/op
`), 0o600))
	require.NoError(t, writeDocs(dir, file))
	svg, err := os.ReadFile(filepath.Join(dir, "performance-growth.svg"))
	require.NoError(t, err)
	require.NoError(t, xml.Unmarshal(svg, new(struct{})))
	require.Contains(t, string(svg), ">Put of new keys: 2 to 4<")
	require.Contains(t, string(svg), ">both replicas, goleveldb's options: 15 to 15<")
	require.NotContains(t, string(svg), "raw: batches in key order", "nothing was measured of it")
	_, line, ok := strings.Cut(string(svg), `<polyline points="`)
	require.True(t, ok)
	line, _, _ = strings.Cut(line, `"`)
	require.Equal(t, "50.0,136.7 210.0,113.3 370.0,43.3", line, "ten times as many are equally far apart")
}
