package session

import (
	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
)

// pushedAbove keeps what was pushed of the dot cloud here, which the peer holds and cannot cover yet. Without it each
// push would bring all of the cloud once more for as long as a pull is unfinished: once for every write (L4).
//
// A pull brings a log in reverse. So of each origin one span is enough, up to the top of the cloud; what is merged
// within it is news, and all below that may be.
type pushedAbove struct {
	spans    map[causal.Origin]causal.Span
	observes bool
}

// begin returns what the next push may leave out, as the one before has brought it, and follows what changes from
// now on, which that push may miss.
func (a *pushedAbove) begin(r *replica.Replica) (skip map[causal.Origin]causal.Spans) {
	for o, s := range a.spans {
		if s.From <= s.To {
			if skip == nil {
				skip = map[causal.Origin]causal.Spans{}
			}
			skip[o] = causal.Spans{s}
		}
	}
	a.spans = nil
	for _, d := range r.Cloud {
		if a.spans == nil {
			a.spans = map[causal.Origin]causal.Span{}
		}
		a.spans[d.Origin] = causal.Span{From: 1, To: d.Seq}
	}
	switch {
	case a.spans != nil && !a.observes:
		r.Observe(a)
	case a.spans == nil && a.observes:
		r.Unobserve(a)
	}
	a.observes = a.spans != nil
	return skip
}

// Note takes in what a commit did to a key.
func (a *pushedAbove) Note(c *replica.Change) {
	for i := range c.Versions {
		d := c.Versions[i].Dot
		if s, ok := a.spans[d.Origin]; ok && d.Seq >= s.From && d.Seq <= s.To && !c.Old.Has(d) {
			s.From = d.Seq + 1
			a.spans[d.Origin] = s
		}
	}
}

// forget ends it.
func (a *pushedAbove) forget(h Host) {
	if a.observes {
		h.With(func(r *replica.Replica) { r.Unobserve(a) })
	}
	*a = pushedAbove{}
}
