package session

import (
	"maps"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// serving sends what the peer lacks. It reads one state of the database after another, one for each page,
// or for a few pages if much is to be sent, and holds none while a page is on its way.
//
// What is superseded between two pages would be missed: its log entry is gone before it was read, and
// that of its successor lies elsewhere. So the keys that lose a version of the first state are noted, and sent
// as they are then, until a page has sent the last of them: with that, all of the first state was sent, or
// what has superseded it (P3).
type serving struct {
	sender
	push  *push // nil: the peer asked for it
	begun bool

	// What the log has.
	tops    causal.Vector                  // up to where the first state has what the peer lacks
	skip    map[causal.Origin]causal.Spans // what an earlier, unfinished pull already brought it (P5), or push (L4)
	regions []causal.Region                // still to be read
	window  int                            // bytes to send of one state: it grows with each
	average int                            // bytes of a version on the wire, as seen so far
	sent    map[string]sentKey             // keys with several versions that were sent

	// What changes meanwhile.
	changed changed
	after   int // pages of changed keys so far
}

// sentKey is how a key was sent.
type sentKey struct {
	names causal.Sum // of its versions then
	apart bool       // named only
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

func newServing(s *Session, payload []byte) (*serving, error) {
	d, err := s.reading.open(payload)
	if err != nil {
		return nil, err
	}
	skip, err := readSkip(&d, &s.reading)
	if err != nil {
		return nil, err
	}
	if err := d.End(); err != nil {
		return nil, replica.ProtocolErrorf("pull: %v", err)
	}
	return &serving{sender: sender{session: s, peer: s.known.Vector(causal.Covered)}, skip: skip, window: s.params.PageSize}, nil
}

// readSkip reads what need not be sent.
func readSkip(d *store.Decoder, names *Names) (map[causal.Origin]causal.Spans, error) {
	skip := map[causal.Origin]causal.Spans{}
	for range d.Count(2) {
		o, ok := names.Origin(d.Uint())
		if !ok {
			return nil, replica.ProtocolErrorf("pull names an unknown origin")
		}
		if _, twice := skip[o]; twice {
			return nil, replica.ProtocolErrorf("pull names an origin twice")
		}
		skip[o] = d.Spans()
	}
	return skip, nil
}

// Note takes in what a commit did to a key.
func (v *serving) Note(c *replica.Change) {
	for i := range c.Old {
		if d := c.Old[i].Dot; v.tops.Contains(d) && !v.peer.Contains(d) && !c.Versions.Has(d) {
			v.changed.add(c.Key)
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

func (v *serving) produce() error {
	s := v.session
	if v.push != nil && v.push.stream.through { // the rest would be passed over
		v.abort()
		return nil
	}
	state, keys, still, err := v.look()
	if err != nil {
		return err
	}
	defer state.Release()
	p := page{session: s}
	for ended := false; len(v.regions) > 0 && !ended; {
		if ended, err = v.readRegion(&state, &p); err != nil {
			return err
		}
	}
	if s.careful {
		v.window *= slowGrowth
	} else {
		v.window *= windowGrowth
	}
	v.window = min(v.window, WindowSize)
	left, err := v.addChanged(&state, &p, keys)
	if err != nil {
		return err
	}
	p.flush()
	s.result.Served += p.versions
	switch {
	case keys != nil:
		v.sentChanged(left)
	case still && len(v.regions) == 0: // changed keys are seen to in a state of their own
		v.end(!v.left)
	}
	return nil
}

// look takes the next state. Once the log was read, keys are the changed ones that are to be sent as they
// are in it. It reports whether none has changed since the first state.
func (v *serving) look() (state replica.View, keys map[string]struct{}, still bool, err error) {
	s, first := v.session, !v.begun
	state, err = s.view(func(r *replica.Replica) {
		if first {
			s.told.vectorSum = r.Known.VectorSum
			if v.push != nil {
				v.skip = v.push.begin(r, v.peer)
			}
			v.begin(r)
		}
		still = len(v.changed.keys) == 0 && v.after == 0
		if len(v.regions) == 0 {
			keys, v.changed.keys = v.changed.keys, map[string]struct{}{}
		}
	})
	switch {
	case err != nil:
	case first && v.push != nil:
		v.push.announce()
		fallthrough
	case first: // P2: what is covered in this state is what the peer will cover at the end
		s.sendRows(state.Rows, state.Rev, state.Cloud, nil)
	default:
		s.tell(&state)
	}
	return state, keys, still, err
}

// sentChanged goes on when a page of changed keys was sent, which found no room for some.
func (v *serving) sentChanged(left map[string]struct{}) {
	v.after++
	switch {
	case v.changed.lost || v.after > maxAfter:
		v.end(false)
	case len(left) == 0:
		v.end(!v.left)
	default:
		v.session.host.With(func(*replica.Replica) {
			for key := range left {
				v.changed.keys[key] = struct{}{}
			}
		})
	}
}

// end says that the pull is whole, or that the peer should come again.
func (v *serving) end(whole bool) {
	r := &v.session.result
	r.ServedAll, r.Withheld = whole, r.Withheld || !whole
	v.sender.end(whole)
	if v.push != nil {
		v.push.end(whole)
	}
}

// abort ends a push before its time.
func (v *serving) abort() {
	if v.begun {
		v.end(false)
		return
	}
	v.session.leaveServing()
	v.push.stream.sayBye()
}

func (v *serving) leave() {
	if v.begun {
		v.session.host.With(func(r *replica.Replica) { r.Unobserve(v) })
	}
}

// begin works out which parts of the log the peer lacks.
func (v *serving) begin(r *replica.Replica) {
	v.begun, v.sent = true, map[string]sentKey{}
	v.changed.keys = map[string]struct{}{}
	r.Observe(v)
	v.regions, v.tops = lackedBy(r, v.peer, v.skip, v.push != nil && v.push.own)
}

// lackedBy returns the parts of the log in which there may be something that a peer lacks, and up to where they go; own
// leaves out what others wrote.
func lackedBy(r *replica.Replica, peer causal.Vector, skip map[causal.Origin]causal.Spans, own bool) (regions []causal.Region, tops causal.Vector) {
	regions = []causal.Region{}
	lacks := func(o causal.Origin, from, top uint64) {
		if top >= from {
			regions = skip[o].Subtract(regions, causal.Region{Origin: o, Alias: r.Alias[o], From: from, To: top})
			tops = tops.Raise(causal.Dot{Origin: o, Seq: top})
		}
	}
	if own {
		lacks(r.Self, peer.Seq(r.Self)+1, r.Seq)
		return regions, tops
	}
	rest, cloud := peer, r.Cloud
	for _, w := range r.Known.Rows {
		var has, above uint64
		rest, has = rest.Seek(w.Origin)
		cloud, above = cloud.Seek(w.Origin)
		lacks(w.Origin, has+1, max(w.Seqs[causal.Covered], above))
	}
	for _, l := range r.Cloud {
		if _, ok := r.Known.Find(l.Origin); !ok {
			lacks(l.Origin, peer.Seq(l.Origin)+1, l.Seq)
		}
	}
	return regions, tops
}

// addChanged sends keys that changed meanwhile, and returns those that found no room.
func (v *serving) addChanged(st *replica.View, p *page, keys map[string]struct{}) (left map[string]struct{}, err error) {
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if p.full() {
			return keys, nil
		}
		delete(keys, key)
		s, err := store.ReadIndex(st, []byte(key), st)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(s, func(x store.Version) bool { return !v.peer.Contains(x.Dot) }) {
			if _, err := v.add(st, p, []byte(key), s); err != nil {
				return nil, err
			}
		}
	}
	return keys, nil
}

// readRegion reads of the first region what belongs together, at its end, and reports
// whether enough was sent of this state.
func (v *serving) readRegion(st *replica.View, p *page) (ended bool, err error) {
	g := &v.regions[0]
	room := max(p.session.params.PageSize, min(v.window, p.session.params.Window)) - p.sent - p.size()
	entries, all, err := v.readLog(st, *g, room)
	if err != nil {
		return false, err
	}
	readValues(st, entries, max(4*room, 1<<20))
	for i := range entries {
		e := &entries[i]
		apart, err := v.addEntry(st, p, e)
		if err != nil {
			return false, err
		}
		if apart { // its values are not sent, so no mark may cover it
			p.mark(g.Origin, e.Seq+1, g.To)
			g.To = e.Seq - 1
		}
		if e.Seq == g.From {
			break
		}
		// A batch of the writer is not torn, unless it is a large one.
		if p.full() && e.Offset == 0 || p.overfull() {
			p.mark(g.Origin, e.Seq, g.To)
			g.To = e.Seq - 1
			if v.enough(p) {
				return true, nil
			}
			p.next()
		}
	}
	if all {
		p.mark(g.Origin, g.From, g.To)
		v.regions = v.regions[1:]
		if !p.full() {
			return false, nil
		}
		if ended = v.enough(p); !ended {
			p.next()
		}
		return ended, nil
	}
	if last := entries[len(entries)-1].Seq; last <= g.To {
		p.mark(g.Origin, last, g.To)
		g.To = last - 1
	}
	return false, nil
}

// enough reports whether a state was read long enough, when a page is full.
func (v *serving) enough(p *page) bool {
	if n := p.sent + p.size(); p.versions > 0 {
		v.average = n / p.versions
	}
	return p.sent+p.size() >= min(v.window, p.session.params.Window)
}

// addEntry sends the key of a log entry, with all its versions, and reports whether
// values of it are still to be sent.
func (v *serving) addEntry(st *replica.View, p *page, e *replica.Logged) (apart bool, err error) {
	if !e.Inline && !st.MayHaveStale { // it is alone: the log has one entry for each version
		if err := readValue(st, e); err != nil {
			return false, err
		}
		x := e.Version
		if x.Large = v.tooLarge(e.Key, &x); x.Large > 0 {
			x.Value = nil
		}
		p.put(e.Key, []store.Version{x})
		e.Value = nil
		return false, nil
	}
	s, err := store.ReadIndex(st, e.Key, st)
	if err != nil {
		return false, err
	}
	if !s.Has(e.Dot) {
		return false, nil // a stale entry that a crash left (O4)
	}
	if len(s) > 1 {
		// Only what is still the same was sent: the page also says that all of this
		// part of the log was, and the key may have grown by a version that is in it.
		now := s.DotSum()
		if was, ok := v.sent[string(e.Key)]; ok && was.names == now {
			return was.apart, nil
		}
		defer func() { v.sent[string(e.Key)] = sentKey{now, apart} }()
	}
	return v.add(st, p, e.Key, s)
}
