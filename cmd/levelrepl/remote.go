package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/syndtr/goleveldb/leveldb"

	"github.com/level-replicator/replicator"
)

// defaultAddr is where serve answers and everything else asks, unless told.
const defaultAddr = "127.0.0.1:9080"

// addrEnv may hold another.
const addrEnv = "LEVELREPL_ADDR"

// remote is a node that is served elsewhere.
type remote struct {
	base   string // URL without a slash at the end
	client *http.Client
}

func newRemote(addr string) (*remote, error) {
	if addr == "" {
		addr = os.Getenv(addrEnv)
	}
	if addr == "" {
		addr = defaultAddr
	}
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	u, err := url.Parse(addr)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, &usageError{fmt.Errorf("%q is no address of a served node", addr), `give "host:port" or a URL: what levelrepl serve says it answers HTTP on`}
	}
	return &remote{strings.TrimSuffix(u.String(), "/"), &http.Client{}}, nil
}

// Close lets go of the connections.
func (n *remote) Close() error {
	n.client.CloseIdleConnections()
	return nil
}

// ask holds one request; the caller closes the body.
func (n *remote) ask(ctx context.Context, method, path string, query url.Values, body []byte) (*http.Response, error) {
	u := n.base + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := n.client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var cause *url.Error
		if errors.As(err, &cause) {
			err = cause.Err
		}
		return nil, &hintedError{fmt.Errorf("cannot reach %s: %w", n.base, err), "is it running? levelrepl serve DIR says where it answers; --dir opens the directory of a stopped node"}
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, n.refused(resp)
}

// refused makes an error of an answer that is one.
func (n *remote) refused(resp *http.Response) error {
	var e struct{ Error string }
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil || json.Unmarshal(text, &e) != nil || e.Error == "" {
		return &hintedError{fmt.Errorf("%s answered %s", n.base, resp.Status), "is that the HTTP address of levelrepl serve?"}
	}
	for _, known := range []error{leveldb.ErrNotFound, errNoConflict, errNoVersion, replicator.ErrReservedKey, replicator.ErrTooLarge, replicator.ErrFollower, replicator.ErrFailed} {
		if e.Error == known.Error() {
			return known
		}
	}
	if rest, ok := strings.CutPrefix(e.Error, replicator.ErrDamaged.Error()); ok {
		return fmt.Errorf("%w%s", replicator.ErrDamaged, rest)
	}
	return fmt.Errorf("%s: %s", n.base, e.Error)
}

// json asks and decodes the answer.
func (n *remote) json(ctx context.Context, path string, query url.Values, into any) error {
	return n.jsonBy(ctx, http.MethodGet, path, query, into)
}

func (n *remote) jsonBy(ctx context.Context, method, path string, query url.Values, into any) error {
	resp, err := n.ask(ctx, method, path, query, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return &hintedError{fmt.Errorf("%s gave an answer that cannot be read: %w", n.base, err), "is that the HTTP address of levelrepl serve, of this version?"}
	}
	return nil
}

// send asks for something to be done.
func (n *remote) send(ctx context.Context, method, path string, query url.Values, body []byte) error {
	resp, err := n.ask(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func keyPath(kind string, key []byte) string { return "/" + kind + "/" + url.PathEscape(string(key)) }

// status also asks programs that are no levelrepl and have a status page.
func (n *remote) status(ctx context.Context) (replicator.Status, error) {
	var answer json.RawMessage
	if err := n.json(ctx, "/status", nil, &answer); err != nil {
		return replicator.Status{}, err
	}
	var page struct{ Status replicator.Status }
	if json.Unmarshal(answer, &page) == nil && page.Status.Addr != "" {
		return page.Status, nil
	}
	var s replicator.Status
	if err := json.Unmarshal(answer, &s); err != nil || s.Addr == "" {
		return s, &hintedError{fmt.Errorf("%s gave no status", n.base), "give the HTTP address of levelrepl serve, or of a status page"}
	}
	return s, nil
}

func (n *remote) get(ctx context.Context, key []byte) ([]byte, error) {
	resp, err := n.ask(ctx, http.MethodGet, keyPath("kv", key), nil, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

func replicasQuery(replicas int) url.Values {
	if replicas == 0 {
		return nil
	}
	return url.Values{"replicas": {strconv.Itoa(replicas)}}
}

func (n *remote) put(ctx context.Context, key, value []byte, replicas int) error {
	return n.send(ctx, http.MethodPut, keyPath("kv", key), replicasQuery(replicas), value)
}

func (n *remote) del(ctx context.Context, key []byte, replicas int) error {
	return n.send(ctx, http.MethodDelete, keyPath("kv", key), replicasQuery(replicas), nil)
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
	return p, n.json(ctx, "/kv", q, &p)
}

func (n *remote) versions(ctx context.Context, key []byte) (vs []version, err error) {
	return vs, n.json(ctx, keyPath("versions", key), nil, &vs)
}

func (n *remote) conflicts(ctx context.Context, from []byte, limit int) (p page, err error) {
	return p, n.json(ctx, "/conflicts", url.Values{"from": {string(from)}, "limit": {strconv.Itoa(limit)}}, &p)
}

func (n *remote) take(ctx context.Context, key []byte, name string) error {
	return n.send(ctx, http.MethodPost, keyPath("take", key), url.Values{"version": {name}}, nil)
}

func (n *remote) verify(ctx context.Context) (r replicator.Report, err error) {
	return r, n.json(ctx, "/verify", nil, &r)
}

func (n *remote) repair(ctx context.Context) (r replicator.Report, err error) {
	return r, n.jsonBy(ctx, http.MethodPost, "/repair", nil, &r)
}
