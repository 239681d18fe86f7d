package replicator

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

const (
	tendInterval       = time.Second            // between two looks at the store while something is pending
	checkpointInterval = 5 * time.Second        // between two writings of the checkpoint
	purgeInterval      = 10 * time.Second       // between two looks at the tombstones
	purgeTime          = 250 * time.Millisecond // of each second, while that takes
	idleInterval       = time.Minute            // between two looks when nothing is pending
	expiryInterval     = 24 * time.Hour         // between two looks at the certificates
	reissueStep        = 1000
)

func (db *DB) tendNow() {
	notify(db.tend)
}

// maintain looks after the store: it moves the checkpoint, forgets deletions, and
// gives orphans a new name.
func (db *DB) maintain(ctx context.Context) {
	timer := time.NewTimer(0) // at once: a certificate may be about to end
	defer timer.Stop()
	var asked time.Time
	var u upkeep
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-db.tend:
			// Many commits may have called; one look a second is enough.
			timer.Reset(tendInterval)
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
		}
		err := db.tendStore(ctx, &u)
		if err != nil && ctx.Err() == nil && !starved(err) && !errors.Is(err, ErrFailed) && !errors.Is(err, leveldb.ErrClosed) && !errors.Is(err, leveldb.ErrReadOnly) {
			db.opts.Logger.Error("replicator: looking after the store failed", "error", err)
		}
		if now := db.opts.Now(); now.Sub(asked) >= expiryInterval {
			asked = now
			db.warnOfExpiry(now)
		}
		pause := idleInterval
		db.at(func(r *replica) {
			if r.unsynced || r.known.rev != r.savedRev || r.tombstones > 0 || len(r.loose) > 0 || !db.queue.shortage.since.IsZero() {
				pause = tendInterval
			}
		})
		timer.Reset(pause)
	}
}

// upkeep is how far looking after the store is.
type upkeep struct {
	saved   time.Time // when the checkpoint was last written
	purged  time.Time // when the last look at the tombstones began
	purging *purging  // the one under way
}

func (db *DB) tendStore(ctx context.Context, u *upkeep) error {
	if db.queue.broken() != nil {
		return nil
	}
	var err error
	db.at(func(r *replica) {
		// Read with nothing being committed: what is acknowledged after an earlier
		// count must not be taken for flushed along with what came before it.
		var count uint64
		if count, err = memComp(db.raw); err != nil {
			return
		}
		r.flushed(count)
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
		if err := db.commit(func(t *txn) error {
			// Who writes with Sync only has all on disk, at all times: this must not be
			// the one write for which a flush has to be waited for.
			// And proofs that are not known to be on disk ride along with every write.
			t.sync = t.sync || !t.r.unsynced || len(t.r.unprovedOrigins()) > 0
			t.stageCheckpoints()
			t.stageMembers()
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

// tidyTime is how long Replicate tidies before it leaves the rest to the background.
const tidyTime = 100 * time.Millisecond

// tidy does what Replicate has left to do. After an error it goes on later.
func (db *DB) tidy(ctx context.Context, p *tidying) {
	for !p.done {
		err := p.next(background{db, ctx}, db.resolve, func() bool { return ctx.Err() != nil })
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

// warnOfExpiry says in time that the caller's certificates run out.
func (db *DB) warnOfExpiry(now time.Time) {
	switch left, warn := db.security.expiry(now); {
	case warn && left <= 0:
		db.opts.Logger.Error("replicator: the TLS certificate of this server has expired; peers refuse it", "since", -left.Round(time.Minute))
	case warn:
		db.opts.Logger.Warn("replicator: the TLS certificate of this server expires soon", "left", left.Round(time.Minute))
	}
}

// purge goes on with the look at the tombstones that is under way, for purgeTime, or
// begins one, if it can find something.
func (db *DB) purge(ctx context.Context, u *upkeep) error {
	began := time.Now()
	if u.purging == nil {
		if began.Sub(u.purged) < purgeInterval {
			return nil
		}
		db.at(func(r *replica) {
			if r.purgeDue() {
				u.purging = r.beginPurge()
			}
			r.blockers() // notes since when
		})
		u.purged = began
	}
	for u.purging != nil && ctx.Err() == nil && time.Since(began) < purgeTime {
		err := u.purging.next(background{db, ctx})
		if err != nil || u.purging.done {
			u.purging = nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// reissueOrphans gives writes of earlier openings that nobody turned out to claim
// a new name, once all peers that can be reached have been heard.
func (db *DB) reissueOrphans(ctx context.Context) error {
	select {
	case <-db.ready:
	default:
		return nil
	}
	if all, _ := db.peers.tried(); !all {
		return nil
	}
	for ctx.Err() == nil {
		more := false
		db.at(func(r *replica) { more = r.orphans() })
		if !more {
			return nil
		}
		if err := db.commit(func(t *txn) error { return t.reissue(reissueStep) }); err != nil {
			return err
		}
		db.hastenNow() // who waits for a name that is gone is told
	}
	return nil
}

// memComp tells how often goleveldb has flushed its memtable since it was opened.
func memComp(db *leveldb.DB) (uint64, error) {
	s, err := db.GetProperty("leveldb.compcount")
	if err != nil {
		return 0, err
	}
	for _, f := range strings.Fields(s) {
		if v, ok := strings.CutPrefix(f, "MemComp:"); ok {
			return strconv.ParseUint(v, 10, 64)
		}
	}
	return 0, fmt.Errorf("replicator: goleveldb tells no count of memtable flushes in %q", s)
}

// flush brings all that was acknowledged before it to disk. It overwrites one key
// until goleveldb has flushed its memtable twice: it has one frozen memtable at
// most, so the second flush is of writes after the call. CompactRange would be
// no barrier if its memtable happened to be just full, and rewrites tables.
func flush(db *leveldb.DB) error {
	start, err := memComp(db)
	if err != nil {
		return err
	}
	filler := make([]byte, 16<<10)
	for n := 0; ; n++ {
		// Of a write larger than a small write buffer goleveldb makes a table, and
		// there is no memtable to flush: every other one is short.
		if err := db.Put(metaFlush, filler[:len(filler)>>(n%2*8)], nil); err != nil {
			return err
		}
		now, err := memComp(db)
		if err != nil {
			return err
		}
		if now >= start+2 {
			return db.Delete(metaFlush, nil)
		}
		if n > 1<<20 {
			return errors.New("replicator: goleveldb does not flush its memtable")
		}
	}
}

// quiesce waits until goleveldb flushes nothing. Its Close closes a channel that
// the end of a flush may just be sending on, and panics then.
func quiesce(db *leveldb.DB) {
	// No key of ours or of a user lies here, so nothing is compacted; but the
	// command is taken only between compactions, and a flush bars those.
	beyond := []byte{0xff, 0xff, 0xff, 0xff}
	done := make(chan struct{})
	go func() {
		defer close(done)
		db.CompactRange(util.Range{Start: beyond, Limit: beyond})
	}()
	timeout := time.NewTimer(time.Second)
	defer timeout.Stop()
	select {
	case <-done:
	case <-timeout.C:
		return
	}
	// The flush may have a few instructions left to do.
	timeout.Reset(quiesceTime)
	<-timeout.C
}

const quiesceTime = 2 * time.Millisecond
