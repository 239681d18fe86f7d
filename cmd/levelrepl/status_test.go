package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/statuspage"
)

func TestStatusShowsTheReplicaAndItsPeers(t *testing.T) {
	a := serve(t, filepath.Join(t.TempDir(), "a"), "--cluster", "c")
	b := serve(t, filepath.Join(t.TempDir(), "b"), "--cluster", "c", "--peer", a.peer)
	must(t, "put", "--addr", a.http, "k", "v", "--replicas", "1")
	agree(t, a, b)
	out := must(t, "status", b.http)
	require.Regexp(t, `(?m)^replica +b$`, out)
	require.Regexp(t, `(?m)^cluster +c$`, out)
	require.Regexp(t, `(?m)^state +ok$`, out)
	require.Regexp(t, `(?m)^keys +1, 0 in conflict, 0 tombstones`, out)
	require.Regexp(t, `(?m)^a +`+a.peer+` +ok +(yes|live) +0 +\d`, out)
}

func TestStatusOfSeveralShowsWhoAgreesAndWhoLacksWhat(t *testing.T) {
	a := serve(t, filepath.Join(t.TempDir(), "a"))
	b := serve(t, filepath.Join(t.TempDir(), "b"), "--peer", a.peer)
	c := serve(t, filepath.Join(t.TempDir(), "c"))
	must(t, "put", "--addr", a.http, "k", "v", "--replicas", "1")
	must(t, "put", "--addr", c.http, "other", "v")
	must(t, "put", "--addr", c.http, "another", "v")
	agree(t, a, b)
	args := []string{"status", a.http, b.http, c.http}
	out := must(t, args...)
	for _, line := range []string{
		`a +` + a.http + ` +A +1 `, `b +` + b.http + ` +A +1 `, `c +` + c.http + ` +B +2 `, // who holds what
		`a +· +0 +2`, `b +0 +· +2`, `c +1 +1 +·`, // who lacks what
		`peers of c\nno peers`,
	} {
		require.Regexp(t, `(?m)^`+line, out)
	}
	mustFail(t, exitFound, a.http+" and "+c.http+" do not agree", append(args, "--check")...)

	var all []seen
	require.NoError(t, json.Unmarshal([]byte(must(t, append(args, "--json")...)), &all))
	require.Len(t, all, 3)
	require.Equal(t, all[0].Status.Digest, all[1].Status.Digest)
}

func TestStatusNamesWhoDoesNotAnswer(t *testing.T) {
	a := serve(t, filepath.Join(t.TempDir(), "a"), "--peer", "127.0.0.1:1")
	out := mustFail(t, exitFailed, "cannot reach http://127.0.0.1:1", "status", a.http, "127.0.0.1:1")
	require.Regexp(t, `(?m)^ +127.0.0.1:1 +\? .*cannot reach`, out)
	require.Regexp(t, `(?m)^a +`+a.http, out)
	mustFail(t, exitFound, a.http+" and its peer 127.0.0.1:1 do not agree", "status", "--check", a.http)
}

func TestStatusIsShownAgainUntilInterrupted(t *testing.T) {
	a := serve(t, filepath.Join(t.TempDir(), "a"))
	ctx, cancel := context.WithCancel(context.Background())
	out, ended := &lines{}, make(chan int, 1)
	go func() { ended <- run(ctx, []string{"status", a.http, "--watch=10ms", "--json"}, nil, out, io.Discard) }()
	eventually(t, func() bool { return strings.Count(out.String(), "\n") >= 3 })
	cancel()
	require.Equal(t, exitOK, <-ended)
	for line := range strings.Lines(out.String()) {
		require.NoError(t, json.Unmarshal([]byte(line), new([]seen)))
	}
}

func TestTroubleIsPrinted(t *testing.T) {
	now := time.Now()
	s := replicator.Status{
		Name: "n", Ready: true, Failed: "disk full", Mismatches: 3,
		Work:     []replicator.Progress{{Work: "pull", Peer: "p", Keys: 5000, Total: 10000, Remaining: 90 * time.Second}},
		Blockers: []replicator.PurgeBlocker{{Name: "gone", Seen: now.Add(-50 * time.Hour)}},
		Refusals: []replicator.Refusal{{From: "10.0.0.9", Reason: "another secret", Count: 7, Last: now}},
		Peers: []replicator.PeerStatus{
			{Addr: "x:1", Source: replicator.SourceConfigured, State: replicator.PeerFailing, Failures: 2, Lag: 1200, LagTime: 90 * time.Second, Error: "line\x1b[2J\nend"},
			{Addr: "y:1", State: replicator.PeerOK, Moved: true},
			{Addr: "z:1", State: replicator.PeerSelf},
			{Addr: "w:1", State: replicator.PeerOK, Agrees: true, Differs: true},
			{Addr: "v:1", Origin: replicator.Origin{1}, State: replicator.PeerOK, Live: now.Add(-3 * time.Minute), Lag: 2, LagTime: 20 * time.Millisecond},
		},
		Time: now, Live: 1, Pushes: 1234, Duplicates: 1, Pulled: 99,
		Delays: []replicator.Delay{{Origin: replicator.Origin{1}, Name: "v", Count: 10, Early: 2, Max: 300 * time.Millisecond, Buckets: []replicator.DelayBucket{{Bound: 2 * time.Millisecond, Count: 9}, {Bound: 500 * time.Millisecond, Count: 10}}}},
	}
	var b bytes.Buffer
	printReplica(&b, seen{Status: &s}, true)
	for _, line := range []string{
		"FAILED: disk full", "3 versions came back", "at work: pull p, 5,000 of 10,000 keys, 1m30s left",
		"tombstones are kept for gone (00000000), last heard 50h0m ago", "turned away: 10.0.0.9, 7 times", `line\x1b[2J\nend`,
		"1,200 for 1m30s", "1 session, 1,234 pushes out, 1 version came twice (1.0 %)",
		"half within 2ms, 99 % within 300ms, all within 300ms, clock differences included; 2 seem to have come before they were written",
	} {
		require.Contains(t, b.String(), line)
	}
	require.Regexp(t, `(?m)y:1 +moved +- `, b.String())
	require.Regexp(t, `(?m)v:1 +ok +live +2 for 20ms +\S+ +3m0s +2ms/300ms `, b.String())
	b2 := new(bytes.Buffer)
	printOverview(b2, []seen{{Status: &s}})
	require.Regexp(t, ` 2/3 +FAILED`, b2.String(), "of five addresses three are of peers, and two answer")
	require.NotContains(t, b.String(), "\x1b", "what came from elsewhere cannot steer the terminal")
	require.Equal(t, []string{"x takes no writes: disk full", "x and its peer x:1 do not agree"}, complaints([]seen{{Addr: "x", Status: &s}}))
}

func TestSecretIsForItsOwnerOnlyAndNeverOverwritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	require.Empty(t, must(t, "secret", file))
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
	mustFail(t, exitFailed, "it may be the secret of a running cluster", "secret", file)
	require.Len(t, must(t, "secret"), 45)
	require.NotEqual(t, must(t, "secret"), must(t, "secret"))
}

func TestSecretKeepsStrangersOut(t *testing.T) {
	old, fresh := filepath.Join(t.TempDir(), "old"), filepath.Join(t.TempDir(), "fresh")
	must(t, "secret", old)
	must(t, "secret", fresh)
	a := serve(t, filepath.Join(t.TempDir(), "a"), "--secret-file", old)
	b := serve(t, filepath.Join(t.TempDir(), "b"), "--secret-file", old, "--old-secret-file", fresh, "--peer", a.peer)
	stranger := serve(t, filepath.Join(t.TempDir(), "c"), "--secret-file", fresh, "--peer", a.peer)
	must(t, "put", "--addr", a.http, "k", "v", "--replicas", "1")
	agree(t, a, b)
	mustFail(t, exitFound, "no key", "get", "--addr", stranger.http, "k")
	// The stranger dials when it comes to it, and that is noted when it has been turned away.
	for deadline := time.Now().Add(20 * time.Second); ; {
		status := must(t, "status", a.http)
		if strings.Contains(status, "turned away: 127.0.0.1") {
			break
		}
		require.True(t, time.Now().Before(deadline), "the stranger is not listed:\n%s", status)
	}
}

func TestBarIsShownOnATerminalOnly(t *testing.T) {
	var out bytes.Buffer
	for _, terminal := range []bool{false, true} {
		b := (&app{err: &out, errTerm: terminal}).newBar()
		for i := range int64(3) {
			b.tell(replicator.Progress{Work: replicator.WorkVerify, Keys: i * 500, Total: 1000})
		}
		b.tell(replicator.Progress{Work: replicator.WorkVerify, Done: true})
		b.at("compare", 5, 0)
		b.end()
		require.Equal(t, terminal, strings.Contains(out.String(), "verify") && strings.Contains(out.String(), "compare"), out.String())
	}
}

func TestStatusPageOfAnotherProgramIsUnderstood(t *testing.T) {
	raw, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(t, err)
	db, err := replicator.Replicate(raw, &replicator.Options{Name: "embedded", Listen: "127.0.0.1:0"})
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	mux := http.NewServeMux()
	mux.Handle("/replication/", http.StripPrefix("/replication", statuspage.Handler(db)))
	mux.HandleFunc("/other/", func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("{}")) })
	program := httptest.NewServer(mux)
	t.Cleanup(program.Close)
	require.Regexp(t, `(?m)^replica +embedded$`, must(t, "status", program.URL+"/replication/"))
	mustFail(t, exitFailed, "or of a status page", "status", program.URL+"/other")
	mustFail(t, exitFailed, "answered 404 Not Found", "status", program.URL)
	mustFail(t, exitFailed, "levelrepl serve", "get", "k", "--addr", program.URL)
}

func TestAddressWhereNobodyIsAnyMoreIsNoDisagreement(t *testing.T) {
	at := func(p replicator.PeerStatus) []string {
		return complaints([]seen{{Addr: "x", Status: &replicator.Status{Peers: []replicator.PeerStatus{p}}}})
	}
	require.NotEmpty(t, at(replicator.PeerStatus{Source: replicator.SourceConfigured, State: replicator.PeerFailing, Failures: 3}))
	require.NotEmpty(t, at(replicator.PeerStatus{Source: replicator.SourceLearnt, State: replicator.PeerOK}))
	live := replicator.PeerStatus{State: replicator.PeerOK, Live: time.Now(), Lag: 3}
	require.Empty(t, at(live), "it is on its way")
	live.LagTime = 2 * time.Second
	require.NotEmpty(t, at(live))
	require.NotEmpty(t, at(replicator.PeerStatus{State: replicator.PeerOK, Live: time.Now(), Differs: true}))
	require.Empty(t, at(replicator.PeerStatus{Source: replicator.SourceLearnt, State: replicator.PeerFailing, Failures: 3}))
	require.Empty(t, at(replicator.PeerStatus{Source: replicator.SourceConfigured, State: replicator.PeerFailing, Failures: 3, Moved: true}))
	require.Empty(t, at(replicator.PeerStatus{Source: replicator.SourceDiscovered, State: replicator.PeerSelf}))
	require.Empty(t, at(replicator.PeerStatus{Source: replicator.SourceConfigured, State: replicator.PeerOK, Agrees: true}))
}

func TestReplicaWhoseAddressesAreAllItsOwnIsTrouble(t *testing.T) {
	s := replicator.Status{Name: "n", Ready: true, Alone: true, Peers: []replicator.PeerStatus{{Addr: "app:9000", Source: replicator.SourceConfigured, State: replicator.PeerSelf}}}
	require.Equal(t, []string{"x replicates with nobody: every address that it was given leads to itself"}, complaints([]seen{{Addr: "x", Status: &s}}))
	var b bytes.Buffer
	printReplica(&b, seen{Status: &s}, true)
	require.Contains(t, b.String(), "ALONE: every address that it was given leads to itself")
}

// build makes the program.
func build(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "levelrepl")
	out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput()
	require.NoError(t, err, string(out))
	return bin
}

func TestProgramServesAndStopsCleanlyOnSIGTERM(t *testing.T) {
	bin, dir := build(t), filepath.Join(t.TempDir(), "data")
	var errOut bytes.Buffer
	out := &lines{}
	c := exec.Command(bin, "serve", dir, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log-json")
	c.Stdout, c.Stderr = out, &errOut
	require.NoError(t, c.Start())
	t.Cleanup(func() { _ = c.Process.Kill() })
	eventually(t, func() bool { return addresses.MatchString(out.String()) })
	addr := addresses.FindStringSubmatch(out.String())[2]
	run := func(args ...string) string {
		got, err := exec.Command(bin, args...).CombinedOutput()
		require.NoError(t, err, string(got))
		return string(got)
	}
	run("put", "k", "v", "--addr", addr)
	require.Equal(t, "v", run("get", "k", "--addr", addr))
	require.NoError(t, c.Process.Signal(syscall.SIGTERM))
	require.NoError(t, c.Wait(), errOut.String())
	require.True(t, strings.HasSuffix(out.String(), "stopped\n"))
	require.Contains(t, run("verify", dir), "1 key, 1 version")
	l, err := openPlain(dir)
	require.NoError(t, err)
	_, err = l.reader.Get([]byte("\xff\xffmclean"), nil)
	require.NoError(t, errors.Join(err, l.Close()), "the mark of a clean close is there")
	var exit *exec.ExitError
	require.ErrorAs(t, exec.Command(bin, "get", "none", "--dir", dir).Run(), &exit)
	require.Equal(t, exitFound, exit.ExitCode())
}

func TestReplicasOfTheSameNameAreDistinguished(t *testing.T) {
	a := serve(t, filepath.Join(t.TempDir(), "a"), "--name", "[::]:9000")
	b := serve(t, filepath.Join(t.TempDir(), "b"), "--name", "[::]:9000")
	c := serve(t, filepath.Join(t.TempDir(), "c"))
	must(t, "put", "--addr", c.http, "k", "v")
	must(t, "put", "--addr", b.http, "k", "w")
	var v logView
	require.NoError(t, json.Unmarshal([]byte(must(t, "log", "--json", a.http, b.http, c.http)), &v))
	require.Len(t, v.Origins, 2)
	require.Equal(t, "[::]:9000 ("+b.http+")", v.Origins[0].Of)
	require.Equal(t, map[string]uint64{"[::]:9000 (" + a.http + ")": 1, "[::]:9000 (" + b.http + ")": 1}, v.Origins[1].Behind)
	require.Contains(t, must(t, "status", a.http, b.http, c.http), "\n[::]:9000 ("+b.http+")  ")
	require.NotContains(t, must(t, "log", b.http), "("+b.http)
}

func TestWatchShowsThatAReplicaIsGone(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	out, ended := &lines{}, make(chan int, 1)
	go func() { ended <- run(ctx, []string{"status", "127.0.0.1:1", "--watch=10ms"}, nil, out, io.Discard) }()
	eventually(t, func() bool { return strings.Contains(out.String(), "cannot reach http://127.0.0.1:1") })
	cancel()
	require.Equal(t, exitOK, <-ended)
}

func TestProxyThatAnswersInPlaceOfTheReplicaIsCalledThat(t *testing.T) {
	for status, hint := range map[int]string{401: "wants a login", 403: "wants a login", 502: "cannot reach it", 504: "cannot reach it", 404: "is that the HTTP address of levelrepl serve?"} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "<html>", status) }))
		mustFail(t, exitFailed, hint, "get", "k", "--addr", s.URL)
		s.Close()
	}
}
