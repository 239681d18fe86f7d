package replicator

import (
	"bytes"
	"errors"
	"slices"
	"time"

	"github.com/syndtr/goleveldb/leveldb/util"
)

// settlement is what a look at the tombstones goes by.
type settlement struct {
	now    time.Time
	ttl    time.Duration
	disk   vector // the checkpoint here
	stable vector // on disk at every member, and all that they knew then is known here; nil if that cannot be said
	proofs bool   // what vvs leave out is within the checkpoint, as what they name must be
}

func (r *replica) settlement() settlement {
	s := settlement{now: r.now(), ttl: r.tombstoneTTL, disk: r.known.vector(durable), stable: r.stable(), proofs: r.known.within(pruned, &r.known, durable)}
	if slices.ContainsFunc(r.counted(), r.unclear) {
		s.stable = nil
	}
	return s
}

// unclear reports whether nothing can be said of what a member may still come up
// with. What it wrote before it knew of a deletion may still be on its way, unless
// all that it has on disk is claimed here.
func (r *replica) unclear(m *member) bool {
	return m.rev == 0 || !m.known.within(durable, &r.known, claimed)
}

// blockers are the members that hold back the forgetting of deletions, and notes
// since when: those that are unclear, and those that have not reported to have on
// disk what the deletions need that are held since the last look.
func (r *replica) blockers() []*member {
	if len(r.left.seen) == 0 {
		return nil
	}
	now := r.now()
	var ms []*member
	for _, m := range r.counted() {
		lacks := func(d dot) bool { return d.seq > m.known.at(durable, d.origin) }
		if !r.unclear(m) && !slices.ContainsFunc(r.left.seen, lacks) {
			m.holding = time.Time{}
			continue
		}
		if m.holding.IsZero() {
			m.holding = now
			if m.rev == 0 { // not heard since the opening
				m.holding = m.seen
			}
		}
		ms = append(ms, m)
	}
	return ms
}

// settled reports whether nothing that its writer did not see can still turn up
// against a version; aged, that only its age says so. If it is not settled, lacks is
// a dot that has to be stable before it is, unless it gets old.
func (s *settlement) settled(v *version) (settled, aged bool, lacks dot) {
	onDisk, stable := true, true
	need := func(d dot) {
		onDisk = onDisk && s.disk.has(d)
		if stable && !s.stable.has(d) {
			stable, lacks = false, d
		}
	}
	need(v.dot)
	for _, d := range v.vv {
		need(d)
	}
	if !s.proofs {
		return false, false, lacks
	}
	if !onDisk {
		return false, false, lacks
	}
	old := s.old(v.stamp)
	return stable || old, !stable, lacks
}

func (s *settlement) old(t stamp) bool {
	return s.ttl >= 0 && t > 0 && s.now.Sub(t.time()) >= s.ttl
}

// remaining sums up tombstones that are held: what has to change before the first of
// them can be forgotten.
type remaining struct {
	looked time.Time         // when they were all looked at; zero: not yet
	lacked map[Origin]uint64 // of each tombstone one dot that has to be stable; of those the least of each origin
	seen   vector            // all that they have seen, and they
	oldest stamp             // 0: there is none
}

func (m *remaining) keep(v *version, lacks dot) {
	if m.lacked == nil {
		m.lacked = map[Origin]uint64{}
	}
	if n, ok := m.lacked[lacks.origin]; !ok || lacks.seq < n {
		m.lacked[lacks.origin] = lacks.seq
	}
	m.seen = m.seen.join(v.vv).raise(v.dot)
	if m.oldest == 0 || v.stamp < m.oldest {
		m.oldest = v.stamp
	}
}

// add takes in others.
func (m *remaining) add(o *remaining) {
	if m.lacked == nil {
		m.lacked = map[Origin]uint64{}
	}
	for origin, seq := range o.lacked {
		if n, ok := m.lacked[origin]; !ok || seq < n {
			m.lacked[origin] = seq
		}
	}
	m.seen = m.seen.join(o.seen)
	if o.oldest != 0 && (m.oldest == 0 || o.oldest < m.oldest) {
		m.oldest = o.oldest
	}
}

// buried notes the tombstones that a commit brought. Each is at least to be stable
// itself.
func (r *replica) buried(c *change) {
	if c.versions.buried() {
		for i := range c.versions {
			r.fresh.keep(&c.versions[i], c.versions[i].dot)
		}
	}
}

// agedLooks is how many looks the age of tombstones alone is a reason for, in the time
// that makes them old: many get old one after another.
const agedLooks = 64

// purgeDue reports whether a look at the tombstones can find one that may be forgotten:
// only if something that one of them lacked at the last look is stable now, or one
// has become old since.
func (r *replica) purgeDue() bool {
	r.left.add(&r.fresh)
	r.fresh = remaining{}
	if r.tombstones == 0 {
		r.left = remaining{looked: r.left.looked}
		return false
	}
	s := r.settlement()
	switch {
	case !s.proofs:
		return false
	case r.left.looked.IsZero():
		return true
	}
	for o, seq := range r.left.lacked {
		if s.stable.has(dot{o, seq}) {
			return true
		}
	}
	return s.old(r.left.oldest) && s.now.Sub(r.left.looked) >= r.tombstoneTTL/agedLooks
}

// purging is one look at all tombstones. They are read in states of the database, with
// the queue free, and those that may be forgotten are looked up again to be.
type purging struct {
	s     settlement
	step  int       // tombstones that are looked at in one state
	from  []byte    // the key to go on at
	done  bool      // all were looked at
	left  remaining // of those that were
	proof vector    // what those that were found have seen, and they
	found map[string]foundTombstone
}

// foundTombstone is a key that may be forgotten if it still is what it was.
type foundTombstone struct {
	names sum
	aged  bool // it is not stable, but old
}

func (r *replica) beginPurge() *purging {
	p := &purging{s: r.settlement(), step: purgeStep}
	r.fresh = remaining{}
	return p
}

// end takes over what a whole look has left.
func (p *purging) end(r *replica) {
	p.left.looked = p.s.now
	r.left = p.left
	r.blockers() // notes since when
}

// purgeStep is how many tombstones are looked at in one state of the database, so that
// none is held for long.
const purgeStep = 4096

// next looks at some more tombstones, and has those forgotten that may be.
func (p *purging) next(h keeper) error {
	v, err := look(h)
	if err != nil {
		return err
	}
	keys, err := p.find(&v)
	v.Release()
	if err == nil && len(keys) > 0 {
		err = h.each(keys, p.stage)
	}
	switch {
	case err != nil: // what was fresh when it began has to be looked at
		h.at(func(r *replica) { r.left.looked = time.Time{} })
	case p.done:
		h.at(p.end)
	}
	return err
}

// find goes through the tombstones from a key on.
func (p *purging) find(v *view) (keys [][]byte, err error) {
	marks := v.NewIterator(&util.Range{Start: kindKey(kindTombstone, p.from), Limit: kindRange(kindTombstone).Limit}, nil)
	defer marks.Release()
	index := v.NewIterator(&util.Range{Start: kindKey(kindIndex, p.from), Limit: kindRange(kindIndex).Limit}, nil)
	defer index.Release()
	p.proof, p.found = nil, map[string]foundTombstone{}
	for n := 0; marks.Next(); n++ {
		key := marks.Key()[3:]
		if n >= p.step {
			p.from = slices.Clone(key)
			return keys, marks.Error()
		}
		var s state
		if seekNear(index, kindKey(kindIndex, key)) && bytes.Equal(index.Key()[3:], key) {
			if s, err = decodeIndex(index.Value(), v); err != nil {
				continue // Verify names it
			}
		}
		if err := index.Error(); err != nil {
			return nil, err
		}
		forget, err := p.judge(v, key, s)
		if err != nil {
			return nil, err
		}
		if forget {
			keys = append(keys, slices.Clone(key))
		}
	}
	p.done = true
	return keys, marks.Error()
}

// judge reports whether a key is to be forgotten, as far as can be seen, or its mark.
func (p *purging) judge(v *view, key []byte, s state) (forget bool, err error) {
	if !s.buried() {
		return true, nil // a mark that was left behind
	}
	f := foundTombstone{names: s.names()}
	settled := true
	for i := range s {
		x := &s[i]
		if ok, _, _ := p.s.settled(x); !ok && p.s.ttl >= 0 { // its age may matter, which only the log has
			e, err := readEntry(v, key, x, v)
			switch {
			case errors.Is(err, ErrDamaged): // it can only become stable
			case err != nil:
				return false, err
			default:
				x.stamp = max(e.stamp, 1)
			}
		}
		ok, aged, lacks := p.s.settled(x)
		if !ok {
			settled = false
			p.left.keep(x, lacks)
		}
		f.aged = f.aged || aged
	}
	if !settled {
		return false, nil
	}
	for i := range s {
		p.proof = p.proof.join(s[i].vv).raise(s[i].dot)
	}
	p.found[string(key)] = f
	return true, nil
}

// stage has keys forgotten that were found. The proof of all that were found comes with
// the first of them and is committed with Sync, unless it is on disk: none of them
// is without it, and further ones need not wait for the disk.
func (p *purging) stage(t *txn, keys [][]byte) (done int, err error) {
	s := t.r.settlement()
	for _, d := range p.proof {
		t.rely(purged, d)
	}
	if len(p.proof) > 0 {
		for _, d := range t.r.known.vector(pruned) {
			t.rely(purged, d)
		}
	}
	return oneByOne(func(t *txn, key []byte) error { return p.forget(t, &s, key) })(t, keys)
}

// forget forgets a key that holds tombstones only, if they still are what they were.
// A key in conflict stays as it is until somebody writes it: a tombstone may not be
// taken from beside a value, whether that is shown or not, for then nobody would ever
// be told that somebody deleted it.
func (p *purging) forget(t *txn, s *settlement, key []byte) error {
	old, k, err := t.lookup(key)
	if err != nil {
		return err
	}
	if !old.buried() { // left behind by a crash, or by a release that marked keys in conflict
		t.batch.Delete(kindKey(kindTombstone, key))
		return nil
	}
	f, ok := p.found[string(key)]
	if !ok || f.names != old.names() {
		return nil // it was written since: it is among the fresh ones
	}
	for i := range old {
		if ok, _, lacks := s.settled(&old[i]); !ok && !f.aged { // somebody became a member since
			t.r.fresh.keep(&old[i], lacks)
			return nil
		}
	}
	return t.replaceQuietly(key, old, k, nil)
}
