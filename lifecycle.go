package replicator

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// lifecycle is where a DB is between Replicate and the end of Close. Each of its channels is
// closed once.
type lifecycle struct {
	adopted chan struct{} // the data found at the opening is logged
	counted chan struct{} // it is known what the store holds
	tidied  chan struct{} // the opening has nothing left to do in the background
	ready   chan struct{} // writes no longer wait
	ending  chan struct{} // Close has begun
	closed  chan struct{} // Close has ended

	readyOnce    sync.Once
	closing      atomic.Bool        // Close was called
	beginning    sync.Mutex         // held while ending is closed, and while a caller spawns
	closeTimeout time.Duration      // fixed
	background   context.Context    // of all tasks
	cancel       context.CancelFunc // ends it
	tasks        sync.WaitGroup
}

func newLifecycle() lifecycle {
	return lifecycle{
		adopted: make(chan struct{}), counted: make(chan struct{}), tidied: make(chan struct{}), ready: make(chan struct{}),
		ending: make(chan struct{}), closed: make(chan struct{}), closeTimeout: closeTimeout,
	}
}

// spawn starts a goroutine that Close waits for. Another such goroutine calls it.
func (l *lifecycle) spawn(f func()) { l.tasks.Go(f) }

// spawnBeforeClose does it for a caller, whom Close does not wait for, and reports whether Close has not begun.
func (l *lifecycle) spawnBeforeClose(f func()) bool {
	l.beginning.Lock()
	defer l.beginning.Unlock()
	if l.isClosing() {
		return false
	}
	l.spawn(f)
	return true
}

func (l *lifecycle) isClosing() bool { return isClosed(l.ending) }

// run starts everything that goes on in the background.
func (db *DB) run(fresh bool, o *opening) {
	ctx, cancel := context.WithCancel(context.Background())
	db.background, db.cancel = ctx, cancel
	db.spawn(func() { db.accept(ctx) })
	db.spawn(func() { db.rounds(ctx) })
	db.spawn(func() { db.maintain(ctx) })
	o.run(ctx, db)
	for _, d := range db.opts.Discover {
		db.spawn(func() { db.discover(ctx, d) })
	}
	db.spawn(func() {
		if err := throughShortage(ctx, func() error { return db.fillFilter(ctx) }); err != nil && ctx.Err() == nil {
			db.opts.Logger.Error("replicator: the keys that there are could not be read; new ones cost a read until the next opening", "error", err)
		}
	})
	db.spawn(func() {
		if fresh {
			if err := throughShortage(ctx, func() error { return db.adoptFirst(ctx) }); err != nil && ctx.Err() == nil {
				db.opts.Logger.Error("replicator: the data found at the opening could not be logged", "error", err)
			}
		}
		close(db.adopted)
		timeout := time.NewTimer(db.opts.ReadyTimeout)
		defer timeout.Stop()
		db.checkReady()
		select {
		case <-ctx.Done():
		case <-db.ready:
		case <-timeout.C:
			db.setReady()
		}
	})
}

// checkReady lets writes through once the first attempt to replicate is over: a
// session has ended with each peer that is known so far.
func (db *DB) checkReady() {
	if !isClosed(db.adopted) {
		return
	}
	if all, n := db.peers.tried(); all && (n > 0 || len(db.opts.Discover) == 0) {
		db.setReady()
	}
}

func (db *DB) setReady() {
	db.readyOnce.Do(func() {
		close(db.ready)
		db.requestMaintenance()
		db.requestSync()
	})
}

// Ready is closed when the first attempt to replicate is over and writes no
// longer wait: a session has ended, well or not, with each peer known by then, or
// Options.ReadyTimeout has passed; and what the handle held is logged.
func (db *DB) Ready() <-chan struct{} { return db.ready }

// closeTimeout is how long Close waits for the store.
const closeTimeout = 30 * time.Second

// Close ends replication and closes the handle. It waits for sessions under way
// to be cut and for writes under way to be committed, and brings to disk what is
// not yet there, so that the next opening need not ask peers for it. A second
// Close waits for the first and returns leveldb.ErrClosed, as goleveldb does.
//
// On a failing disk goleveldb can hang for ever. After 30 s Close says so and
// returns; end the process then, the lock on the directory is not released.
func (db *DB) Close() error {
	if !db.closing.CompareAndSwap(false, true) {
		<-db.closed
		return leveldb.ErrClosed
	}
	db.beginning.Lock()
	close(db.ending)
	db.beginning.Unlock()
	db.cancel()
	db.network.listener.Close()
	done := make(chan error, 1)
	go func() {
		db.transactions.discard()
		db.tasks.Wait()
		left := db.markClean()
		store.Quiesce(db.raw)
		err := errors.Join(left, db.raw.Close())
		handles.leave(db.raw)
		done <- err
	}()
	timeout := time.NewTimer(db.closeTimeout)
	defer timeout.Stop()
	var err error
	select {
	case err = <-done:
	case <-timeout.C:
		err = fmt.Errorf("replicator: Close gave up after %v: the store does not answer; end the process before the database is opened again", db.closeTimeout)
		if cause := db.queue.broken(); cause != nil {
			err = fmt.Errorf("%w (%w)", err, cause)
		}
	}
	close(db.queue.over)
	db.watchers.close()
	close(db.closed)
	return err
}

// markClean marks the database as cleanly closed. The mark counts only if all that it
// vouches for is on disk before it.
func (db *DB) markClean() (err error) {
	db.with(func(r *replica.Replica) {
		if db.queue.broken() != nil {
			return
		}
		db.queue.close(leveldb.ErrClosed) // nothing is committed any more
		err = ignoreReadOnly(replica.MarkClean(db.raw, r))
	})
	return err
}

func ignoreReadOnly(err error) error {
	if errors.Is(err, leveldb.ErrReadOnly) || errors.Is(err, leveldb.ErrClosed) {
		return nil
	}
	return err
}

// signal wakes one goroutine: there is something to do. However often it is set before it is
// received, it is received once.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

// Set sets the signal, unless it is set already.
func (s signal) Set() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// C returns the channel to receive from.
func (s signal) C() <-chan struct{} { return s }

// Take clears the signal and reports whether it was set.
func (s signal) Take() bool {
	select {
	case <-s:
		return true
	default:
		return false
	}
}

// isClosed reports whether a channel on which nothing is sent has been closed.
func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
