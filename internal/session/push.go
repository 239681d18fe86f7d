package session

import (
	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// Pushing reports whether a push is under way from here.
func (l *Stream) Pushing() bool { return l.serving != nil }

// Push begins a push and reports whether there is anything to send: news, or that a caller waits for a
// report of the peer.
func (l *Stream) Push() bool { return l.beginPush(false) }

// PushOwn begins a push of this replica's own writes, for a peer that hears of others from those that wrote them. It
// brings what others wrote as well if the own writes cannot stand alone (L10), or if there are none and a caller waits for a report.
func (l *Stream) PushOwn() bool { return l.beginPush(true) }

func (l *Stream) beginPush(own bool) bool {
	if l.leaving || l.Done() || l.serving != nil {
		return false
	}
	if l.holdsBack() {
		return false
	}
	lacks, wants := false, false
	var peer causal.Vector
	l.host.With(func(r *replica.Replica) {
		wants = l.params.Wants != nil && l.params.Wants(r, l.theirs.Origin)
		if !wants && r.Known.VectorSum == l.pushedSum {
			return
		}
		peer = l.PeerCovers(r)
		if own {
			lacks = r.Seq > peer.Seq(r.Self)
			own = lacks
			return
		}
		if lacks = !r.Known.CoveredBy(&causal.Knowledge{}, peer); !lacks {
			l.pushedSum = r.Known.VectorSum
		}
	})
	if !lacks && !wants {
		return false
	}
	l.serving = &serving{sender: sender{session: l.Session, peer: peer}, push: &push{stream: l, wants: wants, own: own}, window: l.params.PageSize}
	return true
}

// PeerCovers returns what the peer covers once it has taken in all that was pushed, going by that and by its
// reports, over this connection and others (L2). It may cover more, and less if it is about to leave.
func (l *Stream) PeerCovers(r *replica.Replica) causal.Vector {
	v := l.known.Vector(causal.Covered).Join(l.pushed)
	if m := r.Members[l.theirs.Origin]; m != nil && m.Known.VectorSum != l.known.VectorSum {
		v = v.Join(m.Known.Vector(causal.Covered))
	}
	return v
}

// push is what a serving has to know if nobody asked for it.
type push struct {
	stream *Stream
	wants  bool          // the peer is to report what it has on disk
	own    bool          // it is of this replica's own writes only (L10)
	covers causal.Vector // by its first state,
	sum    causal.Sum    // and the sum of that, if it is of all writes
}

// begin notes the first state of the push, and returns what need not be sent of it.
func (p *push) begin(r *replica.Replica, peer causal.Vector) (skip map[causal.Origin]causal.Spans) {
	if p.own = p.own && r.Self == p.stream.mine.Origin && r.Overwritten <= peer.Seq(r.Self); p.own {
		p.covers = causal.Vector{{Origin: r.Self, Seq: r.Seq}}
		return nil
	}
	p.covers, p.sum = r.Known.Vector(causal.Covered), r.Known.VectorSum
	return p.stream.above.begin(r)
}

// What a push is announced with.
const (
	pushWants = 1 << iota // report what you cover then, once it is on disk
	pushOwn               // of what the pusher covers take in only its own writes
)

// announce comes before everything that is sent of it.
func (p *push) announce() {
	p.stream.outbox.send(FramePush, []byte{byte(store.Btoi(p.wants)*pushWants | store.Btoi(p.own)*pushOwn)})
}

// end notes that the peer is sent all of the first state, or leaves.
func (p *push) end(whole bool) {
	if whole {
		if p.stream.pushed = p.stream.pushed.Join(p.covers); !p.own {
			p.stream.pushedSum = p.sum
		}
	} else {
		p.stream.leave(goodbyeSession)
	}
	p.stream.sayBye()
}

// gotPush is the beginning of a push.
func (l *Stream) gotPush(payload []byte) error {
	if len(payload) != 1 || payload[0]&^(pushWants|pushOwn) != 0 {
		return replica.ProtocolErrorf("a push of % x", payload)
	}
	l.theirs.wants = payload[0]&pushWants != 0
	l.pulling = &pulling{session: l.Session, question: FramePush, own: payload[0]&pushOwn != 0, before: l.result.Pulled}
	return nil
}

// takePush takes in a push that has come whole (L1). What needs more than was sent, or is not taken here,
// is left to a session: a repair, values that were only named, what is held back (L3).
func (l *Stream) takePush(p *pulling) error {
	if l.pulling = nil; l.deaf {
		return nil
	}
	if p.own && p.vector != nil {
		o := l.theirs.Origin
		p.vector = causal.Vector{{Origin: o, Seq: p.vector.Seq(o)}}
	}
	covers := p.whole && p.vector != nil && len(p.wants.keys) == 0 && len(p.back.Keys) == 0 && !p.back.Over
	l.host.With(func(r *replica.Replica) { covers = covers && p.watermarksCovered(r) })
	if !covers {
		if err := p.flush(); err != nil {
			return err
		}
		l.deaf = true
		l.leave(goodbyeSession)
	} else if err := p.recordOrigins(); err != nil {
		return err
	} else if err := p.cover(); err != nil {
		return err
	}
	l.events.Pushed, l.events.Heard = true, true
	l.events.Versions, l.events.Relayed = l.events.Versions+p.versions, l.events.Relayed+p.relayed
	l.events.New += l.result.Pulled - p.before
	if h, ok := l.host.(Flusher); ok && l.theirs.wants {
		h.MakeDurable()
		l.owed.report = !l.parted // with bye, else
	}
	return nil
}
