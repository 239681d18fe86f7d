package session

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// sections answers a join: a pull of a replica that lacks much. First come the log entries in the order of the log,
// then the rows in the order of the keys (J1, J2), each page from a state of its own. A peer that turns out to lack
// little is served as any other.
//
// An entry is sent ahead if it is alone at its key. Of a key that has not changed since the first state, and has one
// version, which that state had and the peer lacks, the row may leave out what the entry said; any other
// is sent whole, as in a pull.
type sections struct {
	sender
	skip   map[causal.Origin]causal.Spans // what need not be sent of the log, as in a pull
	resume *replica.JoinPoint             // where the peer would go on; nil: nowhere, or not at this server

	begun   bool
	tops    causal.Vector   // up to where the first state has something
	lacked  []causal.Region // of the log, in order
	regions []causal.Region // those still to be read
	limit   []byte          // the last key of this round; nil: all are in it
	cursor  []byte          // the last key that was looked at,
	passed  bool            // if there is one
	changed changes
}

// changes are the keys that changed since the first state, as far as their rows are still to come.
type changes struct {
	noted   [][]byte            // since the last state; guarded by the replica's slot
	keys    map[string]struct{} // up to it
	dropped bool                // there were too many: any key may have changed
}

const (
	// joinAbove is how many writes a replica must lack, going by the version vectors, before it asks for a join.
	joinAbove = 1 << 14
	// joinShare is the part of the log, by its size, that a replica must lack before it is served one. To go through
	// all keys costs about as much as to look up the values of one in twenty.
	joinShare = 8

	// roundKeys bounds the keys of one round: the receiver keeps 8 bytes of each entry until its row has come.
	// More keys are sent in several rounds, for each of which the log is read.
	roundKeys    = 1 << 22
	carefulRound = 16 // times as few after a session that broke off

	rowLimit   = 32 << 10 // bytes of a value that a row may have: a larger one is sent as in a pull
	rowsPassed = 1 << 16  // keys that are looked at in one state, if few of them are sent
)

func newSections(s *Session, payload []byte) (*sections, error) {
	d, err := s.reading.open(payload)
	if err != nil {
		return nil, err
	}
	skip, err := readSkip(&d, &s.reading)
	if err != nil {
		return nil, err
	}
	v := &sections{sender: sender{session: s, peer: s.known.Vector(causal.Covered)}, skip: skip}
	switch d.Byte() {
	case 0:
	case 1:
		v.resume = &replica.JoinPoint{First: d.Vector(&s.reading), Purged: d.Vector(&s.reading), Cursor: d.Bytes(s.params.MaxKey)}
	default:
		d.Fail(store.ErrTrailing)
	}
	if err := d.End(); err != nil {
		return nil, replica.ProtocolErrorf("join: %v", err)
	}
	return v, nil
}

// Note takes in what a commit did to a key.
func (v *sections) Note(c *replica.Change) {
	if c.Same || v.changed.dropped {
		return
	}
	if len(v.changed.noted)+len(v.changed.keys) >= maxChanged {
		v.changed.dropped = true
		return
	}
	v.changed.noted = append(v.changed.noted, slices.Clone(c.Key))
}

// take takes over what was noted. It is called in the moment of a state.
func (c *changes) take(v *sections) {
	if c.dropped {
		c.noted, c.keys = nil, nil
		return
	}
	for _, key := range c.noted {
		if v.isPast(key) {
			continue
		}
		if c.keys == nil {
			c.keys = map[string]struct{}{}
		}
		c.keys[string(key)] = struct{}{}
	}
	c.noted = c.noted[:0]
}

// isPast reports whether a key was looked at already.
func (v *sections) isPast(key []byte) bool { return v.passed && bytes.Compare(key, v.cursor) <= 0 }

// since reports whether a key may have changed.
func (c *changes) since(key []byte) bool {
	if len(c.keys) == 0 || c.dropped {
		return c.dropped
	}
	_, ok := c.keys[string(key)]
	delete(c.keys, string(key)) // it is not looked at again
	return ok
}

func (v *sections) leave() {
	if v.begun {
		v.session.host.With(func(r *replica.Replica) { r.Unobserve(v) })
	}
}

func (v *sections) produce() error {
	if !v.begun {
		return v.begin()
	}
	st, err := v.session.view(func(*replica.Replica) { v.changed.take(v) })
	if err != nil {
		return err
	}
	defer st.Release()
	v.session.tell(&st)
	if len(v.regions) > 0 {
		return v.sendEntries(&st)
	}
	return v.sendRows(&st)
}

// begin decides whether the peer is served in sections, and says so.
func (v *sections) begin() error {
	s := v.session
	var regions []causal.Region
	var tops, covers, purged causal.Vector
	var sum causal.Sum
	var keys int64
	var sizes store.Store
	st, err := s.view(func(r *replica.Replica) {
		regions, tops = lackedBy(r, v.peer, v.skip, false)
		covers, purged, sum = r.Known.Vector(causal.Covered), r.Known.Vector(causal.Purged), r.Known.VectorSum
		keys, sizes = r.Keys+r.Tombstones, r.Store
		r.Observe(v)
	})
	if err != nil {
		return err
	}
	defer st.Release()
	v.begun = true
	lacks, err := share(sizes, regions, keys)
	if err != nil {
		return err
	}
	if lacks < 1./joinShare || writes(regions) < uint64(s.params.JoinAbove) {
		v.leave()
		v.begun = false
		s.serving = &serving{sender: v.sender, skip: v.skip, window: s.params.PageSize}
		return s.serving.produce()
	}
	if p := v.resume; p != nil {
		within := func(d causal.Dot) bool { return covers.Contains(d) || v.peer.Contains(d) }
		known := func(d causal.Dot) bool { return purged.Contains(d) || v.peer.Contains(d) }
		if slices.ContainsFunc(p.First, func(d causal.Dot) bool { return !within(d) }) || slices.ContainsFunc(p.Purged, func(d causal.Dot) bool { return !known(d) }) {
			v.resume = nil
		} else {
			v.cursor, v.passed = slices.Clone(p.Cursor), true
			s.result.Withheld = true // the peer covers less than this state when it has all
		}
	}
	s.told.vectorSum = sum
	v.lacked, v.tops = regions, tops
	slices.SortFunc(v.lacked, func(a, b causal.Region) int {
		return cmp.Or(a.Origin.Compare(b.Origin), cmp.Compare(a.From, b.From))
	})
	s.sendRows(st.Rows, st.Rev, st.Cloud, nil)
	how := sectionsAnew
	if v.resume != nil {
		how = sectionsResumed
	}
	return v.beginRound(how, &st, uint64(lacks*float64(keys)))
}

// beginRound begins with the entries of the next keys.
func (v *sections) beginRound(how byte, st *replica.View, expects uint64) (err error) {
	s := v.session
	if v.limit, err = v.findLimit(st); err != nil {
		return err
	}
	v.regions = slices.Clone(v.lacked)
	s.outbox.send(FrameSections, binary.AppendUvarint([]byte{how}, expects))
	return nil
}

// findLimit returns the last key of a round, nil if there is room for all keys that are left.
func (v *sections) findLimit(st *replica.View) (limit []byte, err error) {
	most := v.session.params.RoundKeys
	if v.session.careful { // where a connection breaks off, the entries of a round have to come again
		most = max(1, most/carefulRound)
	}
	if st.Keys < most {
		return nil, nil
	}
	index := st.NewIterator(store.KindRangeFrom(store.KindIndex, v.from()), &opt.ReadOptions{DontFillCache: true})
	defer index.Release()
	for n := int64(0); index.Next(); n++ {
		if n == most {
			limit = slices.Clone(store.UserKey(index.Key()))
			break
		}
	}
	return limit, index.Error()
}

// from is where the next row may be.
func (v *sections) from() []byte {
	if !v.passed {
		return nil
	}
	return append(slices.Clone(v.cursor), 0)
}

// share returns the part of the log that some regions make up, by its size; or going by their
// length, if the store does not know: what is in memory only it does not count.
func share(st store.Store, regions []causal.Region, keys int64) (float64, error) {
	if z, ok := st.(store.Sizer); ok {
		ranges := []util.Range{*store.KindRange(store.KindLog)}
		for _, g := range regions[:min(len(regions), 1<<10)] {
			ranges = append(ranges, *store.LogRange(g.Alias, g.From, g.To))
		}
		sizes, err := z.SizeOf(ranges)
		if err != nil {
			return 0, err
		}
		if sizes[0] > 0 {
			return min(1, float64(sizes[1:].Sum())/float64(sizes[0])), nil
		}
	}
	return min(1, float64(writes(regions))/float64(max(keys, 1))), nil
}

// What a frame of sections says.
const (
	sectionsAnew     byte = iota // a join begins,
	sectionsResumed              // or goes on where it broke off,
	sectionsContinue             // or goes on with the next keys
)

// writes returns how many writes regions have at most.
func writes(regions []causal.Region) (n uint64) {
	for _, g := range regions {
		n += g.To - g.From + 1
	}
	return n
}

// sendEntries sends log entries of one state, about a page of them.
func (v *sections) sendEntries(st *replica.View) error {
	s := v.session
	var out entrySection
	for len(v.regions) > 0 && !out.full(s.params.PageSize) {
		g := &v.regions[0]
		whole, err := v.readEntries(st, g, &out)
		if err != nil {
			return err
		}
		if whole {
			v.regions = v.regions[1:]
		}
	}
	if out.n > 0 {
		s.outbox.send(FrameEntries, s.sending.Frame(func(b []byte) []byte { return append(b, out.body...) }))
	}
	return nil
}

// readEntries adds entries of a region, and reports whether these were the last.
func (v *sections) readEntries(st *replica.View, g *causal.Region, out *entrySection) (whole bool, err error) {
	s := v.session
	it := st.NewIterator(store.LogRange(g.Alias, g.From, g.To), &opt.ReadOptions{DontFillCache: true})
	defer it.Release()
	for it.Next() {
		e, err := store.DecodeEntry(it.Key(), it.Value(), st)
		if err != nil {
			return false, err
		}
		if out.full(s.params.PageSize) {
			return false, it.Error()
		}
		g.From = e.Seq + 1
		if e.Inline || uint64(len(e.Key)) > s.theirs.maxKey || v.isPast(e.Key) || v.isBeyond(e.Key) {
			continue
		}
		out.add(&e, &s.sending)
	}
	return true, it.Error()
}

// sendRows sends rows of one state, about a page of them, or ends the answer after the last.
func (v *sections) sendRows(st *replica.View) error {
	from := v.from()
	fast := &opt.ReadOptions{DontFillCache: true}
	index := st.NewIterator(store.KindRangeFrom(store.KindIndex, from), fast)
	defer index.Release()
	values := st.NewIterator(store.Visible(&util.Range{Start: from}), fast)
	defer values.Release()
	w := rowWriter{v: v, page: page{session: v.session}}
	n := 0
	for ; index.Next() && !w.full(); n++ {
		if n == rowsPassed || v.isBeyond(store.UserKey(index.Key())) {
			break
		}
		if err := w.add(st, store.UserKey(index.Key()), index.Value(), values); err != nil {
			return err
		}
	}
	if err := index.Error(); err != nil {
		return err
	}
	w.flush()
	s := v.session
	s.result.Served += w.rows + w.page.versions
	switch {
	case !index.Valid():
		s.result.ServedAll, s.result.Withheld = !v.left, s.result.Withheld || v.left
		v.end(!v.left)
	case v.isBeyond(store.UserKey(index.Key())):
		return v.beginRound(sectionsContinue, st, 0)
	}
	return nil
}

// isBeyond reports whether a key is left to a later round.
func (v *sections) isBeyond(key []byte) bool {
	return v.limit != nil && bytes.Compare(key, v.limit) > 0
}

// rowWriter puts keys into frames of rows, and those that are sent whole into pages.
type rowWriter struct {
	v    *sections
	out  rowSection
	page page
	rows int // in frames that are done

	versions store.Slab[store.Version]
	dots     store.Slab[causal.Dot]
}

func (w *rowWriter) sent() int { return w.page.sent + w.page.size() + w.out.size() }

func (w *rowWriter) full() bool {
	return w.sent() >= w.v.session.params.PageSize || w.out.n+w.page.named >= maxVersions/4
}

// add sends a key, unless the peer has all of it.
func (w *rowWriter) add(st *replica.View, key, record []byte, values iterator.Iterator) error {
	v := w.v
	w.versions.Reset()
	w.dots.Reset()
	s, err := store.DecodeIndexInto(record, st, &w.versions, &w.dots)
	if err != nil {
		return store.Corrupted(key, "its log-index cannot be read: %v", err)
	}
	v.cursor, v.passed = append(v.cursor[:0], key...), true
	changed := v.changed.since(key)
	if !slices.ContainsFunc(s, func(x store.Version) bool { return v.lacks(x.Dot) }) {
		return nil
	}
	if x := &s[0]; len(s) == 1 && !changed && v.tops.Contains(x.Dot) && uint64(len(key)) <= v.session.theirs.maxKey {
		ok, err := readRow(key, x, values)
		if err != nil {
			return err
		}
		if ok && v.tooLarge(key, x) == 0 {
			w.page.next()
			w.out.add(key, x, &v.session.sending)
			return nil
		}
	}
	w.flushRows()
	s, err = store.DecodeIndex(record, st)
	if err != nil {
		return err
	}
	_, err = v.sender.add(st, &w.page, slices.Clone(key), s)
	return err
}

// lacks reports whether the peer lacks a version.
func (v *sections) lacks(d causal.Dot) bool {
	return !v.peer.Contains(d) && !causal.SpanMap(v.skip).Has(d)
}

// readRow reads the value of a version that is alone, and reports whether a row may have it.
func readRow(key []byte, x *store.Version, values iterator.Iterator) (bool, error) {
	if x.Deleted {
		return true, nil
	}
	if !store.SeekNear(values, key) || !bytes.Equal(values.Key(), key) {
		if err := values.Error(); err != nil {
			return false, err
		}
		return false, store.Corrupted(key, "its value is missing")
	}
	x.Value = values.Value()
	return len(x.Value) <= rowLimit, nil
}

func (w *rowWriter) flushRows() {
	if w.out.n == 0 {
		return
	}
	n := &w.v.session.sending
	w.v.session.outbox.send(FrameRows, n.Frame(func(b []byte) []byte { return append(b, w.out.body...) }))
	w.rows += w.out.n
	w.page.sent += w.out.size()
	w.out = rowSection{}
}

func (w *rowWriter) flush() {
	w.flushRows()
	w.page.flush()
}
