// Package feed reads what a replica holds as a feed of changes, for consumers that come back with a
// cursor: first what is above the cursor, by the log, one state of the database after another, and
// then what is committed, as it is committed. docs/design.md has the rules, under Changes.
//
// A Hub keeps the latest commits, once for all readers; a Reader is one consumer's place.
package feed

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// Record is one key as a feed delivers it.
type Record struct {
	Key      []byte
	Value    []byte // nil if Deleted, or if only keys were asked for
	Deleted  bool
	Local    bool          // this database wrote it
	Conflict bool          // the key is in conflict
	Resolver bool          // nobody wrote: the resolved value may be another
	Version  store.Version // the winner; without a stamp if a scan found it
	Dots     []causal.Dot  // the siblings
}

const (
	ringLimit     = 16 << 20 // bytes of the latest commits that are kept for readers,
	silentLimit   = 4 << 20  // and of the changes among older ones that the log does not show
	itemOverhead  = 320
	quietOverhead = 96
)

// item is what one commit did to one key.
type item struct {
	Record
	old    []causal.Dot // the siblings before
	silent bool         // no version of it is new: above no earlier vector would the log show it
	quiet  bool         // reads return the same
}

// commit is what one commit did.
type commit struct {
	n     uint64 // commits are numbered, from the opening on
	items []item
	rose  []causal.Dot // to what the version vector rose
	size  int
}

// silentChange is a silent item whose commit is kept no more.
type silentChange struct {
	n   uint64
	it  item
	end int // of the bytes so far, with it
}

// Hub keeps the latest commits for all readers, in bounded memory: whoever falls behind them goes on by the
// log. It guards itself; where a replica is a parameter, nobody else uses that.
type Hub struct {
	limit, silent int          // 0: ringLimit and silentLimit
	readers       atomic.Int64 // nothing is kept while there are none

	mu         sync.Mutex
	ring       []*commit
	size       int
	lost       uint64 // the latest commit that may be missing in ring
	changes    []silentChange
	changesLen int    // bytes, of all that were ever added
	changesOff uint64 // the latest commit whose silent changes may be missing in changes
	covered    causal.Vector
	latest     uint64
	doubtful   []doubt
	changed    chan struct{}
}

// doubt is what a commit covered that the checkpoint on disk does not have yet: a crash could take its name.
type doubt struct {
	n    uint64
	dots causal.Vector
}

const maxDoubts = 1 << 10

// Limit bounds the bytes that are kept of the latest commits, and of silent changes.
func (h *Hub) Limit(ring, silent int) { h.limit, h.silent = ring, silent }

// Active reports whether anybody reads.
func (h *Hub) Active() bool { return h.readers.Load() > 0 }

// attach adds a reader. The first one has the hub begin to keep commits.
func (h *Hub) attach(r *replica.Replica) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.readers.Add(1) > 1 {
		return
	}
	h.latest = r.Commits()
	h.lost, h.changesOff = h.latest, h.latest
	h.covered = r.Known.Vector(causal.Covered)
	h.doubtful = nil
	h.doubtLocked(r, h.latest, h.covered)
}

// doubtLocked notes what a commit covered, and leaves out what is on disk by now.
func (h *Hub) doubtLocked(r *replica.Replica, n uint64, dots []causal.Dot) {
	unsafe := func(d causal.Dot) bool { return d.Seq > r.Durable.Seq(causal.Durable, d.Origin) }
	if slices.ContainsFunc(dots, unsafe) {
		h.doubtful = append(h.doubtful, doubt{n, slices.DeleteFunc(slices.Clone(dots), func(d causal.Dot) bool { return !unsafe(d) })})
	}
	for len(h.doubtful) > 0 && !slices.ContainsFunc(h.doubtful[0].dots, unsafe) {
		h.doubtful = h.doubtful[1:]
	}
	if len(h.doubtful) > maxDoubts { // two by two, which only makes readers wait longer
		merged := make([]doubt, 0, maxDoubts)
		for pair := range slices.Chunk(h.doubtful, 2) {
			d := pair[0]
			if len(pair) > 1 {
				d.dots = d.dots.Join(pair[1].dots)
			}
			merged = append(merged, d)
		}
		h.doubtful = merged
	}
}

// detach removes a reader. The last one leaves nothing behind.
func (h *Hub) detach() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.readers.Add(-1) == 0 {
		h.ring, h.size, h.changes, h.changesLen, h.covered, h.doubtful = nil, 0, nil, 0, nil, nil
	}
}

// Publish takes in a commit; changes are its changes in the order in which they are to be told.
func (h *Hub) Publish(t *replica.Txn, changes []replica.Change) {
	if !h.Active() {
		return
	}
	c := &commit{n: t.R.Commits()}
	for i := range t.Rows {
		if w := &t.Rows[i]; w.Seqs[causal.Covered] > 0 {
			c.rose = append(c.rose, causal.Dot{Origin: w.Origin, Seq: w.Seqs[causal.Covered]})
		}
	}
	limit := h.limit
	if limit == 0 {
		limit = ringLimit
	}
	for i := range changes {
		if !changes[i].Same {
			c.size += sizeOf(&changes[i])
		}
	}
	whole := c.size <= limit/2 // a larger one is for the log
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.Active() { // the last reader has just left
		return
	}
	for i := range changes {
		x := &changes[i]
		if x.Same {
			continue
		}
		silent := !h.hasNewLocked(x)
		if !whole && !silent {
			continue
		}
		it := newItem(x, silent)
		c.items = append(c.items, it)
	}
	for _, d := range c.rose {
		h.covered = h.covered.Raise(d)
	}
	h.latest = c.n
	h.doubtLocked(t.R, c.n, c.rose)
	if !whole {
		for len(h.ring) > 0 {
			h.dropLocked()
		}
		h.keepSilentLocked(c)
		h.lost = c.n
		return
	}
	if len(c.items) == 0 && len(c.rose) == 0 {
		return
	}
	h.ring, h.size = append(h.ring, c), h.size+c.size
	for h.size > limit {
		h.dropLocked()
	}
}

// sizeOf estimates what an item takes.
func sizeOf(c *replica.Change) int {
	if c.Quiet {
		return quietOverhead + len(c.Key)
	}
	return itemOverhead + len(c.Key) + len(c.Winner().Value) + 24*(len(c.Old)+len(c.Versions))
}

// hasNewLocked reports whether a change brought a version that was not covered here before. Any reader finds
// such a key in the log above its vector.
func (h *Hub) hasNewLocked(c *replica.Change) bool {
	for i := range c.Versions {
		if d := c.Versions[i].Dot; !c.Old.Has(d) && !h.covered.Contains(d) {
			return true
		}
	}
	return false
}

func newItem(c *replica.Change, silent bool) item {
	it := item{silent: silent, quiet: c.Quiet, old: make([]causal.Dot, len(c.Old))}
	for i := range c.Old {
		it.old[i] = c.Old[i].Dot
	}
	v := c.Winner()
	it.Key, it.Deleted, it.Local, it.Conflict = append([]byte{}, c.Key...), v.Deleted, c.Local, c.Conflict
	it.Resolver = silent && len(c.Versions) > 0 && c.Versions.SameDots(c.Old)
	it.Dots = make([]causal.Dot, len(c.Versions))
	for i := range c.Versions {
		it.Dots[i] = c.Versions[i].Dot
	}
	if !v.Deleted && !c.Quiet {
		it.Value = append([]byte{}, v.Value...)
	}
	v.Context, v.Value = nil, it.Value
	it.Version = v
	return it
}

// dropLocked drops the oldest commit, but for its silent changes.
func (h *Hub) dropLocked() {
	c := h.ring[0]
	h.ring[0] = nil
	if h.ring = h.ring[1:]; len(h.ring) == 0 {
		h.ring = nil
	}
	h.size -= c.size
	h.lost = c.n
	h.keepSilentLocked(c)
}

func (h *Hub) keepSilentLocked(c *commit) {
	limit := h.silent
	if limit == 0 {
		limit = silentLimit
	}
	for i := range c.items {
		it := &c.items[i]
		if !it.silent {
			continue
		}
		h.changesLen += quietOverhead + len(it.Key)
		h.changes = append(h.changes, silentChange{c.n, item{Record: Record{Key: it.Key, Dots: it.Dots}, old: it.old, silent: true, quiet: it.quiet}, h.changesLen})
	}
	for len(h.changes) > 0 && h.changesLen-h.changes[0].end >= limit {
		h.changesOff = h.changes[0].n
		h.changes = h.changes[1:]
	}
}

// since returns the commits after one, at most as many as come to some bytes if that is not 0, and the
// number of the latest commit that these bring a reader to; ok is false if some are missing.
func (h *Hub) since(n uint64, bytes int) (cs []*commit, latest uint64, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n < h.lost {
		return nil, h.latest, false
	}
	i := len(h.ring)
	for i > 0 && h.ring[i-1].n > n {
		i--
	}
	for j := i; j < len(h.ring); j++ {
		if bytes > 0 {
			if bytes -= h.ring[j].size; bytes <= 0 {
				return slices.Clone(h.ring[i : j+1]), h.ring[j].n, true
			}
		}
	}
	return slices.Clone(h.ring[i:]), h.latest, true
}

// silentSince returns the silent changes after a commit; ok is false if some are missing.
func (h *Hub) silentSince(n uint64) (items []item, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n < h.changesOff {
		return nil, false
	}
	for _, c := range h.changes {
		if c.n > n {
			items = append(items, c.it)
		}
	}
	for _, c := range h.ring {
		for i := range c.items {
			if c.n > n && c.items[i].silent {
				items = append(items, c.items[i])
			}
		}
	}
	return items, true
}

// safe returns up to which commit a crash takes no name of what was covered.
func (h *Hub) safe() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.doubtful) > 0 {
		return h.doubtful[0].n - 1
	}
	return h.latest
}

// Changed returns a channel that is closed by the next Broadcast.
func (h *Hub) Changed() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.changed == nil {
		h.changed = make(chan struct{})
	}
	return h.changed
}

// Broadcast has all readers that wait look again, and returns how many readers there are.
func (h *Hub) Broadcast() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.changed != nil {
		close(h.changed)
		h.changed = nil
	}
	return int(h.readers.Load())
}

// purgedWithin reports whether the purged watermark of a replica is within a vector.
func purgedWithin(r *replica.Replica, v causal.Vector) bool {
	return r.Known.Vector(causal.Purged).Within(v)
}
