package session

import (
	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// wanting answers a want: keys as they are now, with some of their values.
type wanting struct {
	sender
	keys []wanted
}

type wanted struct {
	key []byte
	has map[causal.Dot]bool
}

func newWanting(s *Session, payload []byte) (*wanting, error) {
	d, err := s.reading.open(payload)
	if err != nil {
		return nil, err
	}
	w := &wanting{sender: sender{session: s}}
	covers := d.Byte()&1 != 0
	n := d.Count(2)
	if n > WantKeys {
		return nil, replica.ProtocolErrorf("want of %d keys, at most %d are allowed", n, WantKeys)
	}
	dots := 0
	for range n {
		k := wanted{key: d.Bytes(s.params.MaxKey), has: map[causal.Dot]bool{}}
		n := d.Count(2)
		if dots += n; dots > maxVersions {
			return nil, replica.ProtocolErrorf("want names more than %d versions", maxVersions)
		}
		for range n {
			k.has[d.Dot(&s.reading)] = true
		}
		w.keys = append(w.keys, k)
	}
	if err := d.End(); err != nil {
		return nil, replica.ProtocolErrorf("want: %v", err)
	}
	if covers {
		w.peer = s.known.Vector(causal.Covered)
	}
	return w, nil
}

func (w *wanting) produce() error {
	st, p, err := w.open()
	if err != nil {
		return err
	}
	defer st.Release()
	room := ApartPages * w.session.params.PageSize
	for _, k := range w.keys {
		if store.Reserved(k.key) {
			return replica.ProtocolErrorf("want of a reserved key")
		}
		held, err := store.ReadIndex(&st, k.key, &st)
		if err != nil {
			return err
		}
		vs, _, err := w.contents(&st, k.key, held, func(d causal.Dot) bool { return k.has[d] || w.peer.Contains(d) }, room-p.size())
		if err != nil {
			return err
		}
		if p.put(k.key, vs); p.size() >= room/2 || p.named >= maxVersions/4 {
			break
		}
	}
	p.flush()
	w.session.result.Served += p.versions
	w.end(true)
	return nil
}
