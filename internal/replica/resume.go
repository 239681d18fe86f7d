package replica

import (
	"encoding/binary"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// resumption is what pulls brought above the version vector, so that it is not sent again.
type resumption struct {
	Pending  *pendingPull          // of an unfinished pull
	Join     *JoinPoint            // of an unfinished join
	Above    causal.SpanMap        // beyond the gaps that held-back values leave: counts as covered
	HeldBack map[causal.Dot]uint64 // what is not taken here, with the sizes
	Resume   resume                // what is stored of Pending and Above
}

// pendingPull is what an unfinished pull already brought, so that it need not be
// sent again.
type pendingPull struct {
	Done  causal.SpanMap // all live entries in these were merged
	Basis causal.Vector  // but only at a peer that covers all of this may they be skipped
}

// Remember notes what an unfinished pull brought (P5): the regions of the log that are merged, but
// for what is held back, and all that the peer covered or held then. A pull that needs a
// repair cannot be resumed.
func (r *Replica) Remember(done []causal.Region, reach causal.Vector, back *HeldBack, peer *causal.Knowledge) {
	r.Resume.Rev++
	if !peer.Within(causal.Purged, &r.Known, causal.Covered) {
		r.Pending = nil
		return
	}
	if back.Over { // who knows whether a region has something that is held back
		return
	}
	if r.Pending == nil {
		r.Pending = &pendingPull{Done: causal.SpanMap{}}
	}
	for _, m := range done {
		r.Pending.Done[m.Origin] = r.Pending.Done[m.Origin].Add(causal.Span{From: m.From, To: m.To})
	}
	back.cut(r.Pending.Done)
	r.Pending.Basis = r.Pending.Basis.Join(reach)
}

// Skippable is what need not be sent by a peer: what is known here above the version vector, and
// what an unfinished pull brought, if the peer covers all that its server knew and that
// is not covered here.
func (r *Replica) Skippable(peer *causal.Knowledge) causal.SpanMap {
	skip := r.Above.Clone()
	if p := r.Pending; p != nil && !slices.ContainsFunc(p.Basis, func(d causal.Dot) bool { return !peer.Covers(d) && !r.Known.Covers(d) }) {
		skip.Add(p.Done)
	}
	return skip
}

// resume is what is stored of the above, so that a replica that is opened again goes on where
// a pull broke off. A record says only what was merged, and is true for as long as that
// is on disk: after a crash the version vector is what may be less than it was then, and what may
// be skipped goes by the version vector of now.
type resume struct {
	Rev    uint64 // grows with each change of what is remembered
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
func (r *Replica) resumePoint() resumePoint {
	p := resumePoint{rev: r.Resume.Rev}
	if p.rev == r.Resume.safe.rev {
		return r.Resume.safe
	}
	if n := len(r.flushMarks); n > 0 && r.flushMarks[n-1].resume.rev == p.rev {
		return r.flushMarks[n-1].resume
	}
	pending := r.Pending
	if pending == nil {
		pending = &pendingPull{}
	}
	if len(pending.Done)+len(r.Above) == 0 && r.Join == nil {
		return p
	}
	b := store.AppendSpanMap([]byte{store.FormatVersion}, pending.Done)
	b = appendDots(b, pending.Basis)
	p.record = store.AppendSpanMap(b, r.Above)
	if r.Join != nil {
		p.record = r.Join.append(p.record)
	}
	return p
}

// resumable notes a point that is on disk.
func (r *Replica) resumable(p resumePoint) {
	if p.rev >= r.Resume.from && p.rev > r.Resume.safe.rev {
		r.Resume.safe = p
	}
}

// stageResume writes the latest point that is on disk, if it is another than is stored.
func (t *Txn) stageResume() {
	r := t.R
	if p := r.resumePoint(); !r.unsynced || len(p.record) == 0 { // that there is none is always true
		r.resumable(p)
	}
	if p := r.Resume.safe; p.rev > r.Resume.saved {
		t.resumed = p.rev
		r.writeResume(&t.Batch, p)
	}
}

func (r *Replica) writeResume(b leveldb.BatchReplay, p resumePoint) {
	switch {
	case len(p.record) > 0:
		r.Resume.stored = true
		b.Put(store.MetaResume, p.record)
	case r.Resume.stored:
		b.Delete(store.MetaResume)
	}
}

// readResume reads where a pull broke off. It is a hint: what cannot be read is left, and
// all is sent again.
func (r *Replica) readResume() error {
	v, err := r.Store.Get(store.MetaResume, nil)
	if err == leveldb.ErrNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	r.Resume.stored = true
	if p, above, join, ok := decodeResume(v); ok {
		r.Pending, r.Above, r.Join = p, above, join
	}
	return nil
}

// decodeResume reads the record of a resume point.
func decodeResume(record []byte) (p *pendingPull, above causal.SpanMap, join *JoinPoint, ok bool) {
	d := store.Decoder{B: record}
	if d.Format() != nil {
		return nil, nil, nil, false
	}
	p = &pendingPull{Done: d.SpanMap(), Basis: decodeDots(&d)}
	above = d.SpanMap()
	if len(d.B) > 0 {
		join = decodeJoinPoint(&d)
	}
	return p, above, join, d.End() == nil
}

// appendDots writes a vector with its origins spelt out.
func appendDots(b []byte, v causal.Vector) []byte {
	return store.AppendSpelt(binary.AppendUvarint(b, uint64(len(v))), v)
}

// decodeDots reads what appendDots wrote.
func decodeDots(d *store.Decoder) (v causal.Vector) {
	for range d.Count(17) {
		ok := false
		if v, ok = d.Spelt(v); !ok {
			d.Fail(store.ErrShort)
		}
	}
	return v
}

// StartOver forgets where a pull broke off: a repair drops what may have been counted as
// merged.
func (r *Replica) StartOver() {
	if r.Pending == nil && len(r.Above) == 0 && r.Join == nil && !r.Resume.stored {
		return
	}
	r.Resume.Rev++
	r.Pending, r.Above, r.Join, r.Resume.from = nil, nil, nil, r.Resume.Rev
	r.resumable(resumePoint{rev: r.Resume.Rev})
}

// DropResume has the record go in the batch of a repair, or before it.
func (t *Txn) DropResume() {
	if t.R.Resume.stored && t.R.Resume.saved < t.R.Resume.from {
		t.Batch.Delete(store.MetaResume)
	}
}
