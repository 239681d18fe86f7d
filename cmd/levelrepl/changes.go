package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/level-replicator/replicator"
)

// heartbeat is how often a client that follows the changes is sent something, at least.
const heartbeat = 5 * time.Second

// wanted is what a consumer of changes asks for.
type wanted struct {
	since    string
	prefix   []byte
	keysOnly bool
	follow   bool
}

// change is a replicator.Change in JSON. With reset it has nothing else: what was made of earlier
// changes is to be dropped. One without a key has a cursor alone.
type change struct {
	Reset    bool              `json:"reset,omitempty"`
	Key      *octets           `json:"key,omitempty"`
	Value    octets            `json:"value,omitzero"`
	Deleted  bool              `json:"deleted,omitempty"`
	Local    bool              `json:"local,omitempty"`
	Conflict bool              `json:"conflict,omitempty"`
	Resolver bool              `json:"resolver,omitempty"`
	Origin   replicator.Origin `json:"origin,omitzero"`
	Seq      uint64            `json:"seq,omitempty"`
	Cursor   string            `json:"cursor,omitempty"`
	Error    string            `json:"error,omitempty"` // the last line, if reading failed
}

func changeOf(c *replicator.Change) change {
	v := change{Reset: c.Reset, Deleted: c.Deleted, Local: c.Local, Conflict: c.Conflict, Resolver: c.Resolver, Cursor: c.Cursor.String()}
	if c.Key != nil {
		key := octets(c.Key)
		v.Key, v.Value, v.Origin, v.Seq = &key, c.Value, c.Version.Origin, c.Version.Seq
	}
	return v
}

func (l *local) changes(ctx context.Context, w wanted, each func(c change) error) error {
	since, err := replicator.ParseCursor(w.since)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for c, err := range l.db.Changes(ctx, since, &replicator.ChangesOptions{Prefix: w.prefix, KeysOnly: w.keysOnly, Once: !w.follow, MaxWait: waitLimit}) {
		if err == nil {
			err = each(changeOf(&c))
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (n *remote) changes(ctx context.Context, w wanted, each func(c change) error) error {
	q := url.Values{"since": {w.since}}
	if len(w.prefix) > 0 {
		q.Set("prefix", string(w.prefix))
	}
	if w.keysOnly {
		q.Set("values", "0")
	}
	if w.follow {
		q.Set("follow", "1")
	}
	resp, err := n.ask(ctx, http.MethodGet, "/changes", q, nil, http.StatusOK, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for lines := json.NewDecoder(resp.Body); ; {
		var c change
		switch err := lines.Decode(&c); {
		case err == io.EOF && w.follow:
			return &hintedError{fmt.Errorf("%s ended the changes", n.shown), "it was stopped, perhaps; go on from the last cursor, here or at another replica"}
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case c.Error != "":
			return fmt.Errorf("%s: %s", n.shown, safe(c.Error))
		}
		if err := each(c); err != nil {
			return err
		}
	}
}

func newChanges(a *app) *cobra.Command {
	var t target
	var w wanted
	c := &cobra.Command{
		Use:   "changes [PREFIX]",
		Short: "Print what has changed since a cursor, and follow",
		Long: `Print what has changed since a cursor, one JSON object a line: without --since all keys, after
{"reset":true}. A line with "cursor" says where the next call may go on, at any replica of the
cluster. With --follow go on with what is committed until interrupted.`,
		Args: args(0, 1, "at most one prefix"),
	}
	t.flags(c)
	c.Flags().StringVar(&w.since, "since", "", "the `cursor` to go on from; none is the beginning")
	c.Flags().BoolVarP(&w.follow, "follow", "f", false, "go on with what is committed")
	c.Flags().BoolVarP(&w.keysOnly, "keys", "k", false, "leave out the values")
	c.RunE = func(c *cobra.Command, args []string) error {
		if _, err := replicator.ParseCursor(w.since); err != nil {
			return &usageError{err, `give the "cursor" of a line that was printed before`}
		}
		if len(args) > 0 {
			p, err := a.encoding.parse(args[0])
			if err != nil {
				return err
			}
			w.prefix = p
		}
		if w.follow && t.dir != "" {
			return &usageError{errors.New("--follow and --dir: nothing is committed to a stopped replica"), "give one of them"}
		}
		n, err := t.open(a.openShadow)
		return with(n, err, func(n replica) error {
			return n.changes(c.Context(), w, func(v change) error { return a.lineJSON(v) })
		})
	}
	return c
}

// stoppingKey is the key of a context that ends when the server is to stop, in those of requests.
type stoppingKey struct{}

// until lets requests that would go on for ever know when to end.
func until(ctx context.Context, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), stoppingKey{}, ctx)))
	})
}

// changes answers with the changes since a cursor: as JSON lines, or as server-sent events if the
// client accepts those. A browser names the last event that it has by itself when it connects again.
func (w *web) changes(rw http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	want := wanted{since: q.Get("since"), prefix: []byte(q.Get("prefix")), keysOnly: q.Get("values") == "0", follow: q.Get("follow") == "1"}
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		want.since = id
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if stopping, ok := ctx.Value(stoppingKey{}).(context.Context); ok {
		defer context.AfterFunc(stopping, cancel)()
	}
	out := &changeWriter{ResponseWriter: rw, flusher: http.NewResponseController(rw), events: strings.Contains(r.Header.Get("Accept"), "text/event-stream")}
	lines, ended := make(chan change, 16), make(chan error, 1)
	go func() {
		defer close(lines)
		ended <- w.replica.changes(ctx, want, func(c change) error {
			select {
			case lines <- c:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	silence := time.NewTicker(heartbeat)
	defer silence.Stop()
	for {
		var c change
		ok := true
		select {
		case c, ok = <-lines:
		default:
			out.flush() // nothing more at the moment
			select {
			case c, ok = <-lines:
			case <-silence.C:
				out.beat()
				if out.err != nil {
					return
				}
				continue
			}
		}
		if !ok {
			break
		}
		silence.Reset(heartbeat)
		if out.write(&c); out.err != nil {
			return
		}
	}
	err := <-ended
	switch {
	case ctx.Err() != nil:
	case err != nil && !out.begun:
		fail(rw, err)
		return
	case err != nil:
		out.write(&change{Error: err.Error()})
	}
	out.begin()
	out.flush()
}

// changeWriter writes changes as lines or as events. After the first error it writes nothing.
type changeWriter struct {
	http.ResponseWriter
	flusher *http.ResponseController
	events  bool
	begun   bool
	dirty   bool
	err     error
}

func (w *changeWriter) begin() {
	if w.begun {
		return
	}
	w.begun = true
	kind := "application/jsonl"
	if w.events {
		kind = "text/event-stream"
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // a proxy is not to wait for more
	w.WriteHeader(http.StatusOK)
	w.dirty = true
}

func (w *changeWriter) text(s string) {
	w.begin()
	if w.err == nil {
		w.dirty = true
		_, w.err = io.WriteString(w.ResponseWriter, s)
	}
}

func (w *changeWriter) write(c *change) {
	b, err := json.Marshal(c)
	switch {
	case err != nil:
		w.err = err
	case !w.events:
		w.text(string(b) + "\n")
	default:
		var head strings.Builder
		if c.Cursor != "" {
			head.WriteString("id: " + c.Cursor + "\n")
		}
		if c.Error != "" {
			head.WriteString("event: failed\n")
		}
		w.text(head.String() + "data: " + string(b) + "\n\n")
	}
}

// beat writes what clients pass over.
func (w *changeWriter) beat() {
	if w.events {
		w.text(":\n\n")
	} else {
		w.text("\n")
	}
	w.flush()
}

func (w *changeWriter) flush() {
	if w.dirty && w.err == nil {
		w.dirty, w.err = false, w.flusher.Flush()
	}
}
