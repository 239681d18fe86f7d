package replicator

import (
	"errors"
	"sync"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/transport"
)

// ended notes how a session with a peer went.
func (db *DB) ended(p *peer, s session.Result, pace *transport.ProgressConn, started time.Time, err error) {
	now := time.Now()
	broken := db.queue.broken()
	db.logHeldBack(s.HeldBefore, s.HeldNow)
	ours, has, covered := db.shown(&s, err)
	db.peers.mu.Lock()
	was := p.state
	if s.Dialed {
		db.peers.freeLocked(p)
	}
	p.tried = true
	if o := s.Peer; o != (causal.Origin{}) && o != p.origin {
		db.peers.mu.Unlock() // another one has turned out to be there meanwhile
		db.checkReady()
		return
	}
	p.countLocked(&s, pace)
	if err == nil {
		p.endedWellLocked(s.Dialed, now)
		p.vectorSum = s.VectorSum
		if has != nil {
			p.has = has
		}
		if covered {
			p.covered = s.Began
		}
		if p.asked = max(p.asked, s.Asked); s.Skipped == session.SkippedReadOnly && broken != nil {
			p.err = &PeerError{p.addr, OpPull, broken}
		}
	} else if s.Dialed || started.After(p.last) { // else another has ended well since it was cut off
		if s.Pulled > 0 { // the next is not to wait long, and goes on from here
			p.backoff.Reset()
		}
		p.failedLocked(s.Dialed, now, err, 4*db.opts.MaxInterval)
	}
	// A pull that was left out follows when the other one is over.
	// What is held back stays so, however often they talk.
	whole := s.Skipped == session.NotSkipped && s.TheirSkip == session.NotSkipped && !s.Withheld && !s.HeldBack
	state, name, behind := p.state, p.name, whole && p.vectorSum != ours
	db.peers.mu.Unlock()
	if state != was && state != PeerSelf && was != PeerSelf {
		db.logState(p, name, state, err)
	}
	if err == nil && behind {
		db.noteLocalChanges(0)
	}
	db.noteAlone()
	db.surveyLinks()
	db.checkReady()
	db.requestSync()
}

// shown returns what a session that has ended shows of the peer, beside the sum of our version
// vector now: has is the peer's version vector if it is equal to ours, else nil, and covered reports
// whether it covers all that was known here when the session began.
func (db *DB) shown(s *session.Result, err error) (ours causal.Sum, has causal.Vector, covered bool) {
	covered = s.Idle || s.ServedAll
	db.with(func(r *replica.Replica) {
		if ours = r.Known.VectorSum; err == nil && s.VectorSum == ours {
			has = r.Known.Vector(causal.Covered)
		}
		covered = covered || r.Known.Within(causal.Covered, &s.Known, causal.Covered) // it had no need to pull
	})
	return ours, has, covered
}

// countLocked adds a session to the totals of the peer.
func (p *peer) countLocked(s *session.Result, pace *transport.ProgressConn) {
	p.pulled += int64(s.Pulled)
	p.served += int64(s.Served)
	if pace != nil {
		p.in += pace.In.Load()
		p.out += pace.Out.Load()
	}
}

// endedWellLocked: only a session that we dialed proves that we can dial. Of two
// replicas of which one cannot reach the other, the one goes on resting between its
// attempts while the other's sessions keep both up to date.
func (p *peer) endedWellLocked(dialed bool, now time.Time) {
	p.last, p.seen = now, now
	if dialed {
		p.failed, p.next, p.err, p.reached = 0, time.Time{}, nil, now
		p.backoff.Reset()
	} else {
		p.came = now
		if p.failed == 0 {
			p.err = nil
		}
	}
	if p.state != PeerSelf || dialed {
		p.state = PeerOK
	}
}

func (p *peer) failedLocked(dialed bool, now time.Time, err error, lately time.Duration) {
	p.err = err
	state := PeerFailing
	var refused *session.RefusedError
	var rejected *session.HelloError
	var step *PeerError
	switch {
	case isSelf(err):
		p.selfLocked(now, lately)
		return
	case errors.As(err, &refused):
		state = PeerRefused
	case errors.As(err, &rejected):
		state = PeerRefused
	case errors.As(err, &step) && step.Op == OpDial && !p.came.IsZero() && now.Sub(p.came) < lately:
		state = PeerOK // it dials us, and that is enough
	}
	if dialed {
		p.failed++
		p.next = now.Add(p.backoff.NextBackOff())
	}
	p.state = state
}

// failed notes that a link ended with an error that says something of the peer.
func (db *DB) failed(p *peer, dialed bool, err error) {
	db.peers.mu.Lock()
	was := p.state
	p.failedLocked(dialed, time.Now(), err, 4*db.opts.MaxInterval)
	state, name := p.state, p.name
	db.peers.mu.Unlock()
	if state != was && state != PeerSelf && was != PeerSelf {
		db.logState(p, name, state, err)
	}
}

func (db *DB) logState(p *peer, name string, state PeerState, err error) {
	if err != nil {
		db.opts.Logger.Warn("replicator: peer is "+string(state), "peer", p.addr, "error", err)
	} else {
		db.opts.Logger.Info("replicator: peer is "+string(state), "peer", p.addr, "name", name)
	}
}

// report counts a session and reports it to Events.
func (db *DB) report(addr string, s session.Result, pace *transport.ProgressConn, took time.Duration, err error) {
	ev := SessionEvent{Peer: addr, Dialed: s.Dialed, Idle: s.Idle, Pulled: s.Pulled, Served: s.Served, Duration: took, Err: err}
	if pace != nil {
		ev.BytesIn, ev.BytesOut = pace.In.Load(), pace.Out.Load()
	}
	db.activity.ended(&ev, s.Repaired)
	if s.Repaired > 0 {
		db.opts.Logger.Error("replicator: a peer held something else while claiming the same; what was missing came back", "peer", addr, "versions", s.Repaired)
		if f := db.opts.Events.Mismatch; f != nil {
			f(addr, s.Repaired)
		}
	}
	if f := db.opts.Events.Session; f != nil {
		f(ev)
	}
}

// pulls are the pulls under way here. While one brings much, others would bring
// the same again; so a session leaves out its own pull then, and a round follows.
type pulls struct {
	mu     sync.Mutex
	active map[causal.Origin]activePull
	missed bool          // a session left out its pull
	left   chan struct{} // closed when the next of them ends; nil if nobody waits for that
}

// next returns a channel that is closed when a pull ends.
func (ps *pulls) next() <-chan struct{} {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.left == nil {
		ps.left = make(chan struct{})
	}
	return ps.left
}

type activePull struct {
	since time.Time
	bulk  bool // it brings much
}

const (
	bulkWrites = 4096                   // a pull of more brings much,
	bulkAfter  = 100 * time.Millisecond // and so does one that takes longer
	bulkUntil  = 2 * time.Second        // one that takes longer still holds up no other
)

func (db *DB) enterPull(from causal.Origin, writes int64) session.SkipReason {
	if db.queue.broken() != nil {
		return session.SkippedReadOnly
	}
	return db.gossip.pulls.enter(from, writes, time.Now())
}

func (ps *pulls) enter(from causal.Origin, writes int64, now time.Time) session.SkipReason {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	bulk := writes > bulkWrites
	for o, p := range ps.active {
		took := now.Sub(p.since)
		if o == from || took < bulkUntil && (took > bulkAfter || bulk && p.bulk) {
			ps.missed = true
			return session.SkippedBusy
		}
	}
	if ps.active == nil {
		ps.active = map[causal.Origin]activePull{}
	}
	ps.active[from] = activePull{now, bulk}
	return session.NotSkipped
}

func (db *DB) leavePull(from causal.Origin) {
	if db.gossip.pulls.leave(from) {
		db.noteLocalChanges(0)
	}
}

// leave ends a pull, and reports whether another was left out meanwhile.
func (ps *pulls) leave(from causal.Origin) (missed bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.active, from)
	missed, ps.missed = ps.missed, false
	if ps.left != nil {
		close(ps.left)
		ps.left = nil
	}
	return missed
}
