package replicator

import "github.com/syndtr/goleveldb/leveldb"

// fetching answers a fetch: the keys that were asked for, as they are now.
type fetching struct {
	keys [][]byte
	dots []dot
}

// maxFetch bounds what one fetch may ask for.
const maxFetch = 1 << 14

func (s *session) gotFetch(payload []byte) error {
	d, err := s.reading.open(payload)
	if err != nil {
		return err
	}
	f := &fetching{}
	keys := d.count(1)
	for range min(keys, maxFetch) {
		f.keys = append(f.keys, d.bytes(s.params.maxKey))
	}
	dots := 0
	if keys <= maxFetch {
		dots = d.count(2)
	}
	if keys+dots > maxFetch {
		return protocolErrorf("fetch asks for more than %d keys", maxFetch)
	}
	for range dots {
		f.dots = append(f.dots, d.dot(&s.reading))
	}
	if err := d.end(); err != nil {
		return protocolErrorf("fetch: %v", err)
	}
	s.serving = &serving{fetch: f}
	return nil
}

func (s *session) produceFetched(v *serving) error {
	f := v.fetch
	state, err := s.view(func(*replica) {})
	if err != nil {
		return err
	}
	defer state.Release()
	s.tell(&state)
	p := page{session: s}
	for len(f.keys) > 0 && !p.full() {
		if err := v.addKey(&state, &p, f.keys[0]); err != nil {
			return err
		}
		f.keys = f.keys[1:]
	}
	for len(f.dots) > 0 && !p.full() {
		if err := v.addDot(&state, &p, f.dots[0]); err != nil {
			return err
		}
		f.dots = f.dots[1:]
	}
	p.flush()
	if len(f.keys)+len(f.dots) == 0 {
		s.endServing(true)
	}
	return nil
}

// addKey adds a key as it is, which may be that nothing is held of it.
func (v *serving) addKey(st *view, p *page, key []byte) error {
	if reserved(key) {
		return protocolErrorf("fetch of a reserved key")
	}
	s, err := readIndex(st, key, st)
	if err != nil {
		return err
	}
	_, err = v.add(st, p, key, s)
	return err
}

// addDot adds the key that a dot was written to, if it is still held.
func (v *serving) addDot(st *view, p *page, d dot) error {
	a, ok := st.aliasOf(d.origin)
	if !ok {
		return nil
	}
	logKey := appendLogKey(nil, a, d.seq)
	rec, err := st.Get(logKey, nil)
	if err == leveldb.ErrNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	e, err := decodeEntry(logKey, rec, st)
	if err != nil {
		return err
	}
	return v.addKey(st, p, e.key)
}
