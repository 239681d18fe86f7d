package replicator

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/netaddr"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/schedule"
	"github.com/level-replicator/replicator/internal/session"
)

// gossip is what starts rounds, and the pulls that they lead to. It guards itself.
type gossip struct {
	localChange  signal // something was written here
	remoteChange signal // a peer brought something
	requests     signal // a caller waits for a session
	lessLinked   signal // links no longer carry all changes
	pulls        pulls
}

func newGossip() gossip {
	return gossip{localChange: newSignal(), remoteChange: newSignal(), requests: newSignal(), lessLinked: newSignal()}
}

// rounds holds sessions with a few peers at a time: often while much is written
// here or arrives, rarely when nothing changes. A change after silence starts a
// round at once. When, and with which peers, [schedule.Rounds] decides.
func (db *DB) rounds(ctx context.Context) {
	rounds := &schedule.Rounds{Config: schedule.Config{Least: db.opts.MinInterval, Most: db.opts.MaxInterval, Fanout: db.opts.Fanout}}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for held := false; ; held = false {
		// While a round waits for its time nothing can bring it forward, so the signals stay where
		// they are, and not every write has to wake this goroutine.
		local, remote, found := db.gossip.localChange.C(), db.gossip.remoteChange.C(), db.peers.found.C()
		if rounds.Waits(time.Now()) {
			local, remote, found, held = nil, nil, nil, true
		}
		select {
		case <-ctx.Done():
			return
		case <-db.gossip.requests.C():
			db.serveRequests(ctx, rounds)
		case <-db.gossip.lessLinked.C():
			now := time.Now()
			rounds.Sooner(now, db.activity.pause(now, db.opts.MinInterval, db.opts.MaxInterval))
		case <-remote:
			rounds.RemoteChange(time.Now(), rounds.Few(db.peers.met()))
		case <-local:
			rounds.LocalChange()
		case <-found:
			rounds.PeerFound()
		case <-timer.C:
		}
		if now := time.Now(); !rounds.Next().After(now) {
			if held {
				if db.gossip.localChange.Take() {
					rounds.LocalChange()
				}
				db.peers.found.Take()
			}
			if db.gossip.remoteChange.Take() {
				rounds.RemoteChange(now, false) // the round that passes it on is this one
			}
			db.round(ctx, rounds, now)
		}
		timer.Reset(time.Until(rounds.Next()))
	}
}

// round starts the sessions of one round.
func (db *DB) round(ctx context.Context, rounds *schedule.Rounds, now time.Time) {
	round := rounds.Begin(now, rounds.Few(db.peers.met()))
	probes := schedule.ProbesPerRound
	if round.First {
		probes = schedule.MaxDialing
	}
	var vector causal.Sum
	var self, next causal.Origin
	db.with(func(r *replica.Replica) { vector, self = r.Known.VectorSum, r.Self })
	if round.Changed {
		next = db.peers.next(self)
	}
	sessions := min(round.Live, db.mesh().Sessions(len(db.links.all()), db.links.small.Load()))
	live, probed := db.peers.pick(rounds, sessions, probes, now, vector, func(p *peer, c *schedule.Candidate) bool {
		c.Next = p.origin == next && next != causal.Origin{}
		return round.Skips(c, now)
	})
	for _, p := range append(live, probed...) {
		db.spawn(func() { db.call(ctx, p, session.Goal{}) })
	}
	// Whoever is dialed by others is told of news by them, and need not ask for it.
	news := db.opts.IdleTimeout < 0 || db.activity.since(now) < db.opts.IdleTimeout || !db.peers.called(now)
	pause := rounds.Pause(db.links.enough.Load(), news, db.activity.pause(now, db.opts.MinInterval, db.opts.MaxInterval))
	rounds.End(now, round, len(live), len(probed), pause)
	if at, ok := db.peers.nextProbe(now); ok {
		rounds.Probe(now, at)
	}
}

// noteLocalChanges counts changes and starts a round.
func (db *DB) noteLocalChanges(changes int) {
	if changes > 0 {
		db.activity.count(time.Now(), changes)
	}
	if changes == 0 || !db.links.enough.Load() {
		db.gossip.localChange.Set()
	}
}

// noteRemoteChanges counts changes that came from a peer and has them passed on.
func (db *DB) noteRemoteChanges(changes int) {
	db.activity.count(time.Now(), changes)
	if !db.links.enough.Load() {
		db.gossip.remoteChange.Set()
	}
}

// noteAlone logs once that no address leads to anybody else, and once that one does again.
func (db *DB) noteAlone() {
	switch alone, changed := db.peers.noteAlone(time.Now()); {
	case !changed:
	case alone:
		db.opts.Logger.Warn("replicator: every configured address leads to this replica itself; nothing is replicated until another one is found",
			"peers", db.peers.configured())
	default:
		db.opts.Logger.Info("replicator: another replica was found, or is looked for")
	}
}

// isSelf reports whether a session failed because it led back to this replica.
func isSelf(err error) bool {
	var refused *session.RefusedError
	return errors.Is(err, session.ErrSelf) || errors.As(err, &refused) && refused.Code == int(session.RefuseSelf)
}

// selfLocked notes that an address has led to this replica itself. That may be another one
// the next time, as a name or a virtual address leads to several and any address
// may pass to another replica; so it rests no longer than one that failed.
func (p *peer) selfLocked(now time.Time, lately time.Duration) {
	p.err, p.failed, p.next = nil, 0, now.Add(p.backoff.NextBackOff())
	p.who.shared = p.who.shared || p.who.proven
	if !p.who.shared || p.state != PeerOK || now.Sub(p.last) >= lately {
		p.state = PeerSelf
	}
}

// logHeldBack says that a version is not taken here, when that has begun or is over.
func (db *DB) logHeldBack(before, now int) {
	switch {
	case before == 0 && now > 0:
		db.opts.Logger.Warn("replicator: peers hold versions that are not taken here, as value or key is too large; the rest is", "versions", now, "MaxValue", db.opts.Limits.MaxValue, "MaxKey", db.opts.Limits.MaxKey)
	case before > 0 && now == 0:
		db.opts.Logger.Info("replicator: peers hold nothing any more that is not taken here")
	}
}

// incoming notes that a peer has dialed us, and where it can be dialed, if that can be
// said. It is nil if there are too many peers.
func (db *DB) incoming(h *session.Hello, remote net.Addr) *peer {
	addr := netaddr.Reachable(h.Addr, remote)
	if addr == db.advertised() {
		addr = ""
	}
	before, over := db.peers.holder(addr), false
	if before != (causal.Origin{}) && before != h.Origin {
		db.with(func(r *replica.Replica) { over = r.Succeeded[before] })
	}
	p, gone := db.peers.came(h.Origin, h.Name, addr, remote.String(), over, time.Now())
	db.replaced(gone)
	return p
}

// replaced has members count no more until they are heard again: somebody else is where
// they were. That is said before the first report of the new one counts.
func (db *DB) replaced(gone []causal.Origin) {
	if len(gone) > 0 {
		db.with(func(r *replica.Replica) {
			for _, o := range gone {
				r.NoteReplaced(o)
			}
		})
	}
}
