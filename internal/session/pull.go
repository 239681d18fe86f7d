package session

import (
	"encoding/binary"
	"errors"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// pulling is the half of a session that brings over what is missing here. Pages are merged as they come;
// the peer's version vector is taken in, and its watermarks, when all of them are, and in the same batch if
// they fit into one.
type pulling struct {
	pages  pages         // that have come and are not committed
	whole  bool          // the peer has sent everything
	torn   bool          // it does not fit into one batch
	vector causal.Vector // of the peer, in the first state that it sends; nil before that

	wants wants            // values that are still to be asked for
	back  replica.HeldBack // what is not taken here

	// Repair.
	reconcile bool          // version vectors were equal, digests were not
	repair    *repair       // nil while there is none
	repaired  causal.Vector // what the peer had purged when a repair began
	rounds    int           // repairs begun
}

// pages are the keys of pages that wait to be committed together.
type pages struct {
	keys       []replica.RemoteKey
	bytes      int              // of the frames that they came in
	size       int              // of the batch that they will make, about
	marks      []causal.Region  // what they say was sent whole
	basis      causal.Vector    // what the peer covered or held then
	watermarks causal.Knowledge // of the peer, in the state that they are from
}

// startPull asks for what we lack. What an unfinished pull brought may be skipped
// by a peer that covers everything its server knew (P5).
func (s *Session) startPull() error {
	var news int64
	none := false
	s.host.With(func(r *replica.Replica) {
		news = r.Known.Behind(&s.known)
		none = s.nothingNew(r)
	})
	if none {
		return s.pulled()
	}
	if s.result.Skipped = s.host.EnterPull(s.theirs.Origin, news); s.result.Skipped != NotSkipped {
		return s.pulled()
	}
	p := &pulling{}
	var skip causal.SpanMap
	s.host.With(func(r *replica.Replica) {
		p.reconcile = s.differs()
		skip = r.Skippable(&s.known)
	})
	s.pulling = p
	if len(s.params.Repair) > 0 {
		s.host.With((*replica.Replica).StartOver)
		p.repair = &repair{kind: forRepair, keys: s.params.Repair}
		return s.fetchNext()
	}
	// A pull would bring nothing if the peer has reported no more since its hello than it covered then,
	// and there is no version vector to take in.
	if p.reconcile && len(s.cloud) == 0 && s.known.VectorSum == s.theirs.VectorSum {
		p.rounds = 1
		return s.startRepair(forReconcile)
	}
	s.send(FramePull, s.sending.Frame(func(b []byte) []byte {
		b = binary.AppendUvarint(b, uint64(len(skip)))
		for _, o := range causal.SortedOrigins(skip) {
			b = binary.AppendUvarint(b, s.sending.Number(o))
			b = binary.AppendUvarint(b, uint64(len(skip[o])))
			for _, sp := range skip[o] {
				b = binary.AppendUvarint(b, sp.From)
				b = binary.AppendUvarint(b, sp.To)
			}
		}
		return b
	}))
	s.step = WaitPage
	return nil
}

// differs reports whether the two covered the same when they met and held different things (R2).
func (s *Session) differs() bool {
	return s.mine.VectorSum == s.theirs.VectorSum && s.mine.digest != s.theirs.digest
}

// nothingNew reports whether a pull would bring nothing (P6): the peer's version vector, dot cloud and
// watermarks are within those here. What it has learnt since it reported them is
// left to the next session.
func (s *Session) nothingNew(r *replica.Replica) bool {
	return !s.differs() && !s.params.Goal.any() && len(s.cloud) == 0 &&
		s.known.Within(causal.Covered, &r.Known, causal.Covered) && s.known.Within(causal.Pruned, &r.Known, causal.Pruned) && s.known.Within(causal.Purged, &r.Known, causal.Purged)
}

// sort takes from the keys of a page those whose values are to be asked for, and notes
// what is not taken here.
func (p *pulling) sort(keys []replica.RemoteKey) ([]replica.RemoteKey, error) {
	var err error
	return slices.DeleteFunc(keys, func(k replica.RemoteKey) bool {
		p.back.Set(k)
		switch {
		case k.Over:
			return true
		case slices.ContainsFunc(k.Versions, func(v store.Version) bool { return v.Apart }):
			err = errors.Join(err, p.setApart(k))
			return true
		}
		return p.repair != nil && p.repair.kind != forCompare && k.Lacks()
	}), err
}

// sameWatermarks reports whether the pages that wait are of a state with the same watermarks
// as the one that the peer speaks of now.
func (s *Session) sameWatermarks() bool {
	return s.pulling.pages.watermarks.WatermarkRev == s.known.WatermarkRev
}

// mergeSlice is how many keys of a pull that is not one batch anyway are merged at a time:
// that takes about 2 ms.
const mergeSlice = 128

// merging are the pages that wait, to be merged.
func (s *Session) merging() chunkedCommit {
	p := s.pulling
	m := chunkedCommit{n: len(p.pages.keys), count: &s.result.Pulled, ends: func(i int) bool { return p.pages.keys[i].Begins() }}
	if p.torn {
		m.most = mergeSlice
	}
	if m.n > 0 {
		m.first = func(t *replica.Txn) error { t.JoinWatermarks(&p.pages.watermarks); return nil }
	}
	m.step = func(t *replica.Txn, i int) (int, error) {
		return t.Merge(p.pages.keys[i].Key, p.pages.keys[i].Versions, &p.pages.watermarks)
	}
	return m
}

// Retained returns how many bytes of received frames the session still needs.
func (s *Session) Retained() int {
	n := s.spool.bytes
	if s.pulling != nil {
		n += s.pulling.pages.bytes
		for _, a := range s.pulling.wants.keys {
			n += a.bytes + len(a.key) + 16*len(a.names)
		}
	}
	return n
}

// commitPages commits what has come so far of a pull that is not whole.
func (s *Session) commitPages() error {
	p := s.pulling
	p.torn = true
	if err := s.commitInChunks(s.merging()); err != nil {
		return err
	}
	s.host.With(func(r *replica.Replica) { r.Remember(p.pages.marks, p.pages.basis, &p.back, &s.known) })
	p.pages = pages{}
	return nil
}

// keepPull keeps what came of a pull that was cut off, and covers nothing by it (P5).
func (s *Session) keepPull() error {
	p := s.pulling
	if p == nil || p.repair != nil {
		return nil
	}
	if len(p.pages.keys) > 0 {
		if err := s.commitPages(); err != nil {
			return err
		}
	}
	for _, a := range p.wants.keys {
		if a.bytes > 0 {
			if err := s.mergePart(a); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Session) gotEnd(payload []byte) error {
	if len(payload) != 1 {
		return replica.ProtocolErrorf("an end of %d bytes", len(payload))
	}
	p := s.pulling
	switch {
	case p.wants.asked > 0:
		return replica.ProtocolErrorf("an end, and no answer to a want")
	case p.repair == nil && !p.wants.begun:
		p.whole = payload[0]&1 != 0
	}
	return s.wantNext()
}

// allCame goes on when all of a pull, or of a fetch, is here.
func (s *Session) allCame() error {
	p := s.pulling
	p.wants.begun = false
	if p.repair != nil {
		return s.fetchNext()
	}
	if !p.whole || p.back.Over {
		s.result.Partial, s.result.HeldBack = !p.whole, p.back.Over // to come again brings nothing of what is held back
		if err := s.commitPages(); err != nil {
			return err
		}
		return s.pulled()
	}
	if p.vector == nil { // it said nothing new
		p.vector = s.known.Vector(causal.Covered)
	}
	return s.conclude()
}

// conclude takes in the peer's version vector (P1), unless a repair must come first: the peer may
// have purged deletions that never came here (R1), or one side may be corrupted (R2).
func (s *Session) conclude() error {
	p := s.pulling
	repair := false
	s.host.With(func(r *replica.Replica) { repair = !s.watermarksCovered(r) })
	if reconcile := p.reconcile && p.rounds == 0; repair || reconcile {
		if len(p.pages.keys) > 0 {
			if err := s.commitPages(); err != nil {
				return err
			}
		}
		if p.rounds++; p.rounds > replica.MaxRepairs {
			return s.pulled()
		}
		if reconcile {
			return s.startRepair(forReconcile)
		}
		return s.startRepair(forPurge)
	}
	if err := s.recordOrigins(); err != nil {
		return err
	}
	m := s.merging()
	var covers causal.Vector
	var above causal.SpanMap
	m.last = func(t *replica.Txn) error {
		t.Sync = t.Sync || s.theirs.wants
		covers, above = p.vector, nil // P2
		if len(p.back.Keys) > 0 {
			covers, above = p.back.Allow(&t.R.Known, p.vector, &s.known)
		}
		for _, d := range covers {
			t.Cover(d)
		}
		t.JoinWatermarks(&s.known)
		return nil
	}
	if err := s.commitInChunks(m); err != nil {
		return err
	}
	s.host.With(func(r *replica.Replica) {
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
	if s.params.Compare != nil {
		return s.startCompare()
	}
	return s.pulled()
}

// recordOrigins assigns aliases to the origins of a version vector that brings very many.
func (s *Session) recordOrigins() error {
	var fresh []causal.Origin
	s.host.With(func(r *replica.Replica) {
		for _, d := range s.pulling.vector {
			if _, ok := r.Alias[d.Origin]; !ok {
				fresh = append(fresh, d.Origin)
			}
		}
	})
	for len(fresh) > replica.OriginStep {
		err := s.host.Commit(func(t *replica.Txn) error {
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
func (s *Session) watermarksCovered(r *replica.Replica) bool {
	for _, w := range s.known.Rows {
		if n := w.Seqs[causal.Purged]; n > r.Known.Seq(causal.Covered, w.Origin) && n > s.pulling.repaired.Seq(w.Origin) {
			return false
		}
	}
	return true
}

func (s *Session) leavePull() {
	if s.pulling != nil {
		s.pulling = nil
		s.host.LeavePull(s.theirs.Origin)
	}
}

// pulled ends our pull: then it is the peer's turn, or all is said.
func (s *Session) pulled() error {
	s.leavePull()
	s.reportDurable()
	if s.dialed {
		s.send(FrameTurn, nil)
		s.step = waitTheirs
		return nil
	}
	s.send(FrameBye, []byte{byte(s.result.Skipped)})
	s.finishWell()
	return nil
}

func (s *Session) gotBye(payload []byte) error {
	if len(payload) != 1 || payload[0] > byte(SkippedReadOnly) {
		return replica.ProtocolErrorf("a bye of % x", payload)
	}
	s.result.TheirSkip = SkipReason(payload[0])
	s.finishWell()
	return nil
}

// reportDurable brings to disk what is covered here, if the peer waits for that,
// and reports it. If that fails it tells what is on disk.
func (s *Session) reportDurable() {
	if h, ok := s.host.(Flusher); ok && s.theirs.wants {
		h.MakeDurable()
		s.sendVectors(false)
	}
}
