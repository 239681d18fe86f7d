package session

import (
	"encoding/binary"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// pulling is the half of a session that brings over what is missing here. Pages are merged as they come;
// the peer's version vector is taken in, and its watermarks, when all of them are, and in the same batch if
// they fit into one.
type pulling struct {
	session  *Session
	question FrameType // the last one: a pull, want, fetch or probe, whose answer is due; or a push

	own               bool // of a push: of what the peer covers only its own writes are taken in
	versions, relayed int  // of a push: those that came, and of them those that the peer did not write
	before            int  // versions that the session had merged when it began

	spool  spool         // values that came in chunks, for the page to come
	pages  pages         // that have come and are not committed
	whole  bool          // the peer has sent everything
	torn   bool          // it does not fit into one batch
	vector causal.Vector // of the peer, in the first state that it sends; nil before that

	asksJoin bool               // a join may come
	join     *joining           // nil unless the answer comes in sections
	resume   *replica.JoinPoint // where a join may go on; nil: nowhere
	base     causal.Vector      // what was covered here when it was asked for

	wants wants            // values that are still to be asked for
	back  replica.HeldBack // what is not taken here

	// Repair.
	reconcile bool          // both covered the same when they met, and held different things (R2)
	repair    *repair       // nil while there is none
	repaired  causal.Vector // what the peer had purged when a repair began
	rounds    int           // repairs begun
}

func newPulling(s *Session) *pulling {
	p := &pulling{session: s}
	p.reconcile = s.mine.VectorSum == s.theirs.VectorSum && s.mine.digest != s.theirs.digest
	return p
}

// nothingNew reports whether a pull would bring nothing (P6): the peer's version vector, dot cloud and
// watermarks are within those here. What it has learnt since it reported them is
// left to the next session.
func (p *pulling) nothingNew(r *replica.Replica) bool {
	s := p.session
	return !p.reconcile && !s.params.Goal.any() && len(s.cloud) == 0 &&
		s.known.Within(causal.Covered, &r.Known, causal.Covered) && s.known.Within(causal.Pruned, &r.Known, causal.Pruned) && s.known.Within(causal.Purged, &r.Known, causal.Purged)
}

// begin asks for what is missing here. What an unfinished pull brought may be skipped
// by a peer that covers everything its server knew (P5).
func (p *pulling) begin() error {
	s := p.session
	if len(s.params.Repair) > 0 {
		s.host.With((*replica.Replica).StartOver)
		p.repair = &repair{pulling: p, kind: forRepair, keys: s.params.Repair}
		return p.repair.fetchNext()
	}
	// A pull would bring nothing if the peer has reported no more since its hello than it covered then,
	// and there is no version vector to take in.
	if p.reconcile && len(s.cloud) == 0 && s.known.VectorSum == s.theirs.VectorSum {
		p.rounds = 1
		return p.startRepair(forReconcile)
	}
	var skip causal.SpanMap
	s.host.With(func(r *replica.Replica) {
		skip = r.Skippable(&s.known)
		p.base, p.resume = r.Known.Vector(causal.Covered), r.JoinPoint()
	})
	n := &s.sending
	question := FramePull
	if p.asksJoin {
		question = FrameJoin
	}
	p.ask(question, func(b []byte) []byte {
		b = binary.AppendUvarint(b, uint64(len(skip)))
		for _, o := range causal.SortedOrigins(skip) {
			b = binary.AppendUvarint(b, n.Number(o))
			b = binary.AppendUvarint(b, uint64(len(skip[o])))
			for _, sp := range skip[o] {
				b = binary.AppendUvarint(b, sp.From)
				b = binary.AppendUvarint(b, sp.To)
			}
		}
		switch r := p.resume; {
		case !p.asksJoin:
		case r == nil:
			b = append(b, 0)
		default:
			b = store.AppendVector(append(b, 1), r.First, n)
			b = store.AppendBytes(store.AppendVector(b, r.Purged, n), r.Cursor)
		}
		return b
	})
	return nil
}

// ask asks the peer something. Its answer is due from now on.
func (p *pulling) ask(question FrameType, body func(b []byte) []byte) {
	p.question = question
	p.session.outbox.send(question, p.session.sending.Frame(body))
}

// awaits reports whether a frame may be part of the answer that is due.
func (p *pulling) awaits(kind FrameType) bool {
	switch kind {
	case FrameProbeReply:
		return p.question == FrameProbe
	case FrameSections:
		return p.question == FrameJoin
	case FrameEntries, FrameRows:
		return p.question == FrameJoin && p.join != nil
	case FrameChunk, FramePage, FrameEnd:
		return p.question == FramePull || p.question == FrameJoin || p.question == FramePush || p.question == FrameWant || p.question == FrameFetch
	}
	return false
}

// receive takes in a frame of the answer that is due.
func (p *pulling) receive(kind FrameType, payload []byte) error {
	switch kind {
	case FrameChunk:
		return p.gotChunk(payload)
	case FramePage:
		return p.gotPage(payload)
	case FrameEnd:
		return p.gotEnd(payload)
	case FrameSections:
		return p.gotSections(payload)
	case FrameEntries:
		return p.join.gotEntries(payload)
	case FrameRows:
		return p.join.gotRows(payload)
	}
	return p.repair.gotReply(payload)
}

// gotVectors takes note of the peer's version vector in the first state that it sends.
func (p *pulling) gotVectors() {
	if p.vector == nil && p.repair == nil {
		p.vector = p.session.known.Vector(causal.Covered)
	}
}

// retained returns how many bytes of received frames the pull still needs.
func (p *pulling) retained() int {
	n := p.spool.bytes + p.pages.bytes
	for _, a := range p.wants.keys {
		n += a.bytes + len(a.key) + 16*len(a.names)
	}
	return n
}

// keep keeps what came of a pull that was cut off, and covers nothing by it (P5).
func (p *pulling) keep() error {
	if p.repair != nil {
		return nil
	}
	if err := p.flush(); err != nil {
		return err
	}
	for _, a := range p.wants.keys {
		if a.bytes > 0 {
			if err := p.mergePart(a); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *pulling) gotEnd(payload []byte) error {
	if len(payload) != 1 {
		return replica.ProtocolErrorf("an end of %d bytes", len(payload))
	}
	switch {
	case p.wants.asked > 0:
		return replica.ProtocolErrorf("an end, and no answer to a want")
	case p.repair == nil && !p.wants.begun:
		p.whole = payload[0]&1 != 0
		if p.join != nil {
			if err := p.join.end(); err != nil {
				return err
			}
		}
	}
	if p.question == FramePush {
		return p.session.stream.takePush(p)
	}
	return p.wantNext()
}

// allCame goes on when all of a pull, or of a fetch, is here.
func (p *pulling) allCame() error {
	s := p.session
	p.wants.begun = false
	if p.repair != nil {
		return p.repair.fetchNext()
	}
	if !p.whole || p.back.Over {
		s.result.partial, s.result.HeldBack = !p.whole, p.back.Over // to come again brings nothing of what is held back
		if err := p.commitPages(); err != nil {
			return err
		}
		return s.pulled()
	}
	if p.vector == nil { // it said nothing new
		p.vector = s.known.Vector(causal.Covered)
	}
	return p.conclude()
}

// conclude takes in the peer's version vector (P1), unless a repair must come first: the peer may
// have purged deletions that never came here (R1), or one side may be corrupted (R2).
func (p *pulling) conclude() error {
	s := p.session
	repair := false
	s.host.With(func(r *replica.Replica) { repair = !p.watermarksCovered(r) })
	if reconcile := p.reconcile && p.rounds == 0; repair || reconcile {
		if err := p.flush(); err != nil {
			return err
		}
		if p.rounds++; p.rounds > replica.MaxRepairs {
			return s.pulled()
		}
		if reconcile {
			return p.startRepair(forReconcile)
		}
		return p.startRepair(forPurge)
	}
	if err := p.recordOrigins(); err != nil {
		return err
	}
	if err := p.cover(); err != nil {
		return err
	}
	if s.params.Compare != nil {
		return p.startCompare()
	}
	return s.pulled()
}

// cover merges the pages that wait, and covers what the peer does.
func (p *pulling) cover() error {
	s := p.session
	m := p.merging()
	var covers causal.Vector
	var above causal.SpanMap
	m.last = func(t *replica.Txn) error {
		t.Sync = t.Sync || s.theirs.wants
		covers, above = p.vector, nil // P2
		if len(p.back.Keys) > 0 {
			covers, above = p.back.Allow(&t.R.Known, p.vector, &s.known)
		}
		for _, d := range t.R.Known.Uncovered(covers) {
			t.Cover(d)
		}
		t.JoinWatermarks(&s.known)
		return nil
	}
	if err := m.commit(s.host); err != nil {
		return err
	}
	if p.question == FramePush { // what an unfinished pull brought, and what is held back, is still so
		p.pages = pages{}
		return nil
	}
	s.host.With(func(r *replica.Replica) {
		r.Join = nil
		if r.Resume.Rev++; len(p.back.Keys) == 0 {
			r.Pending = nil
		} else { // the next pull brings what is above the version vector once more
			r.Remember(p.pages.marks, p.pages.basis, &p.back, &s.known)
		}
		s.result.HeldBefore = len(r.HeldBack)
		r.HoldBack(&p.back, above)
		s.result.HeldBack = len(p.back.Keys) > 0
		s.result.HeldNow = len(r.HeldBack)
	})
	p.pages = pages{}
	return nil
}

// recordOrigins assigns aliases to the origins of a version vector that brings very many.
func (p *pulling) recordOrigins() error {
	var fresh []causal.Origin
	p.session.host.With(func(r *replica.Replica) {
		for _, d := range r.Known.Uncovered(p.vector) {
			if _, ok := r.Alias[d.Origin]; !ok {
				fresh = append(fresh, d.Origin)
			}
		}
	})
	for len(fresh) > replica.OriginStep {
		err := p.session.host.Commit(func(t *replica.Txn) error {
			for _, o := range fresh[:replica.OriginStep] {
				t.R.Number(o)
			}
			return nil
		})
		if err != nil {
			return err
		}
		fresh = fresh[replica.OriginStep:]
	}
	return nil
}

// watermarksCovered reports whether what the peer purged is covered here or was repaired (R1).
func (p *pulling) watermarksCovered(r *replica.Replica) bool {
	if p.session.known.Within(causal.Purged, &r.Known, causal.Covered) {
		return true
	}
	for _, w := range p.session.known.Rows {
		if n := w.Seqs[causal.Purged]; n > r.Known.Seq(causal.Covered, w.Origin) && n > p.repaired.Seq(w.Origin) {
			return false
		}
	}
	return true
}
