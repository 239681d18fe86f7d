package replicator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/schedule"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// WriteToken stands for the writes that were made here since the database was opened
// and have returned, and for nothing else that can be read here. It takes at most 27
// bytes, 36 as text, however old the cluster is: the one to give to a client that
// must find its own writes at another replica. It is the zero Token before the first
// write.
func (db *DB) WriteToken() Token {
	var t Token
	db.with(func(r *replica.Replica) {
		if r.Seq > 0 {
			t.claim = causal.Vector{{Origin: r.Self, Seq: r.Seq}}
		}
	})
	return t
}

// ErrTokenLost ends a [DB.WaitFor] that nothing could end otherwise: a write that the
// token stands for is known by its name to nobody who can be reached. A crash came
// before it was on disk, or before a peer had it; what the crash left of it was issued
// again, under a name that the token does not know. So it may be there: read the key.
// Writes with Sync keep their name, whatever happens, as long as their disk does.
var ErrTokenLost = errors.New("replicator: a write behind the token lost its name in a crash")

// WaitFor returns when this replica knows all that the token's replica knew: the
// writes behind it can then be read here, or later ones that replaced them. If
// that is not so yet, it has sessions held at once.
//
// If ctx ends first, WaitFor returns its error. It returns [ErrTokenLost] once every
// peer that can be reached has been asked and a crash is known to have taken what is
// missing: here, or at a peer that this replica talks to itself; [ErrToken] if the token
// names writes of this replica that were never made; and leveldb.ErrReadOnly, or
// ErrFailed, if something is missing and this replica takes nothing any more. Nobody can
// tell a write that is on its way from one that was lost with its replica's disk: give
// ctx a deadline.
func (db *DB) WaitFor(ctx context.Context, t Token) error {
	w := &waiter{done: make(chan struct{}), token: true, target: t.claim.Clone()}
	if err := db.wait(ctx, w); err != nil && err == ctx.Err() {
		return fmt.Errorf("replicator: the writes behind the token have not arrived: %w", err)
	} else {
		return err
	}
}

// WaitReplicated returns once that many peers have on disk all that was written at
// this replica before the call, in this incarnation of the database and in earlier
// ones. It has sessions held at once with peers that are not known to have it, and
// they bring it to disk for this: a peer that writes nothing without Sync has it
// there with the pull. Another writes again what is not yet on disk, with Sync, or, if
// that is more than a few hundred keys, flushes its store, which takes about 0.1 s and
// is done once for all who wait.
//
// This replica's own disk does not count, and nothing is said of it: use Sync where
// the write should also survive a power failure of this replica alone. Each peer
// counts once, however often it was opened or under how many addresses it is
// known. What a peer once reported counts for as long as the peer is a member
// (Options.PeerTTL). Peers are those that this replica holds sessions with: of three
// in a line, a–b–c, where a and c cannot reach each other, a counts b alone.
//
// If ctx ends first, the error is a *[NotReplicatedError] that says how many
// peers had it; it may be more by the time that you look. It stays written here.
func (db *DB) WaitReplicated(ctx context.Context, peers int) error {
	if peers <= 0 {
		if db.isClosing() {
			return leveldb.ErrClosed
		}
		return nil
	}
	w := &waiter{done: make(chan struct{}), peers: peers}
	err := db.wait(ctx, w)
	if err == nil || err != ctx.Err() {
		return err
	}
	have := 0
	db.with(func(r *replica.Replica) { have = w.holders(r) })
	return &NotReplicatedError{Have: have, Want: peers, Err: err}
}

// NotReplicatedError is why [DB.WaitReplicated] ended before enough peers held
// what was written. Unwrap returns the error of the context.
type NotReplicatedError struct {
	Have, Want int // peers
	Err        error
}

func (e *NotReplicatedError) Error() string {
	return fmt.Sprintf("replicator: %d of %d peers have it on disk: %v", e.Have, e.Want, e.Err)
}

// Unwrap returns the error of the context.
func (e *NotReplicatedError) Unwrap() error { return e.Err }

// waiter is a call that waits for this replica, or for its peers, to know something.
type waiter struct {
	done   chan struct{} // closed when it is so
	number uint64        // calls are numbered, from 1
	since  time.Time     // when it began to wait
	token  bool          // for this replica; else for peers
	peers  int
	target causal.Vector // nil: not known yet, see aim
	err    error         // why it is over, if it is not met; set before done is closed
}

// wait waits until a waiter is met.
func (db *DB) wait(ctx context.Context, w *waiter) error {
	if db.isClosing() {
		return leveldb.ErrClosed
	}
	met := false
	var barred error
	db.with(func(r *replica.Replica) {
		if met = w.met(r); met {
			return
		}
		if barred = w.barred(r, db.queue.broken()); barred != nil {
			return
		}
		db.waiters.add(w)
	})
	if met || barred != nil {
		return barred
	}
	defer db.waiters.remove(w)
	patience := time.NewTimer(linkPatience)
	defer patience.Stop()
	for {
		db.requestSync()
		select {
		case <-w.done:
			return w.err
		case <-ctx.Done():
			return ctx.Err()
		case <-db.ending:
			return leveldb.ErrClosed
		case <-patience.C:
		}
	}
}

// linkPatience is how long a caller waits for reports over links. Then peers that have one are asked in
// sessions as well: a connection may have been lost in silence.
const linkPatience = time.Second

// barred returns why a wait that is not over never will be, if nothing is written here
// any more. The queue's slot is held.
func (w *waiter) barred(r *replica.Replica, broken error) error {
	switch {
	case broken == nil:
		return nil
	case w.token:
		return fmt.Errorf("replicator: the writes behind the token are not here, and nothing is taken from peers any more: %w", broken)
	case !w.aim(r):
		return fmt.Errorf("replicator: writes that a crash left without a name cannot be given one any more: %w", broken)
	}
	return nil
}

// waiters are the calls that wait. They guard themselves; where a replica is a parameter, the
// queue's slot is held.
type waiters struct {
	mu    sync.Mutex
	all   map[*waiter]struct{}
	calls uint64 // so far
}

// add numbers a call, and has it wait.
func (ws *waiters) add(w *waiter) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.all == nil {
		ws.all = map[*waiter]struct{}{}
	}
	ws.calls++
	w.number, w.since = ws.calls, time.Now()
	ws.all[w] = struct{}{}
}

func (ws *waiters) remove(w *waiter) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	delete(ws.all, w)
}

// latest returns the number of the latest call that had to wait.
func (ws *waiters) latest() uint64 {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return ws.calls
}

// bar ends the waits that nothing can end now that the store takes no more writes.
func (ws *waiters) bar(r *replica.Replica, broken error) {
	ws.end(func(w *waiter) error { return w.barred(r, broken) })
}

// end ends the waits for which f returns why.
func (ws *waiters) end(f func(w *waiter) error) {
	ws.mu.Lock()
	all := slices.Collect(maps.Keys(ws.all))
	ws.mu.Unlock()
	for _, w := range all {
		err := f(w) // which may read the store
		if err == nil {
			continue
		}
		ws.mu.Lock()
		if _, ok := ws.all[w]; ok {
			delete(ws.all, w)
			w.err = err
			close(w.done)
		}
		ws.mu.Unlock()
	}
}

// met reports whether the wait is over. The queue's slot is held.
func (w *waiter) met(r *replica.Replica) bool {
	if !w.token {
		return w.holders(r) >= w.peers
	}
	w.target = slices.DeleteFunc(w.target, r.Known.Covers)
	return len(w.target) == 0
}

// aim fixes what peers must hold. Writes of an earlier opening that a crash left
// as orphans cannot be asked for under their name: they are reissued.
func (w *waiter) aim(r *replica.Replica) bool {
	if w.target == nil && !r.Orphans() {
		w.target = causal.Vector{}
		for _, k := range r.Known.Rows {
			if r.Own[k.Origin] && k.Seqs[causal.Covered] > 0 {
				w.target = append(w.target, causal.Dot{Origin: k.Origin, Seq: k.Seqs[causal.Covered]})
			}
		}
	}
	return w.target != nil
}

// holders counts the peers that have it on disk.
func (w *waiter) holders(r *replica.Replica) (n int) {
	if !w.aim(r) {
		return 0
	}
	for _, m := range r.ActiveMembers() {
		if !m.Replaced && w.heldBy(m) {
			n++
		}
	}
	return n
}

func (w *waiter) heldBy(m *replica.Member) bool {
	if m.Rev == 0 {
		return false
	}
	for _, d := range w.target {
		if m.Known.Seq(causal.Durable, d.Origin) < d.Seq {
			return false
		}
	}
	return true
}

// any reports whether a call waits.
func (ws *waiters) any() bool {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return len(ws.all) > 0
}

// wake ends the waits that are met: after a peer has reported what it knows, or else after this
// replica has learnt something.
func (ws *waiters) wake(r *replica.Replica, reported bool) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for w := range ws.all {
		if (w.token != reported || w.target == nil) && w.met(r) {
			delete(ws.all, w)
			close(w.done)
		}
	}
}

// wants reports whether a call waits for a report of a peer.
func (ws *waiters) wants(r *replica.Replica, peer causal.Origin) bool {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	m := r.Members[peer]
	for w := range ws.all {
		if !w.token && (m == nil || !w.aim(r) || !w.heldBy(m)) {
			return true
		}
	}
	return false
}

// requestSync starts sessions for callers that wait.
func (db *DB) requestSync() {
	db.gossip.requests.Set()
}

// serveRequests starts sessions for callers that wait, with as many peers at once as they
// need: first with those that have what is missing here, if that is known. A peer
// is asked once for each call; after that the usual rounds go on.
func (db *DB) serveRequests(ctx context.Context, rounds *schedule.Rounds) {
	if all, call := db.heardAll(); all {
		db.with(func(r *replica.Replica) {
			db.waiters.end(func(w *waiter) error {
				if !w.token || w.number > call {
					return nil
				}
				return w.lost(r)
			})
		})
	}
	var need need
	db.with(func(r *replica.Replica) { need = db.waiters.need(r, db.opts.Fanout) })
	if need.peers == 0 {
		return
	}
	n, now := need.peers, time.Now()
	db.peers.each(func(p *peer) { n -= int(store.Btoi(p.busy && p.live())) })
	due := func(p *peer) bool { return p.asked < need.newest && !need.held[p.origin] }
	if len(need.source) == 0 { // peers are to report: those with a link do so over it
		if asked := db.links.ask(need.held); !need.long {
			n -= len(asked)
			due = func(p *peer) bool { return p.asked < need.newest && !need.held[p.origin] && !asked[p.origin] }
		}
	}
	for _, first := range []bool{true, false} {
		skip := func(p *peer, _ *schedule.Candidate) bool { return !due(p) || first && !need.source[p.origin] }
		live, others := db.peers.pick(rounds, max(n, 0), schedule.ProbesPerRound, now, causal.Sum{}, skip)
		n -= len(live)
		for _, p := range append(live, others...) {
			db.spawn(func() { db.call(ctx, p, session.Goal{}) })
		}
	}
}

// heardAll reports whether the first attempt to replicate is over and every peer that
// can be reached was heard since some call, and which is the latest such.
func (db *DB) heardAll() (all bool, call uint64) {
	if !isClosed(db.ready) {
		return false, 0
	}
	call, all = db.waiters.latest(), true
	db.peers.each(func(p *peer) {
		switch {
		case !p.tried:
			all = false
		case p.failed == 0 && p.state != PeerSelf:
			call = min(call, p.asked)
		}
	})
	return all, call
}

// lost returns an error if a write that is waited for is lost, see [ErrTokenLost].
func (w *waiter) lost(r *replica.Replica) error {
	for _, d := range w.target {
		if d.Origin == r.Self {
			return fmt.Errorf("%w: it names write %d of this replica, which has made only %d", ErrToken, d.Seq, r.Seq)
		}
		switch lost, err := r.Lost(d); {
		case err != nil:
			return err
		case lost:
			return fmt.Errorf("%w: nobody who can be reached knows write %d of opening %s, and that has ended; read again what it wrote", ErrTokenLost, d.Seq, d.Origin.Short())
		}
	}
	return nil
}

// need is what sessions the callers that wait need.
type need struct {
	peers  int                    // at once
	newest uint64                 // the latest call that waits
	long   bool                   // one has waited longer than linkPatience
	held   map[causal.Origin]bool // these have all that anybody waits for
	source map[causal.Origin]bool // these wrote what is missing here
}

func (ws *waiters) need(r *replica.Replica, fanout int) need {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	n := need{held: map[causal.Origin]bool{}, source: map[causal.Origin]bool{}}
	for w := range ws.all {
		n.newest = max(n.newest, w.number)
		n.long = n.long || time.Since(w.since) >= linkPatience
		if !w.token {
			n.peers = max(n.peers, w.peers-w.holders(r), fanout)
			continue
		}
		n.peers = max(n.peers, fanout)
		for _, d := range w.target {
			n.source[d.Origin] = true
		}
	}
	if n.peers > 0 && len(n.source) == 0 {
		for o, m := range r.Members {
			n.held[o] = ws.satisfiedLocked(m)
		}
	}
	return n
}

// satisfiedLocked reports whether a peer has all that anybody waits for.
func (ws *waiters) satisfiedLocked(m *replica.Member) bool {
	for w := range ws.all {
		if w.token || w.target == nil || !w.heldBy(m) {
			return false
		}
	}
	return true
}
