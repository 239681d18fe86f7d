package session

import (
	"errors"
	"math"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/printable"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// host is what a session needs of the server it runs at.
type host interface {
	// at calls f while nothing else uses the replica. f must not wait.
	With(f func(r *replica.Replica))
	// commit stages a transaction and commits it.
	Commit(stage func(t *replica.Txn) error) error
	// addresses are those of servers known here; learn takes in others'.
	Addresses() []string
	Learn(addrs []string)
	// enterPull tells whether a pull from a peer, which has so many writes that are
	// not known here, is to be left out. If not, a leavePull follows.
	EnterPull(from causal.Origin, writes int64) SkipReason
	LeavePull(from causal.Origin)
}

// flusher is a host that can bring to disk what it claims, and waits until it
// is there.
type flusher interface{ Harden() error }

// Session is one conversation with a peer. It is pure: frames go in with receive,
// frames come out of out, and pages, which may be many, one by one out of produce.
// It knows no socket, clock or goroutine, and is used by one goroutine at a time.
type Session struct {
	host   host
	Dialed bool
	Params Params

	Mine, Theirs Hello
	Known        causal.Knowledge // what the peer knows, as of the state it last spoke of
	theirCloud   causal.Vector    // what it held above its claim then
	sentRev      uint64           // our revision up to which the peer was told
	Expect       Step
	sending      Names // numbers of origins in frames we send
	Reading      Names // … in frames we get

	serving    *Serving
	Pulling    *Pulling
	Skipped    SkipReason // our pull
	keepalives int        // how often in a row the peer has said that it is still at work
	partial    bool       // our pull is to go on in another session
	TheirSkip  SkipReason // the acceptor's, as it told us
	spool      []spooled  // values that came in chunks, for the page to come
	spooled    int        // bytes of them
	spoolEnded bool

	addrs         []string       // addresses to tell
	Version       uint64         // of the protocol, agreed on
	OnHello       func(h *Hello) // called once the peer has said who it is
	sentVectorSum causal.Sum     // our claims in the state that the peer was last told of

	Out      []Frame
	queue    []queued // to be sent after that, in its turn
	Done     bool
	Refusing bool // the last word is a refusal
	Idle     bool
	Served   bool // a pull of the peer's was served to its end
	Kept     bool // but for values that are too large for the peer
	Held     bool // what was pulled was not all taken: values are too large
	Stats    stats
}

type Params struct {
	Name, Cluster, Addr string
	CachedPeer          causal.Origin // who was last met at this address
	PageSize            int           // bytes after which a page ends
	Window              int           // bytes that may be sent of one state; if less than a page, that is one
	slow                bool          // it grows slowly
	BatchSize           int           // bytes of pages that are committed as one
	MaxValue, MaxKey    int
	ListBelow           uint64 // dots that a repair lists rather than splits; 0 means maxListed

	// wants tells whether a peer should bring to disk what it claims and report
	// it. It is called within at. Nil: never.
	Wants func(r *replica.Replica, peer causal.Origin) bool
	Asked uint64 // the latest of those who wait for a report, when the session began

	Goal
}

// SkipReason tells why a session has no pull one way.
type SkipReason byte

const (
	NotSkipped      SkipReason = iota // it has
	SkippedBusy                       // the same is on its way in another session
	SkippedReadOnly                   // nothing is written there now
)

// Goal is what a dialer wants beyond bringing both sides up to date.
type Goal struct {
	Repair  [][]byte    // keys that are damaged here
	Compare *Comparison // to be filled in
}

type stats struct {
	Pulled, Served    int
	Repaired, fetched int // versions that came back: of a digest that differed, of damage that was known
	HeldBefore,
	HeldNow int // versions that are not taken here, before and after the pull
}

type Frame struct {
	Kind    FrameType
	Payload []byte
}

// Step is what a session waits for.
type Step int

const (
	wantHello      Step = iota
	wantVectors         // of an acceptor that has news
	WantPull            // acceptor: vectors, addresses, then pull or turn
	WantPage            // puller: the answer to pull or fetch
	WantProbeReply      // puller: the answer to probe
	WantTurn            // acceptor, after it served: probe, fetch or turn
	wantTheirs          // dialer: the acceptor's pull, probe, fetch or bye
	wantNothing
)

// Careful has small pages sent after a session that broke off, as nothing is kept of a
// page that is cut, and little read that may never be sent.
func (p *Params) Careful(broke bool) {
	if broke {
		p.PageSize, p.slow = smallPage, true
	}
}

// Whole reports whether nothing of a session is left to another.
func (s *Session) Whole() bool {
	return !s.partial && s.Skipped != SkippedBusy && s.TheirSkip != SkippedBusy
}

// Op names the step that a session was in.
func (s *Session) Op() string {
	switch {
	case s.Theirs.Origin == causal.Origin{}:
		return "hello" // not yet come, or not accepted
	case s.Pulling != nil:
		return "pull"
	case s.serving != nil || s.Expect == wantTheirs || s.Expect == WantTurn:
		return "serve"
	}
	return "session"
}

func (p *Goal) any() bool { return len(p.Repair) > 0 || p.Compare != nil }

func NewSession(h host, dialed bool, p Params) *Session {
	if p.ListBelow == 0 {
		p.ListBelow = replica.MaxListed
	}
	return &Session{host: h, Dialed: dialed, Params: p}
}

// Start begins the conversation. Only the dialer has something to say.
func (s *Session) Start() {
	if s.Dialed {
		s.SendHello(s.Params.CachedPeer)
	}
}

func (s *Session) send(kind FrameType, payload []byte) {
	if len(s.queue) > 0 {
		s.queue = append(s.queue, queued{Frame: Frame{kind, payload}})
		return
	}
	s.Out = append(s.Out, Frame{kind, payload})
}

// TheirVectorSum is what the peer claims at the end of a session that went well: the
// dialer pulled first, so what it was told of is what the acceptor had joined with its
// own. If a pull was left out, nobody knows until they are asked again.
func (s *Session) TheirVectorSum() causal.Sum {
	if s.Skipped != NotSkipped || s.TheirSkip != NotSkipped || s.Kept {
		return causal.Sum{}
	}
	if s.Idle || s.Dialed {
		return s.sentVectorSum
	}
	return s.Known.VectorSum
}

// finishWell ends a session that went well.
func (s *Session) finishWell() {
	s.host.With(func(r *replica.Replica) {
		m := r.Members[s.Theirs.Origin]
		if m == nil { // it took longer than a stranger is kept
			m = r.NoteSeen(s.Theirs.Origin, s.Theirs.Name)
		}
		m.Met = true
	})
	s.finish()
}

func (s *Session) finish() {
	s.LeaveServing()
	s.Done, s.Expect = true, wantNothing
}

func (s *Session) leavePull() {
	if s.Pulling != nil {
		s.Pulling = nil
		s.host.LeavePull(s.Theirs.Origin)
	}
}

// Receive takes in a frame. The session keeps references to the payload.
func (s *Session) Receive(kind FrameType, payload []byte) error {
	if kind == FrameRefuse {
		d := store.Decoder{B: payload}
		e := &RefusedError{Code: int(d.UpTo(math.MaxInt32)), Text: printable.Printable(d.String(512))}
		s.finish()
		return e
	}
	if kind == FrameKeepalive && s.Expect != wantHello && len(payload) == 0 && s.keepalives < MaxKeepalives {
		s.keepalives++
		return nil
	}
	s.keepalives = 0
	err := s.dispatch(kind, payload)
	if err != nil && !s.Done {
		return s.Reject(err)
	}
	return err
}

// Reject ends the conversation because of what the peer sent.
func (s *Session) Reject(err error) error {
	code := refuseError
	if errors.Is(err, replica.ErrClockSkew) {
		code = RefuseClock
	}
	var broken replica.ProtocolError
	if errors.As(err, &broken) {
		s.host.With(func(r *replica.Replica) { r.Dismiss(s.Theirs.Origin) })
	}
	return s.Refuse(code, err)
}

func (s *Session) dispatch(kind FrameType, payload []byte) error {
	switch {
	case kind == FrameHello && s.Expect == wantHello:
		return s.gotHello(payload)
	case kind == FrameVectors && s.Expect != wantHello && s.Expect != wantNothing:
		return s.gotVectors(payload)
	case kind == FrameAddresses && (s.Expect == WantPull || s.Expect == wantVectors || s.Expect == WantPage || s.Expect == WantProbeReply ||
		s.Expect == wantTheirs): // of an acceptor, on their way when we did not pull
		return s.gotAddresses(payload)
	case kind == FramePull && (s.Expect == WantPull || s.Expect == wantTheirs):
		return s.gotPull(payload)
	case kind == FrameTurn && (s.Expect == WantPull || s.Expect == WantTurn):
		return s.startPull()
	case kind == FrameChunk && s.Expect == WantPage:
		return s.gotChunk(payload)
	case kind == FramePage && s.Expect == WantPage:
		return s.gotPage(payload)
	case kind == FrameEnd && s.Expect == WantPage:
		return s.gotEnd(payload)
	case kind == FrameProbe && (s.Expect == WantPull || s.Expect == WantTurn || s.Expect == wantTheirs):
		return s.gotProbe(payload)
	case kind == FrameProbeReply && s.Expect == WantProbeReply:
		return s.gotProbeReply(payload)
	case kind == FrameFetch && (s.Expect == WantPull || s.Expect == WantTurn || s.Expect == wantTheirs):
		return s.gotFetch(payload)
	case kind == FrameWant && (s.Expect == WantPull || s.Expect == WantTurn || s.Expect == wantTheirs):
		return s.gotWant(payload)
	case kind == FrameBye && s.Expect == wantTheirs:
		return s.gotBye(payload)
	}
	return replica.ProtocolErrorf("frame %d does not belong here", kind)
}

// afterHello decides, on both sides alike, whether there is anything to talk about.
func (s *Session) afterHello() error {
	dialer, acceptor := &s.Mine, &s.Theirs
	if !s.Dialed {
		dialer, acceptor = acceptor, dialer
	}
	equal := dialer.VectorSum == acceptor.VectorSum && dialer.digest == acceptor.digest
	told := acceptor.CachedOrigin == dialer.Origin && acceptor.cachedRev == dialer.Rev && acceptor.cachedAddrHash == dialer.AddrHash
	if equal && told && !acceptor.following && !dialer.wants && !acceptor.wants && !dialer.hasGoal {
		s.Idle = true
		s.finishWell()
		return nil
	}
	if s.Theirs.CachedOrigin == s.Mine.Origin {
		s.sentRev = s.Theirs.cachedRev
	}
	switch {
	case !s.Dialed:
		if s.Mine.following {
			s.sendVectors(true)
			s.sendAddresses()
		}
		s.Expect = WantPull
		return nil
	case s.Theirs.following:
		s.Expect = wantVectors
		return nil
	}
	return s.beginDialer()
}

// beginDialer is the dialer's turn to pull, once it has heard what the acceptor knows.
func (s *Session) beginDialer() error {
	s.sendVectors(true)
	s.sendAddresses()
	return s.startPull()
}
