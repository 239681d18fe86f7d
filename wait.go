package replicator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
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
// missing: here, or at a peer that this replica talks to itself. It returns
// leveldb.ErrReadOnly, or ErrFailed, if something is missing and this replica takes
// nothing any more. Nobody can tell a write that is on its way from one that was
// lost with its replica's disk: give ctx a deadline.
func (db *DB) WaitFor(ctx context.Context, t Token) error {
	w := &waiter{done: make(chan struct{}), token: true, target: t.claim.Clone()}
	if err := db.wait(ctx, w); err != nil && err == ctx.Err() {
		return fmt.Errorf("replicator: the writes behind the token have not arrived: %w", err)
	} else {
		return err
	}
}

// WaitReplicated returns when so many peers have on disk all that was written at
// this server before the call, in this opening of the database and in earlier
// ones. It has sessions held at once with peers that are not known to have it, and
// they bring it to disk for this: a peer that writes nothing without Sync has it
// there with the pull. Another writes again what is not yet on disk, with Sync, or, if
// that is more than a few hundred keys, flushes its store, which takes about 0.1 s and
// is done once for all who wait.
//
// This server's own disk does not count, and nothing is said of it: use Sync where
// the write should also survive a power failure of this server alone. Each peer
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
// what was written. Unwrap gives the error of the context.
type NotReplicatedError struct {
	Have, Want int // peers
	Err        error
}

func (e *NotReplicatedError) Error() string {
	return fmt.Sprintf("replicator: %d of %d peers have it on disk: %v", e.Have, e.Want, e.Err)
}

// Unwrap gives the error of the context.
func (e *NotReplicatedError) Unwrap() error { return e.Err }

// waiter is a call that waits for this server, or for its peers, to know something.
type waiter struct {
	done   chan struct{} // closed when it is so
	number uint64        // calls are numbered, from 1
	token  bool          // for this server; else for peers
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
		db.mu.Lock()
		db.calls++
		w.number = db.calls
		db.waiters[w] = struct{}{}
		db.mu.Unlock()
	})
	if met || barred != nil {
		return barred
	}
	defer func() {
		db.mu.Lock()
		delete(db.waiters, w)
		db.mu.Unlock()
	}()
	db.requestSync()
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
		return ctx.Err()
	case <-db.ending:
		return leveldb.ErrClosed
	}
}

// barred returns why a wait that is not over never will be, if nothing is written here
// any more. The replica is in hand.
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

// barWaits ends the waits that nothing can end now that the store takes no more writes.
// The replica is in hand.
func (db *DB) barWaits(r *replica.Replica, broken error) {
	db.endWaits(func(w *waiter) error { return w.barred(r, broken) })
}

// endWaits ends the waits for which f returns why. The replica is in hand.
func (db *DB) endWaits(f func(w *waiter) error) {
	db.mu.Lock()
	waiters := slices.Collect(maps.Keys(db.waiters))
	db.mu.Unlock()
	for _, w := range waiters {
		err := f(w) // which may read the store
		if err == nil {
			continue
		}
		db.mu.Lock()
		if _, ok := db.waiters[w]; ok {
			delete(db.waiters, w)
			w.err = err
			close(w.done)
		}
		db.mu.Unlock()
	}
}

// met tells whether the wait is over. The replica is in hand.
func (w *waiter) met(r *replica.Replica) bool {
	if !w.token {
		return w.holders(r) >= w.peers
	}
	w.target = slices.DeleteFunc(w.target, r.Known.Covers)
	return len(w.target) == 0
}

// aim fixes what peers must hold. Writes of an earlier opening that a crash left
// without a claim cannot be asked for under their name: they get another.
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

// wake ends the waits that are over. The replica is in hand; reports tells whether
// a peer has reported since, else this server has learnt something.
func (db *DB) wake(r *replica.Replica, reports bool) {
	db.mu.Lock()
	defer db.mu.Unlock()
	for w := range db.waiters {
		if (w.token != reports || w.target == nil) && w.met(r) {
			delete(db.waiters, w)
			close(w.done)
		}
	}
}

// reported is called when a peer has told what it knows.
func (db *DB) reported() { db.with(func(r *replica.Replica) { db.wake(r, true) }) }

// wants tells whether somebody waits for a report of a peer. The replica is in hand.
func (db *DB) wants(r *replica.Replica, peer causal.Origin) bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	m := r.Members[peer]
	for w := range db.waiters {
		if !w.token && (m == nil || !w.aim(r) || !w.heldBy(m)) {
			return true
		}
	}
	return false
}

// latestCall is the number of the latest call that had to wait.
func (db *DB) latestCall() uint64 {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.calls
}

// requestSync has sessions held for those who wait.
func (db *DB) requestSync() {
	notify(db.syncRequests)
}

// serveRequests starts sessions for those who wait, with as many peers at once as they
// need: first with those that have what is missing here, if that is known. A peer
// is asked once for each call; after that the usual rounds go on.
func (db *DB) serveRequests(ctx context.Context) {
	if all, call := db.heardAll(); all {
		db.with(func(r *replica.Replica) {
			db.endWaits(func(w *waiter) error {
				if !w.token || w.number > call {
					return nil
				}
				return w.lost(r)
			})
		})
	}
	n, newest := 0, uint64(0)
	held := map[causal.Origin]bool{}   // by these, and nobody waits for more
	source := map[causal.Origin]bool{} // these wrote what is missing here
	db.with(func(r *replica.Replica) {
		db.mu.Lock()
		defer db.mu.Unlock()
		n, newest = db.needs(r, source)
		if n > 0 && len(source) == 0 {
			for o, m := range r.Members {
				held[o] = db.satisfies(m)
			}
		}
	})
	if n == 0 {
		return
	}
	now := time.Now()
	db.peers.each(func(p *peer) { n -= int(store.Btoi(p.busy && p.live())) })
	due := func(p *peer) bool { return p.asked < newest && !held[p.origin] }
	for _, first := range []bool{true, false} {
		skip := func(p *peer) bool { return !due(p) || first && !source[p.origin] }
		live, others := db.peers.pick(max(n, 0), probesPerRound, now, skip)
		n -= len(live)
		for _, p := range append(live, others...) {
			db.spawn(func() { db.call(ctx, p, session.Goal{}) })
		}
	}
}

// heardAll reports whether the first attempt to replicate is over and every peer that
// can be reached was heard since some call, and which is the latest such.
func (db *DB) heardAll() (all bool, call uint64) {
	select {
	case <-db.ready:
	default:
		return false, 0
	}
	call, all = db.latestCall(), true
	db.peers.each(func(p *peer) {
		switch {
		case !p.tried:
			all = false
		case p.failed == 0 && p.state != "self":
			call = min(call, p.asked)
		}
	})
	return all, call
}

// lost returns an error if a write that is waited for is lost, see [ErrTokenLost].
func (w *waiter) lost(r *replica.Replica) error {
	for _, d := range w.target {
		if d.Origin == r.Self {
			return fmt.Errorf("replicator: the token names write %d of this replica, which has made only %d", d.Seq, r.Seq)
		}
		switch lost, err := r.Lost(d); {
		case err != nil:
			return err
		case lost:
			return fmt.Errorf("%w: nobody who can be reached knows write %d of opening %s, and that has ended; read what it wrote anew", ErrTokenLost, d.Seq, d.Origin.Short())
		}
	}
	return nil
}

// needs tells how many peers to ask at once. The replica and db.mu are in hand.
func (db *DB) needs(r *replica.Replica, source map[causal.Origin]bool) (n int, newest uint64) {
	for w := range db.waiters {
		newest = max(newest, w.number)
		if !w.token {
			n = max(n, w.peers-w.holders(r), db.opts.Fanout)
			continue
		}
		n = max(n, db.opts.Fanout)
		for _, d := range w.target {
			source[d.Origin] = true
		}
	}
	return n, newest
}

// satisfies tells whether a peer has all that anybody waits for. db.mu is in hand.
func (db *DB) satisfies(m *replica.Member) bool {
	for w := range db.waiters {
		if w.token || w.target == nil || !w.heldBy(m) {
			return false
		}
	}
	return true
}

// syncAfterAsked is for how long after a peer asked for it what is pulled is written
// with Sync: more will be asked for, and then nothing need be flushed.
const syncAfterAsked = 10 * time.Second

// makeDurable brings to disk what is claimed, and waits for it. All who ask while it is
// under way are served by the next one.
func (db *DB) makeDurable() error {
	defer func() { db.durableAsked.Store(time.Now().UnixNano()) }() // it may have taken longer than hardTime
	db.durableAsked.Store(time.Now().UnixNano())
	return db.flushAll()
}

// flushAll brings to disk what is claimed. At most one flush is under way.
func (db *DB) flushAll() error {
	var need uint64
	db.with(func(r *replica.Replica) { need = r.Commits })
	select {
	case db.flushing <- struct{}{}:
		defer func() { <-db.flushing }()
	case <-db.ending:
		return leveldb.ErrClosed
	}
	var m replica.FlushMark
	safe := false
	db.with(func(r *replica.Replica) {
		safe = !r.Unsynced || r.Safe >= need
		m = replica.FlushMark{Vector: r.Known.Vector(causal.Covered), Commits: r.Commits, Resume: r.ResumePoint()}
	})
	if safe {
		return nil
	}
	if err := db.queue.broken(); err != nil {
		return err
	}
	if err := db.commit((*replica.Txn).SecureAll); err != replica.ErrMuchInDoubt && !errors.Is(err, store.ErrCorrupted) {
		return err
	}
	if err := store.Flush(db.raw); err != nil {
		if err != leveldb.ErrClosed && err != leveldb.ErrReadOnly && !starved(err) {
			db.queue.fail(err)
		}
		return err
	}
	db.with(func(r *replica.Replica) { r.OnDisk(m) })
	// A claim that a crash could take back would be no report.
	return db.commit(func(t *replica.Txn) error {
		t.StageCheckpoints()
		t.Sync = true
		return nil
	})
}

// wantsSync tells whether what is pulled should be written with Sync.
func (db *DB) wantsSync() bool {
	return db.opts.Sync || time.Now().UnixNano()-db.durableAsked.Load() < int64(syncAfterAsked)
}
