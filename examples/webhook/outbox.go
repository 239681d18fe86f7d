package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// Local is the range of keys that is not replicated. The outbox keeps its cursor there.
var Local = util.BytesPrefix([]byte("outbox/"))

const cursorKey = "outbox/cursor"

// Outbox posts what changes under a prefix to a URL: each change at least once, those of one key in
// order. It goes on where it was when it is started again.
type Outbox struct {
	DB     *replicator.DB
	Prefix string
	URL    string
	Client *http.Client

	Pause, MaxPause time.Duration // between two attempts: the first, and the longest
}

// Event is the body of a request. Its receiver gets an Idempotency-Key, too, by which it can tell what
// it has had already.
type Event struct {
	Key     string `json:"key"`
	Value   string `json:"value,omitempty"`
	Deleted bool   `json:"deleted,omitempty"`
}

// Run posts until ctx ends.
func (o *Outbox) Run(ctx context.Context) error {
	var since replicator.Cursor
	switch stored, err := o.DB.Get([]byte(cursorKey), nil); {
	case err == nil:
		if err := since.UnmarshalBinary(stored); err != nil {
			return err
		}
	case !errors.Is(err, leveldb.ErrNotFound):
		return err
	}
	for c, err := range o.DB.Changes(ctx, since, &replicator.ChangesOptions{Prefix: []byte(o.Prefix)}) {
		if err != nil {
			return err
		}
		if c.Key != nil { // what is posted cannot be taken back, so a reset is no news to the receiver
			if err := o.post(ctx, &c); err != nil {
				return err
			}
		}
		if !c.Cursor.IsZero() {
			stored, err := c.Cursor.MarshalBinary()
			if err != nil {
				return err
			}
			if err := o.DB.Put([]byte(cursorKey), stored, &opt.WriteOptions{Sync: true}); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// post posts one change until it is accepted. Meanwhile the feed waits, which costs the database
// nothing. A request that the receiver calls wrong is not repeated.
func (o *Outbox) post(ctx context.Context, c *replicator.Change) error {
	body, err := json.Marshal(Event{Key: string(c.Key), Value: string(c.Value), Deleted: c.Deleted})
	if err != nil {
		return err
	}
	for pause := o.Pause; ; pause = min(2*pause, o.MaxPause) {
		status, err := o.attempt(ctx, body, fmt.Sprintf("%s-%d", c.Version.Origin, c.Version.Seq))
		if err == nil && status < 500 && status != http.StatusTooManyRequests && status != http.StatusRequestTimeout {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

func (o *Outbox) attempt(ctx context.Context, body []byte, id string) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, o.URL, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", id)
	resp, err := o.Client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16))
	return resp.StatusCode, err
}
