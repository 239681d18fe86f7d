package main

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// step is a command of a document and what it prints.
type step struct{ command, prints string }

func stepsOf(t *testing.T, file string) (steps []step) {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	for _, block := range regexp.MustCompile("(?s)\n```console\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		for line := range strings.Lines(block[1]) {
			if command, ok := strings.CutPrefix(line, "$ "); ok {
				steps = append(steps, step{command: strings.TrimSpace(command)})
			} else {
				steps[len(steps)-1].prints += line
			}
		}
	}
	return steps
}

// shell is one bash in which commands run one after another.
type shell struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Reader
	dir string
}

func newShell(t *testing.T, env ...string) *shell {
	t.Helper()
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("no bash")
	}
	s := &shell{t: t, dir: t.TempDir()}
	c := exec.Command("bash")
	c.Dir, c.Env = s.dir, append(os.Environ(), env...)
	in, err := c.StdinPipe()
	require.NoError(t, err)
	out, err := c.StdoutPipe()
	require.NoError(t, err)
	c.Stderr = c.Stdout
	s.in, s.out = in, bufio.NewReader(out)
	require.NoError(t, c.Start())
	t.Cleanup(func() {
		fmt.Fprintln(in, "kill $(jobs -p) 2>/dev/null; wait")
		in.Close()
		_ = c.Wait()
	})
	return s
}

const endMark = "\x01end\n"

// run runs a command and returns what it printed, on either output. One in the
// background is waited for until it serves.
func (s *shell) run(command string) string {
	s.t.Helper()
	if served, ok := strings.CutSuffix(command, " &"); ok {
		log, err := os.CreateTemp(s.dir, "serve")
		require.NoError(s.t, err)
		defer log.Close()
		fmt.Fprintf(s.in, "%s >%s 2>&1 &\n", served, log.Name())
		eventually(s.t, func() bool {
			b, err := os.ReadFile(log.Name())
			return err == nil && strings.Contains(string(b), "answering")
		}, served)
		return ""
	}
	fmt.Fprintf(s.in, "{ %s\n} 2>&1; printf '\\001end\\n'\n", command)
	var b strings.Builder
	for !strings.HasSuffix(b.String(), endMark) {
		line, err := s.out.ReadString('\n')
		require.NoError(s.t, err, b.String())
		b.WriteString(line)
	}
	return strings.TrimSuffix(b.String(), endMark)
}

// freePorts replaces the ports that a document names by ones that are free, and below
// those that the system assigns to outgoing connections.
func freePorts(t *testing.T) func(string) string {
	t.Helper()
	var pairs []string
	for _, port := range []string{":9000", ":9001", ":9080", ":9081"} {
		l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", 20_000+rand.IntN(12_000)))
		for err != nil {
			l, err = net.Listen("tcp", fmt.Sprint("127.0.0.1:", 20_000+rand.IntN(12_000)))
		}
		defer l.Close()
		_, free, err := net.SplitHostPort(l.Addr().String())
		require.NoError(t, err)
		pairs = append(pairs, port, ":"+free)
	}
	return strings.NewReplacer(pairs...).Replace
}

func TestEveryCommandOfTheReadmeDoesWhatItSays(t *testing.T) { follow(t, "README.md", 30) }

func TestEveryCommandOfTheOperationsManualDoesWhatItSays(t *testing.T) {
	follow(t, "../../docs/operations.md", 20)
}

// follow does what a document says, and compares what it says is printed.
func follow(t *testing.T, file string, least int) {
	t.Helper()
	ports := freePorts(t)
	bin := filepath.Dir(build(t))
	s := newShell(t, "PATH="+bin+":"+os.Getenv("PATH"), addrEnv+"="+ports("127.0.0.1:9080"))
	steps := stepsOf(t, file)
	require.GreaterOrEqual(t, len(steps), least, "the commands are no longer recognized")
	spaces := regexp.MustCompile(` +`)
	for _, step := range steps {
		if _, err := exec.LookPath("curl"); err != nil && strings.HasPrefix(step.command, "curl") {
			continue
		}
		if file == "README.md" && (strings.HasPrefix(step.command, "levelrepl status") || strings.HasPrefix(step.command, "levelrepl conflicts")) {
			// The document shows two replicas that know of each other's last writes.
			s.run(ports("until levelrepl status --check 127.0.0.1:9080 127.0.0.1:9081 >/dev/null 2>&1; do sleep 0.1; done"))
		}
		// Columns are as wide as the ports; what differs each time is marked.
		want := spaces.ReplaceAllString(regexp.QuoteMeta(ports(step.prints)), " +")
		want = strings.ReplaceAll(want, "…", "[^\n]*")
		require.Regexp(t, "^"+strings.TrimSuffix(want, "\n")+" *\n?$", s.run(ports(step.command)), step.command)
	}
}
