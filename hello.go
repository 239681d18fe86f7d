package replicator

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/cespare/xxhash/v2"
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
	apart     bool   // it asks for values that are named only, and says what it takes:
	maxValue  uint64 // the greatest value, and
	maxKey    uint64 // the greatest key
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
	b = append(b, byte(btoi(h.following))|byte(btoi(h.wants))<<1|byte(btoi(h.asks))<<2|byte(btoi(h.apart))<<3)
	b = binary.BigEndian.AppendUint32(b, h.book)
	b = binary.BigEndian.AppendUint32(b, h.baseBook)
	if h.apart {
		b = binary.AppendUvarint(b, h.maxValue)
		b = binary.AppendUvarint(b, h.maxKey)
	}
	return b
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
	if h.apart = flags&8 != 0; h.apart {
		h.maxValue, h.maxKey = d.uint(), d.uint()
	}
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

// printable makes what others wrote, a peer, a certificate, a name server, safe for logs
// and terminals, whoever writes those and however. It is called where such a text comes
// in, so that nothing behind has to think of it.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// printableError is an error's text on one line, as printable has it.
func printableError(err error) string {
	return printable(strings.ReplaceAll(err.Error(), "\n", "; "))
}

// rejectedError is why a hello was not accepted here.
type rejectedError struct {
	code refuseCode
	why  string // for our log
	told string // for the peer, who is told nothing of ours
}

func (e *rejectedError) Error() string { return e.why }

// sendHello introduces this server; peer is whose knowledge may be remembered.
func (s *session) sendHello(peer Origin) {
	s.host.at(func(r *replica) {
		s.mine = hello{
			min: protocolMin, max: protocolMax, cluster: s.params.cluster, name: s.params.name, addr: s.params.addr,
			origin: r.self, wall: r.now(), rev: r.known.rev, claims: r.known.claims, digest: r.digest,
			apart: true, maxValue: uint64(s.params.maxValue), maxKey: uint64(s.params.maxKey),
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
	s.queue = nil // it is the last word
	s.send(frameRefuse, appendBytes(binary.AppendUvarint(nil, uint64(code)), []byte(text[:min(len(text), 512)])))
	s.refusing = true
	s.finish()
	return err
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
	h.name = printable(h.name)
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
