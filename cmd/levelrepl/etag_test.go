package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/level-replicator/replicator"
)

func tagAt(t *testing.T, at, key string) string {
	t.Helper()
	return strings.TrimSpace(must(t, "get", at, key, "--if"))
}

func TestWritesOnAConditionNeedTheTagThatWasRead(t *testing.T) {
	both(t, func(t *testing.T, at string) {
		require.Equal(t, noTag, tagAt(t, at, "k"))
		mustFail(t, exitFound, "the key has no value", "put", at, "k", "0", "--if", "*")
		must(t, "put", at, "k", "1", "--if", noTag)
		mustFail(t, exitFound, "k was not written", "put", at, "k", "2", "--if", noTag)
		one := tagAt(t, at, "k")
		require.Len(t, one, 32)
		var e entry
		require.NoError(t, json.Unmarshal([]byte(must(t, "get", at, "k", "--json")), &e))
		require.Equal(t, one, e.ETag)
		require.Equal(t, "1", string(e.Value))

		must(t, "put", at, "k", "2", "--if", one)
		two := tagAt(t, at, "k")
		require.NotEqual(t, one, two)
		mustFail(t, exitFound, "tag is "+two, "put", at, "k", "3", "--if", one)
		mustFail(t, exitFound, "tag is "+two, "del", at, "k", "--if", one)
		require.Equal(t, "2", must(t, "get", at, "k"))
		must(t, "put", at, "k", "3", "--if", "*")
		must(t, "del", at, "k", "--if", `"`+tagAt(t, at, "k")+`"`)
		mustFail(t, exitFound, "no key", "get", at, "k")
		require.Equal(t, noTag, tagAt(t, at, "k"))
		must(t, "del", at, "k", "--if", noTag)
		for _, bad := range []string{"", "x", one[1:], one + "0"} {
			mustFail(t, exitUsage, "not a tag", "put", at, "k", "v", "--if", bad)
		}
	})
}

func TestConflictIsResolvedOnTheConditionOfWhatWasListed(t *testing.T) {
	a := serve(t, filepath.Join(t.TempDir(), "a"))
	b := serve(t, filepath.Join(t.TempDir(), "b"), "--peer", a.peer)
	must(t, "put", "--addr", a.http, "k", "v", "--replicas", "1")
	tag := tagAt(t, "--addr="+a.http, "k")
	require.Equal(t, tag, tagAt(t, "--addr="+b.http, "k"), "it is the same everywhere")
	require.Equal(t, exitOK, b.stop())
	must(t, "put", "--dir", b.dir, "k", "written offline", "--if", tag)
	must(t, "put", "--addr", a.http, "k", "written meanwhile", "--if", tag)
	b = serve(t, b.dir, "--peer", a.peer)
	agree(t, a, b)
	var e entry
	require.NoError(t, json.Unmarshal([]byte(must(t, "conflicts", "--json", "--addr", a.http)), &e))
	require.Len(t, e.Versions, 2, "both succeeded, and both are kept")
	require.Equal(t, e.ETag, tagAt(t, "--addr="+b.http, "k"))
	for _, how := range [][]string{{"--take", "1"}, {"--value", "x"}, {"--delete"}} {
		mustFail(t, exitFound, "tag is "+e.ETag, append([]string{"resolve", "k", "--addr", a.http, "--if", tag}, how...)...)
	}
	must(t, "resolve", "k", "--take", "1", "--addr", a.http, "--if", e.ETag)
	require.Contains(t, must(t, "conflicts", "--addr", a.http), "no conflicts")
}

func TestHTTPConditions(t *testing.T) {
	base := "http://" + serve(t, filepath.Join(t.TempDir(), "a")).http
	at := base + "/kv/k"
	absent := ask(t, "GET", at, "")
	require.Empty(t, absent.Header.Get("ETag"))
	require.Equal(t, 412, ask(t, "PUT", at, "v", "If-Match", "*").StatusCode)
	require.Equal(t, 204, ask(t, "PUT", at, "1", "If-None-Match", "*").StatusCode)
	etag := ask(t, "HEAD", at, "").Header.Get("ETag")
	require.Regexp(t, `^"[0-9a-f]{32}"$`, etag, "a strong one")
	for _, c := range []struct {
		header, value string
		status        int
	}{
		{"If-None-Match", "*", 412}, {"If-None-Match", etag, 412}, {"If-None-Match", "W/" + etag, 412}, {"If-None-Match", `"x", ` + etag, 412},
		{"If-Match", `"x"`, 412}, {"If-Match", "W/" + etag, 412}, {"If-Match", `"x", "y"`, 412}, {"If-Match", `""`, 412}, {"If-Match", `W/"", "a,b"`, 412},
		{"If-Match", "x", 400}, {"If-Match", "", 400}, {"If-Match", etag + " " + etag, 400}, {"If-Match", `*, "x"`, 400}, {"If-Match", `"x`, 400}, {"If-None-Match", ",", 400},
	} {
		for _, method := range []string{"PUT", "DELETE"} {
			r := ask(t, method, at, "2", c.header, c.value)
			require.Equal(t, c.status, r.StatusCode, "%s %s: %s", method, c.header, c.value)
			if c.status == 412 {
				require.Equal(t, etag, r.Header.Get("ETag"), "the present one")
			}
			require.Contains(t, bodyOf(t, r), `"error"`)
		}
	}
	require.Equal(t, "1", bodyOf(t, ask(t, "GET", at, "")))
	for _, value := range []string{"*", `"x",` + "\t" + `"a,b" , ,` + "%s", "%s", `W/"x", %s, "y"`} {
		etag = ask(t, "GET", at, "").Header.Get("ETag")
		require.Equal(t, 204, ask(t, "PUT", at, "2", "If-Match", strings.ReplaceAll(value, "%s", etag)).StatusCode, value)
	}
	was := etag
	etag = ask(t, "GET", at, "").Header.Get("ETag")
	require.NotEqual(t, was, etag)
	require.Equal(t, 204, ask(t, "PUT", at, "3", "If-None-Match", was).StatusCode, "it has changed, as was wanted")
	etag = ask(t, "GET", at, "").Header.Get("ETag")
	same := ask(t, "GET", at, "", "If-None-Match", etag)
	require.Equal(t, 304, same.StatusCode)
	require.Equal(t, etag, same.Header.Get("ETag"))
	require.Equal(t, 200, ask(t, "GET", at, "", "If-None-Match", was, "If-Match", etag).StatusCode)
	require.Equal(t, 412, ask(t, "GET", at, "", "If-Match", was).StatusCode)
	require.Equal(t, 204, ask(t, "DELETE", at, "", "If-Match", etag).StatusCode)
	require.Equal(t, 412, ask(t, "DELETE", at, "", "If-Match", etag).StatusCode)
	require.Empty(t, ask(t, "DELETE", at, "", "If-Match", etag).Header.Get("ETag"), "there is none any more")
	require.Equal(t, 501, ask(t, "POST", base+"/repair", "", "If-Match", "*").StatusCode)
}

// A deletion that wins over a concurrent Put has an ETag, so that somebody can say that both were seen.
func TestHTTPConditionsWhereADeletionWins(t *testing.T) {
	a := serve(t, filepath.Join(t.TempDir(), "a"))
	b := serve(t, filepath.Join(t.TempDir(), "b"), "--peer", a.peer)
	must(t, "put", "--addr", a.http, "k", "v", "--replicas", "1")
	require.Equal(t, exitOK, b.stop())
	must(t, "put", "--dir", b.dir, "k", "kept")
	must(t, "put", "--addr", a.http, "k", "w")
	must(t, "del", "--addr", a.http, "k") // the higher clock
	b = serve(t, b.dir, "--peer", a.peer)
	agree(t, a, b)
	at := "http://" + a.http + "/kv/k"
	r := ask(t, "GET", at, "")
	require.Equal(t, 404, r.StatusCode)
	etag := r.Header.Get("ETag")
	require.NotEmpty(t, etag)
	refused := ask(t, "PUT", at, "new", "If-None-Match", "*")
	require.Equal(t, 412, refused.StatusCode, "a value that nobody saw would go")
	require.Equal(t, etag, refused.Header.Get("ETag"))
	mustFail(t, exitFound, "tag is", "put", "k", "new", "--addr", a.http, "--if", noTag)
	require.Equal(t, strings.Trim(etag, `"`), tagAt(t, "--addr="+a.http, "k"))
	require.Equal(t, 204, ask(t, "PUT", at, "new", "If-Match", etag).StatusCode)
}

func TestHTTPOfRacingClientsExactlyOneWins(t *testing.T) {
	base := "http://" + serve(t, filepath.Join(t.TempDir(), "a")).http
	for round := range 5 {
		at := fmt.Sprint(base, "/kv/", round)
		var won atomic.Int64
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				req, err := http.NewRequest("PUT", at, strings.NewReader(fmt.Sprint(i)))
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("If-None-Match", "*")
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				resp.Body.Close()
				if resp.StatusCode == 204 {
					won.Add(1)
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, 1, won.Load())
	}
}

func TestTagIsOfAllSiblingsInAnyOrder(t *testing.T) {
	a, b := replicator.VersionID{Origin: replicator.Origin{1}, Seq: 1}, replicator.VersionID{Origin: replicator.Origin{2}, Seq: 1}
	require.Empty(t, tagOf(nil))
	require.Equal(t, tagOf([]replicator.VersionID{a, b}), tagOf([]replicator.VersionID{b, a}))
	seen := map[string]bool{}
	for _, ids := range [][]replicator.VersionID{{a}, {b}, {a, b}, {{Origin: a.Origin, Seq: 2}}} {
		seen[tagOf(ids)] = true
	}
	require.Len(t, seen, 4)
}

func TestConditionsSurviveTheirHeaders(t *testing.T) {
	tag := rapid.StringMatching(`[0-9a-f]{32}`)
	list := rapid.Custom(func(t *rapid.T) (ts tags) {
		if ts.given = rapid.Bool().Draw(t, "given"); !ts.given {
			return ts
		}
		if ts.any = rapid.Bool().Draw(t, "any"); !ts.any {
			ts.list = rapid.SliceOfN(tag, 1, 3).Draw(t, "list")
		}
		return ts
	})
	rapid.Check(t, func(t *rapid.T) {
		c := condition{match: list.Draw(t, "match"), noneMatch: list.Draw(t, "none match")}
		got, err := conditionOf(c.headers())
		require.NoError(t, err)
		require.Equal(t, c, got)
		// Whatever else a client sends is a list, or refused.
		h := http.Header{"If-Match": rapid.SliceOfN(rapid.StringMatching(`[W/" ,*a-c]{0,12}`), 0, 3).Draw(t, "header")}
		if got, err = conditionOf(h); err == nil && !got.match.any {
			for _, tag := range got.match.list {
				require.NotContains(t, tag, `"`)
			}
		}
	})
}
