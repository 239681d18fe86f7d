package statuspage_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/statuspage"
)

func ask(t testing.TB, h http.Handler, target string, head ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, target, nil)
	for i := 0; i < len(head); i += 2 {
		r.Header.Add(head[i], head[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func pageOf(t testing.TB, w *httptest.ResponseRecorder) (p statuspage.Page) {
	t.Helper()
	require.Equal(t, "application/json", w.Header().Get("Content-Type"))
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &p))
	return p
}

func TestPageShowsWhichReplicasAgree(t *testing.T) {
	c := newCluster(t, "one", "two", "three")
	put(t, c.dbs[0], "k", "v")
	c.agree()
	body := ask(t, statuspage.Handler(c.dbs[0]), "/").Body.String()
	require.Contains(t, body, `role="status">All 3 replicas agree</p>`)
	require.Equal(t, 2, strings.Count(body, `>agrees</span>`))
	require.Equal(t, 3, strings.Count(body, c.dbs[0].Digest().String()[:8]+"</code>"))

	require.NoError(t, c.dbs[2].Close())
	put(t, c.dbs[0], "l", "v")
	require.Eventually(t, func() bool {
		body = ask(t, statuspage.Handler(c.dbs[0]), "/").Body.String()
		return strings.Contains(body, ">unreachable</span>")
	}, time.Minute, 50*time.Millisecond)
	require.Contains(t, body, "2 of 3 replicas agree")
	require.Contains(t, body, "three was last heard")
	require.Regexp(t, `<td class="n">1<span class="small">at most \d+ (ms|s)</span></td>`, body)
}

func TestSameAddressServesJSON(t *testing.T) {
	c := newCluster(t, "one", "two")
	put(t, c.dbs[0], "k", "v")
	h := statuspage.Handler(c.dbs[0])
	for name, w := range map[string]*httptest.ResponseRecorder{
		"by format":      ask(t, h, "/x?format=json", "Accept", "text/html"),
		"by Accept":      ask(t, h, "/", "Accept", "application/json"),
		"by Accept of q": ask(t, h, "/", "Accept", "*/*;q=0.1, application/json;q=0.9"),
	} {
		p := pageOf(t, w)
		require.Equal(t, "one", p.Status.Name, name)
		require.EqualValues(t, 1, p.Status.Keys, name)
		require.NotContains(t, w.Body.String(), "null", name)
	}
	for _, w := range []*httptest.ResponseRecorder{
		ask(t, h, "/"),
		ask(t, h, "/", "Accept", "text/html,application/json"),
		ask(t, h, "/?format=html", "Accept", "application/json"),
	} {
		require.Equal(t, "text/html; charset=utf-8", w.Header().Get("Content-Type"))
	}
}

func TestPageShowsLiveSessions(t *testing.T) {
	c := newCluster(t, "one", "two")
	c.agree()
	var body string
	var p statuspage.Page
	require.Eventually(t, func() bool {
		put(t, c.dbs[0], "k", time.Now().String())
		h := statuspage.Handler(c.dbs[1])
		body, p = ask(t, h, "/").Body.String(), pageOf(t, ask(t, h, "/?format=json"))
		return p.Status.Live == 1 && len(p.Status.Delays) == 1
	}, time.Minute, 10*time.Millisecond)
	require.Equal(t, "one", p.Status.Delays[0].Name)
	require.False(t, p.Status.Peers[0].Live.IsZero())
	require.Regexp(t, `<td class="n">live<span class="small">for \d+ (ms|s)</span></td>`, body)
	require.Regexp(t, `<td class="n">\d+ ms<span class="small">99 %: \d+ ms</span></td>`, body)
	require.Regexp(t, `<dt>Live sessions</dt><dd>1</dd><dd class="small">\d+ push(es)? sent</dd>`, body)
}

func TestPageCanOnlyBeRead(t *testing.T) {
	c := newCluster(t, "one")
	h := statuspage.Handler(c.dbs[0])
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, "/", nil))
		require.Equal(t, http.StatusMethodNotAllowed, w.Code)
		require.Equal(t, "GET, HEAD", w.Header().Get("Allow"))
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodHead, "/", nil))
	require.Equal(t, http.StatusOK, w.Code)
	require.Empty(t, w.Body.String())
	require.NotEqual(t, "0", w.Header().Get("Content-Length"))
}

func TestPageLoadsNothingFromElsewhere(t *testing.T) {
	c := newCluster(t, "one")
	w := ask(t, statuspage.Handler(c.dbs[0]), "/")
	policy := w.Header().Get("Content-Security-Policy")
	require.Contains(t, policy, "default-src 'none'")
	require.NotContains(t, policy, "unsafe")
	body := w.Body.String()
	require.NotContains(t, body, "http://")
	require.NotContains(t, body, "https://")
	require.NotContains(t, body, " style=", "the policy forbids it")
	require.NotRegexp(t, `(href|src)="/`, body, "it may stand under a prefix")
}

func TestConflictShowsAllVersionsAndTheirWriters(t *testing.T) {
	c := newCluster(t, "one", "two", "three")
	c.apart(func(i int, db *replicator.DB) { put(t, db, "cart", fmt.Sprint("written at ", i)) })
	for _, db := range c.dbs {
		p := pageOf(t, ask(t, statuspage.Handler(db), "/?format=json"))
		require.Len(t, p.Conflicts, 1)
		k := p.Conflicts[0]
		require.Equal(t, "cart", k.Text)
		require.Len(t, k.Versions, 3)
		winners := 0
		for _, v := range k.Versions {
			i := map[string]int{"one": 0, "two": 1, "three": 2}[v.Replica]
			require.Equal(t, fmt.Sprint("written at ", i), v.Text)
			if v.Winner {
				winners++
				require.Equal(t, k.Resolved.Text, v.Text)
			}
		}
		require.Equal(t, 1, winners)
	}
	put(t, c.dbs[0], "cart", "resolved")
	c.agree()
	h := statuspage.Handler(c.dbs[1])
	require.Empty(t, pageOf(t, ask(t, h, "/?format=json")).Conflicts)
	require.Contains(t, ask(t, h, "/").Body.String(), `<p class="none">None.</p>`)
}

func TestKeysAndValuesOfAnyBytesDoNoHarm(t *testing.T) {
	c := newCluster(t, "one", "two")
	keys := []string{
		"</title><script>alert(1)</script>", `"><img src=x onerror=alert(1)>`, "\x00\xff\xfe", "", " edge ", "line\nbreak",
		"\u202egnp.exe", "{{.Name}}", "'`${1}", "ünïcode ✓", strings.Repeat("long", 2000),
	}
	c.apart(func(i int, db *replicator.DB) {
		for _, k := range keys {
			put(t, db, k, fmt.Sprint(k, i))
		}
	})
	h := statuspage.Handler(c.dbs[0])
	body := ask(t, h, "/").Body.String()
	require.Equal(t, 1, strings.Count(body, "<script>"), "its own")
	require.NotContains(t, body, "<img")
	require.NotContains(t, body, "\x00")
	require.NotContains(t, body, "\u202e", "it would turn the text around")
	for _, want := range []string{
		`<code>&#34;\x00\xff\xfe&#34;</code>`, `<code>&#34;&#34;</code>`, `<code>&#34; edge &#34;</code>`, `<code>&#34;line\nbreak&#34;</code>`,
		`<code>&#34;\u202egnp.exe&#34;</code>`, `<code>{{.Name}}</code>`, `<code>ünïcode ✓</code>`, `<pre>00 ff fe 30</pre><p class="small">4 bytes, not text</p>`,
	} {
		require.Contains(t, body, want)
	}
	p := pageOf(t, ask(t, h, "/?format=json"))
	require.Len(t, p.Conflicts, len(keys))
	seen := map[string]bool{}
	for _, k := range p.Conflicts {
		seen[string(k.Key)] = true
	}
	for _, k := range keys {
		require.True(t, seen[k[:min(len(k), 4096)]], "%.20q", k)
	}
}

func TestPageStaysSmallWhateverThereIs(t *testing.T) {
	c := newCluster(t, "one", "two")
	c.apart(func(i int, db *replicator.DB) {
		for k := range 50 {
			put(t, db, fmt.Sprintf("key %02d", k), fmt.Sprint(i, strings.Repeat("<&>", 4_000)))
		}
	})
	for i := range 3000 {
		require.NoError(t, c.dbs[0].AddPeer(fmt.Sprintf("nobody%d:9000", i)))
	}
	h := statuspage.Handler(c.dbs[0])
	body := ask(t, h, "/").Body.String()
	require.Less(t, len(body), 1<<20)
	require.NotContains(t, body, "nobody2999")
	require.Contains(t, body, "… and 30 keys more in conflict.")
	require.Contains(t, body, "the beginning of 12,001 bytes")
	require.Contains(t, body, "none of them in trouble worse than these")
	p := pageOf(t, ask(t, h, "/?format=json"))
	require.Len(t, p.Conflicts, 20)
	require.EqualValues(t, 30, p.More)
	require.Len(t, p.Conflicts[0].Versions[0].Value.Value, 4096)
	require.Equal(t, 12_001, p.Conflicts[0].Versions[0].Size)
}

func TestManyReadersCostOneLook(t *testing.T) {
	c := newCluster(t, "one")
	h := statuspage.Handler(c.dbs[0])
	var times sync.Map
	var readers sync.WaitGroup
	for range 20 {
		readers.Go(func() {
			for range 10 {
				times.Store(pageOf(t, ask(t, h, "/?format=json")).Status.Time, true)
			}
		})
	}
	began := time.Now()
	readers.Wait()
	looks := 0
	times.Range(func(any, any) bool { looks++; return true })
	require.LessOrEqual(t, looks, 2+int(time.Since(began)/time.Second))
}

func TestPageOfAClosedDatabaseStillComes(t *testing.T) {
	c := newCluster(t, "one", "two")
	c.apart(func(i int, db *replicator.DB) { put(t, db, "k", fmt.Sprint(i)) })
	require.NoError(t, c.dbs[0].Close())
	w := ask(t, statuspage.Handler(c.dbs[0]), "/")
	require.Equal(t, http.StatusOK, w.Code)
	require.Contains(t, w.Body.String(), "… and 1 key more in conflict.")
}
