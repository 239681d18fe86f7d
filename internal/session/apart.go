package session

import (
	"math"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// P9: a key is transferred with all its siblings, which may be far more together than
// anybody would hold in memory or send at a stretch. Then they are named only, and the
// puller, once it has all else, asks for the values: some of them at a time, of a state
// of their own, with all siblings named anew each time. So no key holds up others, and
// what was merged of one need not be sent again after the session broke off.

const (
	ApartPages = 4       // pages of values that are sent with the key, or at a time of those that are asked for
	maxApart   = 1 << 12 // keys that are named only, in one pull; for more the peer comes again
	WantKeys   = 1 << 6  // of which values are asked for at a time
	partSize   = 16 << 20
)

// contents reads what a peer lacks of a key. If that is more than one value and more
// than some bytes, it is named only; the rest is what the peer has.
func (s *Session) contents(st *replica.View, key []byte, held store.Siblings, has func(causal.Dot) bool, most int) (vs []store.Version, apart bool, err error) {
	vs = make([]store.Version, 0, len(held))
	size := 0
	for i := range held {
		v := held[i]
		switch {
		case has(v.Dot):
			v.NameOnly = true
		case apart:
			v.Apart = true
		default:
			e, err := store.ReadEntry(st, key, &held[i], st)
			if err == nil {
				err = e.ReadValue(st)
			}
			if err != nil {
				return nil, false, err
			}
			v = e.Version
			if v.Large = s.tooLarge(key, &v); v.Large > 0 {
				v.Value = nil
				break
			}
			n := SentAtLeast + 2*len(v.Context) + len(v.Value)
			if v.Apart = size > 0 && n > most-size; v.Apart {
				v, apart = store.Version{Dot: v.Dot, Deleted: v.Deleted, Apart: true}, true
				break
			}
			size += n
		}
		vs = append(vs, v)
	}
	return vs, apart, nil
}

// SentAtLeast is what a version comes to on the wire, about, without value and context.
const SentAtLeast = 32

// tooLarge returns the size of a value that the peer does not take, or 0 (M10).
func (s *Session) tooLarge(key []byte, v *store.Version) uint64 {
	if s.theirs.Apart && !v.Deleted && uint64(len(v.Value)) > s.theirs.maxValue || s.theirs.Apart && uint64(len(key)) > s.theirs.maxKey {
		return max(1, uint64(len(v.Value)))
	}
	return 0
}

// most is how many bytes of one key are sent with its name. Whoever does not ask for
// values gets all that it would take.
func (s *Session) most() int {
	if s.theirs.Apart {
		return ApartPages * s.params.PageSize
	}
	if s.params.MaxValue > math.MaxInt/4 {
		return math.MaxInt
	}
	return 4 * s.params.MaxValue
}

// sender puts keys into pages.
type sender struct {
	peer  causal.Vector // what the peer covers; nil if that does not matter
	apart int           // keys of which only the dots were sent
	left  bool          // something was not sent: the peer must come again
}

// add puts a key with its whole state into the page (M6). Of what the peer covers only
// the dots are sent. It reports whether values are still to be sent, when they are asked for or
// in another pull (P9).
func (v *sender) add(st *replica.View, p *page, key []byte, held store.Siblings) (apart bool, err error) {
	vs, apart, err := p.session.contents(st, key, held, v.peer.Contains, p.session.most())
	if err != nil {
		return false, err
	}
	if apart {
		if v.apart >= maxApart || !p.session.theirs.Apart {
			v.left = true
			return true, nil
		}
		v.apart++
		for i := range vs {
			if x := &vs[i]; !x.NameOnly && x.Large == 0 {
				*x = store.Version{Dot: x.Dot, Deleted: x.Deleted, Apart: true}
			}
		}
	}
	p.put(key, vs)
	return apart, nil
}

// wanting answers a want: keys as they are now, with some of their values.
type wanting struct {
	peer causal.Vector // what the peer covers; nil if it did not say
	keys []wanted
}

type wanted struct {
	key []byte
	has map[causal.Dot]bool
}

func (s *Session) gotWant(payload []byte) error {
	d, err := s.reading.open(payload)
	if err != nil {
		return err
	}
	w := &wanting{}
	covers := d.Byte()&1 != 0
	n := d.Count(2)
	if n > WantKeys {
		return replica.ProtocolErrorf("want of %d keys, at most %d are allowed", n, WantKeys)
	}
	dots := 0
	for range n {
		k := wanted{key: d.Bytes(s.params.MaxKey), has: map[causal.Dot]bool{}}
		n := d.Count(2)
		if dots += n; dots > maxVersions {
			return replica.ProtocolErrorf("want names more than %d versions", maxVersions)
		}
		for range n {
			k.has[d.Dot(&s.reading)] = true
		}
		w.keys = append(w.keys, k)
	}
	if err := d.End(); err != nil {
		return replica.ProtocolErrorf("want: %v", err)
	}
	if covers {
		w.peer = s.known.Vector(causal.Covered)
	}
	s.serving = w
	return nil
}

func (w *wanting) produce(s *Session) error {
	st, err := s.view(func(*replica.Replica) {})
	if err != nil {
		return err
	}
	defer st.Release()
	s.tell(&st)
	p := page{session: s}
	room := ApartPages * s.params.PageSize
	for _, k := range w.keys {
		if store.Reserved(k.key) {
			return replica.ProtocolErrorf("want of a reserved key")
		}
		held, err := store.ReadIndex(&st, k.key, &st)
		if err != nil {
			return err
		}
		vs, _, err := s.contents(&st, k.key, held, func(d causal.Dot) bool { return k.has[d] || w.peer.Contains(d) }, room-p.size())
		if err != nil {
			return err
		}
		if p.put(k.key, vs); p.size() >= room/2 || p.named >= maxVersions/4 {
			break
		}
	}
	p.flush()
	s.result.Served += p.versions
	s.endServing(true)
	return nil
}
