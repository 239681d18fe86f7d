package session

import (
	"math"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/printable"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

const (
	PageSize  = 256 << 10 // bytes after which a page ends,
	smallPage = 16 << 10  // and after a session that broke off

	HandshakeTimeout = 5 * time.Second // TLS, and then the peer's hello
	InFlightTimeout  = 10 * time.Second
	LingerTimeout    = time.Second // for a last word to be read before the connection goes

	// KeepaliveInterval is well below the time after which a silent peer is cut off.
	KeepaliveInterval = 3 * time.Second
	// MaxKeepalives bounds how often in a row a peer may say that it is still at work: for
	// three hours. Reading a log of a thousand million entries does not take that long.
	MaxKeepalives = 3600
)

// Session is one conversation with a peer. See the package comment.
type Session struct {
	host   Host
	params Params
	dialed bool

	// Where the conversation is.
	step         Step
	keepalives   int // in a row, from the peer
	mine, theirs Hello
	careful      bool   // the last session with this peer broke off
	turnedDown   bool   // the dialer has no use for a pull now
	result       Result // what is counted for it so far

	// What each side knows of the other.
	told  advertised
	known causal.Knowledge // the peer's vectors, as of the state that it last spoke of,
	cloud causal.Vector    // and its dot cloud then

	// Frames.
	outbox  outbox
	sending Names // numbers of origins in the frames that go out,
	reading Names // and in those that come in

	// The two directions. Each is nil while nothing goes that way.
	pulling *pulling
	serving answer

	stream *Stream // what it became; nil before that
}

// Step is what a session waits for.
type Step int

const (
	waitHello   Step = iota
	waitVectors      // dialer: of an acceptor that has news
	WaitPull         // acceptor: vectors, addresses, then pull or turn
	WaitAnswer       // puller: the answer to what its pull asked last
	WaitTurn         // acceptor, after it served: probe, want, fetch or turn
	waitTheirs       // dialer: the acceptor's pull, probe, want, fetch or bye
	streaming        // both stay: see Stream
	waitNothing      // it has ended
)

// New returns a session that has not begun.
func New(h Host, dialed bool, p Params) *Session {
	if p.ListBelow == 0 {
		p.ListBelow = replica.MaxListed
	}
	if p.RoundKeys == 0 {
		p.RoundKeys = roundKeys
	}
	if p.JoinAbove == 0 {
		p.JoinAbove = joinAbove
	}
	return &Session{host: h, dialed: dialed, params: p}
}

// Start begins the conversation. Only the dialer has something to say.
func (s *Session) Start() {
	if s.dialed {
		s.sendHello(s.params.CachedPeer)
	}
}

// Step returns what the session waits for.
func (s *Session) Step() Step { return s.step }

// Done reports whether the session has ended. There may still be frames to send.
func (s *Session) Done() bool { return s.step == waitNothing }

// Receive takes in a frame. The session keeps references to the payload, see Retained. After
// an error the session is done.
func (s *Session) Receive(kind FrameType, payload []byte) error {
	if kind == FrameRefuse {
		d := store.Decoder{B: payload}
		e := &RefusedError{Code: int(d.UpTo(math.MaxInt32)), Text: printable.Printable(d.String(512))}
		s.finish()
		return e
	}
	if kind == FrameKeepalive && s.step != waitHello && len(payload) == 0 && s.keepalives < MaxKeepalives {
		if l := s.stream; l == nil || l.parted || s.pulling != nil { // a stream may rest for as long as it likes
			s.keepalives++
		}
		return nil
	}
	s.keepalives = 0
	err := s.dispatch(kind, payload)
	if err != nil && !s.Done() {
		return s.Reject(err)
	}
	return err
}

// dispatch has a frame taken in where it belongs.
func (s *Session) dispatch(kind FrameType, payload []byte) error {
	served := s.step == WaitPull || s.step == WaitTurn || s.step == waitTheirs // the peer may ask for something
	switch p := s.pulling; {
	case s.step == streaming:
		return s.stream.dispatch(kind, payload)
	case kind == FrameHello && s.step == waitHello:
		return s.gotHello(payload)
	case kind == FrameVectors && s.step != waitHello && s.step != waitNothing:
		return s.gotVectors(payload)
	case kind == FrameAddresses && (s.step == WaitPull || s.step == waitVectors || s.step == WaitAnswer ||
		s.step == waitTheirs): // of an acceptor, on their way when we did not pull
		return s.gotAddresses(payload)
	case kind == FramePull && (s.step == WaitPull || s.step == waitTheirs):
		return s.serve(newServing(s, payload))
	case kind == FrameJoin && s.mayJoin() && (s.step == WaitPull || s.step == waitTheirs):
		return s.serve(newSections(s, payload))
	case kind == FrameTurn && (s.step == WaitPull || s.step == WaitTurn):
		return s.gotTurn(payload)
	case p != nil && !s.Done() && p.awaits(kind):
		return p.receive(kind, payload)
	case kind == FrameProbe && served:
		return s.gotProbe(payload)
	case kind == FrameFetch && served:
		return s.serve(newFetching(s, payload))
	case kind == FrameWant && served:
		return s.serve(newWanting(s, payload))
	case (kind == FrameBye || kind == FrameStay) && s.step == waitTheirs:
		return s.gotBye(kind, payload)
	}
	return replica.ProtocolErrorf("frame %d does not belong here", kind)
}

// Abandon ends a session that was cut off. What came of a pull is kept.
func (s *Session) Abandon() error {
	s.leaveServing()
	s.leaveStream()
	if s.pulling == nil {
		return nil
	}
	defer s.leavePull()
	return s.pulling.keep()
}

// finishWell ends a session that went well.
func (s *Session) finishWell() {
	s.host.With(func(r *replica.Replica) {
		m := r.Members[s.theirs.Origin]
		if m == nil { // it took longer than a stranger is kept
			m = r.NoteSeen(s.theirs.Origin, s.theirs.Name)
		}
		m.Met = true
	})
	s.finish()
}

func (s *Session) finish() {
	if s.pulling != nil {
		s.pulling.leaveJoin()
	}
	s.leaveServing()
	s.leaveStream()
	s.step = waitNothing
}
