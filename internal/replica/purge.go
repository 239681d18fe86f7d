package replica

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
)

// tombstones sums up those that are held.
type tombstones struct {
	left  remaining // at the last look
	fresh remaining // those that came since
}

// stability is what a look at the tombstones goes by.
type stability struct {
	now             time.Time
	ttl             time.Duration
	disk            causal.Vector // the checkpoint here
	stable          causal.Vector // on disk at every member, and all that they knew then is known here; nil if that cannot be said
	contextsDurable bool          // what contexts leave out is within the checkpoint, as what they name must be
}

// remaining sums up tombstones that are held: what has to change before the first of
// them can be purged (G5).
type remaining struct {
	looked time.Time                // when they were all looked at; zero: not yet
	lacked map[causal.Origin]uint64 // of each tombstone one dot that has to be stable; of those the least of each origin
	seen   causal.Vector            // all that they have seen, and they
	oldest causal.Stamp             // 0: there is none
}

// agedLooks is how many looks the age of tombstones alone is a reason for, in the time
// that makes them old: many get old one after another.
const agedLooks = 64

// Purging is one look at all tombstones. They are read in states of the database, with
// the queue free, and those that may be purged are looked up again then.
type Purging struct {
	s         stability
	Step      int           // tombstones that are looked at in one state; 0: as many as is usual
	from      []byte        // the key to go on at
	Done      bool          // all were looked at
	left      remaining     // of those that were
	watermark causal.Vector // to be purged up to: those that were found, and what they have seen
	found     map[string]foundTombstone
}

// foundTombstone is a key that may be purged if it still is what it was.
type foundTombstone struct {
	names causal.Sum
	aged  bool // it is not stable, but old
}

// purgeStep is how many tombstones are looked at in one state of the database, so that
// none is held for long.
const purgeStep = 4096

func (r *Replica) stability() stability {
	s := stability{now: r.Now(), ttl: r.TombstoneTTL, disk: r.Known.Vector(causal.Durable), stable: r.stableVector(), contextsDurable: r.contextsDurable()}
	if slices.ContainsFunc(r.ActiveMembers(), r.unclear) {
		s.stable = nil
	}
	return s
}

// contextsDurable reports whether what contexts leave out is on disk as far as it is covered.
func (r *Replica) contextsDurable() bool {
	return !slices.ContainsFunc(r.Known.Rows, func(w causal.Row) bool {
		return min(w.Seqs[causal.Pruned], w.Seqs[causal.Covered]) > w.Seqs[causal.Durable]
	})
}

// causallyStable reports whether no version concurrent with this one can still arrive;
// aged, that only its age says so. If it is not stable, lacks is
// a dot that has to be stable before it is, unless it gets old.
func (s *stability) causallyStable(v *store.Version) (ok, aged bool, lacks causal.Dot) {
	onDisk, stable := true, true
	need := func(d causal.Dot) {
		onDisk = onDisk && s.disk.Contains(d)
		if stable && !s.stable.Contains(d) {
			stable, lacks = false, d
		}
	}
	need(v.Dot)
	for _, d := range v.Context {
		need(d)
	}
	if !s.contextsDurable {
		return false, false, lacks
	}
	if !onDisk {
		return false, false, lacks
	}
	old := s.old(v.Stamp)
	return stable || old, !stable, lacks
}

func (s *stability) old(t causal.Stamp) bool {
	return s.ttl >= 0 && t > 0 && s.now.Sub(t.Time()) >= s.ttl
}

func (m *remaining) keep(v *store.Version, lacks causal.Dot) {
	if m.lacked == nil {
		m.lacked = map[causal.Origin]uint64{}
	}
	if n, ok := m.lacked[lacks.Origin]; !ok || lacks.Seq < n {
		m.lacked[lacks.Origin] = lacks.Seq
	}
	m.seen = m.seen.Join(v.Context).Raise(v.Dot)
	if m.oldest == 0 || v.Stamp < m.oldest {
		m.oldest = v.Stamp
	}
}

// add takes in others.
func (m *remaining) add(o *remaining) {
	if m.lacked == nil {
		m.lacked = map[causal.Origin]uint64{}
	}
	for origin, seq := range o.lacked {
		if n, ok := m.lacked[origin]; !ok || seq < n {
			m.lacked[origin] = seq
		}
	}
	m.seen = m.seen.Join(o.seen)
	if o.oldest != 0 && (m.oldest == 0 || o.oldest < m.oldest) {
		m.oldest = o.oldest
	}
}

// buried notes the tombstones that a commit brought. Each is at least to be stable
// itself.
func (r *Replica) buried(c *Change) {
	if c.Versions.HasTombstone() {
		for i := range c.Versions {
			r.fresh.keep(&c.Versions[i], c.Versions[i].Dot)
		}
	}
}

// PurgeDue reports whether a look at the tombstones can find one that may be purged (G5):
// only if something that one of them lacked at the last look is stable now, or one
// has become old since.
func (r *Replica) PurgeDue() bool {
	if r.census != nil { // nobody knows whether there is one
		return false
	}
	r.left.add(&r.fresh)
	r.fresh = remaining{}
	if r.Tombstones == 0 {
		r.left = remaining{looked: r.left.looked}
		return false
	}
	s := r.stability()
	switch {
	case !s.contextsDurable:
		return false
	case r.left.looked.IsZero():
		return true
	}
	for o, seq := range r.left.lacked {
		if s.stable.Contains(causal.Dot{Origin: o, Seq: seq}) {
			return true
		}
	}
	return s.old(r.left.oldest) && s.now.Sub(r.left.looked) >= r.TombstoneTTL/agedLooks
}

func (r *Replica) BeginPurge() *Purging {
	p := &Purging{s: r.stability()}
	r.fresh = remaining{}
	return p
}

// end takes over what a whole look has left.
func (p *Purging) end(r *Replica) {
	p.left.looked = p.s.now
	r.left = p.left
	r.Blockers() // notes since when
}

// Next looks at some more tombstones, and purges those that may go.
func (p *Purging) Next(h keeper) error {
	v, err := TakeView(h.With, nil)
	if err != nil {
		return err
	}
	keys, err := p.find(v)
	v.Release()
	if err == nil && len(keys) > 0 {
		err = h.Each(keys, p.stage)
	}
	switch {
	case err != nil: // what was fresh when it began has to be looked at
		h.With(func(r *Replica) { r.left.looked = time.Time{} })
	case p.Done:
		h.With(p.end)
	}
	return err
}

// find goes through the tombstones from a key on.
func (p *Purging) find(v *View) (keys [][]byte, err error) {
	marks := v.NewIterator(store.KindRangeFrom(store.KindTombstone, p.from), nil)
	defer marks.Release()
	index := v.NewIterator(store.KindRangeFrom(store.KindIndex, p.from), nil)
	defer index.Release()
	p.watermark, p.found = nil, map[string]foundTombstone{}
	for n := 0; marks.Next(); n++ {
		key := store.UserKey(marks.Key())
		if n >= cmp.Or(p.Step, purgeStep) {
			p.from = slices.Clone(key)
			return keys, marks.Error()
		}
		var s store.Siblings
		record, ok, err := store.SeekIndex(index, key)
		if err != nil {
			return nil, err
		}
		if ok {
			if s, err = store.DecodeIndex(record, v); err != nil {
				continue // Verify names it
			}
		}
		forget, err := p.judge(v, key, s)
		if err != nil {
			return nil, err
		}
		if forget {
			keys = append(keys, slices.Clone(key))
		}
	}
	p.Done = true
	return keys, marks.Error()
}

// judge reports whether a key can be purged, as far as can be seen, or its mark.
func (p *Purging) judge(v *View, key []byte, s store.Siblings) (forget bool, err error) {
	if !s.HasTombstone() {
		return true, nil // a mark that was left behind
	}
	f := foundTombstone{names: s.DotSum()}
	stable := true
	for i := range s {
		x := &s[i]
		if ok, _, _ := p.s.causallyStable(x); !ok && p.s.ttl >= 0 { // its age may matter, which only the log has
			e, err := store.ReadEntry(v, key, x, v)
			switch {
			case errors.Is(err, store.ErrCorrupted): // it can only become stable
			case err != nil:
				return false, err
			default:
				x.Stamp = max(e.Stamp, 1)
			}
		}
		ok, aged, lacks := p.s.causallyStable(x)
		if !ok {
			stable = false
			p.left.keep(x, lacks)
		}
		f.aged = f.aged || aged
	}
	if !stable {
		return false, nil
	}
	for i := range s {
		p.watermark = p.watermark.Join(s[i].Context).Raise(s[i].Dot)
	}
	p.found[string(key)] = f
	return true, nil
}

// stage purges keys that were found. The purged watermark of all that were found comes with
// the first of them and is committed with Sync, unless it is on disk: none of them
// is without it, and further ones need not wait for the disk.
func (p *Purging) stage(t *Txn, keys [][]byte) (done int, err error) {
	s := t.R.stability()
	for _, d := range p.watermark {
		t.RequireDurable(causal.Purged, d)
	}
	if len(p.watermark) > 0 {
		for _, d := range t.R.Known.Vector(causal.Pruned) {
			d.Seq = min(d.Seq, t.R.Known.Seq(causal.Covered, d.Origin))
			t.RequireDurable(causal.Purged, d)
		}
	}
	return OneByOne(func(t *Txn, key []byte) error { return p.forget(t, &s, key) })(t, keys)
}

// forget purges a key that holds tombstones only, if they still are what they were (G1).
// G2: a key in conflict stays as it is until somebody writes it: a tombstone may not be
// taken from beside a value, whether that is the winner or not, for then nobody would ever
// be told that somebody deleted it.
func (p *Purging) forget(t *Txn, s *stability, key []byte) error {
	old, k, err := t.Lookup(key)
	if err != nil {
		return err
	}
	if !old.HasTombstone() { // left behind by a crash, or by a release that marked keys in conflict
		t.Batch.Delete(store.KindKey(store.KindTombstone, key))
		return nil
	}
	f, ok := p.found[string(key)]
	if !ok || f.names != old.DotSum() {
		return nil // it was written since: it is among the fresh ones
	}
	for i := range old {
		if ok, _, lacks := s.causallyStable(&old[i]); !ok && !f.aged { // somebody became a member since
			t.R.fresh.keep(&old[i], lacks)
			return nil
		}
	}
	return t.replaceQuietly(key, old, k, nil)
}
