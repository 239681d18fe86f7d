package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPasswordsOfAddressesAreNotShown(t *testing.T) {
	n := serve(t, filepath.Join(t.TempDir(), "a"))
	must(t, "put", "--addr", n.http, "k", "v")
	at := func(hostport string) string { return "http://someone:hunter2@" + hostport }
	for _, line := range []string{
		"get k --addr " + at("127.0.0.1:1"), "get none --addr " + at(n.http), "put k v --addr " + at("127.0.0.1:1"), "get k --addr ftp" + at(n.http)[4:],
		"get k --addr http://someone:hunter2%zz@x", "get k --addr http://someone:hunter2/1@" + n.http, "get k --addr someone:hunter2@", "status " + at(n.http), "status --json " + at(n.http) + " " + at("127.0.0.1:1"),
		"status --check " + at("127.0.0.1:1"), "status " + at(n.http) + " " + at(n.http), "verify " + at(n.http), "verify --json " + at(n.http), "repair " + at(n.http), "compare " + at(n.http) + " " + at(n.http),
		"compare --json " + at(n.http) + " " + at(n.http), "log " + at(n.http), "conflicts --addr " + at(n.http+"/x"), "verify " + at(n.http+"/x"),
	} {
		_, out, errOut := cli(strings.Fields(line)...)
		require.NotContains(t, out+errOut, "hunter2", line)
		require.NotEmpty(t, out+errOut, line)
	}
	require.Equal(t, "v", must(t, "get", "k", "--addr", at(n.http)))
	t.Setenv(addrEnv, at("127.0.0.1:1"))
	_, _, errOut := cli("get", "k")
	require.Contains(t, errOut, "cannot reach http://127.0.0.1:1:")
}

// frozen is a replica that takes connections and says nothing, or only the beginning.
func frozen(t *testing.T, beginning string) string {
	t.Helper()
	end := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if beginning != "" && r.Method == http.MethodGet {
			w.Header().Set("Content-Type", "application/octet-stream")
			io.WriteString(w, beginning)
			http.NewResponseController(w).Flush()
		}
		<-end
	}))
	t.Cleanup(func() { close(end); s.Close() })
	return s.URL
}

func TestFrozenReplicaIsGivenUpAndNamed(t *testing.T) {
	for name, beginning := range map[string]string{"at once": "", "in the midst": `{"entries":[`} {
		t.Run(name, func(t *testing.T) {
			n, err := newRemote(frozen(t, beginning))
			require.NoError(t, err)
			n.patience, n.probe = time.Millisecond, time.Millisecond
			ctx := context.Background()
			for what, ask := range map[string]func() error{
				"get":    func() error { _, _, err := n.get(ctx, []byte("k")); return err },
				"scan":   func() error { _, err := n.scan(ctx, span{limit: 1}); return err },
				"verify": func() error { _, err := n.verify(ctx); return err },
				"repair": func() error { _, err := n.repair(ctx); return err },
				"put":    func() error { return n.put(ctx, []byte("k"), []byte("v"), condition{}, 0) },
				"del":    func() error { return n.del(ctx, []byte("k"), condition{}, 0) },
			} {
				err := ask()
				require.ErrorContains(t, err, n.shown+" does not answer any more", what)
				require.ErrorAs(t, err, new(*hintedError), what)
			}
		})
	}
}

func TestSlowReplicaIsWaitedForWhileItAnswersElsewhere(t *testing.T) {
	asked, enough := atomic.Int32{}, make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			if asked.Add(1) == 3 {
				close(enough)
			}
			return
		}
		io.WriteString(w, `{"digest":"00000000000000000000000000000000","keys":`)
		http.NewResponseController(w).Flush()
		<-enough
		io.WriteString(w, `7}`)
	}))
	defer s.Close()
	n, err := newRemote(s.URL)
	require.NoError(t, err)
	n.patience, n.probe = time.Millisecond, time.Hour
	r, err := n.verify(context.Background())
	require.NoError(t, err)
	require.EqualValues(t, 7, r.Keys)
	require.GreaterOrEqual(t, asked.Load(), int32(3))
}

func TestReplicaThatBreaksOffIsNamed(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		w.Header().Set("Content-Type", "application/octet-stream")
		io.WriteString(w, "half")
	}))
	defer s.Close()
	mustFail(t, exitFailed, s.URL+" broke off its answer: unexpected EOF", "get", "k", "--addr", s.URL)
	mustFail(t, exitFailed, s.URL+" gave an answer that cannot be read", "scan", "--addr", s.URL)
}

func TestStatusOfAFrozenReplicaNamesIt(t *testing.T) {
	n, err := newRemote(frozen(t, ""))
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	_, err = n.status(ctx)
	require.ErrorContains(t, err, n.shown+" does not answer in time")
}

func TestWhoIsNoReplicaHasWrittenNothing(t *testing.T) {
	n := serve(t, filepath.Join(t.TempDir(), "a"))
	redirecting := func(status int) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://someone:hunter2@"+n.http+r.URL.RequestURI(), status)
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	answering := func(kind, body string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", kind)
			io.WriteString(w, body)
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	must(t, "put", "--addr", n.http, "k", "v")
	for name, c := range map[string]struct{ at, says string }{
		"301":           {redirecting(301), "it leads to http://" + n.http + "/"},
		"307":           {redirecting(307), "it leads to http://" + n.http + "/"},
		"login page":    {answering("text/html", "<html>log in</html>"), "is that the HTTP address of levelrepl serve"},
		"other API":     {answering("application/json", "{}"), "is that the HTTP address of levelrepl serve"},
		"another other": {answering("application/json", "null"), "is that the HTTP address of levelrepl serve"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, line := range []string{
				"put k other", "del k", "get k", "scan", "conflicts", "resolve k --delete", "verify AT", "repair AT", "compare --full AT " + n.http, "compare --full " + n.http + " AT",
			} {
				args := strings.Fields(strings.ReplaceAll(line, "AT", c.at))
				if !strings.Contains(line, "AT") {
					args = append(args, "--addr", c.at)
				}
				code, out, errOut := cli(args...)
				require.Equal(t, exitFailed, code, line)
				require.NotContains(t, out+errOut, "hunter2")
				if !strings.HasPrefix(line, "compare") { // asks for a status first, and says that
					require.Contains(t, errOut, c.says, line)
				}
			}
		})
	}
	require.Equal(t, "v", must(t, "get", "--addr", n.http, "k"))
}
