package session

import (
	"encoding/binary"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// advertised is what the peer was told of this replica.
type advertised struct {
	rev       uint64     // up to which revision of our vectors,
	vectorSum causal.Sum // and our version vector in that state
	addrs     []string   // addresses that it is told, if they are news
}

// vectors are what the peer reports of itself.
type vectors struct {
	rev     uint64       // of its knowledge
	rows    []causal.Row // that changed
	cloud   causal.Vector
	lineage []causal.Origin // its latest origins
}

// sendVectors reports what changed of the vectors here since the peer last heard of them. first adds
// what is said only once.
func (s *Session) sendVectors(first bool) {
	var rows []causal.Row
	var lineage []causal.Origin
	var rev uint64
	var cloud causal.Vector
	s.host.With(func(r *replica.Replica) {
		rows, rev, cloud = r.Known.Since(s.told.rev), r.Known.Rev, r.Cloud.Clone()
		s.told.vectorSum = r.Known.VectorSum
		if first && s.told.rev == 0 {
			lineage = r.Lineage(replica.LineageLimit)
		}
	})
	s.sendRows(rows, rev, cloud, lineage)
}

// reportNews reports the vectors here, if the peer has not heard them.
func (s *Session) reportNews() {
	news := false
	s.host.With(func(r *replica.Replica) { news = r.Known.Rev > s.told.rev })
	if news {
		s.sendVectors(false)
	}
}

func (s *Session) sendRows(rows []causal.Row, rev uint64, cloud causal.Vector, lineage []causal.Origin) {
	s.outbox.send(FrameVectors, s.sending.Frame(func(b []byte) []byte {
		b = binary.AppendUvarint(b, rev)
		b = store.AppendVector(b, cloud, &s.sending)
		b = binary.AppendUvarint(b, uint64(len(lineage)))
		for _, o := range lineage {
			b = append(b, o[:]...)
		}
		b = binary.AppendUvarint(b, uint64(len(rows)))
		for _, w := range rows {
			if !s.theirs.Apart { // it would refuse more
				w.Seqs[causal.Pruned] = min(w.Seqs[causal.Pruned], w.Seqs[causal.Covered])
			}
			b = binary.AppendUvarint(b, s.sending.Number(w.Origin))
			for _, n := range w.Seqs {
				b = binary.AppendUvarint(b, n)
			}
		}
		return b
	}))
	s.told.rev = rev
}

func (s *Session) gotVectors(payload []byte) error {
	v, err := s.readVectors(payload)
	if err != nil {
		return err
	}
	s.cloud = v.cloud
	if len(v.rows) > 0 || !s.theirs.Apart {
		s.known = s.known.Clone()
		s.known.Take(v.rows)
	}
	if !s.theirs.Apart { // it says only a part of it
		s.known.Raise(causal.Pruned, causal.Untold)
	}
	s.host.With(func(r *replica.Replica) {
		m := r.NoteSeen(s.theirs.Origin, s.theirs.Name)
		if v.rev > m.Rev {
			m.Known, m.Rev = s.known, v.rev
			r.StableCache = nil
		}
		r.NoteSuccession(s.theirs.Origin, v.lineage)
	})
	if s.pulling != nil {
		s.pulling.gotVectors()
	}
	if s.step == waitVectors {
		s.step = WaitPull // addresses may follow, and then it is our turn
		if s.dialed {
			return s.beginDialer()
		}
	}
	return nil
}

// readVectors reads what the peer reports, and refuses what it cannot know.
func (s *Session) readVectors(payload []byte) (v vectors, err error) {
	d, err := s.reading.open(payload)
	if err != nil {
		return v, err
	}
	v.rev = d.Uint()
	v.cloud = d.Vector(&s.reading)
	for range d.Count(16) {
		v.lineage = append(v.lineage, d.Origin())
	}
	n := d.Count(5)
	if n > maxOrigins {
		return v, replica.ProtocolErrorf("vectors of %d origins", n)
	}
	v.rows = make([]causal.Row, 0, n)
	for range n {
		w := causal.Row{}
		var ok bool
		if w.Origin, ok = s.reading.Origin(d.Uint()); !ok {
			return v, replica.ProtocolErrorf("vectors name an unknown origin")
		}
		// In order, so that taking them in costs no more than reading them.
		if k := len(v.rows); k > 0 && v.rows[k-1].Origin.Compare(w.Origin) >= 0 {
			return v, replica.ProtocolErrorf("vectors are out of order")
		}
		for c := range causal.Columns {
			if w.Seqs[c] = d.Seq(); c != causal.Pruned && w.Seqs[c] > w.Seqs[causal.Covered] {
				return v, replica.ProtocolErrorf("watermarks beyond the version vector")
			}
		}
		if w.Origin == s.mine.Origin && w.Seqs[causal.Covered] > 0 && d.Err == nil {
			if err := s.checkOwn(w.Seqs[causal.Covered]); err != nil {
				return v, err
			}
		}
		v.rows = append(v.rows, w)
	}
	if n := v.cloud.Seq(s.mine.Origin); n > 0 && d.Err == nil {
		if err := s.checkOwn(n); err != nil {
			return v, err
		}
	}
	if err := d.End(); err != nil {
		return v, replica.ProtocolErrorf("vectors: %v", err)
	}
	return v, nil
}

// checkOwn refuses a peer that covers more of our own writes than we made (P8).
func (s *Session) checkOwn(seq uint64) (err error) {
	s.host.With(func(r *replica.Replica) {
		if seq > r.Seq {
			err = replica.ProtocolErrorf("the peer covers write %d of this replica, which has made only %d", seq, r.Seq)
		}
	})
	return err
}
