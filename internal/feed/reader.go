package feed

import (
	"bytes"
	"errors"
	"maps"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// ErrBehind says that the replica does not cover what the consumer does. The reader is as it was.
var ErrBehind = errors.New("replicator: this replica is behind the cursor")

// Why is the reason of a reset; "" is none.
type Why string

const (
	Beginning Why = "beginning" // the consumer has nothing yet
	Purged    Why = "purged"    // deletions that the consumer may not know of were purged
	Lost      Why = "lost"      // the cluster has lost a write that the consumer covers
)

// Position is where a consumer is: it has been delivered all that is within Root and Delta, or
// what superseded it. While it is Scanning that is so for keys below Key only; of the others it has been
// delivered nothing yet.
type Position struct {
	Root, Delta causal.Vector // not to be changed
	Scanning    bool
	Key         []byte
}

// Vector returns the vector of a position.
func (p *Position) Vector() causal.Vector {
	if len(p.Delta) == 0 {
		return p.Root
	}
	return p.Root.Clone().Join(p.Delta)
}

// Zero reports whether it is the position of a consumer that has nothing.
func (p *Position) Zero() bool { return len(p.Root)+len(p.Delta) == 0 && !p.Scanning }

// Config is what a consumer wants.
type Config struct {
	Ranges    []*util.Range // normal; nil: all keys
	KeysOnly  bool
	PageKeys  int // records of one page, about
	PageBytes int
}

// Page is what one state of the database has for a consumer, or as much of it as there was room for.
type Page struct {
	Reset   Why       // before the records: what the consumer has may be more than there is
	Records []Record  // valid until the next page, but what their slices hold is the consumer's
	At      *Position // the consumer may store it once it has the records; nil: not yet
	Shared  bool      // other readers have the same memory
	Idle    bool      // there is nothing until the next commit
}

type mode int

const (
	fresh mode = iota
	scanning
	logging
	live
)

// Reader is the place of one consumer. It holds no state of the database between two pages.
//
// It goes by phases. A phase begins with a first state and reads what that has above base, by the log,
// in one page after the other, each from a state of its own. What loses a version of the first state
// before it was read is delivered as it is then (F2). The position moves to the vector of the first
// state once all was delivered, and not before (F1). A phase that needs one state more, and no other,
// is the last: what is committed after that state comes from the hub.
type Reader struct {
	hub    *Hub
	with   func(func(*replica.Replica))
	config Config
	since  Position

	mode     mode
	attached bool
	seen     uint64        // commits up to here are accounted for
	base     causal.Vector // not to be changed
	delta    causal.Vector // above base, while live
	reset    Why           // to be told
	why      Why           // with which a reader begins that cannot go on from its cursor
	own      map[causal.Origin]bool
	stale    bool
	now      causal.Vector // of the state that is read

	// A phase.
	first   causal.Vector       // nil: none has begun. Of its first state
	firstAt uint64              // the number of that
	tops    causal.Vector       // up to where its log is to be read, dot cloud included
	read    causal.Vector       // up to where it was; nil: to base
	recent  map[string]struct{} // keys that were changed since the first state and not delivered since
	many    bool                // there are too many of them
	window  window

	given    map[causal.Sum]struct{} // states of keys that were delivered and that the log has once more: by the sum of their dots
	notes    map[string]struct{}     // keys that the log does not show, or no longer
	again    bool                    // keys in conflict are to be delivered, from
	conflict []byte
	from     []byte // where the scan goes on

	waiting [2]*pending // positions that are not on disk: the oldest and the newest
}

// pending is a position of which a power failure could take something.
type pending struct {
	at Position
	n  uint64
}

const (
	maxRecent = 1 << 10
	maxGiven  = 1 << 12
	maxDelta  = 64
	maxPassed = 1 << 16 // log entries that one page passes over
)

// NewReader returns a reader that goes on from a position. with calls a function while nobody else uses
// the replica, or does not if that is closed. Close must be called in the end.
func NewReader(h *Hub, with func(func(*replica.Replica)), since Position, c Config) *Reader {
	r := &Reader{hub: h, with: with, since: since, config: c, notes: map[string]struct{}{}, given: map[causal.Sum]struct{}{}}
	if r.config.PageKeys == 0 {
		r.config.PageKeys = 1 << 12
	}
	if r.config.PageBytes == 0 {
		r.config.PageBytes = 1 << 20
	}
	if since.Zero() {
		r.why = Beginning
	}
	return r
}

// StartOver has a reader begin with a reset.
func (r *Reader) StartOver(why Why) { r.why = why }

// Close ends the reader.
func (r *Reader) Close() {
	if r.attached {
		r.attached = false
		r.hub.detach()
	}
}

// Live reports whether the reader takes what is committed from the hub.
func (r *Reader) Live() bool { return r.mode == live }

// Pending reports whether the consumer waits for a position that is not on disk yet.
func (r *Reader) Pending() bool { return r.waiting[0] != nil }

// Next returns the next page. After an error the reader is no good any more, unless that is [ErrBehind].
func (r *Reader) Next() (Page, error) {
	if r.mode == live {
		if p, ok := r.fromHub(); ok {
			r.offer(&p)
			p.Idle = len(p.Records) == 0 && p.At == nil
			return p, nil
		}
		r.base, r.delta, r.mode = r.vector(), nil, logging
	}
	behind := false
	v, err := replica.TakeView(r.with, func(rep *replica.Replica) { behind = !r.look(rep) })
	if err != nil {
		return Page{}, err
	}
	defer v.Release()
	if behind {
		return Page{}, ErrBehind
	}
	v.MayHaveStale = r.stale
	b := &builder{Reader: r, view: v}
	b.page.Reset, r.reset = r.reset, ""
	clear(r.window.records)
	b.page.Records = r.window.records[:0]
	if err := b.build(); err != nil {
		return Page{}, err
	}
	if r.mode != live {
		r.window.records = b.page.Records
	}
	r.offer(&b.page)
	return b.page, nil
}

func (r *Reader) vector() causal.Vector {
	if len(r.delta) == 0 {
		return r.base
	}
	return r.base.Clone().Join(r.delta)
}

// look takes in what has happened up to the state that is taken now, and reports whether the replica
// covers what the consumer does.
func (r *Reader) look(rep *replica.Replica) bool {
	if !r.attached {
		r.hub.attach(rep)
		r.attached = true
	}
	r.now = rep.Known.Vector(causal.Covered)
	if len(r.own) != len(rep.Own) {
		r.own = maps.Clone(rep.Own)
	}
	r.stale = rep.Stale()
	at := rep.Commits()
	if r.mode == fresh {
		v := r.since.Vector()
		switch {
		case r.why != "":
			r.startOver(r.why, at)
		case !v.Within(r.now):
			return false
		case !purgedWithin(rep, v): // F3
			r.startOver(Purged, at)
		case r.since.Scanning:
			r.mode, r.first, r.firstAt, r.from, r.again = scanning, v, at, r.since.Key, true // F5
		default:
			r.mode, r.base, r.again = logging, v, true // F5
		}
		r.seen = at
	}
	if commits, _, ok := r.hub.since(r.seen, 0); ok {
		for _, c := range commits {
			for i := range c.items {
				r.consider(&c.items[i])
			}
		}
	} else if items, ok := r.hub.silentSince(r.seen); ok {
		for i := range items {
			r.consider(&items[i])
		}
		r.begin()
	} else if r.begin(); !purgedWithin(rep, r.known()) {
		r.startOver(Purged, at)
	}
	r.seen = at
	if r.mode == logging && r.first == nil {
		r.first, r.firstAt, r.tops = r.now, at, r.now.Clone().Join(rep.Cloud)
		r.recent, r.many = map[string]struct{}{}, false
		if r.read == nil {
			r.read = r.base.Clone()
		}
	}
	return true
}

// begin has the phase begin anew with the state that is taken now, as what has changed since its first is
// not known: all that was read of what that covered need not be read again.
func (r *Reader) begin() {
	if r.mode != logging || r.first == nil {
		return
	}
	kept := r.base.Clone()
	for _, d := range r.read {
		kept = kept.Raise(causal.Dot{Origin: d.Origin, Seq: min(d.Seq, r.first.Seq(d.Origin))})
	}
	r.read, r.first = kept, nil
}

// known is what the consumer has been delivered, or what superseded it.
func (r *Reader) known() causal.Vector {
	switch {
	case r.mode == scanning:
		return r.first
	case r.read != nil:
		return r.read
	}
	return r.base
}

func (r *Reader) startOver(why Why, at uint64) {
	r.mode, r.reset, r.why = scanning, why, ""
	r.first, r.firstAt, r.from = r.now, at, nil
	r.base, r.read, r.again = nil, nil, false
	r.waiting = [2]*pending{}
	clear(r.notes)
	clear(r.given)
}

// give notes the state of a key that is delivered, if the log will have it once more: for another of
// its siblings, or as it is in the dot cloud, which no position covers. It reports whether it was
// delivered before.
func (r *Reader) give(dots []causal.Dot, covered func(causal.Dot) bool) (before bool) {
	if len(dots) == 1 && covered(dots[0]) {
		return false
	}
	var sum causal.Sum
	for _, d := range dots {
		sum = sum.Add(d.Hash())
	}
	if _, before = r.given[sum]; !before {
		if len(r.given) >= maxGiven {
			clear(r.given)
		}
		r.given[sum] = struct{}{}
	}
	return before
}

// consider takes in what a commit did to a key, as far as the log will not show it.
func (r *Reader) consider(it *item) {
	if !r.wanted(it.Key) {
		return
	}
	switch {
	case it.quiet && it.silent: // F3: what was purged was delivered, or is noted
		if slices.ContainsFunc(it.old, func(d causal.Dot) bool { return !r.known().Contains(d) }) {
			r.note(it.Key)
		}
	case it.silent: // F4
		r.note(it.Key)
	case r.mode == logging && r.first != nil: // F2
		if slices.ContainsFunc(it.old, func(d causal.Dot) bool {
			return r.tops.Contains(d) && !r.read.Contains(d) && !slices.Contains(it.Dots, d)
		}) {
			r.note(it.Key)
		}
	}
	if r.mode == logging && r.first != nil && !r.many {
		if r.recent[string(it.Key)] = struct{}{}; len(r.recent) > min(maxRecent, r.config.PageKeys) {
			r.recent, r.many = nil, true
		}
	}
}

func (r *Reader) note(key []byte) { r.notes[string(key)] = struct{}{} }

func (r *Reader) wanted(key []byte) bool {
	return r.config.Ranges == nil || store.InRanges(r.config.Ranges, key)
}

// fromHub returns what was committed since, and whether the hub still has all of it.
func (r *Reader) fromHub() (p Page, ok bool) {
	commits, latest, ok := r.hub.since(r.seen, r.config.PageBytes)
	if !ok {
		return p, false
	}
	r.seen, p.Shared = latest, true
	at := map[string]int{}
	rose := false
	for _, c := range commits {
		for i := range c.items {
			it := &c.items[i]
			if it.quiet || !r.wanted(it.Key) {
				continue
			}
			if j, twice := at[string(it.Key)]; twice { // coalesced: only the last counts
				p.Records[j].Key = nil
				p.Records[j].Dots = nil
			}
			at[string(it.Key)] = len(p.Records)
			p.Records = append(p.Records, it.Record)
			if r.config.KeysOnly {
				x := &p.Records[len(p.Records)-1]
				x.Value, x.Version.Value = nil, nil
			}
		}
		for _, d := range c.rose {
			if !r.base.Contains(d) && !r.delta.Contains(d) {
				r.delta, rose = r.delta.Raise(d), true
			}
		}
	}
	covered := func(d causal.Dot) bool { return r.base.Contains(d) || r.delta.Contains(d) }
	for i := range p.Records {
		if x := &p.Records[i]; x.Key != nil && len(x.Dots) > 0 {
			r.give(x.Dots, covered)
		}
	}
	if len(p.Records) > len(at) {
		p.Records = slices.DeleteFunc(p.Records, func(x Record) bool { return x.Key == nil })
	}
	if len(r.delta) > maxDelta {
		r.base, r.delta = r.vector(), nil
	}
	if rose || len(p.Records) > 0 {
		r.moved(Position{Root: r.base, Delta: r.delta.Clone()}, r.seen)
	}
	return p, true
}

// moved notes where the consumer is once it has what was delivered.
func (r *Reader) moved(at Position, n uint64) {
	i := 1
	if r.waiting[0] == nil {
		i = 0
	}
	r.waiting[i] = &pending{at, n}
}

// offer hands out the latest position of which a power failure can take nothing (F6).
func (r *Reader) offer(p *Page) {
	if r.waiting[0] == nil {
		return
	}
	safe := r.hub.safe()
	switch {
	case r.waiting[1] != nil && r.waiting[1].n <= safe:
		p.At, r.waiting = &r.waiting[1].at, [2]*pending{}
	case r.waiting[0].n <= safe:
		p.At, r.waiting = &r.waiting[0].at, [2]*pending{r.waiting[1]}
	}
}

// Clone returns a copy that shares no memory with p.
func (p *Position) Clone() Position {
	return Position{Root: p.Vector().Clone(), Scanning: p.Scanning, Key: bytes.Clone(p.Key)}
}
