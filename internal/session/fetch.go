package session

import (
	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// fetching answers a fetch: the keys that were asked for, as they are now.
type fetching struct {
	sender
	keys [][]byte
	dots []causal.Dot
}

// maxFetch bounds what one fetch may ask for.
const maxFetch = 1 << 14

func newFetching(s *Session, payload []byte) (*fetching, error) {
	d, err := s.reading.open(payload)
	if err != nil {
		return nil, err
	}
	f := &fetching{sender: sender{session: s}}
	keys := d.Count(1)
	for range min(keys, maxFetch) {
		f.keys = append(f.keys, d.Bytes(s.params.MaxKey))
	}
	dots := 0
	if keys <= maxFetch {
		dots = d.Count(2)
	}
	if keys+dots > maxFetch {
		return nil, replica.ProtocolErrorf("fetch asks for more than %d keys", maxFetch)
	}
	for range dots {
		f.dots = append(f.dots, d.Dot(&s.reading))
	}
	if err := d.End(); err != nil {
		return nil, replica.ProtocolErrorf("fetch: %v", err)
	}
	return f, nil
}

func (f *fetching) produce() error {
	state, p, err := f.open()
	if err != nil {
		return err
	}
	defer state.Release()
	for len(f.keys) > 0 && !p.full() {
		if err := f.addKey(&state, &p, f.keys[0]); err != nil {
			return err
		}
		f.keys = f.keys[1:]
	}
	for len(f.dots) > 0 && !p.full() {
		if err := f.addDot(&state, &p, f.dots[0]); err != nil {
			return err
		}
		f.dots = f.dots[1:]
	}
	p.flush()
	if len(f.keys)+len(f.dots) == 0 {
		f.end(true)
	}
	return nil
}

// addKey adds a key as it is, which may be that nothing is held of it.
func (f *fetching) addKey(st *replica.View, p *page, key []byte) error {
	if store.Reserved(key) {
		return replica.ProtocolErrorf("fetch of a reserved key")
	}
	s, err := store.ReadIndex(st, key, st)
	if err != nil {
		return err
	}
	_, err = f.add(st, p, key, s)
	return err
}

// addDot adds the key that a dot was written to, if it is still held.
func (f *fetching) addDot(st *replica.View, p *page, d causal.Dot) error {
	a, ok := st.AliasOf(d.Origin)
	if !ok {
		return nil
	}
	logKey := store.AppendLogKey(nil, a, d.Seq)
	rec, err := st.Get(logKey, nil)
	if err == leveldb.ErrNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	e, err := store.DecodeEntry(logKey, rec, st)
	if err != nil {
		return err
	}
	return f.addKey(st, p, e.Key)
}
