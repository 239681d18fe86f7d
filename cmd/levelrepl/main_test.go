package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// cli runs the program in this process.
func cli(args ...string) (code int, out, errOut string) {
	return cliIn("", args...)
}

func cliIn(in string, args ...string) (code int, out, errOut string) {
	var o, e bytes.Buffer
	code = run(context.Background(), args, strings.NewReader(in), &o, &e)
	return code, o.String(), e.String()
}

// must runs the program, which must succeed, and returns what it printed.
func must(t *testing.T, args ...string) string {
	t.Helper()
	code, out, errOut := cli(args...)
	require.Equal(t, exitOK, code, "levelrepl %s\n%s%s", strings.Join(args, " "), out, errOut)
	return out
}

// mustFail runs the program, which must end with an exit code and say something.
func mustFail(t *testing.T, code int, says string, args ...string) string {
	t.Helper()
	got, out, errOut := cli(args...)
	require.Equal(t, code, got, "levelrepl %s\n%s%s", strings.Join(args, " "), out, errOut)
	require.Contains(t, errOut, says)
	return out
}

// served is a replica that is served in this process, over real sockets.
type served struct {
	dir, peer, http string
	stop            func() (code int) // may be called twice
	log             *lines
}

// lines is a buffer that may be read while it is written to.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var addresses = regexp.MustCompile(`(?s)replicating .* on (\S+)\nanswering http://(\S+)\n`)

// serve starts a replica. It is stopped when the test ends.
func serve(t *testing.T, dir string, args ...string) *served {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	n, out, ended := &served{dir: dir, log: &lines{}}, &lines{}, make(chan int, 1)
	args = append([]string{"serve", dir, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--name", filepath.Base(dir)}, args...)
	go func() { ended <- run(ctx, args, strings.NewReader(""), out, n.log) }()
	n.stop = sync.OnceValue(func() int {
		cancel()
		code := <-ended
		require.True(t, code != exitOK || strings.HasSuffix(out.String(), "stopped\n"))
		return code
	})
	t.Cleanup(func() { require.Equal(t, exitOK, n.stop(), n.log) })
	var found []string
	eventually(t, func() bool {
		found = addresses.FindStringSubmatch(out.String())
		return found != nil
	}, n.log)
	n.peer, n.http = found[1], found[2]
	return n
}

func eventually(t *testing.T, f func() bool, why ...any) {
	t.Helper()
	require.Eventually(t, f, 20*time.Second, 5*time.Millisecond, why...)
}

// agree waits until replicas agree with each other and with their peers.
func agree(t *testing.T, replicas ...*served) {
	t.Helper()
	args := []string{"status", "--check"}
	for _, n := range replicas {
		args = append(args, n.http)
	}
	said := ""
	defer func() {
		if t.Failed() {
			t.Log(said)
		}
	}()
	eventually(t, func() bool {
		code, out, errOut := cli(args...)
		said = out + errOut
		return code == exitOK
	})
}

// plainDir makes a goleveldb directory that was never replicated.
func plainDir(t *testing.T, pairs ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	writePast(t, dir, pairs...)
	return dir
}

// writePast writes to a directory as a program would that knows nothing of replication.
func writePast(t *testing.T, dir string, pairs ...string) {
	t.Helper()
	db, err := leveldb.OpenFile(dir, nil)
	require.NoError(t, err)
	for i := 0; i < len(pairs); i += 2 {
		require.NoError(t, db.Put([]byte(pairs[i]), []byte(pairs[i+1]), nil))
	}
	require.NoError(t, db.Close())
}

// replicaDir makes a directory that was replicated.
func replicaDir(t *testing.T, pairs ...string) string {
	t.Helper()
	dir := plainDir(t, pairs...)
	must(t, "adopt", dir)
	return dir
}

// imprint is what is in a directory, to the byte.
func imprint(t *testing.T, dir string) map[string]string {
	t.Helper()
	sums := map[string]string{}
	require.NoError(t, filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		_, err = io.Copy(h, f)
		sums[path] = fmt.Sprintf("%x %v", h.Sum(nil), info.ModTime())
		return err
	}))
	return sums
}

func TestWrongCommandLinesSayWhatToDoAndExitWith2(t *testing.T) {
	dir := replicaDir(t)
	for _, c := range []struct{ line, says string }{
		{"stauts", `did you mean "status"?`},
		{"bogus", "levelrepl --help lists the commands"},
		{"get", "get takes one key, not 0 arguments"},
		{"get a b", "usage: levelrepl get KEY"},
		{"get a --nope", "levelrepl get --help lists the flags"},
		{"get a --encoding hex", "want one of auto, quoted, base64, raw"},
		{"get a --addr x --dir y", "[addr dir]"},
		{"get % -e base64", "is not base64"},
		{`get "\q"`, "is not a quoted string"},
		{"get a --addr ftp://x", "is not the address of a served replica"},
		{"put a b --file c", "give one of the two"},
		{"put a b --replicas 1 --dir " + dir, "a stopped replica has no peers"},
		{"put a b --replicas -1", "want a number of peers"},
		{"resolve a", "one of --take, --value, --file and --delete"},
		{"resolve a --take 1 --delete", "[delete take]"},
		{"status --watch=-1s", "want a pause"},
		{"log x:1 --dir " + dir, "give one of the two"},
		{"compare a", "compare takes two addresses or directories, not 1 arguments"},
		{"verify --local= " + dir, "an empty prefix would be every key"},
		{"verify --resolver best " + dir, "want highest-clock or last-write-wins"},
		{"serve --compress most " + dir, "want nothing, remote or all"},
		{"adopt --cluster other " + dir, `belongs to cluster "", not "other"`},
		{"serve", "serve takes one directory"},
		{"serve x --listen :0", "levelrepl secret FILE makes a secret"},
		{"serve x --listen nonsense", `give "host:port"`},
		{"serve x --http :0", "add --http-insecure"},
		{"serve x --log-level loud", "want debug, info, warn or error"},
		{"serve x --write-buffer 1MiB", "want at least 2.0 MiB"},
		{"serve x --block-cache 1KiB", "want at least 2.0 MiB and 1.0 MiB"},
		{"serve x --max-value much", "want a number of bytes"},
		{"serve x --secret-file main.go", "main.go holds no secret"},
		{"serve x --tls-cert main.go", "go together"},
	} {
		t.Run(c.line, func(t *testing.T) {
			mustFail(t, exitUsage, c.says, strings.Fields(c.line)...)
			require.NoFileExists(t, "x/CURRENT", "nothing is opened")
		})
	}
}

func TestWhatCannotBeDoneSaysWhatToDoAndExitsWith3(t *testing.T) {
	empty, plain := t.TempDir(), plainDir(t, "k", "v")
	n := serve(t, filepath.Join(t.TempDir(), "a"))
	for _, c := range []struct{ line, says string }{
		{"get k --addr 127.0.0.1:1", "is it running?"},
		{"get k --dir " + empty, "it has no CURRENT file"},
		{"get k --dir " + empty + "/none", "give the directory of a goleveldb database"},
		{"get k --dir " + n.dir, "another process has it open"},
		{"verify " + n.dir, "another process has it open"},
		{"put k v --dir " + n.dir, "another process has it open"},
		{"serve --http off --listen 127.0.0.1:0 " + n.dir, "another process has it open"},
		{"verify " + plain, "levelrepl adopt " + plain},
		{"put k v --dir " + plain, "was never replicated"},
		{"log --dir " + plain, "was never replicated"},
		{"put k --file " + empty + "/none", "no such file"},
		{"serve " + empty + "/x --http off --listen " + n.peer, "--listen takes another address"},
		{"serve " + empty + "/x --http " + n.http, "--http takes another address"},
		{"serve " + empty + "/x --secret-file " + empty + "/none", "levelrepl secret " + empty + "/none makes one"},
		{"put k v --replicas 1 --addr " + n.http, "0 of 1 peers have it on disk"},
		{"compare " + n.http + " 127.0.0.1:1", "cannot reach http://127.0.0.1:1"},
		{"get k --addr " + n.peer, "cannot reach"},
		{"get \"\\xff\\xffk\" --addr " + n.http, "reserved"},
		{"get \"\\xff\\xffk\" --dir " + plain, "reserved"},
	} {
		t.Run(c.line, func(t *testing.T) {
			t.Parallel()
			mustFail(t, exitFailed, c.says, strings.Fields(c.line)...)
		})
	}
}

func TestHelpNamesEveryCommandAndTheExitCodes(t *testing.T) {
	help := must(t, "--help")
	for _, name := range strings.Fields("serve status get put del scan conflicts resolve verify repair compare log adopt secret version completion") {
		require.Contains(t, help, "\n  "+name+" ")
		require.Contains(t, must(t, name, "--help"), "Usage:")
	}
	require.Contains(t, help, "Exit codes")
	require.Equal(t, help, must(t), "no arguments are a question, too")
}

func TestShellsCanComplete(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		require.Contains(t, must(t, "completion", shell), "levelrepl")
	}
	require.Contains(t, must(t, "__complete", "serve", "x", "--resolver", ""), "last-write-wins")
	require.Contains(t, must(t, "__complete", "get", "--encoding", ""), "base64")
}

func TestVersionNamesWhatItIsBuiltWith(t *testing.T) {
	require.Regexp(t, `(?s)^levelrepl .*\nreplicator .*\ngo1\S+ \w+/\w+\n$`, must(t, "version"))
	require.Contains(t, must(t, "version", "--json"), `"go": "go1`)
}
