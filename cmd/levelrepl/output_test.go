package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// full is a disk that has no room left.
type full struct{}

func (full) Write([]byte) (int, error) {
	return 0, &os.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.ENOSPC}
}

func TestAnswerThatCouldNotBePrintedIsAFailure(t *testing.T) {
	n, dir := serve(t, filepath.Join(t.TempDir(), "a")), replicaDir(t, "k", "v")
	must(t, "put", "--addr", n.http, "k", "v")
	for _, line := range []string{
		"", "--help", "get --help", "completion bash", "version", "version --json", "secret", "verify AT", "verify AT --json", "verify DIR", "repair AT", "repair DIR", "repair AT --json",
		"conflicts --addr AT", "conflicts --dir DIR", "status AT", "status AT --json", "status AT --check", "status AT --watch=1h", "log AT", "log --dir DIR", "get k --addr AT", "get k --addr AT --json",
		"scan --addr AT", "scan --addr AT --json", "scan -k --dir DIR", "compare AT AT", "compare AT AT --json", "adopt DIR", "adopt DIR --json", "__complete get --encoding x",
	} {
		args := strings.Fields(strings.NewReplacer("AT", n.http, "DIR", dir).Replace(line))
		var errOut bytes.Buffer
		code := run(context.Background(), args, strings.NewReader(""), full{}, &errOut)
		require.Equal(t, exitFailed, code, "levelrepl %s\n%s", line, errOut.String())
		require.Contains(t, errOut.String(), "cannot print the answer: write /dev/stdout: no space left on device", line)
	}
	code := run(context.Background(), []string{"put", "k", "w", "--addr", n.http}, strings.NewReader(""), full{}, io.Discard)
	require.Equal(t, exitOK, code, "what says nothing needs no output")
}

func TestReplicaGoesOnWithoutItsOutput(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	log, ended := &lines{}, make(chan int, 1)
	dir := filepath.Join(t.TempDir(), "a")
	go func() {
		ended <- run(ctx, []string{"serve", dir, "--listen", "127.0.0.1:0", "--http", "off", "--peer", "127.0.0.1:1"}, nil, full{}, log)
	}()
	eventually(t, func() bool { return strings.Contains(log.String(), "peer is failing") }, log)
	cancel()
	require.Equal(t, exitOK, <-ended, log)
}
