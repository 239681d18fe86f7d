package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/statuspage"
)

// tokenHeader carries a replicator.Token: in the answer to a write, and in a read elsewhere
// that must see the write.
const tokenHeader = "Replicator-Token"

// waitLimit bounds how long a request waits for other replicas.
const waitLimit = 10 * time.Second

// web is the HTTP interface of a served replica.
type web struct {
	replica  *local
	maxValue int64
	memory   *memory
	checking chan struct{} // capacity 1: of the one verification or repair
}

// newHandler returns the HTTP interface:
//
//	GET, HEAD, PUT, DELETE /kv/KEY     a value; the key percent-encoded, any bytes
//	GET  /kv?from=&to=&prefix=&limit=  a page of keys; values=0 without values,
//	                                   versions=1 and sums=1 with these
//	GET  /versions/KEY                 all versions of a key
//	GET  /conflicts?from=&limit=       a page of the keys in conflict
//	POST /take/KEY?version=ORIGIN/SEQ  resolves a conflict
//	GET  /changes?since=&prefix=&follow=1
//	                                   what has changed since a cursor, as JSON lines, or as
//	                                   server-sent events if that is accepted
//	GET  /status                       replicator.Status
//	GET  /verify, POST /repair         replicator.Report
//	GET  /                             the status page, for people
//
// GET of a value has an ETag, which If-Match and If-None-Match of PUT, DELETE and /take compare.
//
// Errors are {"error": "…"} with a fitting status.
func newHandler(n *local, maxValue int64, m *memory) http.Handler {
	w := &web{n, maxValue, m, make(chan struct{}, 1)}
	mux := http.NewServeMux()
	mux.Handle("GET /kv", w.listing(w.list))
	mux.Handle("GET /conflicts", w.listing(w.conflicts))
	mux.HandleFunc("GET /changes", w.changes)
	mux.Handle("GET /status", answer(w.status))
	mux.Handle("GET /verify", answer(w.alone(n.verify)))
	mux.Handle("POST /repair", answer(w.alone(n.repair)))
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
	return paced(sameOrigin(complete(routes)))
}

// sameOrigin refuses requests that a page of another origin has a browser make, except to
// navigate to the status page: a request costs something here even if the page cannot read
// the answer.
func sameOrigin(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		head := r.Header
		visit := (r.Method == http.MethodGet || r.Method == http.MethodHead) && r.URL.Path == "/" &&
			head.Get("Sec-Fetch-Mode") == "navigate" && head.Get("Sec-Fetch-Dest") == "document"
		foreign := false
		switch head.Get("Sec-Fetch-Site") {
		case "same-origin", "none":
		case "": // no browser, or one that says little
			origin, err := url.Parse(head.Get("Origin"))
			foreign = head.Get("Origin") != "" && (err != nil || origin.Host != r.Host)
		default:
			foreign = !visit
		}
		if foreign {
			fail(w, &httpError{http.StatusForbidden, "a web page of another origin may not use this replica"})
			return
		}
		h.ServeHTTP(w, r)
	})
}

// complete refuses writes with headers that are not supported: without them, they would not
// do what the client wants.
func complete(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut || r.Method == http.MethodDelete || r.Method == http.MethodPost {
			if err := understood(r); err != nil {
				fail(w, err)
				return
			}
		}
		h.ServeHTTP(w, r)
	})
}

func understood(r *http.Request) error {
	conditional := strings.HasPrefix(r.URL.Path, "/kv/") || strings.HasPrefix(r.URL.Path, "/take/")
	for _, name := range []string{"If-Match", "If-None-Match", "If-Unmodified-Since", "If-Modified-Since", "If-Range"} {
		if _, ok := r.Header[name]; ok && !(conditional && strings.HasSuffix(name, "Match")) {
			return &httpError{http.StatusNotImplemented, name + " is not supported: nothing was done"}
		}
	}
	if _, ok := r.Header["Content-Range"]; ok {
		return &httpError{http.StatusBadRequest, "Content-Range: a part of a value cannot be written; nothing was done"}
	}
	if e := r.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return &httpError{http.StatusUnsupportedMediaType, "Content-Encoding " + strconv.Quote(e) + ": values are kept as they are sent; nothing was done"}
	}
	if r.Method == http.MethodPut && len(r.TransferEncoding) == 0 && r.Header.Get("Content-Length") == "" {
		return &httpError{http.StatusLengthRequired, "PUT needs Content-Length, 0 for an empty value, or a chunked body"}
	}
	return nil
}

// alone allows one verification or repair at a time: each reads the whole store.
func (w *web) alone(f func(context.Context) (replicator.Report, error)) func(r *http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		select {
		case w.checking <- struct{}{}:
			defer func() { <-w.checking }()
			return f(r.Context())
		default:
			return nil, &httpError{http.StatusServiceUnavailable, "a verification or repair is under way already; try again when it has ended"}
		}
	}
}

// listing answers with a value that may be large.
func (w *web) listing(f func(r *http.Request) (v any, size int, err error)) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		var v any
		free, err := w.memory.load(r, func() (n int, err error) {
			v, n, err = f(r)
			return 3 * n, err // JSON is made of it, and base64 perhaps
		}, func() { v = nil })
		if err != nil {
			fail(rw, err)
			return
		}
		defer free()
		answer(func(*http.Request) (any, error) { return v, nil }).ServeHTTP(rw, r)
	})
}

// onlyLoopback refuses requests for names that are not loopback: otherwise any web page could
// have its own name resolve to loopback and read the database.
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
		fail(w, &httpError{http.StatusMisdirectedRequest, "this replica answers to loopback addresses only"})
	})
}

// httpError is an error with a status of its own.
type httpError struct {
	status int
	text   string
}

func (e *httpError) Error() string { return e.text }

// answer returns a handler that writes what a function returns as JSON.
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
	status := statusOf(err)
	var changed *changedError
	if errors.As(err, &changed) {
		setTag(w.Header(), changed.tag)
	}
	w.Header().Set("Content-Type", "application/json")
	if status == http.StatusRequestEntityTooLarge {
		w.Header().Set("Connection", "close") // the rest of it is not waited for
	}
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
}

// statusOf returns the status of an error: 500 only for what is this replica's fault.
func statusOf(err error) int {
	var own *httpError
	var big *http.MaxBytesError
	var few *replicator.NotReplicatedError
	var changed *changedError
	switch {
	case errors.As(err, &own):
		return own.status
	case errors.Is(err, leveldb.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, replicator.ErrReservedKey), errors.Is(err, replicator.ErrLocalKey), errors.Is(err, errNoTag), errors.Is(err, replicator.ErrToken), errors.Is(err, replicator.ErrCursor):
		return http.StatusBadRequest
	case errors.As(err, &changed), errors.Is(err, replicator.ErrChanged):
		return http.StatusPreconditionFailed
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
	case errors.Is(err, replicator.ErrFailed), errors.Is(err, replicator.ErrBehind), errors.Is(err, leveldb.ErrClosed), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE),
		errors.Is(err, context.Canceled): // the server stops, or the client has gone
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

// key answers requests for one key.
func (w *web) key(rw http.ResponseWriter, r *http.Request, key []byte) error {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		if err := w.await(r); err != nil {
			return err
		}
		c, err := conditionOf(r.Header)
		if err != nil {
			return err
		}
		var value []byte
		var tag string
		free, err := w.memory.load(r, func() (n int, err error) {
			value, tag, err = w.replica.get(r.Context(), key)
			return len(value), err
		}, func() { value = nil })
		setTag(rw.Header(), tag) // of a conflict that shows a deletion as well
		if err != nil {
			return err
		}
		defer func() {
			value = nil
			free()
		}()
		switch {
		case c.match.given && tag == "":
			return errNoTag // it has a value
		case c.match.given && !c.match.has(tag):
			return &changedError{tag}
		case c.noneMatch.has(tag):
			rw.WriteHeader(http.StatusNotModified)
			return nil
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
	c, err := conditionOf(r.Header)
	if err != nil {
		return err
	}
	var value []byte
	if r.Method == http.MethodPut {
		var free func()
		if value, free, err = w.memory.body(r, w.maxValue); err != nil {
			return err
		}
		defer free()
	}
	ctx, cancel := context.WithTimeout(r.Context(), waitLimit)
	defer cancel()
	if r.Method == http.MethodDelete {
		err = w.replica.del(ctx, key, c, replicas)
	} else {
		err = w.replica.put(ctx, key, value, c, replicas)
	}
	if err != nil {
		return err
	}
	rw.Header().Set(tokenHeader, w.replica.db.WriteToken().String())
	rw.WriteHeader(http.StatusNoContent)
	return nil
}

// await waits for the write that the request's token names.
func (w *web) await(r *http.Request) error {
	text := r.Header.Get(tokenHeader)
	if text == "" {
		return nil
	}
	token, err := replicator.ParseToken(text)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), waitLimit)
	defer cancel()
	return w.replica.db.WaitFor(ctx, token)
}

func (w *web) status(r *http.Request) (any, error) { return w.replica.status(r.Context()) }

func (w *web) list(r *http.Request) (any, int, error) {
	if err := w.await(r); err != nil {
		return nil, 0, err
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
		return nil, 0, err
	}
	s.limit = min(s.limit, pageEntries)
	p, err := w.replica.scan(r.Context(), s)
	return p, p.size(), err
}

func (w *web) conflicts(r *http.Request) (any, int, error) {
	limit, err := number(r.URL.Query(), "limit", pageEntries)
	if err != nil {
		return nil, 0, err
	}
	p, err := w.replica.conflicts(r.Context(), []byte(r.URL.Query().Get("from")), min(limit, pageEntries))
	return p, p.size(), err
}

// size returns about how much memory a page takes.
func (p *page) size() (n int) {
	for i := range p.Entries {
		e := &p.Entries[i]
		n += len(e.Key) + len(e.Value) + sizeOf(e.Versions)
	}
	return n
}

func sizeOf(vs []version) (n int) {
	for i := range vs {
		n += 100 + len(vs[i].Value)
	}
	return n
}

func (w *web) versions(rw http.ResponseWriter, r *http.Request, key []byte) error {
	if r.Method != http.MethodGet {
		rw.Header().Set("Allow", "GET")
		return &httpError{http.StatusMethodNotAllowed, r.Method + " is not for versions"}
	}
	w.listing(func(r *http.Request) (any, int, error) {
		vs, err := w.replica.versions(r.Context(), key)
		return vs, sizeOf(vs), err
	}).ServeHTTP(rw, r)
	return nil
}

func (w *web) take(rw http.ResponseWriter, r *http.Request, key []byte) error {
	if r.Method != http.MethodPost {
		rw.Header().Set("Allow", "POST")
		return &httpError{http.StatusMethodNotAllowed, r.Method + " does not resolve a conflict"}
	}
	c, err := conditionOf(r.Header)
	if err != nil {
		return err
	}
	if err := w.replica.take(r.Context(), key, r.URL.Query().Get("version"), c); err != nil {
		return err
	}
	rw.WriteHeader(http.StatusNoContent)
	return nil
}

// number returns a number of at least 1 from a query, or otherwise if it has none.
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
