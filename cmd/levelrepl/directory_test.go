package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/journal"

	"github.com/level-replicator/replicator"
)

func TestAdoptLogsWhatADirectoryHolds(t *testing.T) {
	dir := plainDir(t, "a", "1", "b", "2")
	require.Equal(t, "2 keys with a value, 2 logged now\n", must(t, "adopt", dir))
	require.Equal(t, "2 keys with a value, 0 logged now\n", must(t, "adopt", dir), "once is enough")
	writePast(t, dir, "a", "changed", "c", "3")
	var done adopted
	require.NoError(t, json.Unmarshal([]byte(must(t, "adopt", dir, "--json")), &done))
	require.Equal(t, adopted{Keys: 3, Logged: 2}, done)
}

func TestAdoptCanBeInterrupted(t *testing.T) {
	dir := plainDir(t, "a", "1")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var out, errOut bytes.Buffer
	require.Equal(t, exitFailed, run(ctx, []string{"adopt", dir}, nil, &out, &errOut))
	require.Contains(t, errOut.String(), "goes on where it was")
	must(t, "adopt", dir)
	must(t, "verify", dir)
}

func TestLocalKeysAreNeitherLoggedNorMissed(t *testing.T) {
	dir := plainDir(t, "a", "1", "private/x", "2")
	require.Equal(t, "1 key with a value, 1 logged now\n", must(t, "adopt", dir, "--local", "private/"))
	must(t, "verify", dir, "--local", "private/")
	must(t, "verify", dir)
	must(t, "put", "--dir", dir, "private/y", "3")
	must(t, "put", "--dir", dir, "b", "4")
	require.Contains(t, must(t, "verify", dir), ": 2 keys, 2 versions", "the directory says itself what is local")
	mustFail(t, exitFailed, `want "private/" to "private0"`, "verify", dir, "--local", "other/")
}

func TestVerifyNamesWhatDoesNotFit(t *testing.T) {
	dir := replicaDir(t, "a", "1", "b", "2")
	require.Regexp(t, `: 2 keys, 2 versions, digest [0-9a-f]{32}\n$`, must(t, "verify", dir))
	writePast(t, dir, "a", "changed past the log", "c\x00", "3")
	out := mustFail(t, exitFound, "2 faults in "+dir, "verify", dir)
	require.Contains(t, out, "a: its value is not the one that was logged")
	require.Contains(t, out, `"c\x00": its value was never logged`)
	var r replicator.Report
	require.NoError(t, json.Unmarshal([]byte(mustFail(t, exitFound, "", "verify", "--json", dir)), &r))
	require.Len(t, r.Faults, 2)
	must(t, "adopt", dir)
	require.NoError(t, json.Unmarshal([]byte(must(t, "verify", "--json", dir)), &r))
	require.True(t, r.OK())
}

func TestVerifyFindsACorruptedTable(t *testing.T) {
	dir := plainDir(t)
	db, err := leveldb.OpenFile(dir, nil)
	require.NoError(t, err)
	for i := range 20000 {
		require.NoError(t, db.Put(fmt.Appendf(nil, "key/%08d", i), bytes.Repeat([]byte{byte(i)}, 400), nil))
	}
	require.NoError(t, db.Close())
	must(t, "adopt", dir)
	must(t, "verify", dir)
	tables, err := filepath.Glob(filepath.Join(dir, "*.ldb"))
	require.NoError(t, err)
	for _, table := range tables {
		b, err := os.ReadFile(table)
		require.NoError(t, err)
		b[len(b)/2] ^= 1
		require.NoError(t, os.WriteFile(table, b, 0o600))
	}
	before := imprint(t, dir)
	code, out, errOut := cli("verify", dir)
	require.Contains(t, []int{exitFound, exitFailed}, code, out)
	require.Contains(t, out+errOut, "corrupt")
	require.Equal(t, before, imprint(t, dir))
}

// goleveldb panics when it finds such a journal (goleveldb 454).
func TestCorruptionThatGoleveldbPanicsOverIsAnError(t *testing.T) {
	for _, command := range [][]string{{"verify"}, {"get", "k", "--dir"}, {"put", "k", "v", "--dir"}, {"serve", "--listen", "127.0.0.1:0", "--http", ""}} {
		dir := replicaDir(t, "k", "v")
		journals, err := filepath.Glob(filepath.Join(dir, "*.log"))
		require.NoError(t, err)
		require.Len(t, journals, 1)
		batch := binary.LittleEndian.AppendUint64(nil, 1<<60) // a sequence number of at most 56 bits
		batch = append(batch, 1, 0, 0, 0, 1, 1, 'k', 1, 'v')
		var b bytes.Buffer
		w := journal.NewWriter(&b)
		record, err := w.Next()
		require.NoError(t, err)
		_, err = record.Write(batch)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		require.NoError(t, os.WriteFile(journals[0], b.Bytes(), 0o600))
		mustFail(t, exitFailed, "open "+dir+": leveldb: invalid sequence number", append(command, dir)...)
	}
}

func TestCompareNamesTheKeysThatDiffer(t *testing.T) {
	plainA, plainB := plainDir(t, "a", "1", "b", "2", "c", "3"), plainDir(t, "b", "2", "c", "x", "d", "4")
	out := mustFail(t, exitFound, "differ in 3 keys", "compare", plainA, plainB)
	require.Contains(t, out, "a\tonly in a\nc\tother value\nd\tonly in b\n")
	require.Contains(t, out, plainB+": 3 keys, never replicated\n")
	require.Contains(t, must(t, "compare", plainA, plainA+"/"), "they hold the same")

	out = mustFail(t, exitFound, "", "compare", plainA, plainB, "-n", "1")
	require.Contains(t, out, "… and 2 more")
	var c comparison
	require.NoError(t, json.Unmarshal([]byte(mustFail(t, exitFound, "", "compare", "--json", plainA, plainB)), &c))
	require.False(t, c.Same)
	require.Len(t, c.Differences, 3)
	require.Equal(t, difference{octets("c"), "other value"}, c.Differences[1])
}

func TestCompareOfReplicasGoesByVersions(t *testing.T) {
	a := serve(t, filepath.Join(t.TempDir(), "a"))
	b := serve(t, filepath.Join(t.TempDir(), "b"), "--peer", a.peer)
	for _, k := range odd {
		e := quoted
		must(t, "put", "--addr", a.http, "--", e.show([]byte(k)), "v")
	}
	must(t, "put", "--addr", a.http, "k", "v", "--replicas", "1")
	agree(t, a, b)
	require.Contains(t, must(t, "compare", a.http, b.http), "they hold the same")
	require.Contains(t, must(t, "compare", a.http, b.http, "--full"), "they hold the same")
	require.Equal(t, exitOK, b.stop())
	require.Contains(t, must(t, "compare", a.http, b.dir), "they hold the same")
	must(t, "put", "--dir", b.dir, "k", "v") // the same value, by another write
	require.Contains(t, mustFail(t, exitFound, "differ in 1 key", "compare", a.http, b.dir), "k\tother versions\n")

	writePast(t, b.dir, "a", "damaged", "k", "v")
	require.Contains(t, mustFail(t, exitFound, "differ in 2 keys", "compare", b.dir, a.http), "a\tcorrupted in a\n")
}

func TestCorruptionThatTheDigestMissesIsFoundInFull(t *testing.T) {
	dir := replicaDir(t, "a", "1")
	n := serve(t, filepath.Join(t.TempDir(), "n"))
	m := serve(t, dir, "--peer", n.peer)
	agree(t, n, m)
	require.Equal(t, exitOK, m.stop())
	writePast(t, dir, "a", "damaged")
	must(t, "compare", n.http, dir)
	require.Contains(t, mustFail(t, exitFound, "differ in 1 key", "compare", "--full", n.http, dir), "a\tcorrupted in b\n")
}

func TestRepairUsesPeersOrWhatIsHere(t *testing.T) {
	a := serve(t, filepath.Join(t.TempDir(), "a"))
	b := serve(t, filepath.Join(t.TempDir(), "b"), "--peer", a.peer)
	must(t, "put", "--addr", a.http, "k", "v", "--replicas", "1")
	must(t, "put", "--addr", a.http, "l", "w", "--replicas", "1")
	agree(t, a, b)
	require.Equal(t, exitOK, b.stop())
	writePast(t, b.dir, "k", "damaged")
	mustFail(t, exitFailed, "levelrepl repair repairs it", "resolve", "--dir", b.dir, "k", "--take", "1")

	out := mustFail(t, exitFound, "1 fault in", "repair", b.dir)
	require.Contains(t, out, "0 faults repaired\nk: its value is not the one", "no peer can be asked")
	b = serve(t, b.dir, "--peer", a.peer)
	mustFail(t, exitFound, "1 fault in "+b.http, "verify", b.http)
	require.Contains(t, must(t, "repair", b.http), "1 fault repaired\n"+b.http+": 2 keys, 2 versions")
	require.Equal(t, "v", must(t, "get", "--addr", b.http, "k"))
	must(t, "verify", b.http)
	var r replicator.Report
	require.NoError(t, json.Unmarshal([]byte(must(t, "repair", "--json", a.http)), &r))
	require.True(t, r.OK())
}

func TestLogShowsOriginsEntriesAndWhoIsBehind(t *testing.T) {
	a := serve(t, filepath.Join(t.TempDir(), "a"))
	b := serve(t, filepath.Join(t.TempDir(), "b"), "--peer", a.peer)
	must(t, "put", "--addr", a.http, "k", "v1")
	must(t, "put", "--addr", a.http, "k", "v2", "--replicas", "1")
	agree(t, a, b)
	require.Regexp(t, `(?m)^\w{8} +a +2 +\d+ *$`, must(t, "log", a.http, b.http))
	require.Equal(t, exitOK, b.stop())
	must(t, "put", "--addr", a.http, "l", "v")
	out := must(t, "log", "--addr", a.http, "-n", "5")
	require.Regexp(t, `(?m)^\w{8} +a +3 +\d+ +2 *$`, out, "of three writes two are live")
	require.Contains(t, out, "b (127.0.0.1:")
	require.Contains(t, out, "lacks 1 write")
	require.Regexp(t, `(?m)/2 .* put +k\n.*/3 .* put +l$`, out)
	require.Equal(t, 1, strings.Count(must(t, "log", "--addr", a.http, "-n", "1"), "put"))

	c := serve(t, filepath.Join(t.TempDir(), "c"))
	require.Regexp(t, `a +3 +0 +c by 3`, must(t, "log", a.http, c.http))
	var v logView
	require.NoError(t, json.Unmarshal([]byte(must(t, "log", a.http, c.http, "--json", "-n", "9")), &v))
	require.Len(t, v.Origins, 1)
	require.EqualValues(t, 3, v.Origins[0].Behind["c"])
	require.Len(t, v.Entries, 2)
	require.Equal(t, exitOK, a.stop())
	require.Regexp(t, `(?m)^\w{8} +a +3 +3 *$`, must(t, "log", "--dir", a.dir))
}

func TestDirectoryOfAClusterIsOpenedAsThat(t *testing.T) {
	dir := plainDir(t, "k", "v")
	must(t, "adopt", dir, "--cluster", "c")
	must(t, "verify", dir)
	must(t, "put", "--dir", dir, "k", "w")
	n := serve(t, dir, "--cluster", "c")
	require.Equal(t, "w", must(t, "get", "--addr", n.http, "k"))
	require.Equal(t, exitOK, n.stop())
	code, _, errOut := cli("serve", dir, "--listen", "127.0.0.1:0", "--http", "off")
	require.Equal(t, exitFailed, code)
	require.Contains(t, errOut, `belongs to cluster "c"`)
}

func TestServeMakesADirectoryForItsOwnerOnly(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes")
	}
	parent := t.TempDir()
	n := serve(t, filepath.Join(parent, "made", "data"))
	info, err := os.Stat(n.dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	require.Equal(t, exitOK, n.stop())
	require.NoError(t, os.Chmod(n.dir, 0o750))
	n = serve(t, n.dir)
	info, err = os.Stat(n.dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o750), info.Mode().Perm(), "that is the owner's business")
}

func TestDirectoryWithoutItsLockIsReadAndLeftSo(t *testing.T) {
	dir := replicaDir(t, "k", "v")
	require.NoError(t, os.Remove(filepath.Join(dir, "LOCK")))
	t.Setenv("TMPDIR", t.TempDir())
	before := imprint(t, dir)
	for _, args := range [][]string{{"get", "k", "--dir", dir}, {"verify", dir}, {"scan", "--dir", dir}, {"log", "--dir", dir}, {"conflicts", "--dir", dir}, {"compare", dir, dir}} {
		must(t, args...)
		require.Equal(t, before, imprint(t, dir), args)
	}
	left, err := os.ReadDir(os.Getenv("TMPDIR"))
	require.NoError(t, err)
	require.Empty(t, left)
	t.Chdir(filepath.Dir(dir))
	require.Equal(t, "v", must(t, "get", "k", "--dir", filepath.Base(dir)))
}
