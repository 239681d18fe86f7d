package main

import (
	"encoding/json"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// conflict makes two stopped replicas that each wrote a key without knowing of the other,
// and one of them deleted a second.
func conflict(t *testing.T) (a, b string) {
	t.Helper()
	root := t.TempDir()
	one := serve(t, filepath.Join(root, "a"))
	two := serve(t, filepath.Join(root, "b"), "--peer", one.peer)
	must(t, "put", "--addr", one.http, "k", "base", "--replicas", "1")
	must(t, "put", "--addr", one.http, "d", "base", "--replicas", "1")
	require.Equal(t, exitOK, two.stop())
	require.Equal(t, exitOK, one.stop())
	must(t, "put", "--dir", one.dir, "k", "from a")
	must(t, "put", "--dir", two.dir, "k", "from b\x00")
	must(t, "put", "--dir", two.dir, "d", "kept")
	must(t, "del", "--dir", one.dir, "d") // the later: a deletion that is not shown is forgotten before long
	return one.dir, two.dir
}

// conflicting serves them until both know of the conflicts.
func conflicting(t *testing.T) (a, b *served) {
	t.Helper()
	one, two := conflict(t)
	a = serve(t, one)
	b = serve(t, two, "--peer", a.peer)
	agree(t, a, b)
	return a, b
}

func TestConflictsAreListedWithAllVersions(t *testing.T) {
	a, b := conflicting(t)
	out := must(t, "conflicts", "--addr", a.http)
	require.Regexp(t, `(?m)^k\n +N +VERSION .*\n(.*\n)*.* from a$`, out)
	require.Contains(t, out, `"from b\x00"`)
	require.Contains(t, out, "(deleted)")
	require.Len(t, regexp.MustCompile(`(?m)^\* `).FindAllString(out, -1), 2, "one version of each is shown")
	require.Equal(t, out, must(t, "conflicts", "--addr", b.http))
	mustFail(t, exitFound, "2 keys in conflict", "conflicts", "--check", "--addr", b.http)
	require.Equal(t, exitOK, a.stop())
	require.Equal(t, out, must(t, "conflicts", "--dir", a.dir))

	var e entry
	line, _, _ := strings.Cut(must(t, "conflicts", "--addr", b.http, "--json"), "\n")
	require.NoError(t, json.Unmarshal([]byte(line), &e))
	require.Equal(t, "d", string(e.Key))
	require.Len(t, e.Versions, 2)
}

func TestConflictIsSettledByNumberNameValueOrDeletion(t *testing.T) {
	a, b := conflicting(t)
	at := "--addr=" + a.http
	name := regexp.MustCompile(`(\w{8}/\d+) .*kept`).FindStringSubmatch(must(t, "conflicts", at))[1]
	require.Contains(t, mustFail(t, exitFound, "there is no version 3; there are 1 (", "resolve", at, "d", "--take", "3"), "")
	mustFail(t, exitFound, "there is no version "+name[1:], "resolve", at, "d", "--take", name[1:])
	must(t, "resolve", at, "d", "--take", name)
	require.Equal(t, "kept", must(t, "get", at, "d"))
	must(t, "resolve", at, "k", "--value", "both")
	require.Equal(t, "both", must(t, "get", at, "k"))
	require.Equal(t, "no conflicts\n", must(t, "conflicts", at, "--check"))
	mustFail(t, exitFound, "k is not in conflict", "resolve", at, "k", "--delete")
	mustFail(t, exitFound, "is not in conflict", "resolve", at, "never", "--take", "1")
	agree(t, a, b)
	require.Equal(t, "both", must(t, "get", "--addr", b.http, "k"))
}

func TestConflictIsSettledInAStoppedDirectory(t *testing.T) {
	a, b := conflicting(t)
	require.Equal(t, exitOK, a.stop())
	out := must(t, "conflicts", "--dir", a.dir)
	number := regexp.MustCompile(`(\d) +\w{8}/\d+ .*from b`).FindStringSubmatch(out)[1]
	must(t, "resolve", "--dir", a.dir, "k", "--take", number)
	require.Equal(t, "from b\x00", must(t, "get", "--dir", a.dir, "k"))
	deleted := regexp.MustCompile(`(\w{8}/\d+) .*\(deleted\)`).FindStringSubmatch(out)[1]
	must(t, "resolve", "--dir", a.dir, "d", "--take", deleted)
	mustFail(t, exitFound, "no key", "get", "--dir", a.dir, "d")
	a = serve(t, a.dir, "--listen", a.peer)
	agree(t, a, b)
	require.Equal(t, "no conflicts\n", must(t, "conflicts", "--addr", b.http))
	mustFail(t, exitFound, "no key", "get", "--addr", b.http, "d")
}

func TestVersionThatIsGoneCannotBeTaken(t *testing.T) {
	a, _ := conflicting(t)
	var vs []version
	require.NoError(t, json.Unmarshal([]byte(bodyOf(t, ask(t, "GET", "http://"+a.http+"/versions/k", ""))), &vs))
	require.Len(t, vs, 2)
	r := ask(t, "POST", "http://"+a.http+"/take/k?version="+vs[0].Origin.String()+"/99", "")
	require.Equal(t, 409, r.StatusCode)
	require.Contains(t, bodyOf(t, r), "list them again")
}

func TestResolverDecidesWhatIsShown(t *testing.T) {
	one, two := conflict(t)
	must(t, "put", "--dir", one, "k", "from a, clock higher")
	a := serve(t, one)
	must(t, "put", "--addr", a.http, "k", "clock higher still")
	b := serve(t, two, "--resolver", "last-write-wins")
	must(t, "put", "--addr", b.http, "k", "latest")
	require.Equal(t, exitOK, b.stop())
	b = serve(t, two, "--resolver", "last-write-wins", "--peer", a.peer)
	agree(t, a, b)
	require.Equal(t, "clock higher still", must(t, "get", "--addr", a.http, "k"))
	require.Equal(t, "latest", must(t, "get", "--addr", b.http, "k"))

	require.Equal(t, exitOK, b.stop())
	require.Equal(t, "latest", must(t, "get", "--dir", two, "k"))
	require.Regexp(t, `(?m)^\* .* latest$`, must(t, "conflicts", "--dir", two), "what stands there, whatever the resolver")
}
