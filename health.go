package replicator

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

// health is why the store takes no writes, if so. It guards itself.
type health struct {
	mu      sync.Mutex
	failed  error // of the write that failed; none is tried after it
	starved error // of the last write that failed for want of a file handle, until one succeeds
}

func (h *health) fail(cause error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failed = cause
}

// starve notes that the store lacks file handles, or with nil that it no longer does, and
// reports whether it did before.
func (h *health) starve(err error) (before bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before = h.starved != nil
	h.starved = err
	return before
}

func (h *health) errors() (failed, starved error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failed, h.starved
}

// starved reports whether err is for want of a file handle. What is open already needs
// none, so it never comes from writing to goleveldb's journal: the journal is whole, and
// goleveldb, which tries its own files again and again, goes on once there are handles.
func starved(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// shortage is what is known of a want of file handles. The queue's slot
// guards it.
type shortage struct {
	since time.Time      // of the last write that failed so; zero if there is none
	size  int            // of the largest batch that failed so
	doubt *leveldb.Batch // its batch, if it may have been written all the same

	patience time.Duration // for the writes that follow; zero means starvedPatience
}

const (
	starvedTime     = 10 * time.Second // after which a small write that succeeds ends a shortage, too
	starvedPatience = 10 * time.Second // for a write after one that failed so
)

// store writes a batch.
func (q *queue) store(batch *leveldb.Batch, wo *opt.WriteOptions) error {
	err := q.clearDoubt()
	if err == nil {
		err = q.writeBatch(batch, wo)
	}
	size := len(batch.Dump())
	switch {
	case err == nil:
		if s := &q.shortage; !s.since.IsZero() && (size >= s.size || time.Since(s.since) > starvedTime) {
			s.since, s.size = time.Time{}, 0
			q.starved(nil)
		}
		return nil
	case err == leveldb.ErrClosed || err == leveldb.ErrReadOnly:
		return err
	case !starved(err) || size > store.GroupSize:
		// Of a batch above its write buffer goleveldb makes tables, and keeps its
		// locks if that fails.
		return q.fail(err)
	}
	// goleveldb also makes room after a write, and then the error is not of that write.
	if q.shortage.doubt == nil {
		switch there, unknown := isThere(q.raw, batch); {
		case unknown != nil:
			q.shortage.doubt = batch
		case there:
			return nil
		}
	}
	q.shortage.since, q.shortage.size = time.Now(), max(size, q.shortage.size)
	q.starved(err)
	return fmt.Errorf("replicator: nothing was written, later writes are tried: %w", err)
}

// writeBatch has goleveldb write. After a shortage it does not wait for ever: a
// transaction that could not be opened leaves goleveldb's lock taken, and a batch is
// one if the handle's write buffer is small.
func (q *queue) writeBatch(batch *leveldb.Batch, wo *opt.WriteOptions) error {
	if q.shortage.since.IsZero() {
		return q.raw.Write(batch, wo)
	}
	done := make(chan error, 1)
	go func() { done <- q.raw.Write(batch, wo) }()
	patience := cmp.Or(q.shortage.patience, starvedPatience)
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case err := <-done:
		return err
	case <-timeout.C:
		return fmt.Errorf("the store has not answered for %v since it had no file handle left", patience)
	}
}

// clearDoubt finds out whether the batch of an earlier write, whose caller was told
// that nothing was written, is there.
func (q *queue) clearDoubt() error {
	s := &q.shortage
	if s.doubt == nil {
		return nil
	}
	there, err := isThere(q.raw, s.doubt)
	if err != nil {
		return err
	}
	if there {
		return errors.New("a write that found no file handle was written all the same")
	}
	s.doubt = nil
	return nil
}

// isThere reports whether the store is as a batch would have left it.
func isThere(raw *leveldb.DB, batch *leveldb.Batch) (bool, error) {
	ops := outcome{}
	if err := batch.Replay(ops); err != nil {
		return false, err
	}
	var unknown error
	for key, want := range ops {
		got, err := raw.Get([]byte(key), nil)
		switch {
		case err == nil && (want == nil || !bytes.Equal(got, want)), err == leveldb.ErrNotFound && want != nil:
			return false, nil
		case err != nil && err != leveldb.ErrNotFound:
			unknown = err
		}
	}
	return unknown == nil, unknown
}

// outcome is what a batch leaves at each of its keys, nil if nothing.
type outcome map[string][]byte

func (o outcome) Put(key, value []byte) { o[string(key)] = append([]byte{}, value...) }

func (o outcome) Delete(key []byte) { o[string(key)] = nil }

// storeStarved notes that the store lacks file handles, or no longer does.
func (db *DB) storeStarved(err error) {
	was := db.health.starve(err)
	switch {
	case err != nil && !was:
		db.opts.Logger.Error("replicator: the store has no file handle left and cannot write; it is tried again with each write", "error", err)
		db.requestMaintenance()
	case err == nil && was:
		db.opts.Logger.Info("replicator: the store has file handles and writes again")
	}
}

// tryStarved writes a little, to find out whether a shortage is over.
func (db *DB) tryStarved() error {
	if _, starved := db.health.errors(); starved == nil {
		return nil
	}
	return db.commit(func(t *replica.Txn) error {
		t.Batch.Delete(store.MetaFlush)
		return nil
	})
}

// throughShortage calls f again, once a second, as long as it fails for want of file
// handles.
func throughShortage(ctx context.Context, f func() error) error {
	for {
		err := f()
		if !starved(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Second):
		}
	}
}
