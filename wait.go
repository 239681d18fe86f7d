package replicator

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
)

// Token is what a replica knew at one moment: for every opening of a database that
// it had heard of, how many of its writes. A client that wrote, or read, at one
// replica takes the token along to another, and that one waits with
// [DB.WaitFor] until it knows as much. It is opaque and comparable only as text.
//
// One of [DB.Token] takes 18 to 26 bytes per opening of a database in the life of the
// cluster, a third more as text: after 300 openings it is too large for a cookie (4 kB)
// and for the headers that many proxies take (8 kB). One of [DB.WriteToken] takes as
// many bytes in all. The zero Token is one that every replica covers.
type Token struct{ claim vector }

const tokenVersion = 1

// MarshalBinary gives the token as bytes.
func (t Token) MarshalBinary() ([]byte, error) {
	b := []byte{tokenVersion}
	for _, d := range t.claim {
		b = append(b, d.origin[:]...)
		b = binary.AppendUvarint(b, d.seq)
	}
	return b, nil
}

// UnmarshalBinary reads what MarshalBinary gave.
func (t *Token) UnmarshalBinary(b []byte) error {
	if len(b) == 0 || b[0] != tokenVersion {
		return errors.New("replicator: malformed token: not of a version known here")
	}
	d := decoder{b: b[1:]}
	var claim vector
	for len(d.b) > 0 {
		e := dot{d.origin(), d.seq()}
		switch n := len(claim); {
		case d.err != nil:
			return errors.New("replicator: malformed token: it is cut short or damaged")
		case e.seq == 0 || n > 0 && claim[n-1].origin.compare(e.origin) >= 0:
			return errors.New("replicator: malformed token: its entries are not in order")
		}
		claim = append(claim, e)
	}
	t.claim = claim
	return nil
}

// String gives the token as text that may stand in an HTTP header, a cookie or a
// URL: letters, digits, '-' and '_'.
func (t Token) String() string {
	b, _ := t.MarshalBinary()
	return base64.RawURLEncoding.EncodeToString(b)
}

// MarshalText makes a token a string in JSON.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads what String and MarshalText gave.
func (t *Token) UnmarshalText(text []byte) error {
	b, err := base64.RawURLEncoding.Strict().DecodeString(string(text))
	if i := bytes.IndexAny(text, "\r\n"); i >= 0 { // which base64 skips
		err = base64.CorruptInputError(i)
	}
	if err != nil {
		return fmt.Errorf("replicator: malformed token: %w", err)
	}
	return t.UnmarshalBinary(b)
}

// ParseToken reads what [Token.String] gave. Text that comes from a client may be
// anything: what is no token gives an error.
func ParseToken(text string) (t Token, err error) {
	return t, t.UnmarshalText([]byte(text))
}

// Token is what this replica knows now: its own writes that have returned, and all
// that can be read here.
func (db *DB) Token() Token {
	var t Token
	db.at(func(r *replica) { t.claim = r.known.vector(claimed) })
	return t
}

// WriteToken stands for the writes that were made here since the database was opened
// and have returned, and for nothing else that can be read here. It takes at most 27
// bytes, 36 as text, however old the cluster is: the one to give to a client that
// must find its own writes at another replica. It is the zero Token before the first
// write.
func (db *DB) WriteToken() Token {
	var t Token
	db.at(func(r *replica) {
		if r.seq > 0 {
			t.claim = vector{{r.self, r.seq}}
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
	w := &waiter{done: make(chan struct{}), token: true, target: t.claim.clone()}
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
	db.at(func(r *replica) { have = w.holders(r) })
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
	target vector // nil: not known yet, see aim
	err    error  // why it is over, if it is not met; set before done is closed
}

// wait waits until a waiter is met.
func (db *DB) wait(ctx context.Context, w *waiter) error {
	if db.isClosing() {
		return leveldb.ErrClosed
	}
	met := false
	var barred error
	db.at(func(r *replica) {
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
	db.hastenNow()
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
func (w *waiter) barred(r *replica, broken error) error {
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
func (db *DB) barWaits(r *replica, broken error) {
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
func (w *waiter) met(r *replica) bool {
	if !w.token {
		return w.holders(r) >= w.peers
	}
	w.target = slices.DeleteFunc(w.target, r.known.covers)
	return len(w.target) == 0
}

// aim fixes what peers must hold. Writes of an earlier opening that a crash left
// without a claim cannot be asked for under their name: they get another.
func (w *waiter) aim(r *replica) bool {
	if w.target == nil && !r.orphans() {
		w.target = vector{}
		for _, k := range r.known.rows {
			if r.own[k.origin] && k.at[claimed] > 0 {
				w.target = append(w.target, dot{k.origin, k.at[claimed]})
			}
		}
	}
	return w.target != nil
}

// holders counts the peers that have it on disk.
func (w *waiter) holders(r *replica) (n int) {
	if !w.aim(r) {
		return 0
	}
	for _, m := range r.counted() {
		if !m.replaced && w.heldBy(m) {
			n++
		}
	}
	return n
}

func (w *waiter) heldBy(m *member) bool {
	if m.rev == 0 {
		return false
	}
	for _, d := range w.target {
		if m.known.at(durable, d.origin) < d.seq {
			return false
		}
	}
	return true
}

// wake ends the waits that are over. The replica is in hand; reports tells whether
// a peer has reported since, else this server has learnt something.
func (db *DB) wake(r *replica, reports bool) {
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
func (db *DB) reported() { db.at(func(r *replica) { db.wake(r, true) }) }

// wants tells whether somebody waits for a report of a peer. The replica is in hand.
func (db *DB) wants(r *replica, peer Origin) bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	m := r.members[peer]
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

// hastenNow has sessions held for those who wait.
func (db *DB) hastenNow() {
	notify(db.urgent)
}

// hasten starts sessions for those who wait, with as many peers at once as they
// need: first with those that have what is missing here, if that is known. A peer
// is asked once for each call; after that the usual rounds go on.
func (db *DB) hasten(ctx context.Context) {
	if all, call := db.heardAll(); all {
		db.at(func(r *replica) {
			db.endWaits(func(w *waiter) error {
				if !w.token || w.number > call {
					return nil
				}
				return w.lost(r)
			})
		})
	}
	n, newest := 0, uint64(0)
	held := map[Origin]bool{}   // by these, and nobody waits for more
	source := map[Origin]bool{} // these wrote what is missing here
	db.at(func(r *replica) {
		db.mu.Lock()
		defer db.mu.Unlock()
		n, newest = db.needs(r, source)
		if n > 0 && len(source) == 0 {
			for o, m := range r.members {
				held[o] = db.satisfies(m)
			}
		}
	})
	if n == 0 {
		return
	}
	now := time.Now()
	db.peers.each(func(p *peer) { n -= int(btoi(p.busy && p.live())) })
	due := func(p *peer) bool { return p.asked < newest && !held[p.origin] }
	for _, first := range []bool{true, false} {
		skip := func(p *peer) bool { return !due(p) || first && !source[p.origin] }
		live, others := db.peers.pick(max(n, 0), probesPerRound, now, skip)
		n -= len(live)
		for _, p := range append(live, others...) {
			db.spawn(func() { db.call(ctx, p, purpose{}) })
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
func (w *waiter) lost(r *replica) error {
	for _, d := range w.target {
		if d.origin == r.self {
			return fmt.Errorf("replicator: the token names write %d of this replica, which has made only %d", d.seq, r.seq)
		}
		switch lost, err := r.lost(d); {
		case err != nil:
			return err
		case lost:
			return fmt.Errorf("%w: nobody who can be reached knows write %d of opening %s, and that has ended; read what it wrote anew", ErrTokenLost, d.seq, d.origin.Short())
		}
	}
	return nil
}

// needs tells how many peers to ask at once. The replica and db.mu are in hand.
func (db *DB) needs(r *replica, source map[Origin]bool) (n int, newest uint64) {
	for w := range db.waiters {
		newest = max(newest, w.number)
		if !w.token {
			n = max(n, w.peers-w.holders(r), db.opts.Fanout)
			continue
		}
		n = max(n, db.opts.Fanout)
		for _, d := range w.target {
			source[d.origin] = true
		}
	}
	return n, newest
}

// satisfies tells whether a peer has all that anybody waits for. db.mu is in hand.
func (db *DB) satisfies(m *member) bool {
	for w := range db.waiters {
		if w.token || w.target == nil || !w.heldBy(m) {
			return false
		}
	}
	return true
}

// hardTime is for how long after a peer asked for it what is pulled is written
// with Sync: more will be asked for, and then nothing need be flushed.
const hardTime = 10 * time.Second

// makeDurable brings to disk what is claimed, and waits for it. All who ask while it is
// under way are served by the next one.
func (db *DB) makeDurable() error {
	defer func() { db.hardened.Store(time.Now().UnixNano()) }() // it may have taken longer than hardTime
	db.hardened.Store(time.Now().UnixNano())
	return db.flushAll()
}

// flushAll brings to disk what is claimed. At most one flush is under way.
func (db *DB) flushAll() error {
	var need uint64
	db.at(func(r *replica) { need = r.commits })
	select {
	case db.flushing <- struct{}{}:
		defer func() { <-db.flushing }()
	case <-db.ending:
		return leveldb.ErrClosed
	}
	var m mark
	safe := false
	db.at(func(r *replica) {
		safe = !r.unsynced || r.safe >= need
		m = mark{claim: r.known.vector(claimed), commits: r.commits, resume: r.resumePoint()}
	})
	if safe {
		return nil
	}
	if err := db.queue.broken(); err != nil {
		return err
	}
	if err := db.commit((*txn).secureAll); err != errMuchInDoubt && !errors.Is(err, ErrDamaged) {
		return err
	}
	if err := flush(db.raw); err != nil {
		if err != leveldb.ErrClosed && err != leveldb.ErrReadOnly && !starved(err) {
			db.queue.fail(err)
		}
		return err
	}
	db.at(func(r *replica) { r.onDisk(m) })
	// A claim that a crash could take back would be no report.
	return db.commit(func(t *txn) error {
		t.stageCheckpoints()
		t.sync = true
		return nil
	})
}

// hard tells whether what is pulled should be written with Sync.
func (db *DB) hard() bool {
	return db.opts.Sync || time.Now().UnixNano()-db.hardened.Load() < int64(hardTime)
}
