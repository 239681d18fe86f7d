package session

import (
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
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
	above     pushedAbove

	owed owed

	leaving bool // no more is pushed from here,
	parted  bool // and bye was said
	left    bool // the peer said bye,
	through bool // and takes nothing more in: a session follows
	deaf    bool // a push was not taken in whole, and later ones rest on it: they are passed over (L3)
	goodbye byte // what is said with bye
	late    int  // frames that came after it and are no part of a push
	events  Events

	awaited causal.Knowledge // a report of the peer: see Await
}

// owed is what is to be said once all that is queued was sent, each once however often it became due, so that a
// peer that sends and does not read fills no memory here (L7).
type owed struct{ report, request, spare bool }

// maxLate bounds what a peer may still say before it answers a bye: what was on its way, and is not answered (L6).
const maxLate = 1 << 14

// Events are what has happened on a stream.
type Events struct {
	Pushed    bool // the peer's push ended
	Versions  int  // that it brought,
	New       int  // and of them those that were not known
	Relayed   int  // and those that another replica wrote
	Heard     bool // the peer reported its vectors, by themselves or with a push
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
	return s.theirs.stays && s.mine.stays && news && r.Skipped == NotSkipped && !s.turnedDown && !r.partial && !r.HeldBack && !r.Withheld
}

// startStream is what follows the last word of a session whose replicas stay.
func (s *Session) startStream() {
	s.finishWell()
	s.step, s.theirs.wants = streaming, false
	s.params.Window = min(s.params.Window, pushWindow)
	s.stream = &Stream{Session: s}
}

// leaveStream ends what goes on at the replica as long as the stream lasts.
func (s *Session) leaveStream() {
	if l := s.stream; l != nil {
		l.owed = owed{}
		l.above.forget(s.host)
	}
}

// pay says what is owed.
func (l *Stream) pay() {
	o := l.owed
	if l.owed = (owed{}); o.report {
		l.sendVectors(false)
	}
	if o.request {
		l.outbox.send(FrameRequest, nil)
	}
	if o.spare {
		l.outbox.send(FrameSpare, nil)
	}
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

// Report reports what changed of the vectors here since the peer last heard of them, if anything did.
func (l *Stream) Report() {
	if !l.leaving && !l.Done() && !l.holdsBack() {
		l.reportNews()
	}
}

// holdsBack reports whether something is held back here, and has the stream end then: what lies above the
// first gap would be pushed again and again (L3).
func (l *Stream) holdsBack() (holds bool) {
	if l.host.With(func(r *replica.Replica) { holds = len(r.HeldBack) > 0 }); holds {
		l.leave(goodbyeSession)
	}
	return holds
}

// Await remembers what the peer has reported so far.
func (l *Stream) Await() { l.awaited = l.known } // which is replaced, never changed

// Awaited returns how many writes of that are missing here.
func (l *Stream) Awaited() (writes int64) { return l.behind(&l.awaited) }

// AwaitedOf reports whether all that is missing of that was written under some origins.
func (l *Stream) AwaitedOf(some func(o causal.Origin) bool) (all bool) {
	l.host.With(func(r *replica.Replica) {
		all = !slices.ContainsFunc(l.awaited.Rows, func(w causal.Row) bool {
			return w.Seqs[causal.Covered] > r.Known.Seq(causal.Covered, w.Origin) && !some(w.Origin)
		})
	})
	return all
}

// Request asks the peer to push what is missing here, and news at once from now on.
func (l *Stream) Request() { l.owed.request = !l.leaving && !l.Done() }

// Spare asks the peer to report news that it did not write itself, and not to push them.
func (l *Stream) Spare() { l.owed.spare = !l.leaving && !l.Done() }

// Leave ends the stream once the push under way is sent, and the peer's as well.
func (l *Stream) Leave() { l.leave(0) }

func (l *Stream) leave(why byte) {
	if l.Done() {
		return
	}
	l.goodbye |= why
	if !l.leaving {
		l.leaving, l.owed.request, l.owed.spare = true, false, false
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
		l.pay()
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
	if l.parted && p == nil {
		if l.late++; l.late > maxLate {
			return replica.ProtocolErrorf("no bye after %d frames", maxLate)
		}
	}
	switch {
	case kind == FrameVectors:
		l.events.Heard = l.events.Heard || p == nil // else when the push ends
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

func (l *Stream) gotBye(payload []byte) error {
	if len(payload) != 1 || payload[0] > goodbyeSession {
		return replica.ProtocolErrorf("a bye of % x", payload)
	}
	l.left, l.through = true, payload[0] == goodbyeSession
	l.leave(0)
	l.sayBye()
	return nil
}
