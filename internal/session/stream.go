package session

import (
	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// Stream is what a session becomes when both replicas stay: either of them pushes news over it, at the
// same time as the other, until one leaves. A push is a pull that nobody asked for (L1): the pusher
// sends what the peer lacks, going by what it is known to cover.
//
//	push                  →      the first state that is sent follows, as in a pull
//	vectors, page …, end  →
//	                      ←      vectors: a report, which nobody answers
//	request               →      push me what I lack, and news at once from now on
//	spare                 →      what you pushed had come another way: report news of others, and I shall ask
//	bye                   →      I push no more; the other pushes what is under way, and says bye as well
type Stream struct {
	*Session

	// What the peer is known to cover goes by its reports, and by what was pushed (L2): it takes in one push
	// after the other, or leaves.
	pushed    causal.Vector
	pushedSum causal.Sum // of the version vector here in the state that was pushed last

	leaving bool // no more is pushed from here,
	parted  bool // and bye was said
	left    bool // the peer said bye
	deaf    bool // a push was not taken in whole, and later ones rest on it: they are passed over (L2)
	goodbye byte // what the one or the other said with it
	events  Events
}

// Events are what has happened on a stream.
type Events struct {
	Pushed    bool // the peer's push ended
	Versions  int  // that it brought,
	New       int  // and of them those that were not known
	Relayed   int  // and those that another replica wrote
	Heard     bool // the peer reported its vectors
	Requested bool // it asks for what it lacks
	Spared    bool // it had what was pushed
}

// pushWindow bounds what a push sends of one state, as the reader of the stream waits meanwhile.
const pushWindow = 1 << 20

// goodbyeSession, of a bye, says that something is left to a session.
const goodbyeSession = 1

// Stream returns what the session has become, or nil if it has not, or no longer is.
func (s *Session) Stream() *Stream {
	if s.step != streaming {
		return nil
	}
	return s.stream
}

// stays reports whether both replicas stay once the session has ended: both may, and there was news. In a session
// that was not idle the acceptor decides.
func (s *Session) stays() bool {
	r := &s.result
	news := s.mine.news || s.theirs.news || r.Pulled+r.Served > 0
	return s.theirs.stays && s.mine.stays && news && r.Skipped == NotSkipped && !r.Partial && !r.HeldBack && !r.Withheld
}

// startStream is what follows the last word of a session whose replicas stay.
func (s *Session) startStream() {
	s.finishWell()
	s.step, s.theirs.wants = streaming, false
	s.params.Window = min(s.params.Window, pushWindow)
	s.stream = &Stream{Session: s}
}

// Peer returns the origin of the peer.
func (l *Stream) Peer() causal.Origin { return l.theirs.Origin }

// Dialer returns the origin of the replica that dialed.
func (l *Stream) Dialer() causal.Origin {
	if l.dialed {
		return l.mine.Origin
	}
	return l.theirs.Origin
}

// Known returns the peer's vectors as it last reported them. They are not changed any more.
func (l *Stream) Known() *causal.Knowledge { return &l.known }

// Events returns what has happened since the last call.
func (l *Stream) Events() Events {
	e := l.events
	l.events = Events{}
	return e
}

// Pushing reports whether a push is under way from here.
func (l *Stream) Pushing() bool { return l.serving != nil }

// Push begins a push and reports whether there is anything to send: news, or that a caller waits for a
// report of the peer.
func (l *Stream) Push() bool {
	if l.leaving || l.Done() || l.serving != nil {
		return false
	}
	lacks, wants := false, false
	var peer causal.Vector
	l.host.With(func(r *replica.Replica) {
		wants = l.params.Wants != nil && l.params.Wants(r, l.theirs.Origin)
		if !wants && r.Known.VectorSum == l.pushedSum {
			return
		}
		peer = l.known.Vector(causal.Covered).Join(l.pushed)
		for _, w := range r.Known.Rows {
			lacks = lacks || w.Seqs[causal.Covered] > peer.Seq(w.Origin)
		}
		if !lacks {
			l.pushedSum = r.Known.VectorSum
		}
	})
	if !lacks && !wants {
		return false
	}
	l.serving = &serving{sender: sender{session: l.Session, peer: peer}, push: &push{stream: l, wants: wants}, window: l.params.PageSize}
	return true
}

// push is what a serving has to know if nobody asked for it.
type push struct {
	stream *Stream
	wants  bool          // the peer is to report what it has on disk
	covers causal.Vector // by its first state,
	sum    causal.Sum    // and the sum of that
}

// begin notes the first state of the push.
func (p *push) begin(r *replica.Replica) {
	p.covers, p.sum = r.Known.Vector(causal.Covered), r.Known.VectorSum
}

// announce comes before everything that is sent of it.
func (p *push) announce() { p.stream.outbox.send(FramePush, []byte{byte(store.Btoi(p.wants))}) }

// end notes that the peer is sent all of the first state, or leaves.
func (p *push) end(whole bool) {
	if whole {
		p.stream.pushed, p.stream.pushedSum = p.stream.pushed.Join(p.covers), p.sum
	} else {
		p.stream.leave(goodbyeSession)
	}
	p.stream.sayBye()
}

// Report reports what changed of the vectors here since the peer last heard of them, if anything did.
func (l *Stream) Report() {
	if !l.leaving && !l.Done() {
		l.reportNews()
	}
}

// Request asks the peer to push what is missing here, and news at once from now on.
func (l *Stream) Request() { l.say(FrameRequest) }

// Spare asks the peer to report news that it did not write itself, and not to push them.
func (l *Stream) Spare() { l.say(FrameSpare) }

func (l *Stream) say(kind FrameType) {
	if !l.leaving && !l.Done() {
		l.outbox.send(kind, nil)
	}
}

// Leave ends the stream once the push under way is sent, and the peer's as well.
func (l *Stream) Leave() { l.leave(0) }

func (l *Stream) leave(why byte) {
	if l.Done() {
		return
	}
	l.goodbye |= why
	if !l.leaving {
		l.leaving = true
		l.sayBye()
	}
}

// Leaving reports whether the stream is about to end.
func (l *Stream) Leaving() bool { return l.leaving }

// sayBye says bye when it is time to, and ends the stream when both have.
func (l *Stream) sayBye() {
	if !l.leaving || l.serving != nil || l.Done() {
		return
	}
	if !l.parted {
		l.parted = true
		l.reportNews()
		l.outbox.send(FrameBye, []byte{l.goodbye})
	}
	if l.left {
		l.finish()
	}
}

// dispatch has a frame taken in where it belongs.
func (l *Stream) dispatch(kind FrameType, payload []byte) error {
	p := l.pulling
	switch {
	case kind == FrameVectors:
		l.events.Heard = p == nil
		return l.gotVectors(payload)
	case kind == FramePush && p == nil && !l.left:
		return l.gotPush(payload)
	case p != nil && p.awaits(kind):
		return p.receive(kind, payload)
	case kind == FrameRequest && len(payload) == 0:
		l.events.Requested = true
		return nil
	case kind == FrameSpare && len(payload) == 0:
		l.events.Spared = true
		return nil
	case kind == FrameBye && p == nil && !l.left:
		return l.gotBye(payload)
	}
	return replica.ProtocolErrorf("frame %d does not belong here", kind)
}

// gotPush is the beginning of a push.
func (l *Stream) gotPush(payload []byte) error {
	if len(payload) != 1 || payload[0] > 1 {
		return replica.ProtocolErrorf("a push of % x", payload)
	}
	l.theirs.wants = payload[0] == 1
	l.pulling = &pulling{session: l.Session, question: FramePush, before: l.result.Pulled}
	return nil
}

func (l *Stream) gotBye(payload []byte) error {
	if len(payload) != 1 || payload[0] > goodbyeSession {
		return replica.ProtocolErrorf("a bye of % x", payload)
	}
	l.goodbye |= payload[0]
	l.left, l.leaving = true, true
	l.sayBye()
	return nil
}

// takePush takes in a push that has come whole (L1). What needs more than was sent, or is not taken here,
// is left to a session: a repair, values that were only named, what is held back.
func (l *Stream) takePush(p *pulling) error {
	if l.pulling = nil; l.deaf {
		return nil
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
	l.events.Pushed = true
	l.events.Versions, l.events.Relayed = l.events.Versions+p.versions, l.events.Relayed+p.relayed
	l.events.New += l.result.Pulled - p.before
	l.reportDurable()
	return nil
}
