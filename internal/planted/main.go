// Command planted makes deliberate mistakes in the core and tells which harness
// catches each. Run it in the root of the module:
//
//	go run ./internal/planted           all of them
//	go run ./internal/planted -short    some of them, in less than a minute
//
// All mistakes are built into one test binary by an overlay, so nothing of them is
// in a release, and each is switched on by the environment. It fails if a mistake
// is not caught, or if the code has changed so that it cannot be planted any more.
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
	short = flag.Bool("short", false, "plant only the bugs that fall fast")
	seeds = flag.Int("seeds", 1500, "schedules to simulate for each bug at most")
	only  = flag.String("only", "", "plant only bugs whose name matches this `regexp`")
)

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "planted:", err)
		os.Exit(1)
	}
}

func run() error {
	dir, err := os.MkdirTemp("", "planted")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	binary, err := build(dir)
	if err != nil {
		return err
	}
	if red, out := test(binary, "", "-test.run=TestSimulation$", "-sim.seeds=20"); red {
		return fmt.Errorf("without any bug the tests fail already:\n%s", out)
	}
	fmt.Println("| bug | file | caught by | schedules |\n|---|---|---|---:|")
	wanted, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	var missed []string
	for _, b := range bugs {
		if *short && !b.short || !wanted.MatchString(b.name) {
			continue
		}
		harness, n := catch(binary, b.name)
		fmt.Printf("| %s | `%s` | %s | %s |\n", b.name, b.file, harness, n)
		if harness == "" {
			missed = append(missed, b.name)
		}
	}
	if len(missed) > 0 {
		return fmt.Errorf("not caught: %s", strings.Join(missed, "; "))
	}
	return nil
}

// build makes one test binary that has all the bugs.
func build(dir string) (string, error) {
	root, err := filepath.Abs(".")
	if err != nil {
		return "", err
	}
	files := map[string]string{}
	for _, b := range bugs {
		if files[b.file] == "" {
			text, err := os.ReadFile(b.file)
			if err != nil {
				return "", err
			}
			files[b.file] = string(text)
		}
		if n := strings.Count(files[b.file], b.old); n != 1 {
			return "", fmt.Errorf("%q cannot be planted: %s has %q %d times, want once", b.name, b.file, b.old, n)
		}
		files[b.file] = strings.Replace(files[b.file], b.old, strings.Replace(b.new, "%q", fmt.Sprintf("%q", b.name), 1), 1)
	}
	files["planted.go"] = "package replicator\n\nimport \"os\"\n\nvar plantedBug = os.Getenv(\"REPLICATOR_PLANTED\")\n\nfunc planted(name string) bool { return name == plantedBug }\n"
	overlay := map[string]map[string]string{"Replace": {}}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return "", err
		}
		overlay["Replace"][filepath.Join(root, name)] = path
	}
	text, err := json.Marshal(overlay)
	if err != nil {
		return "", err
	}
	path, binary := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "test")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return "", err
	}
	cmd := exec.Command("go", "test", "-c", "-vet=off", "-overlay", path, "-o", binary, ".")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return binary, nil
}

// harnesses are tried in order until one is red: a few schedules, for the
// simulation is what most bugs are meant for; then what takes a second; then many.
var harnesses = []struct {
	name  string
	seeds int // 0: as many as the flag says
	args  []string
}{
	{"simulation", 60, simulation},
	{"tests of the core", 1, []string{"-test.failfast", "-test.run=" + coreTests}},
	{"simulation", 0, simulation},
}

var simulation = []string{"-test.run=TestSimulation$", "-sim.ops=300"}

// coreTests are those that are quick.
const coreTests = "^Test(FirstWriteOfAKey|UpdateFinds|ValueEntryAndIndex|ReverseReading|UnknownLog|EarlierClock|EqualClocks|EqualContent|QuietServer|ThirdServer|IdleSessionIsShort|PullInPages|LargeValues|ThreePartitioned|AnotherResolver|InterruptedPull|WriteHas|WriteFrom|PeerCannot|CallerCannot|ServerDoes|DeletingWhat|OpeningAfter|KeyThatGrew|ProofThat|WriteTakes|OldTombstone|VersionThat|ProofOf|RepairBrings|WhoMissed|Tombstone|ConflictOf|PurgeIs|OneFlush|ServerReports|UnfinishedPull|MemberThat|RepairMends|RepairPuts|RepairDrops|RepairRebuilds|DamagedValue|Compare|Garbage|AdoptLogsWhatWasWrittenPast|TokenIsLostOnly|TokenIsNotLost|TokenOfASynced|Siblings|WhatIsTooLarge|PullOfLarge|StatusSaysWhat|WhatIsHeldBack|StoreOlder|ServerWhoseName|NameThatLeads|PeersBehindOne|DeadAddresses|ReopenedOrReplaced|FirstPullGoesOn)"

// catch finds the harness that catches a bug, and after how many schedules.
func catch(binary, name string) (harness, n string) {
	for _, h := range harnesses {
		n := h.seeds
		if n == 0 {
			n = *seeds
		}
		args := append([]string{fmt.Sprintf("-sim.seeds=%d", n)}, h.args...)
		red, out := test(binary, name, args...)
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

// test runs the binary with a bug switched on, and tells whether it failed.
func test(binary, name string, args ...string) (red bool, out string) {
	cmd := exec.Command(binary, append(args, fmt.Sprintf("-test.timeout=%v", 10*time.Minute))...)
	cmd.Env = append(os.Environ(), "REPLICATOR_PLANTED="+name)
	text, err := cmd.CombinedOutput()
	return err != nil, string(text)
}
