package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/statuspage"
)

// tokenHeader carries a replicator.Token: with the answer to a write, and with a
// read elsewhere that must not come too early.
const tokenHeader = "Replicator-Token"

// waitLimit bounds how long a request waits for other servers.
const waitLimit = 10 * time.Second

// web is the HTTP interface of a served node.
type web struct {
	node     *local
	maxValue int64
}

// newHandler gives the HTTP interface:
//
//	GET, HEAD, PUT, DELETE /kv/KEY     a value; the key percent-encoded, any bytes
//	GET  /kv?from=&to=&prefix=&limit=  a page of keys; values=0 without values,
//	                                   versions=1 and sums=1 with these
//	GET  /versions/KEY                 all versions of a key
//	GET  /conflicts?from=&limit=       a page of the keys in conflict
//	POST /take/KEY?version=ORIGIN/SEQ  settles a conflict
//	GET  /status                       replicator.Status
//	GET  /verify, POST /repair         replicator.Report
//	GET  /                             the status page, for people
//
// Errors are {"error": "…"} with a fitting status.
func newHandler(n *local, maxValue int64) http.Handler {
	w := &web{n, maxValue}
	mux := http.NewServeMux()
	mux.Handle("GET /kv", answer(w.list))
	mux.Handle("GET /conflicts", answer(w.conflicts))
	mux.Handle("GET /status", answer(w.status))
	mux.Handle("GET /verify", answer(func(r *http.Request) (any, error) { return w.node.verify(r.Context()) }))
	mux.Handle("POST /repair", answer(func(r *http.Request) (any, error) { return w.node.repair(r.Context()) }))
	mux.Handle("/{$}", statuspage.Handler(n.db))
	routes := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		// Not by the mux: it takes keys for paths and "cleans" them.
		path := r.URL.EscapedPath()
		if key, ok := strings.CutPrefix(path, "/kv/"); ok {
			withKey(key, w.key).ServeHTTP(rw, r)
		} else if key, ok := strings.CutPrefix(path, "/versions/"); ok {
			withKey(key, w.versions).ServeHTTP(rw, r)
		} else if key, ok := strings.CutPrefix(path, "/take/"); ok {
			withKey(key, w.take).ServeHTTP(rw, r)
		} else {
			mux.ServeHTTP(rw, r)
		}
	})
	return http.NewCrossOriginProtection().Handler(routes)
}

// onlyLoopback refuses what a browser was led to by a foreign name: without it, any
// web page could have its own name resolve to loopback and read the database.
func onlyLoopback(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
		if host == "localhost" || err == nil && ip.IsLoopback() {
			h.ServeHTTP(w, r)
			return
		}
		fail(w, &httpError{http.StatusMisdirectedRequest, "this node answers to loopback addresses only"})
	})
}

// httpError is an error with a status of its own.
type httpError struct {
	status int
	text   string
}

func (e *httpError) Error() string { return e.text }

// answer makes JSON of what a function returns.
func answer(f func(r *http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			fail(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		_ = json.NewEncoder(w).Encode(v) // the client is gone, or will notice
	})
}

func fail(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(statusOf(err))
	_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
}

func statusOf(err error) int {
	var own *httpError
	var big *http.MaxBytesError
	var few *replicator.NotReplicatedError
	switch {
	case errors.As(err, &own):
		return own.status
	case errors.Is(err, leveldb.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, replicator.ErrReservedKey):
		return http.StatusBadRequest
	case errors.Is(err, replicator.ErrTooLarge), errors.As(err, &big):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, replicator.ErrFollower), errors.Is(err, leveldb.ErrReadOnly):
		return http.StatusForbidden
	case errors.Is(err, errNoConflict), errors.Is(err, errNoVersion):
		return http.StatusConflict
	case errors.Is(err, replicator.ErrTokenLost):
		return http.StatusGone
	case errors.As(err, &few), errors.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout
	case errors.Is(err, replicator.ErrFailed), errors.Is(err, leveldb.ErrClosed):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

type keyHandler func(w http.ResponseWriter, r *http.Request, key []byte) error

func withKey(escaped string, h keyHandler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, err := url.PathUnescape(escaped)
		if err != nil {
			err = &httpError{http.StatusBadRequest, "the key is not percent-encoded: " + err.Error()}
		} else {
			err = h(w, r, []byte(key))
		}
		if err != nil {
			fail(w, err)
		}
	})
}

// key answers for one key.
func (w *web) key(rw http.ResponseWriter, r *http.Request, key []byte) error {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		if err := w.await(r); err != nil {
			return err
		}
		value, err := w.node.get(r.Context(), key)
		if err != nil {
			return err
		}
		rw.Header().Set("Content-Type", "application/octet-stream")
		rw.Header().Set("X-Content-Type-Options", "nosniff")
		rw.Header().Set("Cache-Control", "no-store")
		rw.Header().Set("Content-Length", strconv.Itoa(len(value)))
		_, _ = rw.Write(value) // the client is gone, or will notice
		return nil
	case http.MethodPut, http.MethodDelete:
		return w.write(rw, r, key)
	}
	rw.Header().Set("Allow", "GET, HEAD, PUT, DELETE")
	return &httpError{http.StatusMethodNotAllowed, r.Method + " is not for keys"}
}

func (w *web) write(rw http.ResponseWriter, r *http.Request, key []byte) error {
	replicas, err := number(r.URL.Query(), "replicas", 0)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), waitLimit)
	defer cancel()
	if r.Method == http.MethodDelete {
		err = w.node.del(ctx, key, replicas)
	} else {
		var value []byte
		if value, err = io.ReadAll(http.MaxBytesReader(rw, r.Body, w.maxValue)); err == nil {
			err = w.node.put(ctx, key, value, replicas)
		}
	}
	if err != nil {
		return err
	}
	rw.Header().Set(tokenHeader, w.node.db.WriteToken().String())
	rw.WriteHeader(http.StatusNoContent)
	return nil
}

// await waits for what the request's token stands for.
func (w *web) await(r *http.Request) error {
	text := r.Header.Get(tokenHeader)
	if text == "" {
		return nil
	}
	token, err := replicator.ParseToken(text)
	if err != nil {
		return &httpError{http.StatusBadRequest, err.Error()}
	}
	ctx, cancel := context.WithTimeout(r.Context(), waitLimit)
	defer cancel()
	return w.node.db.WaitFor(ctx, token)
}

func (w *web) status(r *http.Request) (any, error) { return w.node.status(r.Context()) }

func (w *web) list(r *http.Request) (any, error) {
	if err := w.await(r); err != nil {
		return nil, err
	}
	q := r.URL.Query()
	s := span{values: q.Get("values") != "0", versions: q.Get("versions") == "1", sums: q.Get("sums") == "1"}
	if q.Has("prefix") {
		r := util.BytesPrefix([]byte(q.Get("prefix")))
		s.from, s.to = r.Start, r.Limit
	}
	if q.Has("from") {
		s.from = []byte(q.Get("from"))
	}
	if q.Has("to") {
		s.to = []byte(q.Get("to"))
	}
	var err error
	if s.limit, err = number(q, "limit", pageEntries); err != nil {
		return nil, err
	}
	s.limit = min(s.limit, pageEntries)
	return w.node.scan(r.Context(), s)
}

func (w *web) conflicts(r *http.Request) (any, error) {
	limit, err := number(r.URL.Query(), "limit", pageEntries)
	if err != nil {
		return nil, err
	}
	return w.node.conflicts(r.Context(), []byte(r.URL.Query().Get("from")), min(limit, pageEntries))
}

func (w *web) versions(rw http.ResponseWriter, r *http.Request, key []byte) error {
	if r.Method != http.MethodGet {
		rw.Header().Set("Allow", "GET")
		return &httpError{http.StatusMethodNotAllowed, r.Method + " is not for versions"}
	}
	answer(func(r *http.Request) (any, error) { return w.node.versions(r.Context(), key) }).ServeHTTP(rw, r)
	return nil
}

func (w *web) take(rw http.ResponseWriter, r *http.Request, key []byte) error {
	if r.Method != http.MethodPost {
		rw.Header().Set("Allow", "POST")
		return &httpError{http.StatusMethodNotAllowed, r.Method + " does not settle a conflict"}
	}
	if err := w.node.take(r.Context(), key, r.URL.Query().Get("version")); err != nil {
		return err
	}
	rw.WriteHeader(http.StatusNoContent)
	return nil
}

// number reads a number of a query, from 1 up if there is one.
func number(q url.Values, name string, otherwise int) (int, error) {
	if !q.Has(name) {
		return otherwise, nil
	}
	n, err := strconv.Atoi(q.Get(name))
	if err != nil || n < 1 {
		return 0, &httpError{http.StatusBadRequest, name + "=" + strconv.Quote(q.Get(name)) + ", want a number from 1 up"}
	}
	return n, nil
}
