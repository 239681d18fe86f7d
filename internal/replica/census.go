package replica

import (
	"cmp"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/indexcache"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// census counts what the store holds, after an opening that found no mark of a clean close: the
// Counters of the replica; and the dots that log-indexes name and those that the log has, which differ if a crash
// left stale entries. It goes through the records in the order of their keys, one stretch in one state of
// the database after another, while writes go on.
//
// Invariant: the records below the cursor are counted as they are now, those from it on are not. A change below
// it counts at once; one above it is met by the cursor (O10).
type census struct {
	cursor []byte // a record key
	dots   dotSums

	// While a stretch is read in a state taken before, it is not known yet how far it goes. What changes
	// meanwhile from the cursor on is kept, and counts if it turns out to lie in the stretch.
	reading  bool
	meantime []recordChange
	flooded  bool // too much changed: the stretch is read once more
	step     int  // records of the next: fewer after that
}

// dotSums are the sums of the dots that log-indexes name, and of those in the log. They are equal
// unless there are stale entries (O4).
type dotSums struct{ named, logged causal.Sum }

// recordChange is what the change of one record does to the counts.
type recordChange struct {
	record []byte // its key
	store.Counters
	dotSums
}

const (
	censusStep  = 4096    // records that are read in one state,
	censusLeast = 64      // and while much is written
	maxMeantime = 1 << 14 // changes that are kept while they are
)

// censusKinds are the records that count, in order.
var censusKinds = [...]byte{store.KindIndex, store.KindLog, store.KindConflict}

// beginCensus has the store counted from the beginning. Until that is known, nothing is: the log may
// have stale entries.
func (r *Replica) beginCensus() {
	r.census, r.Counters, r.MayHaveStale = &census{cursor: store.KindRange(censusKinds[0]).Start, step: censusStep}, store.Counters{}, true
}

// Counting reports whether it is still to be counted what the store holds. Counters are of a part of it then, the
// records below a key.
func (r *Replica) Counting() (below []byte, counting bool) {
	if r.census == nil {
		return nil, false
	}
	return r.census.cursor, true
}

func (c *recordChange) add(d *recordChange) {
	c.Counters.Add(d.Counters)
	c.dotSums.add(d.dotSums)
}

func (s *dotSums) add(o dotSums) { s.named, s.logged = s.named.Add(o.named), s.logged.Add(o.logged) }

// count takes in what a transaction changes.
func (c *census) count(r *Replica, t *Txn) {
	for i := range t.Changes {
		t.Changes[i].records(r, func(d *recordChange) { c.change(r, d) })
	}
	for _, key := range t.unhinted {
		c.change(r, &recordChange{record: store.KindKey(store.KindConflict, key), Counters: store.Counters{Conflicts: -1}})
	}
}

// change takes in that of one record.
func (c *census) change(r *Replica, d *recordChange) {
	switch {
	case string(d.record) < string(c.cursor):
		r.Counters.Add(d.Counters)
		c.dots.add(d.dotSums)
	case !c.reading || c.flooded:
	case len(c.meantime) >= maxMeantime:
		c.flooded, c.meantime = true, nil
	default:
		c.meantime = append(c.meantime, *d)
	}
}

// records calls f for each record that a change is about and that counts.
func (c *Change) records(r *Replica, f func(d *recordChange)) {
	d := recordChange{record: store.KindKey(store.KindIndex, c.Key)}
	d.Count(c.Old, -1)
	d.Count(c.Versions, +1)
	d.named = c.Versions.DotSum().Sub(c.Old.DotSum())
	f(&d)
	logged := func(x causal.Dot) *recordChange {
		return &recordChange{record: store.AppendLogKey(nil, r.Alias[x.Origin], x.Seq)}
	}
	for i := range c.Old {
		if x := c.Old[i].Dot; !c.Versions.Has(x) {
			d := logged(x)
			d.logged = causal.Sum{}.Sub(x.Hash())
			f(d)
		}
	}
	for i := range c.Versions {
		if x := c.Versions[i].Dot; !c.Old.Has(x) {
			d := logged(x)
			d.logged = x.Hash()
			f(d)
		}
	}
	if c.Conflict != c.WasConflict {
		f(&recordChange{record: store.KindKey(store.KindConflict, c.Key), Counters: store.Counters{Conflicts: store.Btoi(c.Conflict) - store.Btoi(c.WasConflict)}})
	}
}

// stretch is what was read of one state.
type stretch struct {
	next []byte // the first record that was not read; nil: there is none
	recordChange
	keys       []byte // that have a log-index, one after the other,
	ends       []int  // and where each ends
	unreadable int64  // records
}

// read reads so many records that count, from a record key on.
func (v *View) read(from []byte, limit int) (s stretch, err error) {
	for kind := slices.Index(censusKinds[:], from[len(store.ReservedStart)]); ; {
		if err := v.readKind(censusKinds[kind], from, &limit, &s); err != nil || s.next != nil {
			return s, err
		}
		if kind++; kind == len(censusKinds) {
			return s, nil
		}
		from = store.KindRange(censusKinds[kind]).Start
	}
}

// readKind reads records of one kind, until there are no more or limit is used up.
func (v *View) readKind(kind byte, from []byte, limit *int, s *stretch) error {
	it := v.NewIterator(&util.Range{Start: from, Limit: store.KindRange(kind).Limit}, &opt.ReadOptions{DontFillCache: true})
	defer it.Release()
	for ; it.Next(); *limit-- {
		if *limit == 0 {
			s.next = slices.Clone(it.Key())
			return it.Error()
		}
		switch kind {
		case store.KindIndex:
			s.readIndex(store.UserKey(it.Key()), it.Value(), v)
		case store.KindLog:
			s.readLog(it.Key(), v)
		case store.KindConflict:
			s.Conflicts++
		}
	}
	return it.Error()
}

func (s *stretch) readLog(logKey []byte, v *View) {
	d, err := store.LogDot(logKey, v)
	if err != nil {
		s.unreadable++
		return
	}
	s.logged = s.logged.Add(d.Hash())
}

// readIndex counts a key. What a log-index that cannot be read names is not counted, so the digest differs from that of
// the peers until it is repaired.
func (s *stretch) readIndex(key, record []byte, v *View) {
	s.keys = append(s.keys, key...)
	s.ends = append(s.ends, len(s.keys))
	siblings, err := store.DecodeIndex(record, v)
	if err != nil {
		s.unreadable++
		return
	}
	s.Count(siblings, +1)
	s.named = s.named.Add(siblings.DotSum())
}

// countOn reads the next stretch, of so many records, or of as many as is good if limit is 0. What it finds is taken in as
// if it had been read now: with what has changed since.
func countOn(h keeper, limit int) error {
	var from []byte
	v, err := TakeView(h.With, func(r *Replica) {
		if c := r.census; c != nil {
			from, c.reading, c.meantime, c.flooded = c.cursor, true, c.meantime[:0], false
			limit = cmp.Or(limit, c.step)
		}
	})
	if err != nil {
		return err
	}
	if from == nil {
		v.Release()
		return nil
	}
	s, err := v.read(from, limit)
	v.Release()
	h.With(func(r *Replica) {
		if c := r.census; c != nil {
			c.reading = false
			if err == nil && !c.flooded {
				c.step = min(2*c.step, censusStep)
				c.take(r, &s)
			} else {
				c.step = max(c.step/4, censusLeast)
			}
		}
	})
	return err
}

// take moves the cursor to the end of a stretch.
func (c *census) take(r *Replica, s *stretch) {
	for i := range c.meantime {
		if d := &c.meantime[i]; s.next == nil || string(d.record) < string(s.next) {
			s.add(d)
		}
	}
	c.meantime = store.Emptied(c.meantime)
	r.Counters.Add(s.Counters)
	c.dots.add(s.dotSums)
	r.Unreadable += s.unreadable
	from := 0
	for _, end := range s.ends {
		r.Filter.Add(s.keys[from:end])
		from = end
	}
	if !r.Filter.Worth(r.Keys + r.Tombstones) {
		r.Filter = indexcache.Filter{}
	}
	indexed := s.next == nil || s.next[len(store.ReservedStart)] != store.KindIndex
	r.Filter.Whole = r.Filter.Limit >= indexcache.BlockBytes && indexed
	if c.cursor = s.next; s.next == nil {
		c.end(r)
	}
}

// end makes the counts those of the replica.
func (c *census) end(r *Replica) {
	r.census, r.MayHaveStale = nil, c.dots.named != c.dots.logged
	if r.rewound != nil {
		found := r.Counters
		r.rewound.found = &found
	}
}
