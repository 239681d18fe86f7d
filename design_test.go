package replicator_test

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/level-replicator/replicator"

// TestDesign_PackagesImportWhatTheGraphShows keeps the package graph in docs/design.md true: each
// package imports those of the module that its line names, and no others.
func TestDesign_PackagesImportWhatTheGraphShows(t *testing.T) {
	text, err := os.ReadFile("docs/design.md")
	require.NoError(t, err)
	_, section, ok := strings.Cut(string(text), "\n## Packages\n")
	require.True(t, ok)
	drawn := map[string][]string{}
	for _, line := range regexp.MustCompile(`(?m)^    (\S+) +→(.*)$`).FindAllStringSubmatch(section, -1) {
		drawn[line[1]] = strings.Fields(line[2])
		slices.Sort(drawn[line[1]])
	}
	cmd := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, ".", "./internal/...")
	cmd.Env = append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	require.NoError(t, err)
	short := func(path string) string {
		path = strings.TrimPrefix(strings.TrimPrefix(path, module), "/internal/")
		if path == "" {
			return "replicator"
		}
		return path
	}
	real := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		name := short(fields[0])
		if _, ok := drawn[name]; !ok && slices.Contains([]string{"crashfs", "demo", "fuzzing", "mutants", "outside", "sim", "soak", "testca"}, name) {
			continue // for tests
		}
		real[name] = []string{}
		for _, path := range fields[1:] {
			if strings.HasPrefix(path, module) {
				real[name] = append(real[name], short(path))
			}
		}
		slices.Sort(real[name])
	}
	require.Equal(t, real, drawn)
}
