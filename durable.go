package replicator

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// syncAfterAsked is for how long after a peer asked for it what is pulled is written
// with Sync: more will be asked for, and then nothing need be flushed.
const syncAfterAsked = 10 * time.Second

// durability is what is known of those who wait until the store is on disk. It guards itself.
type durability struct {
	flushing chan struct{} // capacity 1: holds a place while the store is brought to disk
	asked    atomic.Int64  // when a peer last asked for a report of what is on disk, in Unix nanoseconds
}

func (d *durability) noteAsked() { d.asked.Store(time.Now().UnixNano()) }

// askedLately reports whether to write with Sync what is pulled, see syncAfterAsked.
func (d *durability) askedLately() bool {
	return time.Now().UnixNano()-d.asked.Load() < int64(syncAfterAsked)
}

// makeDurable brings to disk what is covered, and waits for it. All who ask while it is
// under way are served by the next one.
func (db *DB) makeDurable() error {
	defer db.durability.noteAsked() // it may have taken longer than syncAfterAsked
	db.durability.noteAsked()
	return db.flushAll()
}

// flushAll brings to disk what is covered. At most one flush is under way.
func (db *DB) flushAll() error {
	var need uint64
	db.with(func(r *replica.Replica) { need = r.Commits })
	select {
	case db.durability.flushing <- struct{}{}:
		defer func() { <-db.durability.flushing }()
	case <-db.ending:
		return leveldb.ErrClosed
	}
	var m replica.FlushMark
	safe := false
	db.with(func(r *replica.Replica) {
		safe = !r.Unsynced || r.Safe >= need
		m = replica.FlushMark{Vector: r.Known.Vector(causal.Covered), Commits: r.Commits, Resume: r.ResumePoint()}
	})
	if safe {
		return nil
	}
	if err := db.queue.broken(); err != nil {
		return err
	}
	if err := db.commit((*replica.Txn).SecureAll); err != replica.ErrMuchInDoubt && !errors.Is(err, store.ErrCorrupted) {
		return err
	}
	if err := store.Flush(db.raw); err != nil {
		if err != leveldb.ErrClosed && err != leveldb.ErrReadOnly && !starved(err) {
			db.queue.fail(err)
		}
		return err
	}
	db.with(func(r *replica.Replica) { r.OnDisk(m) })
	// A version vector that a crash could cut down would be no report.
	return db.commit(func(t *replica.Txn) error {
		t.StageCheckpoints()
		t.Sync = true
		return nil
	})
}
