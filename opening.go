package replicator

import (
	"context"
	"errors"
	"time"

	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// opening is what an opening leaves to the background: to count what the store holds and to sweep the log, if it
// was not closed cleanly, and to resolve keys in conflict again.
type opening struct {
	resolving replica.Resolving
	tidying   replica.Tidying

	counting        bool      // it had to be counted
	began, reported time.Time // and when its progress was last reported
	last            Progress  // that was reported; Work is empty if nothing was, or its end
}

const (
	openingTime = 25 * time.Millisecond // for which Replicate is at it itself
	retryTime   = time.Minute           // after an error
)

// begin does it for a moment, after which a small store is done. After an error the background goes on.
func (o *opening) begin(db *DB) {
	o.began = time.Now()
	enough := func() bool { return time.Since(o.began) >= openingTime }
	b := background{db, context.Background()}
	for !o.resolving.Done && !enough() {
		if o.resolving.Next(b, db.decider.resolve, enough) != nil {
			break
		}
	}
	if o.report(db) != nil {
		return
	}
	for !o.tidying.Done && !enough() {
		if o.tidying.Next(b) != nil || o.report(db) != nil {
			return
		}
	}
}

// run starts what is left.
func (o *opening) run(ctx context.Context, db *DB) {
	if o.tidying.Done && o.resolving.Done {
		close(db.tidied)
		return
	}
	db.spawn(func() {
		resolved := make(chan struct{})
		db.spawn(func() {
			defer close(resolved)
			o.carryOn(ctx, db, &o.resolving.Done, func() error {
				return o.resolving.Next(background{db, ctx}, db.decider.resolve, func() bool { return ctx.Err() != nil })
			})
		})
		o.carryOn(ctx, db, &o.tidying.Done, func() error {
			if err := o.tidying.Next(background{db, ctx}); err != nil {
				return err
			}
			return o.report(db)
		})
		if <-resolved; o.tidying.Done && o.resolving.Done {
			close(db.tidied)
		}
	})
}

// carryOn calls next until it is done. After an error it goes on later.
func (o *opening) carryOn(ctx context.Context, db *DB, done *bool, next func() error) {
	for !*done && ctx.Err() == nil {
		err := next()
		switch {
		case err == nil:
			continue
		case ctx.Err() != nil || errors.Is(err, ErrFailed) || errors.Is(err, leveldb.ErrClosed) || errors.Is(err, leveldb.ErrReadOnly):
			return
		}
		db.opts.Logger.Error("replicator: what is to be done after an opening failed, and is tried again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(retryTime):
		}
	}
}

// report tells how far the tidying is, once a second, and that the store has been counted.
func (o *opening) report(db *DB) error {
	now := Progress{Work: WorkSweep, Keys: o.tidying.Swept}
	var below []byte
	var counting bool
	var keys, unreadable int64
	db.with(func(r *replica.Replica) {
		below, counting = r.Counting()
		keys, unreadable = r.Keys+r.Tombstones, r.Unreadable
	})
	if counting {
		o.counting, now = true, Progress{Work: WorkCount, Keys: keys}
	} else if !isClosed(db.counted) {
		if unreadable > 0 {
			db.opts.Logger.Error("replicator: records of the log could not be read when they were counted; see DB.Repair", "records", unreadable)
		}
		if close(db.counted); o.counting {
			db.requestSync() // peers hear the digest
		}
	}
	if last := o.last; last.Work != "" && (o.tidying.Done || last.Work != now.Work) {
		last.Done, last.Remaining = true, 0
		db.progress(last)
		o.last = Progress{}
	}
	if o.tidying.Done || time.Since(o.reported) < reportAfter || time.Since(o.began) < reportAfter {
		return nil
	}
	if counting {
		done, all, err := counted(db.raw, below)
		if err != nil {
			return err
		}
		if 0 < done && done < all {
			now.Remaining = time.Duration(float64(time.Since(o.began)) * float64(all-done) / float64(done))
		}
	}
	o.reported, o.last = time.Now(), now
	db.progress(now)
	return nil
}

// counted estimates how many bytes of the records that are counted lie below one of them.
func counted(raw *leveldb.DB, below []byte) (done, all int64, err error) {
	index, log := store.KindRange(store.KindIndex), store.KindRange(store.KindLog)
	upTo := func(g *util.Range) util.Range {
		limit := min(string(g.Limit), max(string(g.Start), string(below)))
		return util.Range{Start: g.Start, Limit: []byte(limit)}
	}
	sizes, err := raw.SizeOf([]util.Range{*index, *log, upTo(index), upTo(log)})
	if err != nil {
		return 0, 0, err
	}
	return sizes[2] + sizes[3], sizes[0] + sizes[1], nil
}

// Counted is closed when it is known what the replica holds: [DB.Digest], and the numbers of keys in [Status]. That is so
// when [Replicate] returns, unless the database was not closed cleanly the last time: then it is counted, which takes
// about a second for each million keys. Everything else goes on meanwhile.
func (db *DB) Counted() <-chan struct{} { return db.counted }
