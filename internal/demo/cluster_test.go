package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestMain lets this test binary be a replica: Run starts replicas as further processes of
// the program that it is in.
func TestMain(m *testing.M) {
	if IsReplica() {
		os.Exit(Replica(os.Stdin, os.Stdout))
	}
	os.Exit(m.Run())
}

func TestThreeProcessesAgree(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	t.Setenv("TMPDIR", t.TempDir())
	var out, errOut bytes.Buffer
	code := Run(t.Context(), []string{"-files", "300", "-list"}, &out, &errOut)
	require.Empty(t, errOut.String(), out.String())
	require.Zero(t, code)
	require.Contains(t, out.String(), "150 conflicts arose, 3 versions kept in each.")
	require.Regexp(t, `3 replicas agree: [\d,]+ values compared byte for byte, every one is what it must be\.\n$`, out.String())
	requireNothingLeft(t)
}

func TestInterruptLeavesNothingBehind(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	t.Setenv("TMPDIR", t.TempDir())
	ctx, interrupt := context.WithCancel(t.Context())
	var errOut bytes.Buffer
	out := writerFunc(func(p []byte) {
		if bytes.Contains(p, []byte("import")) {
			interrupt()
		}
	})
	require.Equal(t, 1, Run(ctx, []string{"-files", "300", "-list"}, out, &errOut))
	require.Contains(t, errOut.String(), "interrupted; nothing is left behind")
	requireNothingLeft(t)
}

func TestReplicasGoOnWithTheirPagesUntilInterrupted(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	t.Setenv("TMPDIR", t.TempDir())
	ctx, interrupt := context.WithCancel(t.Context())
	var text, errOut bytes.Buffer
	var pages []string
	out := writerFunc(func(p []byte) {
		text.Write(p)
		if !bytes.Contains(p, []byte("Ctrl-C")) {
			return
		}
		defer interrupt()
		for _, url := range regexp.MustCompile(`http://127\.0\.0\.1:\d+/`).FindAllString(text.String(), -1) {
			answer, err := http.Get(url)
			if assert.NoError(t, err) {
				page, err := io.ReadAll(answer.Body)
				assert.NoError(t, errors.Join(err, answer.Body.Close()))
				pages = append(pages, string(page))
			}
		}
	})
	require.Zero(t, Run(ctx, []string{"-files", "60", "-list", "-serve"}, out, &errOut), errOut.String())
	require.Empty(t, errOut.String())
	require.Len(t, pages, 3)
	for i, page := range pages {
		require.Contains(t, page, fmt.Sprintf("<h1>replica-%d</h1>", i+1))
		require.Contains(t, page, "// edited by replica-2", "versions of what is in conflict")
	}
	requireNothingLeft(t)
}

func requireNothingLeft(t *testing.T) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "replicator-cluster-*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

func TestBadFlagsAreRefused(t *testing.T) {
	for _, args := range [][]string{{"-n", "1"}, {"-files", "-5"}, {"more"}, {"-nonsense"}} {
		var errOut bytes.Buffer
		require.Equal(t, 2, Run(t.Context(), args, &bytes.Buffer{}, &errOut), args)
		require.Contains(t, errOut.String(), "cluster: ")
	}
}

func TestMergeKeepsEveryEditorOnce(t *testing.T) {
	file := []byte("package x\n// edited by hand\nvar y int")
	a := sign(sign(file, "replica-3"), "replica-1")
	b := sign(sign(file, "replica-2"), "replica-1")
	want := sign(sign(sign(file, "replica-1"), "replica-2"), "replica-3")
	version := func(value []byte) replicator.Version { return replicator.Version{Value: value} }
	require.Equal(t, string(want), string(mergeEdits(nil, version(a), version(b)).Value))
	require.Equal(t, string(want), string(mergeEdits(nil, version(b), version(a)).Value))
}

func TestMergeOfEmptyFiles(t *testing.T) {
	a := replicator.Version{Value: sign(nil, "replica-1")}
	b := replicator.Version{Value: sign(nil, "replica-2")}
	require.Equal(t, "\n// edited by replica-1\n// edited by replica-2", string(mergeEdits(nil, a, b).Value))
}

// No good run ever reaches what the program is for: to name a replica that is wrong.
func TestInspectionNamesReplicaAndKey(t *testing.T) {
	for _, c := range []struct {
		name string
		held map[string]string
		want string
	}{
		{"missing", map[string]string{"a": "1"}, `replica-2: key "b" is missing`},
		{"one byte", map[string]string{"a": "1", "b": "23x"}, `replica-2: key "b" has 3 bytes and must have 3 bytes, they differ from byte 2`},
		{"cut short", map[string]string{"a": "1", "b": "2"}, `replica-2: key "b" has 1 byte and must have 3 bytes, they differ from byte 1`},
		{"too many", map[string]string{"a": "1", "b": "234", "c": "5"}, `replica-2: key "c" is there but must not be`},
		{"unsure", map[string]string{"a": "1", "b": "234", "u": "6"}, ""},
		{"unsure and wrong", map[string]string{"a": "1", "b": "234", "u": "7"}, `replica-2: key "u" has 1 byte`},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := inspect(&process{name: "replica-2"}, expectation(t), nil)
			for key, value := range c.held {
				i.value(key, []byte(value))
			}
			err := i.verdict()
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestUnsureKeyOnOneReplicaOnlyIsNamed(t *testing.T) {
	e := expectation(t)
	with, without := inspect(&process{name: "replica-1"}, e, nil), inspect(&process{name: "replica-2"}, e, nil)
	with.value("u", []byte("6"))
	require.ErrorContains(t, alike([]*inspection{with, without}), `key "u" is on one of replica-1 and replica-2`)
	without.value("u", []byte("6"))
	require.NoError(t, alike([]*inspection{with, without}))
}

func expectation(t *testing.T) *expected {
	t.Helper()
	file := filepath.Join(t.TempDir(), "a")
	require.NoError(t, os.WriteFile(file, []byte("1"), 0o600))
	e := newExpected()
	e.values["a"] = content{file: file}
	e.values["b"] = content{text: []byte("234")}
	e.unsure["u"] = content{text: []byte("6")}
	return e
}
