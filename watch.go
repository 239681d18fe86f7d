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

// Change is a change of one key, as [DB.Watch] and [DB.Changes] yield it.
type Change struct {
	Key     []byte
	Value   []byte // nil if Deleted
	Deleted bool
	// Local reports whether the key was written at this replica; otherwise the change came
	// from a peer.
	Local bool
	// Conflict reports whether the key is in conflict now. Value is the resolved value then.
	Conflict bool
	// Version is the version that reads return. Of a merged value it is the sibling that the
	// resolver's result stands for. Its Time is zero where Changes yields all keys.
	Version Version
	// Resolver reports that nobody wrote: the resolver has decided anew, or may have.
	Resolver bool

	// Reset and Cursor are for Changes alone. A Change with Reset has nothing else: what the consumer has may be more than
	// there is. One without a key has a Cursor alone.
	Reset bool
	// Cursor is not zero where it may be stored: all of it has been yielded.
	Cursor Cursor
}

// The bytes that wait for a reader are bounded. A reader that reads may have more of them:
// a burst that arrives while it is there is no reason to leave anything out.
const (
	watchLimit    = 4 << 20         // for a reader that has not read for watchPatience
	watchMost     = 64 << 20        // for one that has
	watchPatience = 5 * time.Second // counted only while something waits
)

// changeOverhead is the memory that a waiting change takes beside key and value.
const changeOverhead = 256

// Watch returns an iterator over the changes of keys with a prefix, made here or at peers, in
// the order in which they were committed here. A nil prefix is all keys. Watching begins with
// the call, not with the loop: nothing that is committed after Watch has returned is
// lost. So read the keys after the call and before the loop, and nothing is missing; a change
// may have been read already.
//
// The changes of one key never run backwards: each is of a state that has seen the
// one before. Changes of different keys that one pull brings come in the order of their
// time if they were committed here as one batch, as up to 512 KiB are, where each write counts
// as its value, four times its key and 160 bytes. A larger pull is committed in several
// batches, and the latest writes come first, because logs are read in reverse: then a
// key may come before another one that was written earlier.
//
//	changes := db.Watch(ctx, prefix)
//	load(db, prefix)
//	for c, err := range changes {
//		if err == replicator.ErrMissed {
//			load(db, prefix) // once more
//			continue
//		}
//		…
//	}
//
// Commits do not wait for the reader. Up to 64 MiB of changes are kept for it, or 4 MiB if it
// has taken none for 5 s, and in any case all of one batch that is committed when
// nothing else waits. Changes beyond that are left out: the iterator yields [ErrMissed]
// once in their place, with a zero Change, and goes on. By then the database holds what was
// left out, and whatever is committed later follows: read the keys again and go on.
//
// The loop ends, without an error, with ctx or with Close, and leaves out what still
// waited then; or when the caller leaves it. A second loop over the same Watch ends at
// once. Until then the changes are kept, so end ctx if the loop never begins. The
// caller owns the slices. Keys in Options.LocalRanges are not watched.
func (db *DB) Watch(ctx context.Context, prefix []byte) iter.Seq2[Change, error] {
	w := &watcher{prefix: slices.Clone(prefix), ended: make(chan struct{}), news: newSignal()}
	forget := func() {
		db.watchers.remove(w)
		w.end()
	}
	db.watchers.add(w)
	if db.isClosing() { // and Close may not see it
		forget()
	}
	stop := context.AfterFunc(ctx, forget)
	return func(yield func(Change, error) bool) {
		defer stop()
		defer forget()
		for {
			c, ok, err := w.take()
			switch {
			case w.over() || ctx.Err() != nil:
				return
			case ok || err != nil:
				if !yield(c, err) {
					return
				}
				continue
			}
			select {
			case <-w.ended:
			case <-w.news.C():
			}
		}
	}
}

// watcher keeps changes for one reader.
type watcher struct {
	prefix []byte
	news   signal // something was added
	ended  chan struct{}
	once   sync.Once

	mu      sync.Mutex
	waiting []Change
	size    int
	missed  bool      // at the end of what waits
	read    time.Time // when the reader last took something, or nothing waited
}

func (w *watcher) end() { w.once.Do(func() { close(w.ended) }) }

func (w *watcher) over() bool { return isClosed(w.ended) }

// take returns the next change, if one waits, or ErrMissed once if some were left out. From
// then on changes are kept again.
func (w *watcher) take() (c Change, ok bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.read = time.Now()
	if len(w.waiting) == 0 {
		if w.missed {
			w.missed, err = false, ErrMissed
		}
		return c, false, err
	}
	c = w.waiting[0]
	w.waiting[0] = Change{}
	if w.waiting = w.waiting[1:]; len(w.waiting) == 0 {
		w.waiting = nil
	}
	w.size -= c.size()
	return c, true, nil
}

func (c *Change) size() int { return len(c.Key) + len(c.Value) + changeOverhead }

// add keeps the changes of a commit for the reader.
func (w *watcher) add(changes []replica.Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	limit := watchLimit
	switch now := time.Now(); {
	case w.size == 0 && !w.missed: // nothing waits: one batch is kept, whatever its size
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
	w.news.Set()
}

// publicChange returns a change as Watch yields it. It shares no memory.
func publicChange(c *replica.Change) Change {
	v := c.Winner()
	v.Value = slices.Clone(v.Value)
	return Change{Key: slices.Clone(c.Key), Value: v.Value, Deleted: v.Deleted, Local: c.Local, Conflict: c.Conflict, Version: publicVersion(&v),
		Resolver: len(c.Versions) > 0 && c.Versions.SameDots(c.Old)}
}

// watchers are those of a database. They guard themselves.
type watchers struct {
	mu  sync.Mutex
	all map[*watcher]struct{}
}

func (ws *watchers) add(w *watcher) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.all == nil {
		ws.all = map[*watcher]struct{}{}
	}
	ws.all[w] = struct{}{}
}

func (ws *watchers) remove(w *watcher) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	delete(ws.all, w)
}

// any reports whether anybody watches.
func (ws *watchers) any() bool {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return len(ws.all) > 0
}

// publish hands the changes of a commit to every watcher.
func (ws *watchers) publish(changes []replica.Change) {
	if len(changes) == 0 {
		return
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for w := range ws.all {
		w.add(changes)
	}
}

// inTime sorts the changes of one pull, which reads logs in reverse, by the hybrid clock. A
// caller's write in the same batch stays where it is, and so does a key that occurs twice: the
// changes before it and those behind it are sorted separately.
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

// close ends every Watch.
func (ws *watchers) close() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for w := range ws.all {
		w.end()
	}
	clear(ws.all)
}
