package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/level-replicator/replicator"
)

func ask(t *testing.T, method, address, body string, headers ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequest(method, address, strings.NewReader(body))
	require.NoError(t, err)
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
		}
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// tryAsk is ask for a replica that may refuse.
func tryAsk(method, address, body string) (status int, err error) {
	req, err := http.NewRequest(method, address, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

func bodyOf(t *testing.T, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	return string(b)
}

func TestHTTPKeepsAnyKeyAndValue(t *testing.T) {
	base := "http://" + serve(t, filepath.Join(t.TempDir(), "a")).http
	for _, s := range odd {
		at := base + "/kv/" + url.PathEscape(s)
		require.Equal(t, http.StatusNoContent, ask(t, "PUT", at, "<"+s+">").StatusCode, "%q", s)
	}
	for _, s := range odd {
		at := base + "/kv/" + url.PathEscape(s)
		got := ask(t, "GET", at, "")
		require.Equal(t, http.StatusOK, got.StatusCode)
		require.Equal(t, "<"+s+">", bodyOf(t, got), "%q", s)
		require.EqualValues(t, len(s)+2, ask(t, "HEAD", at, "").ContentLength)
	}
	require.Equal(t, http.StatusOK, ask(t, "GET", base+"/kv/a/../b", "").StatusCode, "a slash need not be escaped")
	require.Equal(t, http.StatusNoContent, ask(t, "DELETE", base+"/kv/%00", "").StatusCode)
	require.Equal(t, http.StatusNotFound, ask(t, "HEAD", base+"/kv/%00", "").StatusCode)
}

func TestHTTPSaysWhatIsWrong(t *testing.T) {
	base := "http://" + serve(t, filepath.Join(t.TempDir(), "a"), "--max-value", "10B").http
	require.Equal(t, http.StatusNoContent, ask(t, "PUT", base+"/kv/k", "v").StatusCode)
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"GET", "/kv/none", "", 404, "not found"},
		{"POST", "/kv/k", "", 405, "POST is not for keys"},
		{"PUT", "/versions/k", "", 405, "not for versions"},
		{"GET", "/take/k", "", 405, "does not resolve"},
		{"POST", "/take/k?version=x", "", 409, "not in conflict"},
		{"PUT", "/kv/%ff%ffk", "v", 400, "reserved"},
		{"GET", "/kv/%ff%ffk", "", 400, "reserved"},
		{"PUT", "/kv/k", "0123456789x", 413, "too large"},
		{"GET", "/kv?limit=0", "", 400, "want a number"},
		{"GET", "/conflicts?limit=x", "", 400, "want a number"},
		{"PUT", "/kv/k?replicas=-1", "v", 400, "want a number"},
	} {
		r := ask(t, c.method, base+c.path, c.body)
		require.Equal(t, c.status, r.StatusCode, "%s %s", c.method, c.path)
		var e struct{ Error string }
		require.NoError(t, json.Unmarshal([]byte(bodyOf(t, r)), &e))
		require.Contains(t, e.Error, c.says)
	}
	require.Equal(t, 404, ask(t, "GET", base+"/nothing", "").StatusCode)
}

func TestWebPagesCannotUseAReplicaOnLoopback(t *testing.T) {
	base := "http://" + serve(t, filepath.Join(t.TempDir(), "a")).http
	require.Equal(t, http.StatusForbidden, ask(t, "PUT", base+"/kv/k", "v", "Origin", "http://evil.example", "Sec-Fetch-Site", "cross-site").StatusCode)
	require.Equal(t, http.StatusMisdirectedRequest, ask(t, "GET", base+"/kv/k", "", "Host", "evil.example:9080").StatusCode)
	require.Equal(t, http.StatusMisdirectedRequest, ask(t, "GET", base+"/status", "", "Host", "10.0.0.1").StatusCode)
	require.Equal(t, http.StatusNotFound, ask(t, "GET", base+"/kv/k", "", "Host", "localhost:9080").StatusCode)
	require.Equal(t, http.StatusNotFound, ask(t, "GET", base+"/kv/k", "", "Host", "[::1]").StatusCode)
}

func TestPagesOfOtherOriginsMayOnlyLeadToTheStatusPage(t *testing.T) {
	base := "http://" + serve(t, filepath.Join(t.TempDir(), "a")).http
	for _, c := range []struct {
		method, path, head string
		status             int
	}{
		{"GET", "/", "Sec-Fetch-Site: cross-site, Sec-Fetch-Mode: navigate, Sec-Fetch-Dest: document", 200},
		{"GET", "/", "Sec-Fetch-Site: same-site, Sec-Fetch-Mode: navigate, Sec-Fetch-Dest: document", 200},
		{"GET", "/", "Sec-Fetch-Site: cross-site, Sec-Fetch-Mode: navigate, Sec-Fetch-Dest: iframe", 403},
		{"GET", "/", "Sec-Fetch-Site: cross-site, Sec-Fetch-Mode: no-cors, Sec-Fetch-Dest: image", 403},
		{"POST", "/", "Sec-Fetch-Site: cross-site, Sec-Fetch-Mode: navigate, Sec-Fetch-Dest: document", 403},
		{"GET", "/verify", "Sec-Fetch-Site: cross-site, Sec-Fetch-Mode: navigate, Sec-Fetch-Dest: document", 403},
		{"GET", "/verify", "Sec-Fetch-Site: cross-site, Sec-Fetch-Mode: no-cors, Sec-Fetch-Dest: image", 403},
		{"GET", "/verify", "Sec-Fetch-Site: same-site, Sec-Fetch-Mode: cors, Sec-Fetch-Dest: empty", 403},
		{"GET", "/kv", "Sec-Fetch-Site: cross-site, Sec-Fetch-Mode: cors, Sec-Fetch-Dest: empty", 403},
		{"GET", "/kv/k", "Origin: http://evil.example", 403},
		{"GET", "/status", "Origin: null", 403},
		{"PUT", "/kv/k", "Origin: http://evil.example", 403},
		{"GET", "/verify", "Sec-Fetch-Site: same-origin, Sec-Fetch-Mode: cors, Sec-Fetch-Dest: empty", 200},
		{"GET", "/status", "Sec-Fetch-Site: none, Sec-Fetch-Mode: navigate, Sec-Fetch-Dest: document", 200},
		{"GET", "/status", "Origin: " + base, 200},
		{"GET", "/verify", "", 200},
	} {
		var heads []string
		for h := range strings.SplitSeq(c.head, ", ") {
			if name, value, ok := strings.Cut(h, ": "); ok {
				heads = append(heads, name, value)
			}
		}
		require.Equal(t, c.status, ask(t, c.method, base+c.path, "", heads...).StatusCode, "%s %s %s", c.method, c.path, c.head)
	}
}

func TestWritesThatSayMoreThanIsUnderstoodAreRefused(t *testing.T) {
	base := "http://" + serve(t, filepath.Join(t.TempDir(), "a")).http
	require.Equal(t, http.StatusNoContent, ask(t, "PUT", base+"/kv/k", "before").StatusCode)
	for _, c := range []struct {
		name, value string
		status      int
	}{
		{"If-Unmodified-Since", "Fri, 27 Nov 2026 18:00:00 GMT", 501}, {"If-Range", `"x"`, 501},
		{"If-None-Match", "", 400}, {"Content-Range", "bytes 0-4/10", 400}, {"Content-Encoding", "gzip", 415},
	} {
		for _, method := range []string{"PUT", "DELETE"} {
			r := ask(t, method, base+"/kv/k", "after", c.name, c.value)
			require.Equal(t, c.status, r.StatusCode, "%s %s", method, c.name)
			require.Contains(t, bodyOf(t, r), c.name)
			require.Equal(t, "before", bodyOf(t, ask(t, "GET", base+"/kv/k", "")))
		}
	}
	require.Equal(t, http.StatusNoContent, ask(t, "PUT", base+"/kv/k", "after", "Content-Encoding", "identity").StatusCode)

	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	require.NoError(t, err)
	defer conn.Close()
	fmt.Fprint(conn, "PUT /kv/k HTTP/1.0\r\nHost: localhost\r\n\r\nvalue")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusLengthRequired, resp.StatusCode, "else it would be a write of nothing")
	require.Equal(t, "after", bodyOf(t, ask(t, "GET", base+"/kv/k", "")))
}

func TestOneVerificationRunsAtATimeAndEndsWithItsRequest(t *testing.T) {
	w := &web{checking: make(chan struct{}, 1)}
	begun, end := make(chan struct{}), make(chan error, 1)
	first := w.alone(func(ctx context.Context) (replicator.Report, error) {
		close(begun)
		<-ctx.Done()
		return replicator.Report{}, ctx.Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, err := first(httptest.NewRequestWithContext(ctx, "GET", "/verify", nil))
		end <- err
	}()
	<-begun
	again := w.alone(func(context.Context) (replicator.Report, error) { return replicator.Report{}, nil })
	_, err := again(httptest.NewRequest("POST", "/repair", nil))
	require.Equal(t, http.StatusServiceUnavailable, statusOf(err))
	require.ErrorContains(t, err, "under way already")
	cancel()
	require.ErrorIs(t, <-end, context.Canceled)
	_, err = again(httptest.NewRequest("POST", "/repair", nil))
	require.NoError(t, err)
}

func TestListingsContinueWhereTheyEnded(t *testing.T) {
	base := "http://" + serve(t, filepath.Join(t.TempDir(), "a")).http
	for _, k := range strings.Fields("a%ff a%fe b c d") {
		ask(t, "PUT", base+"/kv/"+k, "v")
	}
	var got []string
	for next := "a"; ; {
		var p page
		require.NoError(t, json.Unmarshal([]byte(bodyOf(t, ask(t, "GET", base+"/kv?limit=2&to=d&from="+url.QueryEscape(next), ""))), &p))
		for _, e := range p.Entries {
			require.Equal(t, "v", string(e.Value))
			got = append(got, string(e.Key))
		}
		if next = string(p.Next); p.Next == nil {
			break
		}
	}
	require.Equal(t, []string{"a\xfe", "a\xff", "b", "c"}, got)
	require.JSONEq(t, `{"entries":[{"key":"b"}]}`, bodyOf(t, ask(t, "GET", base+"/kv?prefix=b&values=0", "")))
}

func TestTokenMakesAReadElsewhereWait(t *testing.T) {
	a := serve(t, filepath.Join(t.TempDir(), "a"))
	b := serve(t, filepath.Join(t.TempDir(), "b"), "--peer", a.peer, "--min-interval", "5s")
	for i := range 20 {
		value := string(rune('a' + i))
		token := ask(t, "PUT", "http://"+a.http+"/kv/k", value).Header.Get(tokenHeader)
		require.NotEmpty(t, token)
		require.Equal(t, value, bodyOf(t, ask(t, "GET", "http://"+b.http+"/kv/k", "", tokenHeader, token)))
	}
	require.Equal(t, http.StatusBadRequest, ask(t, "GET", "http://"+b.http+"/kv/k", "", tokenHeader, "nonsense").StatusCode)
}

func TestStatusIsTheReplicatorsAndHasAPage(t *testing.T) {
	n := serve(t, filepath.Join(t.TempDir(), "a"), "--cluster", "c")
	var s replicator.Status
	require.NoError(t, json.Unmarshal([]byte(bodyOf(t, ask(t, "GET", "http://"+n.http+"/status", ""))), &s))
	require.Equal(t, "a", s.Name)
	require.Equal(t, "c", s.Cluster)
	require.Equal(t, n.peer, s.Addr)
	page := ask(t, "GET", "http://"+n.http+"/", "")
	require.Contains(t, page.Header.Get("Content-Type"), "text/html")
	require.Contains(t, bodyOf(t, page), s.Origin.Short())
}
