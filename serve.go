package replicator

import (
	"maps"
	"slices"
)

// serving is the half of a session that sends what the peer lacks. It reads one
// state of the database after another, one for each page, or for a few pages if much
// is to be sent, and holds none while a page is on its way.
//
// What is superseded between two pages would be missed: its log entry is gone
// before it was read, and that of its successor lies elsewhere. So the keys that
// lose a version of the first state are noted, and sent as they are then, until a
// page has sent the last of them: with that, all of the first state was sent, or
// what has superseded it.
type serving struct {
	peer    vector           // what the peer claims
	tops    vector           // up to where the first state has what it lacks
	skip    map[Origin]spans // what an earlier, unfinished pull already brought it
	regions []region         // still to be read
	begun   bool
	window  int // bytes to send of one state: it grows with each
	average int // bytes of a version on the wire, as seen so far
	changed changed
	after   int                // pages of changed keys so far
	sent    map[string]sentKey // keys with several versions that were sent
	apart   int                // keys that were named only
	left    bool               // something was not sent: the peer must come again
	fetch   *fetching
	want    *wanting
}

// sentKey is how a key was sent.
type sentKey struct {
	names sum  // of its versions then
	apart bool // named only
}

// region is a part of one origin's log, from ≤ seq ≤ to, read in reverse.
type region struct {
	origin   Origin
	alias    uint32
	from, to uint64
}

// changed collects the keys that must be sent again, as what was to be sent of them
// is gone.
type changed struct {
	keys map[string]struct{}
	lost bool // there were too many
}

const (
	maxChanged = 1 << 16 // such keys, or the peer must come again
	maxAfter   = 1 << 10 // pages of them
)

// note takes in what a commit did to a key.
func (v *serving) note(c *change) {
	for i := range c.old {
		if d := c.old[i].dot; v.tops.has(d) && !v.peer.has(d) && !c.versions.has(d) {
			v.changed.add(c.key)
			return
		}
	}
}

func (c *changed) add(key []byte) {
	if len(c.keys) >= maxChanged {
		c.lost = true
		return
	}
	c.keys[string(key)] = struct{}{}
}

// view is one state of the database.
type view struct {
	snapshot
	aliases aliases
	index   map[Origin]uint32
	rows    []row // news for the peer
	rev     uint64
	loose   vector
	keys    int64    // that hold a value
	litter  bool     // log entries may be garbage
	sorted  []Origin // the known origins, in order; nil until asked for
}

// look takes a state of the database.
func (r *replica) look() (v view, err error) {
	v.aliases, v.index = r.aliases, r.alias
	v.snapshot, err = r.store.snapshot()
	return v, err
}

// view takes a state, with what the peer must know of it.
func (s *session) view(f func(r *replica)) (v view, err error) {
	s.host.at(func(r *replica) {
		if v, err = r.look(); err != nil {
			return
		}
		v.litter, v.keys = r.littered, r.keys
		v.rows, v.rev, v.loose = r.known.since(s.sentRev), r.known.rev, r.loose.clone()
		f(r)
	})
	return v, err
}

func (v *view) origin(n uint64) (Origin, bool) { return v.aliases.origin(n) }
func (v *view) number(o Origin) uint64         { return v.aliases.number(o) }

// tell sends what is news in the state of a page, before the page.
func (s *session) tell(v *view) {
	if v.rev > s.sentRev || len(v.loose) > 0 {
		s.sendRows(v.rows, v.rev, v.loose, nil)
	}
}

func (s *session) gotPull(payload []byte) error {
	d, err := s.reading.open(payload)
	if err != nil {
		return err
	}
	skip := map[Origin]spans{}
	for range d.count(2) {
		o, ok := s.reading.origin(d.uint())
		if !ok {
			return protocolErrorf("pull names an unknown origin")
		}
		if _, twice := skip[o]; twice {
			return protocolErrorf("pull names an origin twice")
		}
		skip[o] = d.spans()
	}
	if err := d.end(); err != nil {
		return protocolErrorf("pull: %v", err)
	}
	s.serving = &serving{peer: s.peer.vector(claimed), skip: skip, window: s.params.pageSize}
	return nil
}

// more tells whether produce has something to send.
func (s *session) more() bool { return s.serving != nil || len(s.queue) > 0 }

// produce sends the next page of what is being served, or its end.
func (s *session) produce() error {
	v := s.serving
	var err error
	switch {
	case len(s.queue) > 0:
		s.sendQueued()
	case v.fetch != nil:
		err = s.produceFetched(v)
	case v.want != nil:
		err = s.produceWanted(v)
	default:
		err = s.producePage(v)
	}
	if err != nil {
		return s.refuse(refuseError, err)
	}
	return nil
}

// endServing says that the pull is whole, or that the peer should come again.
func (s *session) endServing(whole bool) {
	s.send(frameEnd, []byte{byte(btoi(whole))})
	if v := s.serving; v.fetch == nil && v.want == nil {
		s.gave, s.kept = whole, s.kept || !whole
	}
	s.leaveServing()
	if s.expect == wantPull {
		s.expect = wantTurn
	}
}

func (s *session) leaveServing() {
	if s.serving != nil && s.serving.begun {
		s.host.at(func(r *replica) { r.letGo(s.serving) })
	}
	s.serving = nil
}

func (s *session) producePage(v *serving) error {
	var keys map[string]struct{}
	still := false // nothing has changed since the first state
	first := !v.begun
	state, err := s.view(func(r *replica) {
		if first {
			s.told = r.known.claims
			v.begin(r)
		}
		still = len(v.changed.keys) == 0 && v.after == 0
		if len(v.regions) == 0 {
			keys, v.changed.keys = v.changed.keys, map[string]struct{}{}
		}
	})
	if err != nil {
		return err
	}
	defer state.Release()
	if first { // what is claimed in this state is what the peer will claim at the end
		s.sendRows(state.rows, state.rev, state.loose, nil)
	} else {
		s.tell(&state)
	}
	p := page{session: s}
	for ended := false; len(v.regions) > 0 && !ended; {
		if ended, err = v.readRegion(&state, &p); err != nil {
			return err
		}
	}
	if s.params.slow {
		v.window *= slowGrowth
	} else {
		v.window *= windowGrowth
	}
	v.window = min(v.window, windowSize)
	left, err := v.addChanged(&state, &p, keys)
	if err != nil {
		return err
	}
	p.flush()
	s.stats.served += p.versions
	if keys == nil { // changed keys are seen to in a state of their own
		if still && len(v.regions) == 0 {
			s.endServing(!v.left)
		}
		return nil
	}
	v.after++
	switch {
	case v.changed.lost || v.after > maxAfter:
		s.endServing(false)
	case len(left) == 0:
		s.endServing(!v.left)
	default:
		s.host.at(func(*replica) {
			for key := range left {
				v.changed.keys[key] = struct{}{}
			}
		})
	}
	return nil
}

// begin works out which parts of the log the peer lacks.
func (v *serving) begin(r *replica) {
	v.begun, v.regions, v.sent = true, []region{}, map[string]sentKey{}
	v.changed.keys = map[string]struct{}{}
	r.observe(v)
	lacks := func(o Origin, top uint64) {
		if from := v.peer.seq(o) + 1; top >= from {
			v.regions = v.skip[o].cut(v.regions, region{o, r.alias[o], from, top})
			v.tops = v.tops.raise(dot{o, top})
		}
	}
	for _, w := range r.known.rows {
		lacks(w.origin, max(w.at[claimed], r.loose.seq(w.origin)))
	}
	for _, l := range r.loose {
		if _, ok := r.known.find(l.origin); !ok {
			lacks(l.origin, l.seq)
		}
	}
}

// addChanged sends keys that changed meanwhile, and gives those that found no room.
func (v *serving) addChanged(st *view, p *page, keys map[string]struct{}) (left map[string]struct{}, err error) {
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if p.full() {
			return keys, nil
		}
		delete(keys, key)
		s, err := readIndex(st, []byte(key), st)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(s, func(x version) bool { return !v.peer.has(x.dot) }) {
			if _, err := v.add(st, p, []byte(key), s); err != nil {
				return nil, err
			}
		}
	}
	return keys, nil
}

// readRegion reads of the first region what belongs together, at its end, and tells
// whether enough was sent of this state.
func (v *serving) readRegion(st *view, p *page) (ended bool, err error) {
	g := &v.regions[0]
	room := max(p.session.params.pageSize, min(v.window, p.session.params.window)) - p.sent - p.size()
	entries, all, err := v.readLog(st, *g, room)
	if err != nil {
		return false, err
	}
	if err := readValues(st, entries, max(4*room, 1<<20)); err != nil {
		return false, err
	}
	for i := range entries {
		e := &entries[i]
		apart, err := v.addEntry(st, p, e)
		if err != nil {
			return false, err
		}
		if apart { // its values are not sent, so no mark may cover it
			p.mark(g.origin, e.seq+1, g.to)
			g.to = e.seq - 1
		}
		if e.seq == g.from {
			break
		}
		// A batch of the writer is not torn, unless it is a large one.
		if p.full() && e.offset == 0 || p.overfull() {
			p.mark(g.origin, e.seq, g.to)
			g.to = e.seq - 1
			if v.enough(p) {
				return true, nil
			}
			p.next()
		}
	}
	if all {
		p.mark(g.origin, g.from, g.to)
		v.regions = v.regions[1:]
		if !p.full() {
			return false, nil
		}
		if ended = v.enough(p); !ended {
			p.next()
		}
		return ended, nil
	}
	if last := entries[len(entries)-1].seq; last <= g.to {
		p.mark(g.origin, last, g.to)
		g.to = last - 1
	}
	return false, nil
}

// enough tells whether a state was read long enough, when a page is full.
func (v *serving) enough(p *page) bool {
	if n := p.sent + p.size(); p.versions > 0 {
		v.average = n / p.versions
	}
	return p.sent+p.size() >= min(v.window, p.session.params.window)
}

// addEntry sends the key of a log entry, with all its versions, and tells whether
// values of it are still to be sent.
func (v *serving) addEntry(st *view, p *page, e *logged) (apart bool, err error) {
	if !e.inline && !st.litter { // it is alone: the log has one entry for each version
		if err := readValue(st, e); err != nil {
			return false, err
		}
		x := e.version
		if x.large = p.session.tooLarge(e.key, &x); x.large > 0 {
			x.value = nil
		}
		p.put(e.key, []version{x})
		e.value = nil
		return false, nil
	}
	s, err := readIndex(st, e.key, st)
	if err != nil {
		return false, err
	}
	if !s.has(e.dot) {
		return false, nil // garbage that a crash left
	}
	if len(s) > 1 {
		// Only what is still the same was sent: the page also says that all of this
		// part of the log was, and the key may have grown by a version that is in it.
		now := s.names()
		if was, ok := v.sent[string(e.key)]; ok && was.names == now {
			return was.apart, nil
		}
		defer func() { v.sent[string(e.key)] = sentKey{now, apart} }()
	}
	return v.add(st, p, e.key, s)
}

func (v *view) aliasOf(o Origin) (uint32, bool) {
	a, ok := v.index[o]
	return a, ok
}
