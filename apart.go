package replicator

import "math"

// A key is transferred with all its siblings, which may be far more together than
// anybody would hold in memory or send at a stretch. Then they are named only, and the
// puller, once it has all else, asks for the values: some of them at a time, of a state
// of their own, with all siblings named anew each time. So no key holds up others, and
// what was merged of one need not be sent again after the session broke off.

const (
	apartPages = 4       // pages of values that are sent with the key, or at a time of those that are asked for
	maxApart   = 1 << 12 // keys that are named only, in one pull; for more the peer comes again
	wantKeys   = 1 << 6  // of which values are asked for at a time
	partSize   = 16 << 20
)

// contents reads what a peer lacks of a key. If that is more than one value and more
// than some bytes, it is named only; the rest is what the peer has.
func (s *session) contents(st *view, key []byte, held state, has func(dot) bool, most int) (vs []version, apart bool, err error) {
	vs = make([]version, 0, len(held))
	size := 0
	for i := range held {
		v := held[i]
		switch {
		case has(v.dot):
			v.known = true
		case apart:
			v.apart = true
		default:
			e, err := readEntry(st, key, &held[i], st)
			if err == nil {
				err = e.readValue(st)
			}
			if err != nil {
				return nil, false, err
			}
			v = e.version
			if v.large = s.tooLarge(key, &v); v.large > 0 {
				v.value = nil
				break
			}
			n := sentAtLeast + 2*len(v.vv) + len(v.value)
			if v.apart = size > 0 && n > most-size; v.apart {
				v, apart = version{dot: v.dot, deleted: v.deleted, apart: true}, true
				break
			}
			size += n
		}
		vs = append(vs, v)
	}
	return vs, apart, nil
}

// sentAtLeast is what a version comes to on the wire, about, without value and vv.
const sentAtLeast = 32

// tooLarge gives the size of a value that the peer will not take, or 0.
func (s *session) tooLarge(key []byte, v *version) uint64 {
	if s.theirs.apart && !v.deleted && uint64(len(v.value)) > s.theirs.maxValue || s.theirs.apart && uint64(len(key)) > s.theirs.maxKey {
		return max(1, uint64(len(v.value)))
	}
	return 0
}

// most is how many bytes of one key are sent with its name. Whoever does not ask for
// values gets all that it would take.
func (s *session) most() int {
	if s.theirs.apart {
		return apartPages * s.params.pageSize
	}
	if s.params.maxValue > math.MaxInt/4 {
		return math.MaxInt
	}
	return 4 * s.params.maxValue
}

// add puts a key with its whole state into the page. Of what the peer claims only
// the names are sent. It tells whether values are still to be sent, which happens when
// they are asked for, or in another pull.
func (v *serving) add(st *view, p *page, key []byte, held state) (apart bool, err error) {
	vs, apart, err := p.session.contents(st, key, held, v.peer.has, p.session.most())
	if err != nil {
		return false, err
	}
	if apart {
		if v.apart >= maxApart || !p.session.theirs.apart {
			v.left = true
			return true, nil
		}
		v.apart++
		for i := range vs {
			if x := &vs[i]; !x.known && x.large == 0 {
				*x = version{dot: x.dot, deleted: x.deleted, apart: true}
			}
		}
	}
	p.put(key, vs)
	return apart, nil
}

// wanting answers a want: keys as they are now, with some of their values.
type wanting struct {
	keys []wanted
}

type wanted struct {
	key []byte
	has map[dot]bool
}

func (s *session) gotWant(payload []byte) error {
	d, err := s.reading.open(payload)
	if err != nil {
		return err
	}
	w := &wanting{}
	claims := d.byte()&1 != 0
	n := d.count(2)
	if n > wantKeys {
		return protocolErrorf("want of %d keys, at most %d are allowed", n, wantKeys)
	}
	dots := 0
	for range n {
		k := wanted{key: d.bytes(s.params.maxKey), has: map[dot]bool{}}
		n := d.count(2)
		if dots += n; dots > maxVersions {
			return protocolErrorf("want names more than %d versions", maxVersions)
		}
		for range n {
			k.has[d.dot(&s.reading)] = true
		}
		w.keys = append(w.keys, k)
	}
	if err := d.end(); err != nil {
		return protocolErrorf("want: %v", err)
	}
	s.serving = &serving{want: w}
	if claims {
		s.serving.peer = s.peer.vector(claimed)
	}
	return nil
}

func (s *session) produceWanted(v *serving) error {
	st, err := s.view(func(*replica) {})
	if err != nil {
		return err
	}
	defer st.Release()
	s.tell(&st)
	p := page{session: s}
	room := apartPages * s.params.pageSize
	for _, k := range v.want.keys {
		if reserved(k.key) {
			return protocolErrorf("want of a reserved key")
		}
		held, err := readIndex(&st, k.key, &st)
		if err != nil {
			return err
		}
		vs, _, err := s.contents(&st, k.key, held, func(d dot) bool { return k.has[d] || v.peer.has(d) }, room-p.size())
		if err != nil {
			return err
		}
		if p.put(k.key, vs); p.size() >= room/2 || p.named >= maxVersions/4 {
			break
		}
	}
	p.flush()
	s.stats.served += p.versions
	s.endServing(true)
	return nil
}
