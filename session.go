package replicator

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/cespare/xxhash/v2"
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
	leftOut    leftOut  // our pull
	waits      int      // how often in a row the peer has said that it is still at work
	partial    bool     // our pull is to go on in another session
	theyLeft   leftOut  // the acceptor's, as it told us
	spool      [][]byte // values that came in chunks, for the page to come
	spooled    int
	spoolEnded bool

	book      []string       // addresses to tell
	version   uint64         // of the protocol, agreed on
	greetedAs func(h *hello) // called once the peer has said who it is
	told      sum            // our claims in the state that the peer was last told of

	out      []frame
	done     bool
	refusing bool // the last word is a refusal
	idle     bool
	gave     bool // a pull of the peer's was served to its end
	stats    sessionStats
}

type sessionParams struct {
	name, cluster, addr string
	remembered          Origin // who was last met at this address
	pageSize            int    // bytes after which a page ends
	window              int    // bytes that may be sent of one state; if less than a page, that is one
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
	compare *Comparison // to be filled in
}

func (p *purpose) any() bool { return len(p.mend) > 0 || p.compare != nil }

type sessionStats struct {
	pulled, served   int
	repaired, mended int // versions that came back: of a digest that differed, of damage that was known
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

// hello introduces a server.
type hello struct {
	min, max  uint64 // protocol versions
	cluster   string
	name      string
	addr      string // what peers should dial, or just ":port"
	origin    Origin
	wall      time.Time
	rev       uint64 // revision of its knowledge
	claims    sum
	digest    sum
	base      Origin // of whom it remembers the knowledge,
	baseRev   uint64 // up to this revision
	following bool   // vectors and addresses follow
	wants     bool   // the peer should bring to disk what it claims, and report it
	asks      bool   // there is something to talk about, even if both hold the same
	book      uint32 // sum of the addresses it would tell; 0 for none
	baseBook  uint32 // sum of the addresses that base last told it
}

const helloMagic = "lrep"

func (h *hello) append(b []byte) []byte {
	b = append(b, helloMagic...)
	b = binary.AppendUvarint(b, h.min)
	b = binary.AppendUvarint(b, h.max)
	b = appendBytes(b, []byte(h.cluster))
	b = appendBytes(b, []byte(h.name))
	b = appendBytes(b, []byte(h.addr))
	b = append(b, h.origin[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(h.wall.UnixMilli()))
	b = binary.AppendUvarint(b, h.rev)
	b = appendSum(b, h.claims)
	b = appendSum(b, h.digest)
	b = append(b, h.base[:]...)
	b = binary.AppendUvarint(b, h.baseRev)
	b = append(b, byte(btoi(h.following))|byte(btoi(h.wants))<<1|byte(btoi(h.asks))<<2)
	b = binary.BigEndian.AppendUint32(b, h.book)
	return binary.BigEndian.AppendUint32(b, h.baseBook)
}

// decodeHello reads a hello. A later protocol may add fields behind those known
// here, so what is left over is no fault.
func decodeHello(b []byte) (h hello, err error) {
	d := decoder{b: b}
	if string(d.take(len(helloMagic))) != helloMagic {
		return h, protocolErrorf("the peer does not speak this protocol")
	}
	h.min, h.max = d.uint(), d.uint()
	h.cluster, h.name, h.addr = d.string(64), d.string(255), d.string(255)
	h.origin = d.origin()
	h.wall = time.UnixMilli(int64(d.uint64()))
	h.rev = d.uint()
	h.claims, h.digest = d.sum(), d.sum()
	h.base, h.baseRev = d.origin(), d.uint()
	flags := d.byte()
	h.following, h.wants, h.asks = flags&1 != 0, flags&2 != 0, flags&4 != 0
	h.book, h.baseBook = d.uint32(), d.uint32()
	return h, d.err
}

// refuseCode says why a conversation ends early.
type refuseCode uint64

const (
	refuseError   refuseCode = iota // see the text
	refuseCluster                   // another cluster
	refuseSelf                      // that is me
	refuseVersion                   // no protocol version in common
	refuseBusy                      // too many connections
	refuseClock                     // a version from too far in the future
)

// RefusedError is the reason that a peer gave for ending a conversation.
type RefusedError struct {
	Code int    // see refuseCode
	Text string // for people; printable
}

func (e *RefusedError) Error() string { return "refused by the peer: " + e.Text }

// printable makes what a peer wrote safe for logs and terminals.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// rejectedError is why a hello was not accepted here.
type rejectedError struct {
	code refuseCode
	why  string // for our log
	told string // for the peer, who is told nothing of ours
}

func (e *rejectedError) Error() string { return e.why }

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
	s.out = append(s.out, frame{kind, payload})
}

// sendHello introduces this server; peer is whose knowledge may be remembered.
func (s *session) sendHello(peer Origin) {
	s.host.at(func(r *replica) {
		s.mine = hello{
			min: protocolMin, max: protocolMax, cluster: s.params.cluster, name: s.params.name, addr: s.params.addr,
			origin: r.self, wall: r.now(), rev: r.known.rev, claims: r.known.claims, digest: r.digest,
		}
		s.told = r.known.claims
		if m := r.members[peer]; m != nil && m.rev > 0 {
			s.mine.base, s.mine.baseRev, s.mine.baseBook = peer, m.rev, m.book
			s.peer = m.known
		}
		s.mine.wants = s.params.wants != nil && s.params.wants(r, peer)
		s.mine.asks = s.params.purpose.any()
	})
	s.book = s.host.addresses()
	s.book = s.book[:min(len(s.book), maxAddresses)]
	s.mine.book = bookSum(s.book)
	if !s.dialed {
		s.mine.following = s.theirs.base != s.mine.origin || s.theirs.baseRev != s.mine.rev || s.theirs.baseBook != s.mine.book
	}
	s.send(frameHello, s.mine.append(nil))
}

// refuse ends the conversation and tells the peer why.
func (s *session) refuse(code refuseCode, err error) error {
	return s.refuseSaying(code, err, err.Error())
}

func (s *session) refuseSaying(code refuseCode, err error, text string) error {
	s.send(frameRefuse, appendBytes(binary.AppendUvarint(nil, uint64(code)), []byte(text[:min(len(text), 512)])))
	s.refusing = true
	s.finish()
	return err
}

// theirsNow is what the peer claims at the end of a session that went well: the
// dialer pulled first, so what it was told of is what the acceptor had joined with its
// own. If a pull was left out, nobody knows until they are asked again.
func (s *session) theirsNow() sum {
	if s.leftOut != pullNow || s.theyLeft != pullNow {
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
		s.expect == wantTheirs && s.leftOut != pullNow): // of an acceptor, on their way while we left out our pull
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
	case kind == frameBye && s.expect == wantTheirs:
		return s.gotBye(payload)
	}
	return protocolErrorf("frame %d does not belong here", kind)
}

// gotHello judges the peer's introduction. An acceptor tells nothing of its own
// before it has: a stranger, or a server of another cluster, gets a refusal
// and no name, digest or address. Nothing of a refused hello is remembered.
func (s *session) gotHello(payload []byte) error {
	h, err := decodeHello(payload)
	if err != nil {
		return err
	}
	if err := s.judge(&h); err != nil {
		return s.refuseSaying(err.code, err, err.told)
	}
	s.theirs = h
	s.version = min(h.max, protocolMax)
	if !s.dialed {
		s.sendHello(h.origin)
	} else if s.mine.base != h.origin {
		s.peer = knowledge{} // another server, or the same opened anew: it may know less than it did
	}
	s.host.at(func(r *replica) {
		m := r.heard(h.origin, h.name)
		m.claims, m.digest = h.claims, h.digest
		if h.digest == s.mine.digest && h.claims == s.mine.claims {
			m.agreed = r.now()
		}
	})
	if s.greetedAs != nil {
		s.greetedAs(&h)
	}
	return s.greeted()
}

// judge tells why a peer is not one to talk to, if so.
func (s *session) judge(h *hello) *rejectedError {
	var self Origin
	s.host.at(func(r *replica) { self = r.self })
	switch {
	case h.min > protocolMax || h.max < protocolMin || h.max < h.min:
		return &rejectedError{refuseVersion,
			fmt.Sprintf("the peer speaks protocol versions %d to %d, this server %d to %d", h.min, h.max, protocolMin, protocolMax),
			fmt.Sprintf("protocol versions %d to %d, want one of %d to %d", h.min, h.max, protocolMin, protocolMax)}
	case h.cluster != s.params.cluster:
		return &rejectedError{refuseCluster,
			fmt.Sprintf("the peer is of cluster %q, this server of %q", h.cluster, s.params.cluster),
			fmt.Sprintf("this server is of another cluster than %q", h.cluster)}
	case h.origin == self:
		return &rejectedError{refuseSelf, errSelf.Error(), errSelf.Error()}
	case h.origin == Origin{}:
		return &rejectedError{refuseError, "the peer has no origin", "a hello without an origin"}
	}
	return nil
}

// Is makes errors.Is(err, errSelf) true of a connection to oneself.
func (e *rejectedError) Is(target error) bool { return target == errSelf && e.code == refuseSelf }

var errSelf = errors.New("this is the server itself")

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

func (s *session) sendAddresses() {
	b := binary.AppendUvarint(nil, uint64(len(s.book)))
	for _, a := range s.book {
		b = appendBytes(b, []byte(a))
	}
	s.send(frameAddresses, b)
}

// maxAddresses bounds what a peer may tell of others.
const maxAddresses = 1024

// bookSum stands for addresses in the hello, so that they are told once and again
// when they have changed: 32 bits, as a missed change only costs a detour.
func bookSum(addrs []string) uint32 {
	if len(addrs) == 0 {
		return 0
	}
	return uint32(xxhash.Sum64String(strings.Join(addrs, "\n"))) | 1
}

func (s *session) gotAddresses(payload []byte) error {
	addrs, err := decodeAddresses(payload)
	if err != nil {
		return protocolErrorf("addresses: %v", err)
	}
	s.host.learn(addrs)
	s.host.at(func(r *replica) { r.heard(s.theirs.origin, s.theirs.name).book = s.theirs.book })
	return nil
}

// decodeAddresses reads addresses and leaves out those that nobody could dial.
func decodeAddresses(payload []byte) ([]string, error) {
	d := decoder{b: payload}
	var addrs []string
	n := d.count(1)
	if n > maxAddresses {
		return nil, fmt.Errorf("%d of them, at most %d are allowed", n, maxAddresses)
	}
	for range n {
		if a := d.string(255); d.err == nil && dialable(a) {
			addrs = append(addrs, a)
		}
	}
	return addrs, d.end()
}

// sendVectors tells the peer what changed of our knowledge since it was told, of
// the state that the next page shows. first adds what is said only once.
func (s *session) sendVectors(first bool) {
	var rows []row
	var lineage []Origin
	var rev uint64
	var loose vector
	s.host.at(func(r *replica) {
		rows, rev, loose = r.known.since(s.sentRev), r.known.rev, r.loose.clone()
		s.told = r.known.claims
		if first && s.sentRev == 0 {
			lineage = r.lineage(64)
		}
	})
	s.sendRows(rows, rev, loose, lineage)
}

func (s *session) sendRows(rows []row, rev uint64, loose vector, lineage []Origin) {
	s.send(frameVectors, s.sending.frame(func(b []byte) []byte {
		b = binary.AppendUvarint(b, rev)
		b = appendVector(b, loose, &s.sending)
		b = binary.AppendUvarint(b, uint64(len(lineage)))
		for _, o := range lineage {
			b = append(b, o[:]...)
		}
		b = binary.AppendUvarint(b, uint64(len(rows)))
		for _, w := range rows {
			b = binary.AppendUvarint(b, s.sending.number(w.origin))
			for _, n := range w.at {
				b = binary.AppendUvarint(b, n)
			}
		}
		return b
	}))
	s.sentRev = rev
}

// maxOrigins bounds the origins that one conversation may name: one for each
// opening of each database that ever wrote.
const maxOrigins = 100_000

func (s *session) gotVectors(payload []byte) error {
	d, err := s.reading.open(payload)
	if err != nil {
		return err
	}
	rev := d.uint()
	loose := d.vector(&s.reading)
	var lineage []Origin
	for range d.count(16) {
		lineage = append(lineage, d.origin())
	}
	n := d.count(5)
	if n > maxOrigins {
		return protocolErrorf("vectors of %d origins", n)
	}
	rows := make([]row, 0, n)
	for range n {
		w := row{}
		var ok bool
		if w.origin, ok = s.reading.origin(d.uint()); !ok {
			return protocolErrorf("vectors name an unknown origin")
		}
		// In order, so that taking them in costs no more than reading them.
		if k := len(rows); k > 0 && rows[k-1].origin.compare(w.origin) >= 0 {
			return protocolErrorf("vectors are out of order")
		}
		for c := range columns {
			if w.at[c] = d.seq(); w.at[c] > w.at[claimed] {
				return protocolErrorf("vectors prove more than they claim")
			}
		}
		if w.origin == s.mine.origin && w.at[claimed] > 0 && d.err == nil {
			if err := s.checkOwn(w.at[claimed]); err != nil {
				return err
			}
		}
		rows = append(rows, w)
	}
	if n := loose.seq(s.mine.origin); n > 0 && d.err == nil {
		if err := s.checkOwn(n); err != nil {
			return err
		}
	}
	if err := d.end(); err != nil {
		return protocolErrorf("vectors: %v", err)
	}
	s.peer, s.peerLoose = s.peer.clone(), loose
	s.peer.take(rows)
	s.host.at(func(r *replica) {
		m := r.heard(s.theirs.origin, s.theirs.name)
		if rev > m.rev {
			m.known, m.rev = s.peer, rev
			r.stableVec = nil
		}
		r.succeeds(s.theirs.origin, lineage)
	})
	if p := s.pulling; p != nil && p.claim == nil && p.repair == nil && s.expect == wantPage {
		p.claim = s.peer.vector(claimed)
	}
	if s.expect == wantVectors {
		s.expect = wantPull // addresses may follow, and then it is our turn
		if s.dialed {
			return s.opened()
		}
	}
	return nil
}

// checkOwn refuses a peer that claims more of our own writes than we made.
func (s *session) checkOwn(seq uint64) (err error) {
	s.host.at(func(r *replica) {
		if seq > r.seq {
			err = protocolErrorf("the peer claims write %d of this server, which has made only %d", seq, r.seq)
		}
	})
	return err
}

// names numbers origins in the frames of one direction: each is spelt out in the
// first frame that needs it.
type names struct {
	list  []Origin
	index map[Origin]uint64
	fresh int    // how many were spelt out
	rest  []byte // of frame
}

func (n *names) number(o Origin) uint64 {
	i, ok := n.index[o]
	if !ok {
		if n.index == nil {
			n.index = map[Origin]uint64{}
		}
		i = uint64(len(n.list))
		n.list = append(n.list, o)
		n.index[o] = i
	}
	return i
}

func (n *names) origin(i uint64) (Origin, bool) {
	if i >= uint64(len(n.list)) {
		return Origin{}, false
	}
	return n.list[i], true
}

// frame puts the origins that body needs in front of it.
func (n *names) frame(body func(b []byte) []byte) []byte {
	n.rest = body(n.rest[:0])
	rest := n.rest
	b := make([]byte, 0, len(rest)+10+16*(len(n.list)-n.fresh))
	b = binary.AppendUvarint(b, uint64(len(n.list)-n.fresh))
	for _, o := range n.list[n.fresh:] {
		b = append(b, o[:]...)
	}
	n.fresh = len(n.list)
	return append(b, rest...)
}

// open reads the origins in front of a frame.
func (n *names) open(payload []byte) (decoder, error) {
	d := decoder{b: payload}
	k := d.count(16)
	if len(n.list)+k > maxOrigins {
		return d, protocolErrorf("more than %d origins", maxOrigins)
	}
	n.list = slices.Grow(n.list, k)
	for range k {
		n.list = append(n.list, d.origin())
	}
	return d, nil
}
