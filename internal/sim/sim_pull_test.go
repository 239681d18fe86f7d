package sim

import (
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
)

// pullStats are what happened to pulls that go by the log.
type pullStats struct {
	cutPulls, resumedPulls int
}

func (s *pullStats) fields() []*int { return []*int{&s.cutPulls, &s.resumedPulls} }

func (s *pullStats) missing() (names []string) {
	all := []string{"pulls cut off after a page", "pulls that leave out what one that was cut off has brought"}
	for i, n := range s.fields() {
		if *n == 0 {
			names = append(names, all[i])
		}
	}
	return names
}

// countPage counts a page that an end has taken in.
func (e *simEnd) countPage(c *simConn, f session.Frame) {
	if f.Kind == session.FramePage && c.joins != e {
		e.pages++
	}
}

// midPull reports whether an end has taken in a part of an ordinary pull.
func (e *simEnd) midPull() bool {
	p := e.s.Progress()
	return !e.over && e.pages > 0 && e.s.Stream() == nil && p.Pulling && !p.Repairing
}

// midPull reports whether either end has.
func (c *simConn) midPull() bool { return c.ends[0].midPull() || c.ends[1].midPull() }

// tear cuts a connection in the midst of a pull. Some of those who pull stop then, and go on by what is on disk.
func (w *simWorld) tear(c *simConn) {
	for _, e := range c.ends {
		if e.midPull() && w.tears.IntN(3) == 0 {
			w.stopping = append(w.stopping, e.n)
		}
	}
	w.cut(c)
}

// restart closes nodes, and opens them again. It comes at the end of a step, not in the midst of what a node does.
func (w *simWorld) restart(nodes []*simNode) {
	for _, n := range nodes {
		if n.r != nil && w.err == nil {
			w.ignore(n.close())
			w.try(n.open())
		}
	}
}

// countPull counts a pull that is asked for.
func (w *simWorld) countPull(n *simNode, f session.Frame) {
	if f.Kind == session.FramePull && n.r.Pending != nil {
		d := store.Decoder{B: f.Payload}
		d.Take(16 * d.Count(16)) // the names of origins
		w.stats.resumedPulls += int(store.Btoi(d.Uint() > 0))
	}
}
