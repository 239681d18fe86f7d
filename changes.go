package replicator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/feed"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// ChangesOptions are what a consumer of [DB.Changes] wants.
type ChangesOptions struct {
	// Prefix and Ranges are which keys; nothing means all. With both, a key in either is meant.
	// All cursors of a consumer belong to the same keys: who wants others begins again.
	Prefix []byte
	Ranges []*util.Range
	// KeysOnly leaves out the values. Catching up takes a fraction of the time then.
	KeysOnly bool
	// Once has the loop end when there is nothing left, rather than wait for what is committed next.
	// If anything has changed, the last that it yields has a cursor.
	Once bool
	// NoCursors is for a consumer that stores none, one that only shows what changes: none are yielded,
	// and nothing is brought to disk for them.
	NoCursors bool
	// MaxWait is how long to wait for a replica that is behind the cursor; the error is [ErrBehind] then.
	// Without it the wait lasts until ctx ends.
	MaxWait time.Duration
}

// ErrBehind ends a [DB.Changes] that has waited for MaxWait: the replica does not know all that the consumer
// does. Another replica may, or this one later.
var ErrBehind = feed.ErrBehind

const (
	cursorPatience = time.Second      // after which what a cursor waits for is brought to disk: again, if it is little,
	flushPatience  = 10 * time.Second // or else by a flush
	cursorInterval = 5 * time.Second  // between two cursors without changes
	wakePause      = 10 * time.Microsecond
)

// Changes returns the changes of keys since a cursor, and goes on with those that are committed, here
// or at peers, while the loop lasts. It is what to keep an index, a cache, or another database by: a
// consumer that stores the cursors it is given may end at any time, and go on from the last one, at
// this replica or at any other of the cluster.
//
//	for c, err := range db.Changes(ctx, stored, nil) {
//		switch {
//		case err != nil:
//			return err // to go on later, from the cursor that was stored last
//		case c.Reset:
//			clear(index)
//		case c.Key == nil: // a cursor alone
//		case c.Deleted:
//			index.Delete(c.Key)
//		default:
//			index.Put(c.Key, c.Value)
//		}
//		if !c.Cursor.IsZero() {
//			store(c.Cursor)
//		}
//	}
//
// Each change has the state of its key at that moment. A key that changes several times while the
// consumer is away, or busy, is yielded once, with the last state; what is yielded after a cursor that was not
// stored is yielded again. So a consumer must be able to take a change twice.
//
// The changes of one key never run backwards while the loop lasts: each is of a state that has seen the
// one before. Those of different keys come, while catching up, one origin after the other, and of each
// origin in the order in which it wrote; a key may come earlier than that, when it changes again
// meanwhile. What is committed after that comes in the order of commits, as [DB.Watch] has it.
//
// Change.Cursor is not zero where a cursor may be stored: when all that was so in one state of the
// database has been yielded, and no crash of this replica can take back what that state has. Under
// writes without Sync that is about a second after them, or several under load; the cursor then comes
// with a later change, or alone, with a Change that has nothing else. A consumer of keys that rarely
// change gets one alone every few seconds while others change, and should store it: it keeps it from
// falling behind what is purged.
//
// Keys in conflict are yielded each time that the loop begins, with Change.Resolver: what the resolver
// makes of them may be another value than it was where the cursor comes from.
//
// With Change.Reset, which comes alone, the consumer must drop what it has, or note what of it does not
// come again: all keys with a value follow. It comes first for the zero Cursor, and where it cannot be
// avoided: if deletions may have been purged that the consumer does not know of; or if the cluster has lost
// a write that the cursor covers, with a disk or because one was set back to an older state. A cursor that
// comes while all keys are being yielded goes on in their midst.
//
// How long a consumer may be away without a Reset depends on who else has the deletions, not on their age:
// a replica purges one as soon as all members have it on disk, which may be seconds after it was made, and
// Options.TombstoneTTL is only when it no longer waits for them. A consumer whose loop goes on misses none.
//
// If the replica is behind the cursor Changes waits for it, as [DB.WaitFor] does. The error is
// [ErrCursor] if the cursor is not of this cluster, [ErrBehind] after ChangesOptions.MaxWait,
// [ErrCorrupted] for a key that is damaged here, until it is repaired, leveldb.ErrClosed after Close,
// and otherwise one of reading the store. The loop ends after an error, or without one with ctx.
//
// Catching up reads the log one page after the other, of about 1 MiB or 4,096 changes, and the values of a page
// in key order: if keys that have changed are neighbours that costs little more than a scan of them, and
// otherwise a lookup each. No snapshot is held while the consumer works,
// commits never wait for it, and what it has not taken is read again from the log: however slow a
// consumer is, it costs no memory. All consumers of a database share the latest commits, 16 MiB at
// most.
//
// Keys in Options.LocalRanges are not yielded. A consumer that keeps what it makes of the changes in
// such a range of the same database can write it and the cursor in one transaction, and each change takes effect
// exactly once; with [DB.OpenCheckedTransaction] also if there are two such consumers by mistake, see
// examples/index. The loop may be run again, and begins at the same cursor then. The caller owns the slices.
func (db *DB) Changes(ctx context.Context, since Cursor, o *ChangesOptions) iter.Seq2[Change, error] {
	var opts ChangesOptions
	if o != nil {
		opts = *o
		opts.Prefix = slices.Clone(o.Prefix)
	}
	return func(yield func(Change, error) bool) {
		c := consumer{db: db, ctx: ctx, opts: &opts, yield: yield, cluster: hashCluster(db.opts.Cluster)}
		if err := c.run(since); err != nil && ctx.Err() == nil {
			if db.isClosing() {
				err = leveldb.ErrClosed
			}
			yield(Change{}, err)
		}
	}
}

// Cursor returns the cursor of a consumer that has everything that can be read here now. With it
// [DB.Changes] begins with what comes next. What is not on disk yet may lose its name in a crash;
// whoever stores this cursor begins again then.
func (db *DB) Cursor() Cursor {
	c := Cursor{cluster: hashCluster(db.opts.Cluster)}
	db.with(func(r *replica.Replica) { c.at.Root = r.Known.Vector(causal.Covered) })
	return c
}

// consumer is one loop over Changes.
type consumer struct {
	db      *DB
	ctx     context.Context
	opts    *ChangesOptions
	yield   func(Change, error) bool
	cluster clusterHash

	reader  *feed.Reader
	told    bool           // changes since the last cursor
	at      feed.Position  // that
	held    *feed.Position // a cursor that is not worth a change of its own yet
	last    time.Time      // when the last cursor was yielded
	pending time.Time      // since when one waits to be on disk
}

// errLeft ends a loop that its caller has left.
var errLeft = errors.New("replicator: the loop was left")

func (c *consumer) run(since Cursor) error {
	if !since.IsZero() && since.cluster != c.cluster {
		return fmt.Errorf("%w: it is of another cluster than %q", ErrCursor, c.db.opts.Cluster)
	}
	config := feed.Config{KeysOnly: c.opts.KeysOnly}
	if ranges := slices.Clone(c.opts.Ranges); len(ranges) > 0 || len(c.opts.Prefix) > 0 {
		if len(c.opts.Prefix) > 0 {
			ranges = append(ranges, util.BytesPrefix(c.opts.Prefix))
		}
		config.Ranges = append([]*util.Range{}, store.NormalRanges(ranges)...)
	}
	hub := &c.db.feeds.hub
	c.reader = feed.NewReader(hub, c.db.with, since.at, config)
	defer c.reader.Close()
	if !c.opts.Once { // else it never waits
		c.db.feeds.enter(c.db)
		defer c.db.feeds.leave()
	}
	c.last, c.at = time.Now(), since.at
	for {
		changed := hub.Changed()
		if c.ctx.Err() != nil {
			return nil
		}
		if c.db.isClosing() {
			return leveldb.ErrClosed
		}
		p, err := c.reader.Next()
		if err == feed.ErrBehind {
			if err = c.wait(since); err == nil {
				continue
			}
		}
		if err != nil {
			return err
		}
		if err := c.deliver(&p); err != nil {
			if err == errLeft {
				return nil
			}
			return err
		}
		c.secure()
		if !p.Idle {
			continue
		}
		if c.opts.Once {
			if c.reader.Pending() && !c.opts.NoCursors {
				if c.db.queue.broken() != nil { // nothing is brought to disk any more
					return nil
				}
				if err := c.db.secureCursors(true); err != nil {
					return err
				}
				continue
			}
			if c.held != nil {
				c.progress()
			}
			return nil
		}
		if !c.idle(changed) {
			return nil
		}
	}
}

// wait waits until the replica knows what the consumer does. If that will never be, the consumer starts over.
func (c *consumer) wait(since Cursor) error {
	ctx := c.ctx
	if c.opts.MaxWait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.opts.MaxWait)
		defer cancel()
	}
	err := c.db.WaitFor(ctx, Token{claim: since.at.Vector()})
	switch {
	case errors.Is(err, ErrTokenLost):
		c.reader.StartOver(feed.Lost)
		return nil
	case errors.Is(err, ErrToken):
		return fmt.Errorf("%w: it names writes of this replica that were never made", ErrCursor)
	case err != nil && errors.Is(err, context.DeadlineExceeded) && c.ctx.Err() == nil:
		return ErrBehind
	}
	return err
}

// deliver yields a page.
func (c *consumer) deliver(p *feed.Page) error {
	if p.Reset != "" {
		c.held, c.told = nil, true
		if !c.yield(Change{Reset: true}, nil) {
			return errLeft
		}
	}
	if p.At != nil && !c.opts.NoCursors {
		c.held = p.At
	}
	for i := range p.Records {
		ch := c.change(&p.Records[i], p.Shared)
		if c.told = true; i == len(p.Records)-1 && c.held != nil {
			ch.Cursor = c.cursor()
		}
		if i%64 == 63 && c.ctx.Err() != nil || !c.yield(ch, nil) {
			return errLeft
		}
	}
	switch {
	case c.held == nil:
	case c.told && !c.alone(), !c.told && time.Since(c.last) >= cursorInterval && !c.progress():
		return errLeft
	}
	return nil
}

// cursor returns the one that is held.
func (c *consumer) cursor() Cursor {
	c.at = *c.held
	c.held, c.told, c.last = nil, false, time.Now()
	return Cursor{c.cluster, c.at}
}

// alone yields a cursor without a change.
func (c *consumer) alone() bool { return c.yield(Change{Cursor: c.cursor()}, nil) }

// progress yields a cursor without a change, if it is another than the last.
func (c *consumer) progress() bool {
	if c.at.Scanning == c.held.Scanning && bytes.Equal(c.at.Key, c.held.Key) && slices.Equal(c.at.Vector(), c.held.Vector()) {
		c.held, c.last = nil, time.Now()
		return true
	}
	return c.alone()
}

func (c *consumer) change(rec *feed.Record, shared bool) Change {
	ch := Change{Key: rec.Key, Value: rec.Value, Deleted: rec.Deleted, Local: rec.Local, Conflict: rec.Conflict, Resolver: rec.Resolver}
	if shared {
		ch.Key, ch.Value = bytes.Clone(rec.Key), bytes.Clone(rec.Value)
	}
	if ch.Key == nil { // the empty key is a key
		ch.Key = []byte{}
	}
	v := rec.Version
	v.Value = ch.Value
	ch.Version = publicVersion(&v)
	return ch
}

// secure has brought to disk what a cursor has waited for.
func (c *consumer) secure() {
	switch {
	case c.opts.NoCursors:
	case !c.reader.Pending():
		c.pending = time.Time{}
	case c.pending.IsZero():
		c.pending = time.Now()
	case time.Since(c.pending) >= cursorPatience && c.db.queue.broken() == nil:
		c.db.feeds.request(c.db, time.Since(c.pending) >= flushPatience)
	}
}

// idle waits until there may be something, and reports whether to go on.
func (c *consumer) idle(changed <-chan struct{}) bool {
	var timer <-chan time.Time
	switch {
	case c.reader.Pending() && !c.opts.NoCursors:
		timer = time.After(cursorPatience)
	case c.held != nil:
		timer = time.After(max(cursorInterval-time.Since(c.last), 0))
	}
	select {
	case <-changed:
	case <-timer:
		if c.held != nil && time.Since(c.last) >= cursorInterval {
			return c.progress()
		}
	case <-c.ctx.Done():
	case <-c.db.ending:
	}
	return true
}

// feeds are the consumers of a database. They guard themselves.
type feeds struct {
	hub      feed.Hub
	news     signal
	securing atomic.Bool
	secured  atomic.Int64 // when it last was, in Unix nanoseconds

	mu      sync.Mutex
	waiting int                // consumers that wait for commits, or will
	stop    context.CancelFunc // ends what wakes them
}

// enter adds a consumer that waits for commits. The first one has a goroutine started that wakes them. No commit is
// missed: what was set while there was none stays set, and one that is to stop broadcasts what it has taken.
func (f *feeds) enter(db *DB) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting++; f.waiting == 1 {
		ctx, cancel := context.WithCancel(db.background)
		f.stop = cancel
		db.spawnBeforeClose(func() { db.wakeConsumers(ctx) })
	}
}

// leave removes a consumer.
func (f *feeds) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting--; f.waiting == 0 {
		f.stop()
	}
}

// publish takes in a commit. The queue's slot is held.
func (f *feeds) publish(t *replica.Txn, changes []replica.Change) {
	if f.hub.Active() {
		f.hub.Publish(t, changes)
		f.news.Set()
	}
}

// wakeConsumers has consumers that wait look, outside of commits and not more often than a processor can stand.
func (db *DB) wakeConsumers(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-db.feeds.news.C():
		}
		if n := db.feeds.hub.Broadcast(); n > 8 {
			pause := time.NewTimer(time.Duration(n) * wakePause)
			select {
			case <-ctx.Done():
			case <-pause.C:
			}
		}
	}
}

// request has brought to disk, in the background, what cursors wait for, once a second at most.
func (f *feeds) request(db *DB, flush bool) {
	if time.Now().UnixNano()-f.secured.Load() < int64(cursorPatience) || !f.securing.CompareAndSwap(false, true) {
		return
	}
	if !db.spawnBeforeClose(func() {
		defer f.securing.Store(false)
		_ = db.secureCursors(flush) // what it is about is reported where it fails, and consumers go on waiting
		f.secured.Store(time.Now().UnixNano())
	}) {
		f.securing.Store(false)
	}
}

// secureCursors brings to disk what is covered, and the checkpoint that says so.
func (db *DB) secureCursors(flush bool) error {
	err := db.commit((*replica.Txn).SecureAll)
	if errors.Is(err, replica.ErrMuchInDoubt) || errors.Is(err, store.ErrCorrupted) {
		if !flush {
			return nil
		}
		if err = db.flushAll(); err == nil {
			err = db.commit(func(t *replica.Txn) error { t.StageNames(); return nil })
		}
	}
	db.feeds.news.Set()
	return err
}
