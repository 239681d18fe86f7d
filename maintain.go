package replicator

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/level-replicator/replicator/internal/indexcache"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

const (
	maintainInterval   = time.Second            // between two looks at the store while something is pending
	checkpointInterval = 5 * time.Second        // between two writings of the checkpoint
	purgeInterval      = 10 * time.Second       // between two looks at the tombstones
	purgeTime          = 250 * time.Millisecond // of each second, while that takes
	idleInterval       = time.Minute            // between two looks when nothing is pending
)

// upkeep is how far looking after the store is.
type upkeep struct {
	saved     time.Time        // when the checkpoint was last written
	purged    time.Time        // when the last look at the tombstones began
	purging   *replica.Purging // the one under way
	reissuing replica.Reissuing
}

// fillFilter reads the keys that were there at the opening, a few at a time so that
// no iterator stays open for long. Those written meanwhile are added as they are.
func (db *DB) fillFilter(ctx context.Context) error {
	due := false
	db.with(func(r *replica.Replica) {
		if _, counting := r.Counting(); counting {
			return // it is filled by the way
		}
		if !r.Filter.Worth(r.Keys + r.Tombstones) {
			r.Filter = indexcache.Filter{}
		}
		r.Filter.Reserve(r.Keys + r.Tombstones)
		due = r.Filter.Limit > 0 && !r.Filter.Whole
	})
	if !due {
		return nil
	}
	from := store.KindRange(store.KindIndex)
	for ctx.Err() == nil {
		keys, err := db.indexedKeys(from, indexcache.FilterStep)
		if err != nil {
			return err
		}
		db.with(func(r *replica.Replica) {
			for _, key := range keys {
				r.Filter.Add(key)
			}
			r.Filter.Whole = len(keys) < indexcache.FilterStep
		})
		if len(keys) < indexcache.FilterStep {
			return nil
		}
		from.Start = append(store.KindKey(store.KindIndex, keys[len(keys)-1]), 0)
	}
	return nil
}

func (db *DB) indexedKeys(g *util.Range, most int) (keys [][]byte, err error) {
	it := db.raw.NewIterator(g, nil)
	defer it.Release()
	for len(keys) < most && it.Next() {
		keys = append(keys, slices.Clone(store.UserKey(it.Key())))
	}
	return keys, it.Error()
}

func (db *DB) requestMaintenance() {
	db.maintenance.Set()
}

// maintain looks after the store: it moves the checkpoint, forgets deletions, and
// reissues orphans.
func (db *DB) maintain(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var u upkeep
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-db.maintenance.C():
			// Many commits may have called; one look a second is enough.
			timer.Reset(maintainInterval)
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
		}
		err := db.maintainStore(ctx, &u)
		if err != nil && ctx.Err() == nil && !starved(err) && !errors.Is(err, ErrFailed) && !errors.Is(err, leveldb.ErrClosed) && !errors.Is(err, leveldb.ErrReadOnly) {
			db.opts.Logger.Error("replicator: looking after the store failed", "error", err)
		}
		pause := idleInterval
		db.with(func(r *replica.Replica) {
			if r.NeedsUpkeep() || !db.queue.shortage.since.IsZero() {
				pause = maintainInterval
			}
		})
		timer.Reset(pause)
	}
}

func (db *DB) maintainStore(ctx context.Context, u *upkeep) error {
	if db.queue.broken() != nil {
		return nil
	}
	var err error
	db.with(func(r *replica.Replica) {
		// Read with nothing being committed: what is acknowledged after an earlier
		// count must not be taken for flushed along with what came before it.
		var count uint64
		if count, err = store.MemtableFlushes(db.raw); err != nil {
			return
		}
		r.Flushed(count)
	})
	if err != nil {
		return err
	}
	if err := db.tryStarved(); err != nil {
		return err
	}
	now := time.Now()
	if now.Sub(u.saved) >= checkpointInterval {
		u.saved = now
		if err := db.commit(func(t *replica.Txn) error {
			t.StageUpkeep()
			if db.feeds.hub.Active() {
				t.StageNames()
			}
			return nil
		}); err != nil {
			return err
		}
	}
	if err := db.reissueOrphans(ctx, u); err != nil {
		return err
	}
	if err := db.sweepBroken(ctx); err != nil {
		return err
	}
	return db.purge(ctx, u)
}

// sweepBroken sweeps what a join that broke off has staged.
func (db *DB) sweepBroken(ctx context.Context) error {
	began := time.Now()
	for ctx.Err() == nil && time.Since(began) < purgeTime {
		if more, err := replica.SweepBroken(background{db, ctx}); err != nil || !more {
			return err
		}
	}
	return nil
}

// purge goes on with the look at the tombstones that is under way, for purgeTime, or
// begins one, if it can find something.
func (db *DB) purge(ctx context.Context, u *upkeep) error {
	began := time.Now()
	if u.purging == nil {
		if began.Sub(u.purged) < purgeInterval {
			return nil
		}
		db.with(func(r *replica.Replica) {
			if r.PurgeDue() {
				u.purging = r.BeginPurge()
			}
			r.Blockers() // notes since when
		})
		u.purged = began
	}
	for u.purging != nil && ctx.Err() == nil && time.Since(began) < purgeTime {
		err := u.purging.Next(background{db, ctx})
		if err != nil || u.purging.Done {
			u.purging = nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// reissueOrphans reissues writes of earlier incarnations that no peer turned out to cover,
// once all peers that can be reached have been heard.
func (db *DB) reissueOrphans(ctx context.Context, u *upkeep) error {
	if !isClosed(db.ready) {
		return nil
	}
	if all, _ := db.peers.tried(); !all {
		return nil
	}
	k := &timed{background: background{db, ctx}}
	for n := firstSlice; ctx.Err() == nil; {
		more, err := u.reissuing.Next(k, n)
		if !more || err != nil {
			return err
		}
		n = nextSlice(n, time.Since(k.began))
		db.requestSync() // waits for a name that is gone can end
	}
	return nil
}

// What the replica does on its own account for many keys it commits in slices, as
// whoever writes meanwhile has to wait for one of them. How many keys that are is
// found out: they differ by a factor of a thousand, and so do machines.
const (
	holdTime   = 2 * time.Millisecond // to stage and write a slice may take about so long
	firstSlice = 16                   // keys
	mostSlice  = 128                  // what was quick for these may not be for the next
)

// background makes a DB a keeper, until ctx ends.
type background struct {
	db  *DB
	ctx context.Context // of the one task that this belongs to
}

func (b background) With(f func(r *replica.Replica)) { b.db.with(f) }

func (b background) Commit(stage func(t *replica.Txn) error) error { return b.db.commit(stage) }

func (b background) Each(keys [][]byte, stage replica.Stager) error {
	return b.db.inSlices(b.ctx, keys, stage)
}

// timed is a keeper that notes when it last began to stage something.
type timed struct {
	background
	began time.Time
}

func (k *timed) Commit(stage func(t *replica.Txn) error) error {
	return k.background.Commit(func(t *replica.Txn) error {
		k.began = time.Now()
		return stage(t)
	})
}

// inSlices has something staged for each of some keys, and committed.
func (db *DB) inSlices(ctx context.Context, keys [][]byte, stage replica.Stager) error {
	n := firstSlice
	for len(keys) > 0 && ctx.Err() == nil {
		slice := keys[:min(n, len(keys))]
		var began time.Time
		var took time.Duration
		var done int
		synced := false
		err := db.commit(func(t *replica.Txn) (err error) {
			began = time.Now()
			done, err = stage(t, slice)
			took, synced = time.Since(began), t.Sync
			return err
		})
		if err != nil {
			return err
		}
		if !synced { // how long a disk takes says nothing of the number of keys
			took = time.Since(began)
		}
		keys = keys[done:]
		n = nextSlice(done, took)
	}
	return ctx.Err()
}

// nextSlice is how many keys the next slice should have, if those of the last took
// so long. One that took long by accident does not count for much, nor for long.
func nextSlice(n int, took time.Duration) int {
	want := 2 * n
	if took > 0 {
		want = int(min(int64(n)*int64(holdTime)/int64(took), int64(want)))
	}
	return min(max(want, n/2, 1), mostSlice)
}

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
	var need, m replica.FlushMark
	db.with(func(r *replica.Replica) { need = r.FlushMark() })
	select {
	case db.durability.flushing <- struct{}{}:
		defer func() { <-db.durability.flushing }()
	case <-db.ending:
		return leveldb.ErrClosed
	}
	safe := false
	db.with(func(r *replica.Replica) {
		safe, m = r.OnDisk(need), r.FlushMark()
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
	db.with(func(r *replica.Replica) { r.NoteOnDisk(m) })
	// A version vector that a crash could cut down would be no report.
	return db.commit(func(t *replica.Txn) error {
		t.StageCheckpoints()
		t.Sync = true
		return nil
	})
}
