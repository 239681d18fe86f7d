package replicator_test

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var updateDesign = flag.Bool("update-design", false, "write the table of rules and tests in docs/design.md")

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
	known = append(known, "CompactRange", "NewIterator", "GetSnapshot", "OpenTransaction", "WriteBuffer", "CompactionTotalSize", "CompactionTableSize", "WriteL0SlowdownTrigger", "WriteL0PauseTrigger", "Filter", "BlockCacheCapacity", "DisableSeeksCompaction", "DisableBufferPool", "TestKeptSeeds", "Strict", "POST", "PUT", "DELETE", "GET", "HEAD", "KEY")
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
		if _, ok := drawn[name]; !ok && slices.Contains([]string{"crashfs", "demo", "fuzzing", "mutants", "outside", "sim", "soak", "system", "testca", "testdb", "testdns"}, name) {
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

// TestDesign_EveryRuleHasATest keeps the table of rules and tests in docs/design.md true. A test names
// its rules in the last line of its comment: "// design.md: M3, M4".
func TestDesign_EveryRuleHasATest(t *testing.T) {
	text, err := os.ReadFile("docs/design.md")
	require.NoError(t, err)
	var rules []string
	for _, m := range regexp.MustCompile(`(?m)^\*\*([A-Z]\d+)\.\*\*`).FindAllStringSubmatch(string(text), -1) {
		require.NotContains(t, rules, m[1], "a rule stands twice")
		rules = append(rules, m[1])
	}
	require.NotEmpty(t, rules)
	tests := map[string][]string{}
	naming := regexp.MustCompile(`(?m)^// design\.md: ([A-Z0-9, ]+)\nfunc (Test\w+)\(`)
	require.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range naming.FindAllStringSubmatch(string(source), -1) {
			for rule := range strings.SplitSeq(m[1], ", ") {
				require.Contains(t, rules, rule, "%s: %s names a rule that docs/design.md has not", path, m[2])
				tests[rule] = append(tests[rule], fmt.Sprintf("`%s` %s", filepath.ToSlash(filepath.Dir(path)), m[2]))
			}
		}
		return nil
	}))
	var table strings.Builder
	table.WriteString("| rule | tests |\n|---|---|\n")
	for _, rule := range rules {
		require.NotEmpty(t, tests[rule], "rule %s has no test", rule)
		slices.Sort(tests[rule])
		fmt.Fprintf(&table, "| %s | %s |\n", rule, strings.Join(slices.Compact(tests[rule]), "<br>"))
	}
	require.Len(t, slices.Collect(maps.Keys(tests)), len(rules))
	before, after, ok := strings.Cut(string(text), "\n## Rules and tests\n")
	require.True(t, ok)
	_, rest, _ := strings.Cut(after, "\n## ")
	if rest != "" {
		rest = "\n## " + rest
	}
	want := before + "\n## Rules and tests\n\n" + table.String() + rest
	if *updateDesign {
		require.NoError(t, os.WriteFile("docs/design.md", []byte(want), 0o644))
		return
	}
	require.Equal(t, want, string(text), "go test -run Design -update-design . writes the table")
}

// TestDocumentsNameTestsThatExist holds for whole names and for what follows -run, which may be the
// beginning of one.
func TestDocumentsNameTestsThatExist(t *testing.T) {
	var tests []string
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark|Example)\w*)\(`)
	require.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range declared.FindAllStringSubmatch(string(source), -1) {
			tests = append(tests, m[1])
		}
		return err
	}))
	name := regexp.MustCompile(`\b((?:Test|Fuzz|Benchmark)[A-Z]\w+)`)
	names := 0
	for _, file := range documents(t) {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for line := range strings.Lines(string(text)) {
			for _, m := range name.FindAllStringSubmatch(line, -1) {
				names++
				require.True(t, slices.ContainsFunc(tests, func(test string) bool {
					return test == m[1] || regexp.MustCompile("-run '?"+m[1]).MatchString(line) && strings.HasPrefix(test, m[1])
				}), "%s names %s, which is nowhere", file, m[1])
			}
		}
	}
	require.Greater(t, names, 50, "names are no longer recognized")
}

// TestTrackRecordNamesTestsThatExist keeps the last column of docs/track-record.md true when a
// test is renamed.
func TestTrackRecordNamesTestsThatExist(t *testing.T) {
	declared := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	require.NoError(t, filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range function.FindAllSubmatch(text, -1) {
			declared[string(m[1])] = true
		}
		return err
	}))
	text, err := os.ReadFile("docs/track-record.md")
	require.NoError(t, err)
	named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllSubmatch(text, -1)
	require.Greater(t, len(named), 50, "names are no longer recognized")
	for _, m := range named {
		require.True(t, declared[string(m[1])], "docs/track-record.md names %s", m[1])
	}
}
