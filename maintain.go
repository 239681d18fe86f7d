package replicator

import (
	"context"
	"errors"
	"slices"
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
	reissueStep        = 1000
)

// upkeep is how far looking after the store is.
type upkeep struct {
	saved   time.Time        // when the checkpoint was last written
	purged  time.Time        // when the last look at the tombstones began
	purging *replica.Purging // the one under way
}

// tidyTime is how long Replicate tidies before it leaves the rest to the background.
const tidyTime = 100 * time.Millisecond

// fillFilter reads the keys that were there at the opening, a few at a time so that
// no iterator stays open for long. Those written meanwhile are added as they are.
func (db *DB) fillFilter(ctx context.Context) error {
	due := false
	db.with(func(r *replica.Replica) {
		if !r.Filter.Worth(r.Keys + r.Tombstones) {
			r.Filter = indexcache.Filter{}
		}
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
			if r.Unsynced || r.Known.Rev != r.SavedRev || r.Tombstones > 0 || len(r.Cloud) > 0 || !db.queue.shortage.since.IsZero() {
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
			// With Sync alone all is on disk at all times: this must not be
			// the one write for which a flush has to be waited for.
			// And watermarks that are not known to be on disk ride along with every write (C3).
			t.Sync = t.Sync || !t.R.Unsynced || len(t.R.UndurableOrigins()) > 0
			t.StageCheckpoints()
			t.StageMembers()
			return nil
		}); err != nil {
			return err
		}
	}
	if err := db.reissueOrphans(ctx); err != nil {
		return err
	}
	return db.purge(ctx, u)
}

// tidy does what Replicate has left to do. After an error it goes on later.
func (db *DB) tidy(ctx context.Context, p *replica.Tidying) {
	for !p.Done {
		err := p.Next(background{db, ctx}, db.decider.resolve, func() bool { return ctx.Err() != nil })
		switch {
		case err == nil:
			continue
		case ctx.Err() != nil || errors.Is(err, ErrFailed) || errors.Is(err, leveldb.ErrClosed) || errors.Is(err, leveldb.ErrReadOnly):
			return
		}
		db.opts.Logger.Error("replicator: what is to be done after an opening failed, and is tried again", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(idleInterval):
		}
	}
	close(db.tidied)
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
func (db *DB) reissueOrphans(ctx context.Context) error {
	if !isClosed(db.ready) {
		return nil
	}
	if all, _ := db.peers.tried(); !all {
		return nil
	}
	for ctx.Err() == nil {
		more := false
		db.with(func(r *replica.Replica) { more = r.Orphans() })
		if !more {
			return nil
		}
		if err := db.commit(func(t *replica.Txn) error { return t.Reissue(reissueStep) }); err != nil {
			return err
		}
		db.requestSync() // waits for a name that is gone can end
	}
	return nil
}
