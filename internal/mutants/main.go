// Command mutants makes deliberate mistakes in the code and reports which harness catches
// each: mutation testing by hand-written mutants, one for each rule at least. Run it in the root of
// the module:
//
//	go run ./internal/mutants           all of them
//	go run ./internal/mutants -short    some of them, in less than a minute
//
// All mutants are built into one pair of test binaries by an overlay, so nothing of them is in a release,
// and each is switched on by the environment. The command fails if a mutant is not caught, or if
// the code has changed so that it cannot be made any more.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

var (
	short = flag.Bool("short", false, "only the mutants that fall fast")
	seeds = flag.Int("seeds", 1500, "schedules to simulate for each mutant at most")
	only  = flag.String("only", "", "only mutants whose name matches this `regexp`")
)

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run() error {
	dir, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b, err := build(dir)
	if err != nil {
		return err
	}
	if red, out := test(b.sim, "internal/sim", "", "-test.run=TestSimulation$", "-sim.seeds=20"); red {
		return fmt.Errorf("without any mutant the tests fail already:\n%s", out)
	}
	fmt.Println("| mutant | file | caught by | schedules |\n|---|---|---|---:|")
	wanted, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	var missed []string
	for _, m := range mutants {
		if *short && !m.short || !wanted.MatchString(m.name) {
			continue
		}
		harness, n := m.catch(b)
		fmt.Printf("| %s | `%s` | %s | %s |\n", m.name, m.file, harness, n)
		if harness == "" {
			missed = append(missed, m.name)
		}
	}
	if len(missed) > 0 {
		return fmt.Errorf("not caught: %s", strings.Join(missed, "; "))
	}
	return nil
}

// binaries are those of the tests, with all mutants in them.
type binaries struct{ sim, root string }

// build makes the test binaries.
func build(dir string) (binaries, error) {
	root, err := filepath.Abs(".")
	if err != nil {
		return binaries{}, err
	}
	files := map[string]string{}
	for _, m := range mutants {
		if files[m.file] == "" {
			text, err := os.ReadFile(m.file)
			if err != nil {
				return binaries{}, err
			}
			files[m.file] = string(text)
			name := "replicator"
			if d := filepath.Dir(m.file); d != "." {
				name = filepath.Base(d)
			}
			files[filepath.Join(filepath.Dir(m.file), "mutated.go")] = fmt.Sprintf(switchText, name)
		}
		if n := strings.Count(files[m.file], m.old); n != 1 {
			return binaries{}, fmt.Errorf("%q cannot be made: %s has %q %d times, want once", m.name, m.file, m.old, n)
		}
		files[m.file] = strings.Replace(files[m.file], m.old, strings.Replace(m.new, "%q", fmt.Sprintf("%q", m.name), 1), 1)
	}
	overlay := map[string]map[string]string{"Replace": {}}
	for name, text := range files {
		path := filepath.Join(dir, strings.ReplaceAll(filepath.ToSlash(name), "/", "_"))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return binaries{}, err
		}
		overlay["Replace"][filepath.Join(root, name)] = path
	}
	text, err := json.Marshal(overlay)
	if err != nil {
		return binaries{}, err
	}
	path := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return binaries{}, err
	}
	b := binaries{filepath.Join(dir, "sim.test"), filepath.Join(dir, "root.test")}
	for _, t := range [][2]string{{b.sim, "./internal/sim"}, {b.root, "."}} {
		cmd := exec.Command("go", "test", "-c", "-vet=off", "-overlay", path, "-o", t[0], t[1])
		if out, err := cmd.CombinedOutput(); err != nil {
			return b, fmt.Errorf("%w\n%s", err, out)
		}
	}
	return b, nil
}

// switchText is what the mutants of one package ask whether they are on.
const switchText = `package %s

import "os"

var mutation = os.Getenv("REPLICATOR_MUTANT")

func mutated(name string) bool { return name == mutation }
`

// harness is a way to catch a mutant.
type harness struct {
	name  string
	root  bool // the tests of the root package, else of internal/sim
	seeds int  // 0: as many as the flag says
	args  []string
}

// harnesses are tried in order until one is red: a few schedules, since the simulation is
// what most mutants are meant for; then all other tests of the core; then what the mutant
// names among the tests of the root package; then many schedules.
func (m *mutant) harnesses() []harness {
	simulation := []string{"-test.run=TestSimulation$", "-sim.ops=300"}
	hs := []harness{
		{"simulation", false, 60, simulation},
		{"tests of the core", false, 1, []string{"-test.failfast", "-test.short", "-test.skip=TestSimulation$"}},
	}
	if m.test != "" {
		hs = append([]harness{{"tests", true, 0, []string{"-test.failfast", "-test.run=^(" + m.test + ")$"}}}, hs...)
	}
	return append(hs, harness{"simulation", false, 0, simulation})
}

// catch finds the harness that catches a mutant, and after how many schedules.
func (m *mutant) catch(b binaries) (harness, n string) {
	for _, h := range m.harnesses() {
		binary, dir, args := b.root, ".", h.args
		if !h.root {
			n := h.seeds
			if n == 0 {
				n = *seeds
			}
			binary, dir, args = b.sim, "internal/sim", append([]string{fmt.Sprintf("-sim.seeds=%d", n)}, h.args...)
		}
		red, out := test(binary, dir, m.name, args...)
		if !red {
			continue
		}
		if m := seedOf.FindStringSubmatch(out); m != nil {
			return h.name, m[1]
		}
		if m := testOf.FindStringSubmatch(out); m != nil {
			return h.name + ": " + m[1], ""
		}
		return h.name, ""
	}
	return "", ""
}

var (
	seedOf = regexp.MustCompile(`seed (\d+), after`)
	testOf = regexp.MustCompile(`--- FAIL: (\w+)`)
)

// test runs a binary with a mutant switched on, and reports whether it failed.
func test(binary, dir, name string, args ...string) (red bool, out string) {
	cmd := exec.Command(binary, append(args, fmt.Sprintf("-test.timeout=%v", 10*time.Minute))...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "REPLICATOR_MUTANT="+name)
	text, err := cmd.CombinedOutput()
	return err != nil, string(text)
}
