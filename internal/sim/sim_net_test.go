package sim

import (
	"errors"
	"fmt"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
)

// simConn is one connection: frames arrive whole and in order, or not at all. Both
// ends may be stalled for long, and it may be cut after any frame, at one end
// sooner than at the other.
type simConn struct {
	id      int
	ends    [2]*simEnd
	stalled int // nothing moves before this step
	broken  bool
	stream  bool // both replicas stayed

	joins   *simEnd // the end that takes in a join; nil: none does
	resumes bool    // it would go on where one broke off
}

type simEnd struct {
	n    *simNode
	peer *simNode
	s    *session.Session
	in   []session.Frame
	over bool // nothing more is taken in or sent

	pages int // of an ordinary pull that were taken in
}

func (c *simConn) over() bool { return c.ends[0].over && c.ends[1].over }

func (w *simWorld) params(n *simNode) session.Params {
	return session.Params{
		Name: fmt.Sprint("n", n.id), Addr: fmt.Sprintf("n%d:9000", n.id),
		PageSize: w.conf.pageSize, ListBelow: w.conf.listBelow, BatchSize: w.conf.batchSize, MaxValue: n.maxValue, MaxKey: 64,
		Window: w.conf.window(), JoinAbove: w.conf.joinAbove, RoundKeys: w.conf.roundKeys,
		Stay: func(causal.Origin) (may, news bool) {
			return w.conf.stays && !w.healed && len(w.conns) < 12, w.stats.steps%3 == 0
		},
		Wants: func(*replica.Replica, causal.Origin) bool { return w.conf.stays && !w.healed && w.chance(0.05) },
	}
}

// dial starts a conversation.
func (w *simWorld) dial(a, b *simNode) *simConn {
	p := w.params(a)
	p.CachedPeer = a.met[b.id]
	w.stats.sessions++
	c := &simConn{id: w.stats.sessions, ends: [2]*simEnd{
		{n: a, peer: b, s: session.New(a, true, p)},
		{n: b, peer: a, s: session.New(b, false, w.params(b))},
	}}
	w.logf("n%d dials n%d (conn %d)", a.id, b.id, c.id)
	c.ends[0].s.Start()
	w.flush(c, 0)
	w.conns = append(w.conns, c)
	return c
}

// flush moves what an end has to say onto the wire.
func (w *simWorld) flush(c *simConn, i int) {
	e, f := c.ends[i], c.ends[1-i]
	out := e.s.Frames()
	if !f.over && !c.broken {
		for _, x := range out {
			if x.Kind == session.FrameHello && (e.n.old || f.n.old) {
				x.Payload = earlierHello(x.Payload)
			}
			f.in = append(f.in, x)
			w.stats.bytes += session.FrameHead + len(x.Payload)
			w.stats.wants += int(store.Btoi(x.Kind == session.FrameWant))
			w.countStream(c, i, x)
			w.countJoin(c, i, x)
			w.countPull(e.n, x)
		}
	}
	if e.s.Done() && !e.over {
		w.end(c, i)
	}
}

// earlierHello is a hello as it was before values were asked for.
func earlierHello(hello []byte) []byte {
	h, err := session.DecodeHello(hello)
	if err != nil {
		panic(err)
	}
	h.Apart, h.Max = false, 1
	return h.Append(nil)
}

// move lets one end of a connection take in one frame, or send one page. It
// reports whether anything happened.
func (w *simWorld) move(c *simConn, i int) bool {
	e, f := c.ends[i], c.ends[1-i]
	switch {
	case e.over:
		return false
	case len(e.in) > 0:
		x := e.in[0]
		e.in = e.in[1:]
		if w.verbose {
			w.logf("conn %d: n%d gets frame %d of %d bytes", c.id, e.n.id, x.Kind, len(x.Payload))
		}
		w.blame(c, i, e.s.Receive(x.Kind, x.Payload))
		e.countPage(c, x)
	case f.over || c.broken: // all that the other end sent is read
		w.hangUpEnd(c, i)
		return true
	case e.s.More() && len(f.in) < 2:
		w.blame(c, i, e.s.Produce())
	default:
		return false
	}
	w.flush(c, i)
	return true
}

// blame ends a conversation after an error, which must be one that was asked for.
func (w *simWorld) blame(c *simConn, i int, err error) {
	if err == nil {
		return
	}
	w.logf("conn %d: n%d: %v", c.id, c.ends[i].n.id, err)
	w.stats.refusals += int(store.Btoi(c.stream))
	var refused *session.RefusedError
	switch {
	case errors.As(err, &refused):
		if refused.Code == int(session.RefuseClock) {
			w.stats.skewed++
		}
	case errors.Is(err, errSimRead), errors.Is(err, errSimWrite), errors.Is(err, errSimFailed):
	case errors.Is(err, replica.ErrClockSkew) && w.conf.skews:
	default:
		w.fail(fmt.Errorf("conn %d: n%d: %w", c.id, c.ends[i].n.id, err))
	}
	if !c.ends[i].s.Done() {
		w.fail(fmt.Errorf("conn %d: n%d goes on after %w", c.id, c.ends[i].n.id, err))
	}
}

// end closes one end whose session is over.
func (w *simWorld) end(c *simConn, i int) {
	e := c.ends[i]
	e.over, e.in = true, nil
	if e.s.Result().Peer != (causal.Origin{}) {
		e.n.met[e.peer.id] = e.s.Result().Peer
	}
	w.stats.pulled += e.s.Result().Pulled
	w.stats.heldBack += int(store.Btoi(e.n.r != nil && len(e.n.r.HeldBack) > 0))
	if w.stats.repaired += e.s.Result().Repaired; e.s.Result().Repaired > 0 && w.conf.tombstoneTTL < 0 && !w.conf.corruption {
		w.fail(fmt.Errorf("conn %d: n%d reports %d versions as lost to corruption, and there was none", c.id, e.n.id, e.s.Result().Repaired))
	}
	if e.s.Result().Idle {
		w.stats.idle++
	}
	// Orphans are issued again once somebody was heard; when is up to the shell.
	if e.n.r != nil && !e.n.failed && w.chance(w.conf.reissue) {
		w.ignore(e.n.reissue())
	}
}

// hangUpEnd is what a replica does when a connection breaks.
func (w *simWorld) hangUpEnd(c *simConn, i int) {
	e := c.ends[i]
	if e.over {
		return
	}
	if !e.s.Done() {
		w.stats.cuts++
		w.countBroken(c, i)
		w.stats.cutPulls += int(store.Btoi(e.midPull()))
		w.stats.brokenJoins += int(store.Btoi(c.joins == e))
		w.logf("conn %d: n%d is cut off from n%d", c.id, e.n.id, e.peer.id)
		w.ignore(e.s.Abandon())
	}
	w.end(c, i)
}

// hangUp drops all connections of a node whose process ends. The other ends read
// what is on the wire first, or they do not.
func (w *simWorld) hangUp(n *simNode) {
	for _, c := range slices.Clone(w.conns) {
		for i, e := range c.ends {
			if e.n != n || e.over {
				continue
			}
			w.countBroken(c, i)
			w.stats.cutPulls += int(store.Btoi(e.midPull()))
			e.over, e.in = true, nil
			if f := c.ends[1-i]; !f.over && f.n != n && w.chance(0.5) {
				f.in = f.in[:w.rand.IntN(len(f.in)+1)]
			}
		}
	}
	w.conns = slices.DeleteFunc(w.conns, (*simConn).over)
}

// cut breaks a connection: each end may still read some of what was sent.
func (w *simWorld) cut(c *simConn) {
	c.broken = true
	for i := range c.ends {
		e := c.ends[i]
		e.in = e.in[:w.rand.IntN(len(e.in)+1)]
		if len(e.in) == 0 || w.chance(0.7) {
			w.hangUpEnd(c, i)
		}
	}
}

// run lets a conversation come to its end, undisturbed, or both replicas stay.
func (w *simWorld) run(c *simConn) {
	for n := 0; !c.over() && w.err == nil; n++ {
		i := w.rand.IntN(2)
		if c.streaming() && len(c.ends[0].in)+len(c.ends[1].in) == 0 {
			if !w.healed {
				return
			}
			c.ends[i].s.Stream().Leave()
			w.flush(c, i)
		}
		if !w.move(c, i) && !w.move(c, 1-i) {
			w.fail(fmt.Errorf("conn %d between n%d and n%d is stuck: they wait for %d and %d", c.id, c.ends[0].n.id, c.ends[1].n.id, c.ends[0].s.Step(), c.ends[1].s.Step()))
		}
		if n > 1e6 {
			w.fail(fmt.Errorf("conn %d has no end", c.id))
		}
	}
	w.conns = slices.DeleteFunc(w.conns, (*simConn).over)
}

// ignore takes errors that were asked for.
func (w *simWorld) ignore(err error) {
	switch {
	case err == nil, errors.Is(err, errSimRead), errors.Is(err, errSimWrite), errors.Is(err, errSimFailed):
	default:
		w.fail(err)
	}
}
