package replicator

import (
	"bytes"
	"cmp"
	"context"
	"iter"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/level-replicator/replicator/internal/replica"
)

// Change is what happened to one key, for those who [DB.Watch].
type Change struct {
	Key     []byte
	Value   []byte // nil if Deleted
	Deleted bool
	// Local tells whether it was written at this server, else it came from a peer.
	Local bool
	// Conflict tells whether the key is in conflict now: Value is what is shown.
	Conflict bool
	// Version is the version that is shown. Of a merged value it is the one that
	// the resolver's result stands in for.
	Version Version
	// Missed tells that changes were left out here, because the reader was too
	// slow: nothing else is set then, and the next change is one after them.
	// Whoever keeps a copy reads the keys again now; see [DB.Watch].
	Missed bool
}

// What waits for a reader is bounded, in bytes, and a reader who reads may have more of
// it: a burst that it was there for is no reason to leave anything out.
const (
	watchLimit    = 4 << 20         // for who has not read for watchPatience
	watchMost     = 64 << 20        // for who has
	watchPatience = 5 * time.Second // counted only while something waits
)

// changeOverhead is what a waiting change takes beside key and value.
const changeOverhead = 256

// Watch returns the changes to keys with a prefix, from here and from elsewhere, in
// the order in which they were committed here; a nil prefix is all keys. It
// begins with the call, not with the loop: what is committed after Watch has
// returned is not lost. So take a copy after the call and before the loop, and
// nothing is missing; a change may be in the copy already.
//
// The changes of one key never run backwards: each is of a state that has seen the
// one before. Those of different keys that one pull brings are in the order of their time
// if they were committed here as one batch, as up to 512 KiB are, where each write counts as
// its value, four times its key and 160 bytes. A pull that brings more is committed in
// several batches, and the latest writes come first, because logs are read in reverse:
// then a key may be told of before another that was written earlier.
//
//	changes := db.Watch(ctx, prefix)
//	load(db, prefix)
//	for c := range changes {
//		if c.Missed {
//			load(db, prefix) // anew
//			continue
//		}
//		…
//	}
//
// Nobody waits for the reader. Up to 64 MiB of changes are kept for it, or 4 MiB if it
// has taken none for 5 s, and in any case all of one batch that is committed when
// nothing else waits. What comes
// above that is left out, and in its place there is a Change with Missed set. What
// was left out is in the database when that one is taken, and what is committed
// later comes after it: read the keys again and go on.
//
// The loop ends with ctx or with Close, without what still waited then, or when it
// is left; a second loop over the same Watch ends at once. Until then the
// changes are kept: end ctx if the loop is never begun. The reader owns the slices.
// Keys in Options.LocalRanges are not watched.
func (db *DB) Watch(ctx context.Context, prefix []byte) iter.Seq[Change] {
	w := &watcher{prefix: slices.Clone(prefix), ended: make(chan struct{}), news: make(chan struct{}, 1)}
	db.mu.Lock()
	if db.isClosing() {
		w.end()
	} else {
		db.watchers[w] = struct{}{}
	}
	db.mu.Unlock()
	forget := func() {
		db.mu.Lock()
		delete(db.watchers, w)
		db.mu.Unlock()
		w.end()
	}
	stop := context.AfterFunc(ctx, forget)
	return func(yield func(Change) bool) {
		defer stop()
		defer forget()
		for {
			c, ok := w.take()
			switch {
			case w.over() || ctx.Err() != nil:
				return
			case ok:
				if !yield(c) {
					return
				}
				continue
			}
			select {
			case <-w.ended:
			case <-w.news:
			}
		}
	}
}

// watcher keeps changes for one reader.
type watcher struct {
	prefix []byte
	news   chan struct{} // capacity 1: something was added
	ended  chan struct{}
	once   sync.Once

	mu      sync.Mutex
	waiting []Change
	size    int
	missed  bool      // at the end of what waits
	read    time.Time // when the reader last took something, or had all
}

func (w *watcher) end() { w.once.Do(func() { close(w.ended) }) }

func (w *watcher) over() bool {
	select {
	case <-w.ended:
		return true
	default:
		return false
	}
}

// take gives the next change. With the mark that some were missed, changes are
// kept again.
func (w *watcher) take() (c Change, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.read = time.Now()
	if len(w.waiting) == 0 {
		missed := w.missed
		w.missed = false
		return Change{Missed: missed}, missed
	}
	c = w.waiting[0]
	w.waiting[0] = Change{}
	if w.waiting = w.waiting[1:]; len(w.waiting) == 0 {
		w.waiting = nil
	}
	w.size -= c.size()
	return c, true
}

func (c *Change) size() int { return len(c.Key) + len(c.Value) + changeOverhead }

// add keeps what a commit did for the reader.
func (w *watcher) add(changes []replica.Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	limit := watchLimit
	switch now := time.Now(); {
	case w.size == 0 && !w.missed: // it has all: this much is kept whatever it comes to
		w.read, limit = now, math.MaxInt
	case now.Sub(w.read) < watchPatience:
		limit = watchMost
	}
	for i := range changes {
		c := &changes[i]
		if c.Quiet || !bytes.HasPrefix(c.Key, w.prefix) {
			continue
		}
		if w.missed || w.size+len(c.Key)+len(c.Winner().Value)+changeOverhead > limit {
			w.missed = true
			break
		}
		p := publicChange(c)
		w.waiting = append(w.waiting, p)
		w.size += p.size()
	}
	notify(w.news)
}

// publicChange is a change as those who watch see it. It shares no memory.
func publicChange(c *replica.Change) Change {
	v := c.Winner()
	v.Value = slices.Clone(v.Value)
	return Change{Key: slices.Clone(c.Key), Value: v.Value, Deleted: v.Deleted, Local: c.Local, Conflict: c.Conflict, Version: publicVersion(&v)}
}

// publish tells those who watch of a commit.
func (db *DB) publish(changes []replica.Change) {
	if len(changes) == 0 {
		return
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if len(db.watchers) > 0 && slices.ContainsFunc(changes, func(c replica.Change) bool { return !c.Local }) {
		changes = inTime(changes)
	}
	for w := range db.watchers {
		w.add(changes)
	}
}

// inTime puts what came with one pull, which reads logs in reverse, into the order
// in which it was written, by the hybrid clock. A write of a caller's that is in the same
// batch stays where it is, and so does a key that is there twice: what is before it and
// what is behind it are ordered apart.
func inTime(changes []replica.Change) []replica.Change {
	changes = slices.Clone(changes)
	keys := map[string]bool{}
	from := 0
	run := func(to int) {
		slices.SortStableFunc(changes[from:to], func(a, b replica.Change) int {
			x, y := a.Winner(), b.Winner()
			return cmp.Or(cmp.Compare(x.Stamp, y.Stamp), x.Dot.Compare(y.Dot))
		})
		clear(keys)
		from = to
	}
	for i := range changes {
		if changes[i].Local || keys[string(changes[i].Key)] {
			run(i)
		}
		if changes[i].Local {
			from = i + 1
			continue
		}
		keys[string(changes[i].Key)] = true
	}
	run(len(changes))
	return changes
}

// closeWatchers ends every Watch.
func (db *DB) closeWatchers() {
	db.mu.Lock()
	defer db.mu.Unlock()
	for w := range db.watchers {
		w.end()
	}
	clear(db.watchers)
}
