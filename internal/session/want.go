package session

import (
	"bytes"
	"encoding/binary"
	"maps"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// wants are the keys of which values are still to be asked for.
type wants struct {
	keys  []*apartKey
	asked int  // how many of them were, the first; 0 unless an answer is due
	begun bool // nothing but values is asked for any more
}

// apartKey is a key of which the values are to be asked for.
type apartKey struct {
	key    []byte
	names  []store.Version // what the peer held when it last spoke of it
	values []store.Version // that came and are not merged
	bytes  int             // of those
	merged int             // bytes that were
	listed map[causal.Dot]bool
}

// setApart notes a key whose values are to be asked for, in place of what was said of
// it before.
func (p *pulling) setApart(k replica.RemoteKey) error {
	if i := slices.IndexFunc(p.wants.keys, func(a *apartKey) bool { return bytes.Equal(a.key, k.Key) }); i >= 0 {
		p.wants.keys[i].names = k.Versions
		return nil
	}
	if len(p.wants.keys) >= maxApart {
		return replica.ProtocolErrorf("more than %d keys without their values", maxApart)
	}
	p.wants.keys = append(p.wants.keys, &apartKey{key: slices.Clone(k.Key), names: k.Versions})
	return nil
}

// wantNext asks for values, or goes on if there is nothing more to ask for.
func (p *pulling) wantNext() error {
	if len(p.wants.keys) == 0 {
		return p.allCame()
	}
	if p.repair == nil {
		if err := p.flush(); err != nil {
			return err
		}
	}
	asked, err := p.listApart()
	if err != nil {
		return err
	}
	n := &p.session.sending
	p.ask(FrameWant, func(b []byte) []byte {
		b = append(b, byte(store.Btoi(p.repair == nil)))
		b = binary.AppendUvarint(b, uint64(len(asked)))
		for _, a := range asked {
			b = store.AppendBytes(b, a.key)
			b = binary.AppendUvarint(b, uint64(len(a.listed)))
			for _, d := range slices.SortedFunc(maps.Keys(a.listed), causal.Dot.Compare) {
				b = store.AppendDot(b, d, n)
			}
		}
		return b
	})
	p.wants.asked, p.wants.begun = len(asked), true
	return nil
}

// listApart works out what need not be sent of the next keys, and returns those that fit
// into one question.
func (p *pulling) listApart() (asked []*apartKey, err error) {
	dots, size := 0, 0
	p.session.host.With(func(r *replica.Replica) {
		for _, a := range p.wants.keys {
			a.listed = map[causal.Dot]bool{}
			if p.repair == nil {
				var ours store.Siblings
				if ours, err = r.Lookup(a.key); err != nil {
					return
				}
				a.list(ours)
			}
			for i := range a.values {
				a.listed[a.values[i].Dot] = true
			}
			dots, size = dots+len(a.listed), size+len(a.key)
			if len(asked) > 0 && (len(asked) == WantKeys || dots > maxVersions || size > p.session.params.PageSize) {
				return
			}
			asked = append(asked, a)
		}
	})
	return asked, err
}

// list notes what need not be sent: it is held here, or superseded.
func (a *apartKey) list(ours store.Siblings) {
	for i := range ours {
		a.listed[ours[i].Dot] = true
		for j := range a.names {
			if ours[i].HasSeen(a.names[j].Dot) {
				a.listed[a.names[j].Dot] = true
			}
		}
	}
}

// gotWanted takes in what was asked for: the first of the keys, in order.
func (p *pulling) gotWanted(keys []replica.RemoteKey) error {
	if len(keys) == 0 || len(keys) > p.wants.asked {
		return replica.ProtocolErrorf("%d keys in answer to a want of %d", len(keys), p.wants.asked)
	}
	p.wants.asked = 0
	var rest []*apartKey
	for i, k := range keys {
		a := p.wants.keys[i]
		if !bytes.Equal(a.key, k.Key) {
			return replica.ProtocolErrorf("key %.40q in answer to a want of %.40q", k.Key, a.key)
		}
		whole, err := p.takePart(a, k.Versions)
		if err != nil {
			return err
		}
		if !whole {
			rest = append(rest, a)
		}
	}
	p.wants.keys = append(rest, p.wants.keys[len(keys):]...)
	return nil
}

// takePart takes in some values of a key, and reports whether they were the last.
func (p *pulling) takePart(a *apartKey, names []store.Version) (whole bool, err error) {
	came := false
	whole = true
	a.names = names
	for i := range names {
		v := &names[i]
		switch {
		case v.Apart:
			whole = false
		case v.NameOnly || v.Large > 0:
			v.Listed = a.listed[v.Dot]
		default:
			came = true
			a.values = append(a.values, *v)
			a.bytes += len(v.Value)
		}
	}
	if !whole && !came {
		return false, replica.ProtocolErrorf("key %.40q without any of the values that were asked for", a.key)
	}
	switch {
	case whole && p.repair != nil:
		keys, err := p.sort([]replica.RemoteKey{a.held()})
		if err != nil {
			return true, err
		}
		return true, p.repair.takeKeys(keys)
	case whole:
		p.back.Set(replica.RemoteKey{Key: a.key, Versions: names})
		return true, p.mergePart(a)
	case p.repair == nil && a.bytes > max(partSize, a.merged):
		return false, p.mergePart(a)
	}
	return false, nil
}

// held is the key as the peer last spoke of it, with all values that came.
func (a *apartKey) held() replica.RemoteKey {
	k := replica.RemoteKey{Key: a.key, Versions: slices.Clone(a.names)}
	for i := range a.values {
		if j := store.Siblings(k.Versions).Find(a.values[i].Dot); j >= 0 {
			k.Versions[j] = a.values[i]
		}
	}
	return k
}

// mergePart merges what came of a key. When that is all of it, its part of the log is
// done.
func (p *pulling) mergePart(a *apartKey) error {
	s := p.session
	k := a.held()
	err := s.host.Commit(func(t *replica.Txn) (err error) {
		t.JoinWatermarks(&s.known)
		n, err := t.Merge(k.Key, k.Versions, &s.known)
		if err == nil {
			s.result.Pulled += n
		}
		return err
	})
	if err != nil {
		return err
	}
	a.merged += a.bytes
	a.values, a.bytes = nil, 0
	if k.Lacks() {
		return nil
	}
	for i := range k.Versions {
		d := k.Versions[i].Dot
		p.pages.marks = append(p.pages.marks, causal.Region{Origin: d.Origin, From: d.Seq, To: min(d.Seq, s.known.Seq(causal.Covered, d.Origin))})
	}
	p.pages.basis = p.pages.basis.Join(s.known.Vector(causal.Covered)).Join(s.cloud)
	s.host.With(func(r *replica.Replica) { r.Remember(p.pages.marks, p.pages.basis, &p.back, &s.known) })
	p.pages = pages{}
	return nil
}
