package session

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/printable"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// Hello introduces a replica.
type Hello struct {
	Min, Max       uint64 // protocol versions
	Cluster        string
	Name           string
	Addr           string // what peers should dial, or just ":port"
	Origin         causal.Origin
	Wall           time.Time // the speaker's clock; for people, nothing goes by a peer's
	Rev            uint64    // revision of its knowledge
	VectorSum      causal.Sum
	digest         causal.Sum
	CachedOrigin   causal.Origin // of whom it remembers the knowledge,
	cachedRev      uint64        // up to this revision
	following      bool          // vectors and addresses follow
	wants          bool          // the peer should bring to disk what it covers, and report it
	hasGoal        bool          // there is something to talk about, even if both hold the same
	AddrHash       uint32        // sum of the addresses it would tell; 0 for none
	cachedAddrHash uint32        // sum of the addresses that CachedOrigin last sent
	Apart          bool          // it asks for values that are named only, and says what it takes:
	maxValue       uint64        // the greatest value, and
	maxKey         uint64        // the greatest key
	stays          bool          // the connection may stay open afterwards, see Stream,
	news           bool          // and there was news lately
	Counting       bool          // what it holds is still to be counted, see conceal
}

const helloMagic = "lrep"

func (h *Hello) Append(b []byte) []byte {
	b = append(b, helloMagic...)
	b = binary.AppendUvarint(b, h.Min)
	b = binary.AppendUvarint(b, h.Max)
	b = store.AppendBytes(b, []byte(h.Cluster))
	b = store.AppendBytes(b, []byte(h.Name))
	b = store.AppendBytes(b, []byte(h.Addr))
	b = append(b, h.Origin[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(h.Wall.UnixMilli()))
	b = binary.AppendUvarint(b, h.Rev)
	b = store.AppendSum(b, h.VectorSum)
	b = store.AppendSum(b, h.digest)
	b = append(b, h.CachedOrigin[:]...)
	b = binary.AppendUvarint(b, h.cachedRev)
	b = append(b, byte(store.Btoi(h.following))|byte(store.Btoi(h.wants))<<1|byte(store.Btoi(h.hasGoal))<<2|byte(store.Btoi(h.Apart))<<3|byte(store.Btoi(h.stays))<<4|byte(store.Btoi(h.news))<<5|byte(store.Btoi(h.Counting))<<6)
	b = binary.BigEndian.AppendUint32(b, h.AddrHash)
	b = binary.BigEndian.AppendUint32(b, h.cachedAddrHash)
	if h.Apart {
		b = binary.AppendUvarint(b, h.maxValue)
		b = binary.AppendUvarint(b, h.maxKey)
	}
	return b
}

// DecodeHello reads a hello. A later protocol may add fields behind those known
// here, so what is left over is no fault.
func DecodeHello(b []byte) (h Hello, err error) {
	d := store.Decoder{B: b}
	if string(d.Take(len(helloMagic))) != helloMagic {
		return h, replica.ProtocolErrorf("the peer does not speak this protocol")
	}
	h.Min, h.Max = d.Uint(), d.Uint()
	h.Cluster, h.Name, h.Addr = d.String(64), d.String(255), d.String(255)
	h.Origin = d.Origin()
	h.Wall = time.UnixMilli(int64(d.Uint64()))
	h.Rev = d.Uint()
	h.VectorSum, h.digest = d.Sum(), d.Sum()
	h.CachedOrigin, h.cachedRev = d.Origin(), d.Uint()
	flags := d.Byte()
	h.following, h.wants, h.hasGoal = flags&1 != 0, flags&2 != 0, flags&4 != 0
	h.stays, h.news = flags&16 != 0 && h.Max >= streamVersion, flags&32 != 0
	h.Counting = flags&64 != 0
	h.AddrHash, h.cachedAddrHash = d.Uint32(), d.Uint32()
	if h.Apart = flags&8 != 0; h.Apart {
		h.maxValue, h.maxKey = d.Uint(), d.Uint()
	}
	return h, d.Err
}

// sendHello introduces this replica. The vectors of peer may be remembered from an earlier session.
func (s *Session) sendHello(peer causal.Origin) {
	s.host.With(func(r *replica.Replica) {
		s.mine = Hello{
			Min: ProtocolMin, Max: ProtocolMax, Cluster: s.params.Cluster, Name: s.params.Name, Addr: s.params.Addr,
			Origin: r.Self, Wall: r.Now(), Rev: r.Known.Rev, VectorSum: r.Known.VectorSum, digest: r.Digest,
			Apart: true, maxValue: uint64(s.params.MaxValue), maxKey: uint64(s.params.MaxKey),
		}
		if _, counting := r.Counting(); counting {
			s.mine.conceal()
		}
		s.told.vectorSum = r.Known.VectorSum
		if m := r.Members[peer]; m != nil && m.Rev > 0 {
			s.mine.CachedOrigin, s.mine.cachedRev, s.mine.cachedAddrHash = peer, m.Rev, m.AddrHash
			s.known = m.Known
		}
		s.mine.wants = s.params.Wants != nil && s.params.Wants(r, peer)
		s.mine.hasGoal = s.params.Goal.any()
		if s.params.Stay != nil && len(r.HeldBack) == 0 && !s.mine.hasGoal {
			s.mine.stays, s.mine.news = s.params.Stay(peer)
		}
	})
	s.told.addrs = s.host.Addresses()
	s.told.addrs = s.told.addrs[:min(len(s.told.addrs), MaxAddresses)]
	s.mine.AddrHash = addrHash(s.told.addrs)
	if !s.dialed {
		s.mine.following = s.theirs.CachedOrigin != s.mine.Origin || s.theirs.cachedRev != s.mine.Rev || s.theirs.cachedAddrHash != s.mine.AddrHash
	}
	s.outbox.send(FrameHello, s.mine.Append(nil))
}

// conceal makes the sums of a hello stand for nothing while it is not known what the speaker holds (O11). Equal version
// vectors with different digests would be a reason to reconcile, to a peer of any release. So the version vector's sum
// is one that no version vector has: the vectors are exchanged, which costs little, and say what there is to pull.
func (h *Hello) conceal() {
	h.Counting, h.digest = true, causal.Sum{}
	h.VectorSum = h.VectorSum.Add(causal.Dot{Origin: h.Origin, Seq: causal.MaxSeq}.Hash())
}

// gotHello judges the peer's introduction. An acceptor tells nothing of its own
// before it has: a stranger, or a replica of another cluster, gets a refusal
// and no name, digest or address. Nothing of a refused hello is remembered.
func (s *Session) gotHello(payload []byte) error {
	h, err := DecodeHello(payload)
	if err != nil {
		return err
	}
	if err := s.validateHello(&h); err != nil {
		return s.refuseSaying(err.code, err, err.reply)
	}
	h.Name = printable.Printable(h.Name)
	s.theirs = h
	if !s.dialed {
		s.sendHello(h.Origin)
	} else if s.mine.CachedOrigin != h.Origin {
		s.known = causal.Knowledge{} // another replica, or the same in a new incarnation: it may know less than it did
	}
	s.host.With(func(r *replica.Replica) {
		m := r.NoteSeen(h.Origin, h.Name)
		m.VectorSum, m.Digest, m.Counting = h.VectorSum, h.digest, h.Counting
		if h.digest == s.mine.digest && h.VectorSum == s.mine.VectorSum {
			m.Agreed = r.Now()
		}
	})
	if s.params.OnHello != nil && s.params.OnHello(&h) {
		// Nothing is kept of a page that is cut, and what is read may never be sent.
		s.careful, s.params.PageSize = true, smallPage
	}
	return s.afterHello()
}

// validateHello returns why this replica does not talk to a peer, or nil.
func (s *Session) validateHello(h *Hello) *HelloError {
	var self causal.Origin
	s.host.With(func(r *replica.Replica) { self = r.Self })
	switch {
	case h.Min > ProtocolMax || h.Max < ProtocolMin || h.Max < h.Min:
		return &HelloError{RefuseVersion,
			fmt.Sprintf("the peer speaks protocol versions %d to %d, this replica %d to %d", h.Min, h.Max, ProtocolMin, ProtocolMax),
			fmt.Sprintf("protocol versions %d to %d, want one of %d to %d", h.Min, h.Max, ProtocolMin, ProtocolMax)}
	case h.Cluster != s.params.Cluster:
		return &HelloError{refuseCluster,
			fmt.Sprintf("the peer is of cluster %q, this replica of %q", h.Cluster, s.params.Cluster),
			fmt.Sprintf("this server is of another cluster than %q", h.Cluster)} // testdata/format has this text
	case h.Origin == self:
		return &HelloError{RefuseSelf, ErrSelf.Error(), ErrSelf.Error()}
	case h.Origin == causal.Origin{}:
		return &HelloError{refuseError, "the peer has no origin", "a hello without an origin"}
	}
	return nil
}

// afterHello decides, on both sides alike, whether there is anything to talk about.
func (s *Session) afterHello() error {
	dialer, acceptor := &s.mine, &s.theirs
	if !s.dialed {
		dialer, acceptor = acceptor, dialer
	}
	equal := dialer.VectorSum == acceptor.VectorSum && dialer.digest == acceptor.digest
	known := acceptor.CachedOrigin == dialer.Origin && acceptor.cachedRev == dialer.Rev && acceptor.cachedAddrHash == dialer.AddrHash
	if s.theirs.CachedOrigin == s.mine.Origin {
		s.told.rev = s.theirs.cachedRev
	}
	if equal && known && !acceptor.following && !dialer.wants && !acceptor.wants && !dialer.hasGoal {
		s.result.Idle = true
		if s.stays() {
			s.startStream()
		} else {
			s.finishWell()
		}
		return nil
	}
	switch {
	case !s.dialed:
		if s.mine.following {
			s.sendVectors(true)
			s.sendAddresses()
		}
		s.step = WaitPull
		return nil
	case s.theirs.following:
		s.step = waitVectors
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
