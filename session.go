package replicator

import (
	"errors"
	"math"
)

// host is what a session needs of the server it runs at.
type host interface {
	// at calls f while nothing else uses the replica. f must not wait.
	at(f func(r *replica))
	// commit stages a transaction and commits it.
	commit(stage func(t *txn) error) error
	// addresses are those of servers known here; learn takes in others'.
	addresses() []string
	learn(addrs []string)
	// enterPull tells whether a pull from a peer, which has so many writes that are
	// not known here, is to be left out. If not, a leavePull follows.
	enterPull(from Origin, writes int64) leftOut
	leavePull(from Origin)
}

// hardener is a host that can bring to disk what it claims, and waits until it
// is there.
type hardener interface{ harden() error }

// session is one conversation with a peer. It is pure: frames go in with receive,
// frames come out of out, and pages, which may be many, one by one out of produce.
// It knows no socket, clock or goroutine, and is used by one goroutine at a time.
type session struct {
	host   host
	dialed bool
	params sessionParams

	mine, theirs hello
	peer         knowledge // what the peer knows, as of the state it last spoke of
	peerLoose    vector    // what it held above its claim then
	sentRev      uint64    // our revision up to which the peer was told
	expect       step
	sending      names // numbers of origins in frames we send
	reading      names // … in frames we get

	serving    *serving
	pulling    *pulling
	leftOut    leftOut   // our pull
	waits      int       // how often in a row the peer has said that it is still at work
	partial    bool      // our pull is to go on in another session
	theyLeft   leftOut   // the acceptor's, as it told us
	spool      []spooled // values that came in chunks, for the page to come
	spooled    int       // bytes of them
	spoolEnded bool

	book      []string       // addresses to tell
	version   uint64         // of the protocol, agreed on
	greetedAs func(h *hello) // called once the peer has said who it is
	told      sum            // our claims in the state that the peer was last told of

	out      []frame
	queue    []queued // to be sent after that, in its turn
	done     bool
	refusing bool // the last word is a refusal
	idle     bool
	gave     bool // a pull of the peer's was served to its end
	kept     bool // but for values that are too large for the peer
	held     bool // what was pulled was not all taken: values are too large
	stats    sessionStats
}

type sessionParams struct {
	name, cluster, addr string
	remembered          Origin // who was last met at this address
	pageSize            int    // bytes after which a page ends
	window              int    // bytes that may be sent of one state; if less than a page, that is one
	slow                bool   // it grows slowly
	batchSize           int    // bytes of pages that are committed as one
	maxValue, maxKey    int
	listBelow           uint64 // dots that a repair lists rather than splits; 0 means maxListed

	// wants tells whether a peer should bring to disk what it claims and report
	// it. It is called within at. Nil: never.
	wants func(r *replica, peer Origin) bool
	asked uint64 // the latest of those who wait for a report, when the session began

	purpose
}

// leftOut tells why a session has no pull one way.
type leftOut byte

const (
	pullNow   leftOut = iota // it has
	pullLater                // the same is on its way in another session
	pullNever                // nothing is written there now
)

// purpose is what a dialer wants beyond bringing both sides up to date.
type purpose struct {
	mend    [][]byte    // keys that are damaged here
	compare *comparison // to be filled in
}

func (p *purpose) any() bool { return len(p.mend) > 0 || p.compare != nil }

type sessionStats struct {
	pulled, served   int
	repaired, mended int // versions that came back: of a digest that differed, of damage that was known
	heldBefore,
	heldNow int // versions that are not taken here, before and after the pull
}

type frame struct {
	kind    frameType
	payload []byte
}

// step is what a session waits for.
type step int

const (
	wantHello   step = iota
	wantVectors      // of an acceptor that has news
	wantPull         // acceptor: vectors, addresses, then pull or turn
	wantPage         // puller: the answer to pull or fetch
	wantProbed       // puller: the answer to probe
	wantTurn         // acceptor, after it served: probe, fetch or turn
	wantTheirs       // dialer: the acceptor's pull, probe, fetch or bye
	wantNothing
)

func newSession(h host, dialed bool, p sessionParams) *session {
	if p.listBelow == 0 {
		p.listBelow = maxListed
	}
	return &session{host: h, dialed: dialed, params: p}
}

// start begins the conversation. Only the dialer has something to say.
func (s *session) start() {
	if s.dialed {
		s.sendHello(s.params.remembered)
	}
}

func (s *session) send(kind frameType, payload []byte) {
	if len(s.queue) > 0 {
		s.queue = append(s.queue, queued{frame: frame{kind, payload}})
		return
	}
	s.out = append(s.out, frame{kind, payload})
}

// theirsNow is what the peer claims at the end of a session that went well: the
// dialer pulled first, so what it was told of is what the acceptor had joined with its
// own. If a pull was left out, nobody knows until they are asked again.
func (s *session) theirsNow() sum {
	if s.leftOut != pullNow || s.theyLeft != pullNow || s.kept {
		return sum{}
	}
	if s.idle || s.dialed {
		return s.told
	}
	return s.peer.claims
}

// part ends a session that went well.
func (s *session) part() {
	s.host.at(func(r *replica) {
		m := r.members[s.theirs.origin]
		if m == nil { // it took longer than a stranger is kept
			m = r.heard(s.theirs.origin, s.theirs.name)
		}
		m.met = true
	})
	s.finish()
}

func (s *session) finish() {
	s.leaveServing()
	s.done, s.expect = true, wantNothing
}

func (s *session) leavePull() {
	if s.pulling != nil {
		s.pulling = nil
		s.host.leavePull(s.theirs.origin)
	}
}

// receive takes in a frame. The session keeps references to the payload.
func (s *session) receive(kind frameType, payload []byte) error {
	if kind == frameRefuse {
		d := decoder{b: payload}
		e := &RefusedError{Code: int(d.upTo(math.MaxInt32)), Text: printable(d.string(512))}
		s.finish()
		return e
	}
	if kind == frameWait && s.expect != wantHello && len(payload) == 0 && s.waits < maxWaits {
		s.waits++
		return nil
	}
	s.waits = 0
	err := s.dispatch(kind, payload)
	if err != nil && !s.done {
		return s.reject(err)
	}
	return err
}

// reject ends the conversation because of what the peer sent.
func (s *session) reject(err error) error {
	code := refuseError
	if errors.Is(err, ErrClockSkew) {
		code = refuseClock
	}
	var broken protocolError
	if errors.As(err, &broken) {
		s.host.at(func(r *replica) { r.dismiss(s.theirs.origin) })
	}
	return s.refuse(code, err)
}

func (s *session) dispatch(kind frameType, payload []byte) error {
	switch {
	case kind == frameHello && s.expect == wantHello:
		return s.gotHello(payload)
	case kind == frameVectors && s.expect != wantHello && s.expect != wantNothing:
		return s.gotVectors(payload)
	case kind == frameAddresses && (s.expect == wantPull || s.expect == wantVectors || s.expect == wantPage || s.expect == wantProbed ||
		s.expect == wantTheirs): // of an acceptor, on their way when we did not pull
		return s.gotAddresses(payload)
	case kind == framePull && (s.expect == wantPull || s.expect == wantTheirs):
		return s.gotPull(payload)
	case kind == frameTurn && (s.expect == wantPull || s.expect == wantTurn):
		return s.startPull()
	case kind == frameChunk && s.expect == wantPage:
		return s.gotChunk(payload)
	case kind == framePage && s.expect == wantPage:
		return s.gotPage(payload)
	case kind == frameEnd && s.expect == wantPage:
		return s.gotEnd(payload)
	case kind == frameProbe && (s.expect == wantPull || s.expect == wantTurn || s.expect == wantTheirs):
		return s.gotProbe(payload)
	case kind == frameProbed && s.expect == wantProbed:
		return s.gotProbed(payload)
	case kind == frameFetch && (s.expect == wantPull || s.expect == wantTurn || s.expect == wantTheirs):
		return s.gotFetch(payload)
	case kind == frameWant && (s.expect == wantPull || s.expect == wantTurn || s.expect == wantTheirs):
		return s.gotWant(payload)
	case kind == frameBye && s.expect == wantTheirs:
		return s.gotBye(payload)
	}
	return protocolErrorf("frame %d does not belong here", kind)
}

// greeted decides, on both sides alike, whether there is anything to talk about.
func (s *session) greeted() error {
	dialer, acceptor := &s.mine, &s.theirs
	if !s.dialed {
		dialer, acceptor = acceptor, dialer
	}
	equal := dialer.claims == acceptor.claims && dialer.digest == acceptor.digest
	told := acceptor.base == dialer.origin && acceptor.baseRev == dialer.rev && acceptor.baseBook == dialer.book
	if equal && told && !acceptor.following && !dialer.wants && !acceptor.wants && !dialer.asks {
		s.idle = true
		s.part()
		return nil
	}
	if s.theirs.base == s.mine.origin {
		s.sentRev = s.theirs.baseRev
	}
	switch {
	case !s.dialed:
		if s.mine.following {
			s.sendVectors(true)
			s.sendAddresses()
		}
		s.expect = wantPull
		return nil
	case s.theirs.following:
		s.expect = wantVectors
		return nil
	}
	return s.opened()
}

// opened is the dialer's turn to pull, once it has heard what the acceptor knows.
func (s *session) opened() error {
	s.sendVectors(true)
	s.sendAddresses()
	return s.startPull()
}
