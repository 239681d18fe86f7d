package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/level-replicator/replicator"
)

func TestStoppingHasOneDeadline(t *testing.T) {
	t.Parallel()
	// A peer that takes connections and says nothing.
	frozen, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer frozen.Close()
	n := serve(t, filepath.Join(t.TempDir(), "a"), "--peer", frozen.Addr().String(), "--ready-timeout", "10ms")
	require.Equal(t, 204, ask(t, "PUT", "http://"+n.http+"/kv/k", "v").StatusCode)
	// A client that sends just quickly enough.
	conn, err := net.Dial("tcp", n.http)
	require.NoError(t, err)
	defer conn.Close()
	fmt.Fprint(conn, "PUT /kv/slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nbegin")
	began := time.Now()
	require.Equal(t, exitOK, n.stop(), n.log)
	require.Less(t, time.Since(began), stopLimit)
}

func TestHandlesAreDividedBetweenStoreAndConnections(t *testing.T) {
	divide := func(limit int, args ...string) (*serving, *replicator.Options, int, error) {
		s := &serving{app: &app{}}
		f := pflag.NewFlagSet("serve", pflag.ContinueOnError)
		s.o.Limits.MaxConns, s.o.Limits.MaxPending, s.httpConns, s.http, s.httpInFlight = 128, 16, 128, defaultAddr, 64<<20
		f.IntVar(&s.o.Limits.MaxConns, "max-conns", 128, "")
		f.IntVar(&s.o.Limits.MaxPending, "max-pending", 16, "")
		f.IntVar(&s.httpConns, "http-conns", 128, "")
		require.NoError(t, f.Parse(args))
		s.given = f.Changed
		o := s.o
		tables, err := s.fit(&o, limit)
		return s, &o, tables, err
	}
	for _, limit := range []int{0, 1024, 1 << 20} {
		s, o, tables, err := divide(limit)
		require.NoError(t, err)
		require.Equal(t, []int{128, 16, 128, 500}, []int{o.Limits.MaxConns, o.Limits.MaxPending, s.httpConns, tables}, limit)
	}
	for limit := leastHandles; limit < 1024; limit++ {
		s, o, tables, err := divide(limit)
		require.NoError(t, err)
		require.Less(t, o.Limits.MaxConns+o.Limits.MaxPending+s.httpConns+tables, limit-limit/5)
		require.GreaterOrEqual(t, tables, 16)
		require.GreaterOrEqual(t, min(o.Limits.MaxConns, o.Limits.MaxPending, s.httpConns), 4)
	}
	s, o, tables, err := divide(1024, "--http-conns", "600")
	require.NoError(t, err)
	require.Equal(t, 600, s.httpConns)
	require.LessOrEqual(t, o.Limits.MaxConns+o.Limits.MaxPending+s.httpConns+tables+spareHandles, 1024)
	_, _, _, err = divide(1024, "--http-conns", "900")
	require.ErrorContains(t, err, "leave the store no file handles: this process may have 1024")
	_, _, _, err = divide(100)
	require.ErrorContains(t, err, "may open 100 files, a replica needs 128")
	_, _, _, err = divide(1024, "--http-conns", "0")
	require.ErrorContains(t, err, "--http-conns 0")
}

func TestStoreOptionsFollowTheFlags(t *testing.T) {
	s := &serving{writeBuffer: 5 << 20, blockCache: 6 << 20}
	want := replicator.StoreOptions()
	want.WriteBuffer, want.BlockCacheCapacity, want.OpenFilesCacheCapacity = 5<<20, 6<<20, 7
	require.Equal(t, want, s.storeOptions(7))
}

// program starts the real program with a number of file handles and returns its addresses.
func program(t *testing.T, bin string, handles int, stderr *os.File, args ...string) (c *exec.Cmd, peer, http string) {
	t.Helper()
	out := &lines{}
	script := fmt.Sprintf("ulimit -n %d; exec \"$@\"", handles)
	c = exec.Command("bash", append([]string{"-c", script, "-", bin, "serve", filepath.Join(t.TempDir(), "data"), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"}, args...)...)
	c.Stdout, c.Stderr = out, stderr
	require.NoError(t, c.Start())
	t.Cleanup(func() { _ = c.Process.Kill() })
	eventually(t, func() bool { return addresses.MatchString(out.String()) })
	found := addresses.FindStringSubmatch(out.String())
	return c, found[1], found[2]
}

func TestReplicaOutlivesTheReaderOfItsLog(t *testing.T) {
	bin := build(t)
	reader, stderr, err := os.Pipe()
	require.NoError(t, err)
	c, _, http := program(t, bin, 256, stderr, "--log-level", "debug", "--peer", "127.0.0.1:1")
	require.NoError(t, stderr.Close())
	require.NoError(t, reader.Close())
	for i := range 3 { // the first rejected stranger is logged
		conn, err := net.Dial("tcp", http)
		require.NoError(t, err)
		fmt.Fprintf(conn, "nonsense %d\r\n\r\n", i)
		conn.Close()
	}
	require.NoError(t, c.Process.Signal(syscall.SIGHUP)) // logs, too
	for range 3 {
		require.Equal(t, 204, ask(t, "PUT", "http://"+http+"/kv/k", "v").StatusCode)
	}
	require.NoError(t, c.Process.Signal(syscall.SIGTERM))
	require.NoError(t, c.Wait())

	// Others die of it quietly.
	script := exec.Command("bash", "-c", `"$0" completion bash | head -1; echo "${PIPESTATUS[0]}"`, bin)
	var errs bytes.Buffer
	script.Stderr = &errs
	said, err := script.Output()
	require.NoError(t, err)
	require.Empty(t, errs.String(), string(said))
}

func TestClientsOfAReplicaWithFewHandlesDoNotStopItsStore(t *testing.T) {
	bin := build(t)
	c, _, http := program(t, bin, 256, os.Stderr)
	for i := range 400 {
		conn, err := net.DialTimeout("tcp", http, time.Second)
		if err != nil {
			break // that many are not even taken by the system
		}
		defer conn.Close()
		fmt.Fprintf(conn, "PUT /kv/slow%d HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nbegin", i)
	}
	written := 0
	eventually(t, func() bool {
		r, err := tryAsk("PUT", "http://"+http+"/kv/k"+fmt.Sprint(written), strings.Repeat("v", 100_000))
		if err == nil && r == 204 {
			written++ // 10 MB: the store needs new files for it
		}
		return written == 100
	})
	require.NoError(t, c.Process.Signal(syscall.SIGTERM))
	require.NoError(t, c.Wait())
}
