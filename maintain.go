package replicator

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
)

const (
	tendInterval       = time.Second      // between two looks at the store while something is pending
	checkpointInterval = 5 * time.Second  // between two writings of the checkpoint
	purgeInterval      = 10 * time.Second // between two runs of purge
	idleInterval       = time.Minute      // between two looks when nothing is pending
	purgeStep          = 1000             // keys in one transaction
	reissueStep        = 1000
)

func (db *DB) tendNow() {
	select {
	case db.tend <- struct{}{}:
	default:
	}
}

// maintain looks after the store: it moves the checkpoint, forgets deletions, and
// gives orphans a new name.
func (db *DB) maintain(ctx context.Context) {
	timer := time.NewTimer(idleInterval)
	defer timer.Stop()
	var saved, purged time.Time
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
		err := db.tendStore(ctx, &saved, &purged)
		if err != nil && ctx.Err() == nil && !errors.Is(err, ErrFailed) && !errors.Is(err, leveldb.ErrClosed) && !errors.Is(err, leveldb.ErrReadOnly) {
			db.opts.Logger.Error("replicator: looking after the store failed", "error", err)
		}
		pause := idleInterval
		db.at(func(r *replica) {
			if r.unsynced || r.known.rev != r.savedRev || r.tombstones > 0 || len(r.loose) > 0 {
				pause = tendInterval
			}
		})
		timer.Reset(pause)
	}
}

func (db *DB) tendStore(ctx context.Context, saved, purged *time.Time) error {
	if db.queue.broken() != nil {
		return nil
	}
	count, err := memComp(db.raw)
	if err != nil {
		return err
	}
	db.at(func(r *replica) {
		r.flushed(count)
	})
	now := time.Now()
	if now.Sub(*saved) >= checkpointInterval {
		*saved = now
		if err := db.commit(func(t *txn) error {
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
	if now.Sub(*purged) >= purgeInterval {
		*purged = now
		return db.purge(ctx)
	}
	return nil
}

// purge goes through all tombstones once.
func (db *DB) purge(ctx context.Context) error {
	buried := false
	db.at(func(r *replica) { buried = r.tombstones > 0 || r.disputed > 0 })
	if !buried {
		return nil
	}
	for from := []byte(nil); ; {
		var next []byte
		err := db.commit(func(t *txn) (err error) {
			next, err = t.purge(from, purgeStep)
			return err
		})
		if err != nil || next == nil || ctx.Err() != nil {
			return err
		}
		from = next
	}
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
		if err := db.Put(metaFlush, filler, nil); err != nil {
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
