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
	pulls        pulls
}

func newGossip() gossip {
	return gossip{localChange: newSignal(), remoteChange: newSignal(), requests: newSignal()}
}

// rounds holds sessions with a few peers at a time: often while much is written
// here or arrives, rarely when nothing changes. A change after silence starts a
// round at once.
func (db *DB) rounds(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	next := time.Time{} // not before
	due := time.Time{}  // the next round though nothing changes
	kicked := false     // since the last round
	passing := false    // news of others wait until relay fires
	relay := time.NewTimer(time.Hour)
	relay.Stop()
	defer relay.Stop()
	for first := true; ; first = false {
		select {
		case <-ctx.Done():
			return
		case <-db.gossip.requests.C():
			db.serveRequests(ctx)
			continue
		case <-db.gossip.remoteChange.C():
			if db.smallCluster() {
				if !passing {
					relay.Reset(db.opts.MinInterval / relayShare)
				}
				passing = true
				continue
			}
			kicked = true
		case <-relay.C:
			kicked = true
		case <-timer.C:
		case <-db.peers.found.C():
		case <-db.gossip.localChange.C():
			kicked = true
		}
		now := time.Now()
		if wait := next.Sub(now); wait > 0 {
			if !db.waitInterval(ctx, timer, wait) {
				return
			}
			now = time.Now()
			kicked = db.gossip.localChange.Take() || kicked
			db.peers.found.Take()
		}
		kicked = db.gossip.remoteChange.Take() || passing || kicked
		passing = false
		relay.Stop()
		// Only sessions that a change was the reason for keep the next change waiting long.
		least := time.Duration(0)
		switch told, probed := db.round(ctx, now, kicked, !now.Before(due), first); {
		case kicked && told > 0:
			least = db.opts.MinInterval
		case kicked || told+probed > 0:
			least = db.opts.MinInterval / 10
		}
		next = now.Add(least)
		if kicked || !now.Before(due) {
			due = now.Add(schedule.Jitter(db.activity.pause(now, db.opts.MinInterval, db.opts.MaxInterval)))
		}
		kicked = false
		timer.Reset(db.untilNext(now, due))
	}
}

// relayShare is by how much less than MinInterval a server waits before it passes on what
// a peer told it, if there are few: then the one that wrote tells all of them, and they
// are spared sessions in which they would hear the same again.
const relayShare = 4

// waitInterval waits before the next round; it is false if ctx ends. The signals of those who
// write stay where they are meanwhile, so that not every write has to wake it.
func (db *DB) waitInterval(ctx context.Context, timer *time.Timer, wait time.Duration) bool {
	for timer.Reset(wait); ; {
		select {
		case <-ctx.Done():
			return false
		case <-db.gossip.requests.C():
			db.serveRequests(ctx)
		case <-timer.C:
			return true
		}
	}
}

// steadyPause is how long a peer that is as far as this server is left alone, if it dials
// us as we dial it, and there are so few servers that each is told by who wrote.
const steadyPause = time.Second

// round starts sessions with peers chosen at random: after a change, and when one is due,
// with Fanout of those that answer; and at any time beside them with some of those that are
// new, or failed and have rested. After a change those are left out that are known to
// have it already, and else those that would tell us if they had news. It returns how
// many there are of each.
func (db *DB) round(ctx context.Context, now time.Time, kicked, due, first bool) (told, probed int) {
	n, probes := 0, probesPerRound
	if kicked || due {
		n = db.opts.Fanout
	}
	if first {
		probes = maxDialing
	}
	var claims causal.Sum
	db.with(func(r *replica.Replica) { claims = r.Known.VectorSum })
	few := db.smallCluster()
	pause := min(steadyPause, db.opts.MaxInterval)
	skip := func(p *peer) bool {
		switch {
		case !p.live():
			return false
		case kicked:
			return p.answering > 0 || p.claims == claims
		}
		return few && p.claims == claims && now.Sub(p.reached) < pause && now.Sub(p.came) < 2*pause
	}
	live, others := db.peers.pick(n, probes, now, skip)
	for _, p := range append(live, others...) {
		db.spawn(func() { db.call(ctx, p, session.Goal{}) })
	}
	return len(live), len(others)
}

// probesPerRound bounds the addresses not known to answer that a round begins to dial.
const probesPerRound = 16

// smallCluster tells that a round after a change reaches all servers there are.
func (db *DB) smallCluster() bool { return db.peers.met() <= db.opts.Fanout }

// untilNext is the pause before the next round, or the time until an address that is
// not known to answer may be tried, if that is sooner.
func (db *DB) untilNext(now, due time.Time) time.Duration {
	d := due.Sub(now)
	if next, ok := db.peers.nextProbe(); ok {
		d = min(d, max(next.Sub(now), db.opts.MinInterval))
	}
	return max(d, 0)
}

// noteLocalChanges counts changes and starts a round.
func (db *DB) noteLocalChanges(changes int) {
	if changes > 0 {
		db.activity.count(time.Now(), changes)
	}
	db.gossip.localChange.Set()
}

// noteRemoteChanges counts changes that came from a peer and has them passed on.
func (db *DB) noteRemoteChanges(changes int) {
	db.activity.count(time.Now(), changes)
	db.gossip.remoteChange.Set()
}

// noteAlone logs once that no address leads to anybody else, and once that one does again.
func (db *DB) noteAlone() {
	switch alone, changed := db.peers.noteAlone(time.Now()); {
	case !changed:
	case alone:
		db.opts.Logger.Warn("replicator: every configured address leads to this server itself; nothing is replicated until another one is found",
			"peers", db.peers.configured())
	default:
		db.opts.Logger.Info("replicator: another server was found, or is looked for")
	}
}

// isSelf reports whether a session failed since it led back to this server.
func isSelf(err error) bool {
	var refused *session.RefusedError
	return errors.Is(err, session.ErrSelf) || errors.As(err, &refused) && refused.Code == int(session.RefuseSelf)
}

// selfLocked notes that an address has led to this server itself. That may be another one
// the next time, as a name or a virtual address leads to several and any address
// may pass to another server; so it rests no longer than one that failed.
func (p *peer) selfLocked(now time.Time, lately time.Duration) {
	p.err, p.failed, p.next = nil, 0, now.Add(p.backoff.NextBackOff())
	p.who.shared = p.who.shared || p.who.proven
	if !p.who.shared || p.state != "ok" || now.Sub(p.last) >= lately {
		p.state = "self"
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
