package session

import (
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
)

// Midway is a session in the middle of a conversation, for tests that play it single frames.
type Midway struct {
	Step  Step
	Peer  Hello
	Named []causal.Origin // origins that the peer has numbered
	Known []causal.Row    // its vectors

	Pulling bool // a pull is under way,
	Repair  bool // and a repair in it, of one
	Kind    byte // of its kinds,
	Probed  bool // whose probe is unanswered

	Joins    bool // it may be answered in sections,
	Sections bool // and is

	Stays bool // it has become a stream
}

// NewMidway returns a session that has come so far.
func NewMidway(h Host, dialed bool, p Params, m Midway) *Session {
	s := New(h, dialed, p)
	s.sendHello(causal.Origin{})
	s.outbox = outbox{}
	s.step, s.theirs = m.Step, m.Peer
	s.reading.list = slices.Clone(m.Named)
	s.known.Take(m.Known)
	if m.Stays {
		s.startStream()
	}
	if m.Pulling {
		s.pulling = &pulling{session: s, question: FramePull}
	}
	if p := s.pulling; m.Joins {
		p.question, p.asksJoin, p.vector = FrameJoin, true, s.known.Vector(causal.Covered)
		h.With(func(r *replica.Replica) {
			if r.Joining = true; m.Sections {
				p.join = &joining{p: p}
				r.BeginSections()
			}
		})
	}
	if m.Repair {
		r := &repair{pulling: s.pulling, kind: repairKind(m.Kind % 4)}
		s.pulling.repair, s.pulling.question = r, FrameFetch
		if m.Probed {
			s.pulling.question = FrameProbe
			r.ranges = []replica.DotRange{{Last: causal.LastDot}}
		}
		s.params.Compare = &Comparison{}
	}
	return s
}

// PeerNames returns the numbering of origins with which the peer's next frame goes on, for tests
// that write it by hand.
func (s *Session) PeerNames() Names {
	return Names{list: slices.Clone(s.reading.list), fresh: len(s.reading.list)}
}
