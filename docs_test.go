package replicator_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// documents are all that people read, of this module and of those in it.
func documents(t *testing.T) (files []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".md") {
			files = append(files, path)
		}
		return err
	}))
	require.Greater(t, len(files), 8)
	return files
}

func TestLinksInDocumentsLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#\s]+)(?:#[^)]*)?\)`)
	links := 0
	for _, file := range documents(t) {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			links++
			_, err := os.Stat(filepath.Join(filepath.Dir(file), m[1]))
			require.NoError(t, err, "%s links to %s", file, m[1])
		}
	}
	require.Greater(t, links, 15, "links are no longer recognized")
}

// TestDocumentsNameWhatThereIs takes for a name of this package what stands between
// backquotes and looks like one.
func TestDocumentsNameWhatThereIs(t *testing.T) {
	known := exported(t)
	// Of goleveldb, and of other packages here.
	known = append(known, "CompactRange", "NewIterator", "GetSnapshot", "OpenTransaction", "TestKeptSeeds", "Strict", "POST", "PUT", "DELETE", "GET", "HEAD", "KEY")
	name := regexp.MustCompile("`(?:DB\\.|Options\\.|Events\\.|replicator\\.)?([A-Z][A-Za-z]+)`")
	names := 0
	for _, file := range []string{"README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/operations.md", "docs/design.md"} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, m := range name.FindAllStringSubmatch(string(text), -1) {
			names++
			require.True(t, slices.Contains(known, m[1]), "%s names %s", file, m[0])
		}
	}
	require.Greater(t, names, 50, "names are no longer recognized")
}

// exported are the names that this package exports, of fields and methods too.
func exported(t *testing.T) (names []string) {
	t.Helper()
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		require.NoError(t, err)
		ast.Inspect(parsed, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				names = append(names, n.Name.Name)
				return false
			case *ast.TypeSpec:
				names = append(names, n.Name.Name)
			case *ast.Field:
				for _, id := range n.Names {
					names = append(names, id.Name)
				}
			case *ast.ValueSpec:
				for _, id := range n.Names {
					names = append(names, id.Name)
				}
			}
			return true
		})
	}
	return names
}

func TestReadmeShowsTheExampleThatIsTested(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	source, err := os.ReadFile("examples/basic/main.go")
	require.NoError(t, err)
	_, code, ok := strings.Cut(string(readme), "```go\n")
	require.True(t, ok)
	code, _, ok = strings.Cut(code, "```")
	require.True(t, ok)
	require.Contains(t, string(source), code)
	for _, command := range []string{"go run ./examples/cluster", "go test ./..."} {
		require.Contains(t, string(readme), "    "+command+"\n")
	}
}

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
