package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/syndtr/goleveldb/leveldb"

	"github.com/level-replicator/replicator"
)

// defaultAddr is where serve answers, and all other commands ask, by default.
const defaultAddr = "127.0.0.1:9080"

// addrEnv may hold another.
const addrEnv = "LEVELREPL_ADDR"

// remote is a replica that another process serves.
type remote struct {
	base     string // URL without a slash at the end; it may hold a password
	shown    string // the same without
	client   *http.Client
	patience time.Duration // how long it may be silent before it is probed
	probe    time.Duration // how long it may take to answer the probe
}

// patience suits a replica whose disk is slow and whose network is far.
const patience = 10 * time.Second

func newRemote(addr string) (*remote, error) {
	if addr == "" {
		addr = os.Getenv(addrEnv)
	}
	if addr = strings.TrimSpace(addr); addr == "" { // a file that sets the environment may end its lines with more
		addr = defaultAddr
	}
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	u, err := url.Parse(addr)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, &usageError{fmt.Errorf("%q is not the address of a served replica", withoutPassword(addr)), `give "host:port" or a URL: what levelrepl serve says it answers HTTP on`}
	}
	n := &remote{base: strings.TrimSuffix(u.String(), "/"), patience: patience, probe: patience}
	u.User = nil
	n.shown = strings.TrimSuffix(u.String(), "/")
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DialContext = (&net.Dialer{Timeout: patience}).DialContext
	n.client = &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return n, nil
}

// withoutPassword returns what may be shown of a malformed URL.
func withoutPassword(addr string) string {
	scheme, rest, _ := strings.Cut(addr, "://")
	return scheme + "://" + rest[strings.LastIndex(rest, "@")+1:]
}

// name returns the replica's address for people.
func (n *remote) name() string { return strings.TrimPrefix(n.shown, "http://") }

// nameOf returns how to call the replica that an argument stands for: a directory as given,
// an address without its password.
func nameOf(n replica, arg string) string {
	if n, ok := n.(*remote); ok {
		return n.name()
	}
	return arg
}

// Close closes idle connections.
func (n *remote) Close() error {
	n.client.CloseIdleConnections()
	return nil
}

// ask makes one request; the caller closes the body. An answer with any status but want is
// an error, even one of success: it does not come from a replica, and the request was not
// carried out. Redirections are not followed, since a redirected PUT becomes a GET.
func (n *remote) ask(ctx context.Context, method, path string, query url.Values, body []byte, want int, header http.Header) (*http.Response, error) {
	u := n.base + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	c := n.call(ctx)
	req, err := http.NewRequestWithContext(c.ctx, method, u, bytes.NewReader(body))
	if err != nil {
		c.end()
		return nil, err
	}
	maps.Copy(req.Header, header)
	req.Header.Set("Accept", "application/json")
	resp, err := n.client.Do(req)
	if err != nil {
		c.end()
		return nil, c.explain(err)
	}
	c.heard()
	c.body, resp.Body = resp.Body, c
	if resp.StatusCode == want {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, n.refused(resp)
}

// call is one request under way. A replica may take long to answer, since it reads all that
// it holds to verify it. One that is silent is probed on another connection, and given up
// if it does not answer.
type call struct {
	n      *remote
	given  context.Context // by the caller
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	body   io.ReadCloser
}

func (n *remote) call(given context.Context) *call {
	c := &call{n: n, given: given}
	c.ctx, c.cancel = context.WithCancelCause(given)
	c.timer = time.AfterFunc(n.patience, c.silent)
	return c
}

// errSilent is the cause of a call that was given up.
var errSilent = errors.New("it is silent")

func (c *call) silent() {
	ctx, cancel := context.WithTimeout(c.ctx, c.n.probe)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, c.n.base+"/status", nil)
	if err == nil {
		var resp *http.Response
		if resp, err = c.n.client.Do(req); err == nil {
			resp.Body.Close()
		}
	}
	if err != nil {
		c.cancel(errSilent)
		return
	}
	c.heard()
}

// heard notes a sign of life from the replica.
func (c *call) heard() {
	if c.ctx.Err() == nil {
		c.timer.Reset(c.n.patience)
	}
}

func (c *call) end() {
	c.timer.Stop()
	c.cancel(nil)
}

// Read reads the answer.
func (c *call) Read(p []byte) (int, error) {
	n, err := c.body.Read(p)
	if n > 0 {
		c.heard()
	}
	if err != nil && err != io.EOF {
		err = c.explain(err)
	}
	return n, err
}

// Close ends the call.
func (c *call) Close() error {
	c.end()
	return c.body.Close()
}

// explain returns what became of a call that failed.
func (c *call) explain(err error) error {
	switch {
	case context.Cause(c.ctx) == errSilent:
		return &hintedError{fmt.Errorf("%s does not answer any more: it was silent for %v, and then did not answer a probe for %v", c.n.shown, c.n.patience, c.n.probe), "its process or its disk may be stopped; the request may or may not have been carried out"}
	case errors.Is(c.given.Err(), context.DeadlineExceeded):
		return &hintedError{fmt.Errorf("%s does not answer in time", c.n.shown), "its process or its disk may be stopped"}
	case c.given.Err() != nil:
		return c.given.Err()
	case c.body != nil:
		return &hintedError{fmt.Errorf("%s broke off its answer: %w", c.n.shown, err), "it may have been stopped; the request may or may not have been carried out"}
	}
	var cause *url.Error
	if errors.As(err, &cause) {
		err = cause.Err
	}
	return &hintedError{fmt.Errorf("cannot reach %s: %w", c.n.shown, err), "is it running? levelrepl serve DIR says where it answers; --dir opens the directory of a stopped replica"}
}

// refused returns the error that an answer stands for.
func (n *remote) refused(resp *http.Response) error {
	if to, err := resp.Location(); err == nil {
		to.User = nil
		return &hintedError{fmt.Errorf("%s answered %s", n.shown, safe(resp.Status)), "it leads to " + to.String() + ": give the address of levelrepl serve itself, with https:// if that is it"}
	}
	var e struct{ Error string }
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil || json.Unmarshal(text, &e) != nil || e.Error == "" {
		hint := "is that the HTTP address of levelrepl serve?"
		switch resp.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired:
			hint = "a proxy in front of the replica wants a login: " + addrEnv + " takes http://NAME:PASSWORD@host:port"
		case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			hint = "a proxy in front of the replica cannot reach it: is it running?"
		}
		return &hintedError{fmt.Errorf("%s answered %s", n.shown, safe(resp.Status)), hint}
	}
	tag := tagIn(resp.Header)
	switch {
	case resp.StatusCode == http.StatusPreconditionFailed:
		return &changedError{tag}
	case resp.StatusCode == http.StatusNotFound && tag != "":
		return &absentError{tag}
	}
	for _, known := range []error{leveldb.ErrNotFound, errNoTag, errNoConflict, errNoVersion, replicator.ErrReservedKey, replicator.ErrTooLarge, replicator.ErrFollower, replicator.ErrFailed} {
		if e.Error == known.Error() {
			return known
		}
	}
	if rest, ok := strings.CutPrefix(e.Error, replicator.ErrCorrupted.Error()); ok {
		return fmt.Errorf("%w%s", replicator.ErrCorrupted, safe(rest))
	}
	return fmt.Errorf("%s: %s", n.shown, safe(e.Error))
}

// json makes a GET request and decodes the answer.
func (n *remote) json(ctx context.Context, path string, query url.Values, into any) error {
	return n.jsonBy(ctx, http.MethodGet, path, query, into)
}

func (n *remote) jsonBy(ctx context.Context, method, path string, query url.Values, into any) error {
	resp, err := n.ask(ctx, method, path, query, nil, http.StatusOK, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		if hinted := new(hintedError); errors.As(err, &hinted) || ctx.Err() != nil {
			return err // the answer did not come
		}
		return n.stranger(err)
	}
	return nil
}

// stranger returns the error for an answer that does not come from a replica.
func (n *remote) stranger(err error) error {
	return &hintedError{fmt.Errorf("%s gave an answer that cannot be read: %w", n.shown, err), "is that the HTTP address of levelrepl serve, of this version?"}
}

// send makes a request that is answered without a body.
func (n *remote) send(ctx context.Context, method, path string, query url.Values, body []byte, c condition) error {
	resp, err := n.ask(ctx, method, path, query, body, http.StatusNoContent, c.headers())
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// listed refuses an answer without a list, which a replica sends even if it is empty.
func listed[T any](n *remote, err error, list []T) error {
	if err == nil && list == nil {
		return n.stranger(errors.New("it has no list"))
	}
	return err
}

func keyPath(kind string, key []byte) string { return "/" + kind + "/" + url.PathEscape(string(key)) }

// status also understands the status page of programs other than levelrepl.
func (n *remote) status(ctx context.Context) (replicator.Status, error) {
	var answer json.RawMessage
	if err := n.json(ctx, "/status", nil, &answer); err != nil {
		return replicator.Status{}, err
	}
	var page struct{ Status replicator.Status }
	if json.Unmarshal(answer, &page) == nil && page.Status.Addr != "" {
		safeTexts(&page)
		return page.Status, nil
	}
	var s replicator.Status
	if err := json.Unmarshal(answer, &s); err != nil || s.Addr == "" {
		return s, &hintedError{fmt.Errorf("%s gave no status", n.shown), "give the HTTP address of levelrepl serve, or of a status page"}
	}
	safeTexts(&s)
	return s, nil
}

func (n *remote) get(ctx context.Context, key []byte) (value []byte, tag string, err error) {
	resp, err := n.ask(ctx, http.MethodGet, keyPath("kv", key), nil, nil, http.StatusOK, nil)
	if err != nil {
		if absent := new(absentError); errors.As(err, &absent) {
			tag = absent.tag
		}
		return nil, tag, err
	}
	defer resp.Body.Close()
	if kind := resp.Header.Get("Content-Type"); kind != "application/octet-stream" {
		return nil, "", n.stranger(fmt.Errorf("it is of type %q", kind))
	}
	value, err = io.ReadAll(resp.Body)
	return value, tagIn(resp.Header), err
}

// absentError is leveldb.ErrNotFound for a key that has a tag, since it is in conflict.
type absentError struct{ tag string }

func (e *absentError) Error() string { return leveldb.ErrNotFound.Error() }
func (e *absentError) Unwrap() error { return leveldb.ErrNotFound }

func replicasQuery(replicas int) url.Values {
	if replicas == 0 {
		return nil
	}
	return url.Values{"replicas": {strconv.Itoa(replicas)}}
}

func (n *remote) put(ctx context.Context, key, value []byte, c condition, replicas int) error {
	return n.send(ctx, http.MethodPut, keyPath("kv", key), replicasQuery(replicas), value, c)
}

func (n *remote) del(ctx context.Context, key []byte, c condition, replicas int) error {
	return n.send(ctx, http.MethodDelete, keyPath("kv", key), replicasQuery(replicas), nil, c)
}

func (n *remote) scan(ctx context.Context, s span) (p page, err error) {
	q := url.Values{"from": {string(s.from)}, "limit": {strconv.Itoa(s.limit)}}
	if s.to != nil {
		q.Set("to", string(s.to))
	}
	for name, set := range map[string]bool{"versions": s.versions, "sums": s.sums} {
		if set {
			q.Set(name, "1")
		}
	}
	if !s.values {
		q.Set("values", "0")
	}
	err = n.json(ctx, "/kv", q, &p)
	return p, listed(n, err, p.Entries)
}

func (n *remote) versions(ctx context.Context, key []byte) (vs []version, err error) {
	err = n.json(ctx, keyPath("versions", key), nil, &vs)
	return vs, listed(n, err, vs)
}

func (n *remote) conflicts(ctx context.Context, from []byte, limit int) (p page, err error) {
	err = n.json(ctx, "/conflicts", url.Values{"from": {string(from)}, "limit": {strconv.Itoa(limit)}}, &p)
	return p, listed(n, err, p.Entries)
}

func (n *remote) take(ctx context.Context, key []byte, name string, c condition) error {
	return n.send(ctx, http.MethodPost, keyPath("take", key), url.Values{"version": {name}}, nil, c)
}

func (n *remote) verify(ctx context.Context) (replicator.Report, error) {
	return n.report(ctx, http.MethodGet, "/verify")
}

func (n *remote) repair(ctx context.Context) (replicator.Report, error) {
	return n.report(ctx, http.MethodPost, "/repair")
}

func (n *remote) report(ctx context.Context, method, path string) (replicator.Report, error) {
	var r struct {
		Digest *replicator.Digest `json:"digest"`
		replicator.Report
	}
	err := n.jsonBy(ctx, method, path, nil, &r)
	if err == nil && r.Digest == nil {
		err = n.stranger(errors.New("it is no report"))
	}
	if err == nil {
		r.Report.Digest = *r.Digest
	}
	safeTexts(&r.Report)
	return r.Report, err
}
