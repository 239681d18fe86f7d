package replicator

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/syndtr/goleveldb/leveldb"
)

// pendingPull is what an unfinished pull already brought, so that it need not be
// sent again.
type pendingPull struct {
	done  spanMap // all live entries in these were merged
	reach vector  // but only at a peer that claims all of this may they be skipped
}

// spanMap are parts of the logs of some origins.
type spanMap map[Origin]spans

func (m spanMap) has(d dot) bool {
	ss := m[d.origin]
	i, _ := slices.BinarySearchFunc(ss, d.seq, func(s span, n uint64) int { return cmp.Compare(s.to, n) })
	return i < len(ss) && ss[i].from <= d.seq
}

func (m spanMap) clone() spanMap {
	c := make(spanMap, len(m))
	for o, ss := range m {
		c[o] = slices.Clone(ss)
	}
	return c
}

// add takes in other parts.
func (m spanMap) add(other spanMap) {
	for o, ss := range other {
		for _, s := range ss {
			m[o] = m[o].add(s)
		}
	}
}

// remember notes what an unfinished pull brought: the regions of the log that are merged, but
// for what is held back, and all that the peer claimed or held then. A pull that needs a
// repair cannot be resumed.
func (r *replica) remember(done []region, reach vector, back *heldBack, peer *knowledge) {
	r.resume.rev++
	if !peer.within(purged, &r.known, claimed) {
		r.pending = nil
		return
	}
	if back.over { // who knows whether a region has something that is held back
		return
	}
	if r.pending == nil {
		r.pending = &pendingPull{done: spanMap{}}
	}
	for _, m := range done {
		r.pending.done[m.origin] = r.pending.done[m.origin].add(span{m.from, m.to})
	}
	back.cut(r.pending.done)
	r.pending.reach = r.pending.reach.join(reach)
}

// skippable is what need not be sent by a peer: what is known here above the claim, and
// what an unfinished pull brought, if the peer claims all that its server knew and that
// is not claimed here.
func (r *replica) skippable(peer *knowledge) spanMap {
	skip := r.above.clone()
	if p := r.pending; p != nil && !slices.ContainsFunc(p.reach, func(d dot) bool { return !peer.covers(d) && !r.known.covers(d) }) {
		skip.add(p.done)
	}
	return skip
}

// resume is what is stored of the above, so that a replica that is opened again goes on where
// a pull broke off. A record says only what was merged, and is true for as long as that
// is on disk: after a crash the claim is what may be less than it was then, and what may
// be skipped goes by the claim of now.
type resume struct {
	rev    uint64 // grows with each change of what is remembered
	saved  uint64 // of what is stored
	safe   resumePoint
	stored bool   // there may be a record
	from   uint64 // no point before this counts: a repair may have dropped what it says
}

// resumePoint is a record, as of some revision: of nothing, it is empty.
type resumePoint struct {
	rev    uint64
	record []byte
}

// resumePoint encodes what is remembered now.
func (r *replica) resumePoint() resumePoint {
	p := resumePoint{rev: r.resume.rev}
	if p.rev == r.resume.safe.rev {
		return r.resume.safe
	}
	if n := len(r.marks); n > 0 && r.marks[n-1].resume.rev == p.rev {
		return r.marks[n-1].resume
	}
	pending := r.pending
	if pending == nil {
		pending = &pendingPull{}
	}
	if len(pending.done)+len(r.above) == 0 {
		return p
	}
	b := appendSpanMap([]byte{formatVersion}, pending.done)
	b = binary.AppendUvarint(b, uint64(len(pending.reach)))
	for _, d := range pending.reach {
		b = binary.AppendUvarint(append(b, d.origin[:]...), d.seq)
	}
	p.record = appendSpanMap(b, r.above)
	return p
}

func appendSpanMap(b []byte, m spanMap) []byte {
	b = binary.AppendUvarint(b, uint64(len(m)))
	for _, o := range sortedOrigins(m) {
		b = append(b, o[:]...)
		b = binary.AppendUvarint(b, uint64(len(m[o])))
		for _, s := range m[o] {
			b = binary.AppendUvarint(b, s.from)
			b = binary.AppendUvarint(b, s.to)
		}
	}
	return b
}

func (d *decoder) spanMap() spanMap {
	m := spanMap{}
	for range d.count(17) {
		o := d.origin()
		m[o] = d.spans()
	}
	return m
}

// resumable notes a point that is on disk.
func (r *replica) resumable(p resumePoint) {
	if p.rev >= r.resume.from && p.rev > r.resume.safe.rev {
		r.resume.safe = p
	}
}

// stageResume writes the latest point that is on disk, if it is another than is stored.
func (t *txn) stageResume() {
	r := t.r
	if p := r.resumePoint(); !r.unsynced || len(p.record) == 0 { // that there is none is always true
		r.resumable(p)
	}
	if p := r.resume.safe; p.rev > r.resume.saved {
		t.resumed = p.rev
		r.writeResume(&t.batch, p)
	}
}

func (r *replica) writeResume(b leveldb.BatchReplay, p resumePoint) {
	switch {
	case len(p.record) > 0:
		r.resume.stored = true
		b.Put(metaResume, p.record)
	case r.resume.stored:
		b.Delete(metaResume)
	}
}

// readResume reads where a pull broke off. It is a hint: what cannot be read is left, and
// all is sent again.
func (r *replica) readResume() error {
	v, err := r.store.Get(metaResume, nil)
	if err == leveldb.ErrNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	r.resume.stored = true
	if p, above, ok := decodeResume(v); ok {
		r.pending, r.above = p, above
	}
	return nil
}

func decodeResume(record []byte) (p *pendingPull, above spanMap, ok bool) {
	d := decoder{b: record}
	if d.byte() != formatVersion {
		return nil, nil, false
	}
	p = &pendingPull{done: d.spanMap()}
	for range d.count(17) {
		o := d.origin()
		if n := d.seq(); n > 0 && (len(p.reach) == 0 || p.reach[len(p.reach)-1].origin.compare(o) < 0) {
			p.reach = append(p.reach, dot{o, n})
		} else {
			d.fail(errShort)
		}
	}
	above = d.spanMap()
	return p, above, d.end() == nil
}

// startOver forgets where a pull broke off: a repair drops what may have been counted as
// merged.
func (r *replica) startOver() {
	if r.pending == nil && len(r.above) == 0 && !r.resume.stored {
		return
	}
	r.resume.rev++
	r.pending, r.above, r.resume.from = nil, nil, r.resume.rev
	r.resumable(resumePoint{rev: r.resume.rev})
}

// dropResume has the record go in the batch of a repair, or before it.
func (t *txn) dropResume() {
	if t.r.resume.stored && t.r.resume.saved < t.r.resume.from {
		t.batch.Delete(metaResume)
	}
}
