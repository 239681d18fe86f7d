package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/level-replicator/replicator"
)

// lastOfVersion1 is the last commit whose replicas speak version 1 of the protocol alone.
const lastOfVersion1 = "6c5bad672ab825c6d8dd9e25b52ede7e309d264c"

// programs are builds of levelrepl.
type programs struct{ old, new string }

// buildPrograms builds levelrepl as it was at lastOfVersion1, and as it is.
func buildPrograms(t *testing.T) programs {
	t.Helper()
	if testing.Short() {
		t.Skip("builds levelrepl of an earlier commit")
	}
	// Somebody who unpacks the sources inside another checkout has git, and not this commit.
	if err := exec.Command("git", "cat-file", "-e", lastOfVersion1+"^{commit}").Run(); err != nil {
		t.Skipf("needs git and the history, of which commit %.7s is not here", lastOfVersion1)
	}
	dir := t.TempDir()
	source := filepath.Join(dir, "source")
	require.NoError(t, os.Mkdir(source, 0o755))
	run := func(dir, name string, args ...string) {
		t.Helper()
		c := exec.Command(name, args...)
		c.Dir, c.Env = dir, append(os.Environ(), "GOWORK="+filepath.Join(source, "go.work"))
		out, err := c.CombinedOutput()
		require.NoError(t, err, "%s %s\n%s", name, strings.Join(args, " "), out)
	}
	top, err := exec.Command("git", "rev-parse", "--show-toplevel").Output()
	require.NoError(t, err)
	archive := filepath.Join(dir, "source.tar")
	run(strings.TrimSpace(string(top)), "git", "archive", "--format=tar", "-o", archive, lastOfVersion1)
	run(source, "tar", "-xf", archive)
	old := filepath.Join(dir, "levelrepl-old")
	run(source, "go", "build", "-buildvcs=false", "-o", old, "./cmd/levelrepl")
	return programs{old, build(t)}
}

// instance is a replica in a process of its own.
type instance struct {
	*served
	program string
	cmd     *exec.Cmd
}

// start serves a directory with a program.
func start(t *testing.T, program, dir string, args ...string) *instance {
	t.Helper()
	n := &instance{&served{dir: dir, log: &lines{}}, program, exec.Command(program, "serve", dir, "--name", filepath.Base(dir),
		"--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log-json")}
	n.cmd.Args = append(n.cmd.Args, args...)
	out := &lines{}
	n.cmd.Stdout, n.cmd.Stderr = out, n.log
	require.NoError(t, n.cmd.Start())
	t.Cleanup(func() { _ = n.cmd.Process.Kill() })
	eventually(t, func() bool { return addresses.MatchString(out.String()) }, n.log)
	found := addresses.FindStringSubmatch(out.String())
	n.peer, n.http = found[1], found[2]
	return n
}

// do sends a request and returns the answer, which must have one of the statuses.
func (n *instance) do(t *testing.T, method, path, token string, body []byte, statuses ...int) (content []byte, header http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+n.http+path, bytes.NewReader(body))
	require.NoError(t, err)
	if token != "" {
		r.Header.Set(tokenHeader, token)
	}
	answer, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer answer.Body.Close()
	content, err = io.ReadAll(answer.Body)
	require.NoError(t, err)
	require.Contains(t, statuses, answer.StatusCode, "%s %s: %.300s", method, path, content)
	return content, answer.Header
}

// put writes and returns the token of the write.
func (n *instance) put(t *testing.T, key string, value []byte) string {
	t.Helper()
	_, h := n.do(t, http.MethodPut, "/kv/"+key, "", value, http.StatusOK, http.StatusNoContent)
	require.NotEmpty(t, h.Get(tokenHeader))
	return h.Get(tokenHeader)
}

func (n *instance) del(t *testing.T, key string) string {
	t.Helper()
	_, h := n.do(t, http.MethodDelete, "/kv/"+key, "", nil, http.StatusOK, http.StatusNoContent)
	require.NotEmpty(t, h.Get(tokenHeader))
	return h.Get(tokenHeader)
}

func (n *instance) status(t *testing.T) (s replicator.Status) {
	t.Helper()
	b, _ := n.do(t, http.MethodGet, "/status", "", nil, http.StatusOK)
	require.NoError(t, json.Unmarshal(b, &s))
	return s
}

// sizes are of values: none at all, one that is sent within a page, one that is longer,
// and one that takes several frames.
var sizes = []int{0, 1, 1000, 64 << 10, 1<<20 + 1, 5 << 20}

// noise returns a value that does not compress, another for each seed.
func noise(seed, size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// mixture is a cluster of programs.
type mixture struct{ instances []*instance }

// newMixture makes replicas with some programs, has others go on with them and write while they
// are apart, and brings them together.
func newMixture(t *testing.T, credentials, makers, programs []string) *mixture {
	t.Helper()
	m := &mixture{}
	for i, p := range makers {
		m.instances = append(m.instances, &instance{served: &served{dir: filepath.Join(t.TempDir(), fmt.Sprint("replica", i))}, program: p})
	}
	m.start(t, credentials, true) // so that each has members, and keeps its tombstones for them
	m.instances[0].put(t, "conflict/deleted", []byte("v"))
	m.requireAgreement(t, 1, 0)
	m.end(t)
	for i, p := range programs {
		m.instances[i].program = p
	}
	m.start(t, credentials, false)
	for i, n := range m.instances {
		for j, size := range sizes {
			n.put(t, fmt.Sprintf("apart/%d/%d", i, size), noise(i<<4|j, size))
		}
		n.put(t, "conflict/small", fmt.Append(nil, "of ", i))
		n.put(t, "conflict/large", noise(100+i, 5<<20))
		if i == 0 {
			n.del(t, "conflict/deleted")
		} else {
			n.put(t, "conflict/deleted", fmt.Append(nil, "of ", i))
		}
	}
	m.end(t)
	m.start(t, credentials, true)
	return m
}

// start starts all, if they are to be together each with the address of the one before it.
func (m *mixture) start(t *testing.T, credentials []string, together bool) {
	t.Helper()
	for i, n := range m.instances {
		args := credentials
		if together && i > 0 {
			args = append(args[:len(args):len(args)], "--peer", m.instances[i-1].peer)
		}
		m.instances[i] = start(t, n.program, n.dir, args...)
	}
}

// requireAgreement waits until all agree, and requires that nothing had to be repaired or was
// turned away.
func (m *mixture) requireAgreement(t *testing.T, keys, conflicts int) {
	t.Helper()
	var all []*served
	for _, n := range m.instances {
		all = append(all, n.served)
	}
	agree(t, all...)
	first := m.instances[0]
	for _, n := range m.instances {
		s := n.status(t)
		require.Equal(t, first.status(t).Digest, s.Digest)
		require.EqualValues(t, keys, s.Keys)
		require.EqualValues(t, conflicts, s.Conflicts)
		require.Zero(t, s.Mismatches)
		require.Zero(t, s.HeldBack)
		require.Empty(t, s.Refusals)
		for _, p := range s.Peers {
			require.Empty(t, p.Error, "%s of %s", p.Name, s.Name)
		}
	}
}

// write has each replica write, overwrite and delete, and requires that each of the others
// has it by the token of the write.
func (m *mixture) write(t *testing.T) {
	t.Helper()
	for i, n := range m.instances {
		next := m.instances[(i+1)%len(m.instances)]
		for j, size := range sizes {
			key := fmt.Sprintf("live/%d/%d", i, size)
			m.requireValue(t, key, n.put(t, key, noise(j, size)), noise(j, size))
			if size < 1<<20 {
				m.requireValue(t, key, next.put(t, key, noise(50+j, size)), noise(50+j, size))
			}
		}
		key := fmt.Sprint("gone/", i)
		m.requireValue(t, key, n.put(t, key, []byte("v")), []byte("v"))
		token := next.del(t, key)
		for _, o := range m.instances {
			o.do(t, http.MethodGet, "/kv/"+key, token, nil, http.StatusNotFound)
		}
	}
}

func (m *mixture) requireValue(t *testing.T, key, token string, want []byte) {
	t.Helper()
	for _, n := range m.instances {
		got, _ := n.do(t, http.MethodGet, "/kv/"+key, token, nil, http.StatusOK)
		require.True(t, bytes.Equal(want, got), "%s at %s: %d bytes, want %d", key, n.dir, len(got), len(want))
	}
}

// resolve has the last replica end one conflict and the first another.
func (m *mixture) resolve(t *testing.T) {
	t.Helper()
	m.requireValue(t, "conflict/small", m.instances[len(m.instances)-1].put(t, "conflict/small", []byte("resolved")), []byte("resolved"))
	m.requireValue(t, "conflict/deleted", m.instances[0].put(t, "conflict/deleted", []byte("resolved")), []byte("resolved"))
}

// end stops all. They must have had nothing to complain about: whatever is logged of sessions
// that fail and of connections that are turned away is a warning at least.
func (m *mixture) end(t *testing.T) {
	t.Helper()
	for _, n := range m.instances { // before any of them is gone, which the others log
		require.NotRegexp(t, `"level":"(WARN|ERROR)"`, n.log.String(), n.dir)
	}
	for _, n := range m.instances {
		require.NoError(t, n.cmd.Process.Signal(syscall.SIGTERM))
		require.NoError(t, n.cmd.Wait(), n.log)
	}
}

// TestReplicasOfVersion1AndOfThisVersionReplicate runs the program of the last commit that speaks
// version 1 of the protocol alone beside this one.
func TestReplicasOfVersion1AndOfThisVersionReplicate(t *testing.T) {
	p := buildPrograms(t)
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, "secret", secret)
	sealed := []string{"--secret-file", secret}
	for _, c := range []struct {
		name        string
		credentials []string
		makers      []string // of the directories: the new program has some of the old one, as after an upgrade
		programs    []string // each is started with the address of the one before it
	}{
		{"old dials new", nil, []string{p.old, p.old}, []string{p.new, p.old}},
		{"new dials old", nil, []string{p.old, p.old}, []string{p.old, p.new}},
		{"two old and one new", nil, []string{p.old, p.old, p.old}, []string{p.old, p.new, p.old}},
		{"old dials new with a secret", sealed, []string{p.new, p.old}, []string{p.new, p.old}},
		{"new dials old with a secret", sealed, []string{p.old, p.new}, []string{p.old, p.new}},
		{"two new and one old with a secret", sealed, []string{p.new, p.old, p.new}, []string{p.new, p.old, p.new}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := newMixture(t, c.credentials, c.makers, c.programs)
			count := len(m.instances)
			keys := count*len(sizes) + 3
			m.requireAgreement(t, keys, 3)
			m.write(t)
			m.resolve(t)
			m.requireAgreement(t, keys+count*len(sizes), 1)
			for _, n := range m.instances[1:] {
				must(t, "compare", "--full", m.instances[0].http, n.http)
			}
			m.end(t)
			for _, n := range m.instances {
				out, err := exec.Command(n.program, "verify", n.dir).CombinedOutput()
				require.NoError(t, err, "%s", out)
			}
		})
	}
}
