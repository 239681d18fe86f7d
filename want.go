package replicator

import (
	"bytes"
	"encoding/binary"
	"maps"
	"slices"
)

// apartKey is a key of which the values are to be asked for.
type apartKey struct {
	key    []byte
	names  []version // what the peer held when it last spoke of it
	values []version // that came and are not merged
	bytes  int       // of those
	merged int       // bytes that were
	listed map[dot]bool
}

// setApart notes a key whose values are to be asked for, in place of what was told of
// it before.
func (p *pulling) setApart(k heldKey) error {
	if i := slices.IndexFunc(p.apart, func(a *apartKey) bool { return bytes.Equal(a.key, k.key) }); i >= 0 {
		p.apart[i].names = k.versions
		return nil
	}
	if len(p.apart) >= maxApart {
		return protocolErrorf("more than %d keys without their values", maxApart)
	}
	p.apart = append(p.apart, &apartKey{key: slices.Clone(k.key), names: k.versions})
	return nil
}

// wantNext asks for values, or goes on if there is nothing more to ask for.
func (s *session) wantNext() error {
	p := s.pulling
	if len(p.apart) == 0 {
		return s.allCame()
	}
	if p.repair == nil && len(p.keys) > 0 {
		if err := s.commitPages(); err != nil {
			return err
		}
	}
	asked, err := s.listApart()
	if err != nil {
		return err
	}
	n := &s.sending
	s.send(frameWant, n.frame(func(b []byte) []byte {
		b = append(b, byte(btoi(p.repair == nil)))
		b = binary.AppendUvarint(b, uint64(len(asked)))
		for _, a := range asked {
			b = appendBytes(b, a.key)
			b = binary.AppendUvarint(b, uint64(len(a.listed)))
			for _, d := range slices.SortedFunc(maps.Keys(a.listed), dot.compare) {
				b = appendDot(b, d, n)
			}
		}
		return b
	}))
	p.asked, p.wanting, s.expect = len(asked), true, wantPage
	return nil
}

// listApart works out what need not be sent of the next keys, and gives those that fit
// into one question.
func (s *session) listApart() (asked []*apartKey, err error) {
	p := s.pulling
	dots, size := 0, 0
	s.host.at(func(r *replica) {
		for _, a := range p.apart {
			a.listed = map[dot]bool{}
			if p.repair == nil {
				var ours state
				if ours, err = r.lookup(a.key); err != nil {
					return
				}
				a.list(ours)
			}
			for i := range a.values {
				a.listed[a.values[i].dot] = true
			}
			dots, size = dots+len(a.listed), size+len(a.key)
			if len(asked) > 0 && (len(asked) == wantKeys || dots > maxVersions || size > s.params.pageSize) {
				return
			}
			asked = append(asked, a)
		}
	})
	return asked, err
}

// list notes what need not be sent: it is held here, or superseded.
func (a *apartKey) list(ours state) {
	for i := range ours {
		a.listed[ours[i].dot] = true
		for j := range a.names {
			if ours[i].saw(a.names[j].dot) {
				a.listed[a.names[j].dot] = true
			}
		}
	}
}

// gotWanted takes in what was asked for: the first of the keys, in order.
func (s *session) gotWanted(keys []heldKey) error {
	p := s.pulling
	if len(keys) == 0 || len(keys) > p.asked {
		return protocolErrorf("%d keys in answer to a want of %d", len(keys), p.asked)
	}
	p.asked = 0
	var rest []*apartKey
	for i, k := range keys {
		a := p.apart[i]
		if !bytes.Equal(a.key, k.key) {
			return protocolErrorf("key %.40q in answer to a want of %.40q", k.key, a.key)
		}
		whole, err := s.takePart(a, k.versions)
		if err != nil {
			return err
		}
		if !whole {
			rest = append(rest, a)
		}
	}
	p.apart = append(rest, p.apart[len(keys):]...)
	return nil
}

// takePart takes in some values of a key, and tells whether they were the last.
func (s *session) takePart(a *apartKey, names []version) (whole bool, err error) {
	p := s.pulling
	came := false
	whole = true
	a.names = names
	for i := range names {
		v := &names[i]
		switch {
		case v.apart:
			whole = false
		case v.known || v.large > 0:
			v.listed = a.listed[v.dot]
		default:
			came = true
			a.values = append(a.values, *v)
			a.bytes += len(v.value)
		}
	}
	if !whole && !came {
		return false, protocolErrorf("key %.40q without any of the values that were asked for", a.key)
	}
	switch {
	case whole && p.repair != nil:
		keys, err := p.sort([]heldKey{a.held()})
		if err != nil {
			return true, err
		}
		return true, s.repairKeys(keys)
	case whole:
		p.back.set(heldKey{key: a.key, versions: names})
		return true, s.mergePart(a)
	case p.repair == nil && a.bytes > max(partSize, a.merged):
		return false, s.mergePart(a)
	}
	return false, nil
}

// held is the key as the peer last spoke of it, with all values that came.
func (a *apartKey) held() heldKey {
	k := heldKey{key: a.key, versions: slices.Clone(a.names)}
	for i := range a.values {
		if j := state(k.versions).find(a.values[i].dot); j >= 0 {
			k.versions[j] = a.values[i]
		}
	}
	return k
}

// mergePart merges what came of a key. When that is all of it, its part of the log is
// done.
func (s *session) mergePart(a *apartKey) error {
	p := s.pulling
	k := a.held()
	err := s.host.commit(func(t *txn) (err error) {
		t.learnProof(&s.peer)
		n, err := t.merge(k.key, k.versions, &s.peer)
		if err == nil {
			s.stats.pulled += n
		}
		return err
	})
	if err != nil {
		return err
	}
	a.merged += a.bytes
	a.values, a.bytes = nil, 0
	if k.lacks() {
		return nil
	}
	for i := range k.versions {
		d := k.versions[i].dot
		p.marks = append(p.marks, region{origin: d.origin, from: d.seq, to: min(d.seq, s.peer.at(claimed, d.origin))})
	}
	p.reach = p.reach.join(s.peer.vector(claimed)).join(s.peerLoose)
	s.host.at(func(r *replica) { r.remember(p.marks, p.reach, &p.back, &s.peer) })
	p.clear()
	return nil
}
