package sim

import (
	"fmt"
	"time"

	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
)

// streamStats are what happened on connections that stayed open.
type streamStats struct {
	streams, pushes, crossed, wanted, own, brokenPushes, unwhole, sessionsLeft, partings, requests, spares, refusals,
	ofCloud, copied, stopped, settled, forgotten int
}

func (s *streamStats) fields() []*int {
	return []*int{&s.streams, &s.pushes, &s.crossed, &s.wanted, &s.own, &s.brokenPushes, &s.unwhole, &s.sessionsLeft, &s.partings, &s.requests, &s.spares, &s.refusals,
		&s.ofCloud, &s.copied, &s.stopped, &s.settled, &s.forgotten}
}

// countStream counts what goes over a stream, and notes when a session has become one.
func (w *simWorld) countStream(c *simConn, i int, f session.Frame) {
	if !c.stream {
		if c.ends[0].s.Stream() == nil && c.ends[1].s.Stream() == nil {
			return
		}
		c.stream = true
		w.stats.streams++
	}
	switch f.Kind {
	case session.FramePush:
		w.stats.wanted += int(f.Payload[0] & 1)
		w.stats.own += int(f.Payload[0] >> 1)
		w.stats.ofCloud += int(store.Btoi(len(c.ends[i].n.r.Cloud) > 0))
		if l := c.ends[1-i].s.Stream(); l != nil {
			w.stats.crossed += int(store.Btoi(l.Pushing()))
		}
	case session.FrameEnd:
		w.stats.unwhole += int(store.Btoi(f.Payload[0] == 0))
	case session.FrameBye:
		w.stats.sessionsLeft += int(f.Payload[0])
		w.stats.partings++
	case session.FrameRequest:
		w.stats.requests++
	case session.FrameSpare:
		w.stats.spares++
	}
}

// countBroken counts an end of a connection that breaks.
func (w *simWorld) countBroken(c *simConn, i int) {
	if l := c.ends[i].s.Stream(); l != nil {
		w.stats.stopped++
		w.stats.brokenPushes += int(store.Btoi(l.Pushing() || l.Progress().Pulling))
	}
}

// countCopied counts that the disk of a node is copied, or replaced, which has a stream.
func (w *simWorld) countCopied(n *simNode) {
	cs, _ := w.streamsOf(n)
	w.stats.copied += min(1, len(cs))
}

// streamsOf returns the connections of a node that stay open.
func (w *simWorld) streamsOf(n *simNode) (cs []*simConn, ends []int) {
	for _, c := range w.conns {
		for i, e := range c.ends {
			if e.n == n && !e.over && e.s.Stream() != nil {
				cs, ends = append(cs, c), append(ends, i)
			}
		}
	}
	return cs, ends
}

// streaming reports whether neither end has ended, and both stay.
func (c *simConn) streaming() bool {
	return !c.ends[0].over && !c.ends[1].over && c.ends[0].s.Stream() != nil && c.ends[1].s.Stream() != nil
}

// live has one end of a connection that stays do something by itself.
func (w *simWorld) live(c *simConn, i int) {
	l := c.ends[i].s.Stream()
	if l == nil || c.ends[i].over {
		return
	}
	switch x := w.rand.IntN(200); {
	case x < 140:
		w.push(c, i, w.chance(0.5))
	case x < 144 && w.conf.tombstoneTTL >= 0:
		w.forget(c.ends[i].n)
	case x < 180:
		l.Report()
	case x < 190:
		l.Request()
	case x < 198:
		l.Spare()
	case x == 198:
		l.Leave()
	}
	w.flush(c, i)
}

// forget has a node delete something and purge that by age, before anybody else may have heard of it.
func (w *simWorld) forget(n *simNode) {
	key := fmt.Sprint("k", w.rand.IntN(w.conf.keys))
	joined := w.conf.joinWrites
	w.conf.joinWrites = false
	defer func() { w.conf.joinWrites = joined }()
	err := n.commitWith(func(t *replica.Txn) error { return t.Put([]store.Write{{Key: []byte(key), Deleted: true}}) }, true)
	w.now = w.now.Add(w.conf.tombstoneTTL + time.Second)
	if err == nil {
		err = n.secure()
	}
	if err == nil {
		err = n.upkeep()
	}
	if err == nil {
		w.stats.forgotten++
		err = n.purge()
	}
	w.ignore(err)
}

// push has one end push all that there is, or its own writes.
func (w *simWorld) push(c *simConn, i int, own bool) (pushes bool) {
	if l := c.ends[i].s.Stream(); l != nil && !c.ends[i].over {
		if own {
			pushes = l.PushOwn()
		} else {
			pushes = l.Push()
		}
		w.stats.pushes += int(store.Btoi(pushes))
		w.flush(c, i) // it may leave instead
	}
	return pushes
}

// tell pushes what a node has just written.
func (w *simWorld) tell(n *simNode) {
	if !w.conf.stays || n.r == nil || !w.chance(0.5) {
		return
	}
	cs, ends := w.streamsOf(n)
	for j, c := range cs {
		w.push(c, ends[j], w.chance(0.5))
	}
}

// agree checks what each end of a stream takes the other to cover, when nothing is on its way (L2).
func (w *simWorld) agree(c *simConn) {
	if !c.streaming() || c.broken || w.err != nil {
		return
	}
	for i, e := range c.ends {
		if f := c.ends[1-i]; len(e.in)+len(f.in) > 0 || e.s.More() || f.s.More() || e.s.Stream().Leaving() || f.s.Stream().Leaving() || e.s.Progress().Pulling || f.s.Progress().Pulling {
			return
		}
	}
	for i, e := range c.ends {
		f := c.ends[1-i]
		for _, d := range e.s.Stream().PeerCovers(e.n.r) {
			if !f.n.r.Known.Covers(d) {
				w.fail(fmt.Errorf("conn %d: n%d takes n%d to cover %v, which it does not", c.id, e.n.id, f.n.id, d))
			}
		}
	}
}

// settle has both ends push until there is nothing more to push, and then compares what they cover: with a
// stream that stays no session is needed.
func (w *simWorld) settle(c *simConn) {
	for n := 0; c.streaming() && w.err == nil; n++ {
		if i := w.rand.IntN(2); w.move(c, i) || w.move(c, 1-i) {
			continue
		}
		w.agree(c)
		if w.push(c, 0, false) || w.push(c, 1, false) || !c.streaming() {
			continue
		}
		a, b := c.ends[0], c.ends[1]
		if a.s.Stream().Leaving() || b.s.Stream().Leaving() {
			if !w.move(c, 0) && !w.move(c, 1) {
				w.fail(fmt.Errorf("conn %d: n%d and n%d never part", c.id, a.n.id, b.n.id))
			}
			continue
		}
		if w.stats.settled++; a.n.r.Known.VectorSum != b.n.r.Known.VectorSum {
			w.fail(fmt.Errorf("conn %d: n%d and n%d have pushed everything and cover different things", c.id, a.n.id, b.n.id))
		}
		// A purge by age may have gone two ways: then a session reconciles them (R2).
		counted := !a.n.counting() && !b.n.counting()
		if !w.conf.corruption && w.conf.tombstoneTTL < 0 && len(a.n.r.Cloud)+len(b.n.r.Cloud) == 0 && counted && a.n.r.Digest != b.n.r.Digest {
			w.fail(fmt.Errorf("conn %d: n%d and n%d have pushed everything and hold different things", c.id, a.n.id, b.n.id))
		}
		return
	}
}

// missing names what never happened on streams, of all that may.
func (s *streamStats) missing() (names []string) {
	all := []string{"streams", "pushes", "pushes both ways at once", "pushes whose receiver is to report", "pushes of own writes", "pushes cut off", "pushes that are not whole", "what is left to a session", "partings", "requests", "spares", "refusals",
		"pushes while a pull is unfinished", "clones or restored copies of a replica with a stream", "streams cut off", "streams over which all was pushed", "deletions that are purged before they are pushed"}
	for i, n := range s.fields() {
		if *n == 0 {
			names = append(names, all[i])
		}
	}
	return names
}

// MakeDurable brings to disk what is covered here, for a peer that waits for that.
func (n *simNode) MakeDurable() error { return n.secure() }
