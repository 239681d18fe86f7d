package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// both runs a test on a served replica and on the directory of a stopped one; at is the
// flag that names it.
func both(t *testing.T, f func(t *testing.T, at string)) {
	t.Run("served", func(t *testing.T) { f(t, "--addr="+serve(t, filepath.Join(t.TempDir(), "a")).http) })
	t.Run("stopped", func(t *testing.T) { f(t, "--dir="+replicaDir(t)) })
}

func TestWhatIsPutIsGotScannedAndDeleted(t *testing.T) {
	both(t, func(t *testing.T, at string) {
		must(t, "put", at, "greeting", "hello")
		must(t, "put", at, "empty", "")
		require.Equal(t, "hello", must(t, "get", at, "greeting"), "byte for byte")
		require.Empty(t, must(t, "get", at, "empty"))
		require.Equal(t, "\"\"\n", must(t, "get", at, "empty", "-e", "quoted"))
		require.Equal(t, "empty\t\"\"\ngreeting\thello\n", must(t, "scan", at))
		require.Equal(t, "greeting\n", must(t, "scan", at, "-k", "gr"))
		must(t, "del", at, "greeting")
		must(t, "del", at, "greeting")
		require.Empty(t, mustFail(t, exitFound, "there is no key greeting", "get", at, "greeting"))
		require.Equal(t, "empty\n", must(t, "scan", at, "-k"))
	})
}

func TestAnyBytesGoThroughEveryEncoding(t *testing.T) {
	both(t, func(t *testing.T, at string) {
		for i, s := range odd {
			e := encoding(i % 3)
			must(t, "put", at, "-e", e.String(), "--", e.show([]byte(s)), e.show([]byte("value of "+s)))
		}
		for _, s := range odd {
			e := quoted
			require.Equal(t, "value of "+s, must(t, "get", at, "--", e.show([]byte(s)))) // quoted is understood without being told
		}
		seen := map[string]bool{}
		for line := range strings.Lines(must(t, "scan", at, "--json")) {
			var e entry
			require.NoError(t, json.Unmarshal([]byte(line), &e))
			require.Equal(t, "value of "+string(e.Key), string(e.Value))
			seen[string(e.Key)] = true
		}
		require.Len(t, seen, len(odd))
	})
}

func TestValuesComeFromFilesAndStandardInput(t *testing.T) {
	both(t, func(t *testing.T, at string) {
		content := "line\n\x00\xff\"not quoted\"\n"
		file := filepath.Join(t.TempDir(), "value")
		require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
		must(t, "put", at, "file", "--file", file)
		require.Equal(t, content, must(t, "get", at, "file"))
		for _, args := range [][]string{{}, {"-f", "-"}} {
			code, _, errOut := cliIn(content+content, append([]string{"put", at, "stdin"}, args...)...)
			require.Equal(t, exitOK, code, errOut)
			require.Equal(t, content+content, must(t, "get", at, "stdin"))
		}
	})
}

func TestScanKeepsToItsBounds(t *testing.T) {
	both(t, func(t *testing.T, at string) {
		for _, k := range strings.Fields("a a/1 a/2 a/3 b c") {
			must(t, "put", at, k, "v")
		}
		for args, want := range map[string]string{
			"":                     "a a/1 a/2 a/3 b c",
			"a/":                   "a/1 a/2 a/3",
			"a/ --from a/2":        "a/2 a/3",
			"a/ --to a/3":          "a/1 a/2",
			"a/ --from Z --to c":   "a/1 a/2 a/3",
			"--from a/3":           "a/3 b c",
			"--to b":               "a a/1 a/2 a/3",
			"--from a/1 --to b":    "a/1 a/2 a/3",
			"--from c --to a":      "",
			"-n 2":                 "a a/1",
			"a/ -n 1":              "a/1",
			"nothing":              "",
			"--from b --limit 100": "b c",
		} {
			out := must(t, append([]string{"scan", at, "-k"}, strings.Fields(args)...)...)
			require.Equal(t, want, strings.Join(strings.Fields(out), " "), "scan %s", args)
		}
	})
}

func TestLongListingsComeInPages(t *testing.T) {
	both(t, func(t *testing.T, at string) {
		big := strings.Repeat("v", pageBytes/3)
		for _, k := range strings.Fields("a b c d e f g h") {
			code, _, errOut := cliIn(big, "put", at, k)
			require.Equal(t, exitOK, code, errOut)
		}
		out := must(t, "scan", at)
		require.Equal(t, 8, strings.Count(out, "\n"))
		require.Equal(t, 8*(len(big)+3), len(out))
	})
}

func TestReadingLeavesAStoppedDirectoryAsItIs(t *testing.T) {
	dir, other := replicaDir(t, "k", "v", "l", "w"), replicaDir(t, "k", "v")
	must(t, "put", "--dir", dir, "k", "v2")
	must(t, "del", "--dir", dir, "l")
	before := imprint(t, dir)
	for _, line := range []string{
		"get k --dir ", "scan --dir ", "conflicts --dir ", "log -n 3 --dir ", "verify ", "compare --full " + other + " ", "compare " + dir + " ",
	} {
		code, _, errOut := cli(strings.Fields(line + dir)...)
		require.Less(t, code, exitUsage, errOut)
		require.Equal(t, before, imprint(t, dir), line)
	}
}

func TestWhatIsWrittenToAStoppedReplicaReachesItsPeers(t *testing.T) {
	a := serve(t, filepath.Join(t.TempDir(), "a"))
	b := serve(t, filepath.Join(t.TempDir(), "b"), "--peer", a.peer)
	must(t, "put", "--addr", a.http, "k", "v")
	must(t, "put", "--addr", a.http, "gone", "v", "--replicas", "1")
	require.Equal(t, "v", must(t, "get", "--addr", b.http, "gone"))
	require.Equal(t, exitOK, b.stop())
	must(t, "put", "--dir", b.dir, "k", "written offline")
	must(t, "del", "--dir", b.dir, "gone")
	b = serve(t, b.dir, "--peer", a.peer)
	agree(t, a, b)
	require.Equal(t, "written offline", must(t, "get", "--addr", a.http, "k"))
	mustFail(t, exitFound, "no key", "get", "--addr", a.http, "gone")
}

func TestAddressComesFromTheEnvironment(t *testing.T) {
	n := serve(t, filepath.Join(t.TempDir(), "a"))
	t.Setenv(addrEnv, n.http)
	must(t, "put", "k", "v")
	require.Equal(t, "v", must(t, "get", "k"))
	require.Contains(t, must(t, "status"), "keys")
	require.Equal(t, "v", must(t, "get", "k", "--addr", "http://"+n.http+"/"))
	t.Setenv(addrEnv, n.http+"\r\n")
	require.Equal(t, "v", must(t, "get", "k"), "a line's end is none of it")
}

func TestFollowerRefusesWritesAndSaysSo(t *testing.T) {
	n := serve(t, filepath.Join(t.TempDir(), "a"), "--follower")
	mustFail(t, exitFailed, "follower", "put", "k", "v", "--addr", n.http)
}

func TestSizesOfValuesAreBounded(t *testing.T) {
	n := serve(t, filepath.Join(t.TempDir(), "a"), "--max-value", "10B")
	must(t, "put", "k", "0123456789", "--addr", n.http)
	mustFail(t, exitFailed, "too large", "put", "k", "0123456789x", "--addr", n.http)
}

func TestEmptyStandardInputIsAValueOnlyIfAskedFor(t *testing.T) {
	both(t, func(t *testing.T, at string) {
		must(t, "put", at, "k", "v")
		mustFail(t, exitUsage, `give "" or --file -`, "put", at, "k")
		require.Equal(t, "v", must(t, "get", at, "k"))
		must(t, "put", at, "k", "--file", "-")
		require.Empty(t, must(t, "get", at, "k"))
		must(t, "put", at, "k", "v")
		must(t, "put", at, "k", "")
		require.Empty(t, must(t, "get", at, "k"))
	})
}

func TestWhatBeginsWithADashStandsBehindTwo(t *testing.T) {
	both(t, func(t *testing.T, at string) {
		mustFail(t, exitUsage, "levelrepl put -- ", "put", at, "k", "-5")
		mustFail(t, exitUsage, "levelrepl get -- ", "get", at, "--key")
		must(t, "put", at, "--", "-k", "-5")
		require.Equal(t, "-5", must(t, "get", at, "--", "-k"))
	})
}

func TestWaitingForAValueCanBeInterrupted(t *testing.T) {
	dir := replicaDir(t, "k", "v")
	ctx, cancel := context.WithCancel(context.Background())
	in, write := io.Pipe()
	var errOut bytes.Buffer
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, []string{"put", "k", "--dir", dir}, in, io.Discard, &errOut) }()
	_, err := write.Write([]byte("the beginning")) // it is being read
	require.NoError(t, err)
	cancel()
	require.Equal(t, exitFailed, <-ended)
	require.Contains(t, errOut.String(), "interrupted")
	require.NoError(t, write.Close())
	require.Equal(t, "v", must(t, "get", "k", "--dir", dir))
}
