package session

import (
	"encoding/binary"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// sendVectors tells the peer what changed of our knowledge since it was told, of
// the state that the next page shows. first adds what is said only once.
func (s *Session) sendVectors(first bool) {
	var rows []causal.Row
	var lineage []causal.Origin
	var rev uint64
	var loose causal.Vector
	s.host.With(func(r *replica.Replica) {
		rows, rev, loose = r.Known.Since(s.sentRev), r.Known.Rev, r.Cloud.Clone()
		s.sentVectorSum = r.Known.VectorSum
		if first && s.sentRev == 0 {
			lineage = r.Lineage(replica.LineageLimit)
		}
	})
	s.sendRows(rows, rev, loose, lineage)
}

func (s *Session) sendRows(rows []causal.Row, rev uint64, loose causal.Vector, lineage []causal.Origin) {
	s.send(FrameVectors, s.sending.Frame(func(b []byte) []byte {
		b = binary.AppendUvarint(b, rev)
		b = store.AppendVector(b, loose, &s.sending)
		b = binary.AppendUvarint(b, uint64(len(lineage)))
		for _, o := range lineage {
			b = append(b, o[:]...)
		}
		b = binary.AppendUvarint(b, uint64(len(rows)))
		for _, w := range rows {
			if !s.Theirs.Apart { // it would refuse more
				w.Seqs[causal.Pruned] = min(w.Seqs[causal.Pruned], w.Seqs[causal.Covered])
			}
			b = binary.AppendUvarint(b, s.sending.Number(w.Origin))
			for _, n := range w.Seqs {
				b = binary.AppendUvarint(b, n)
			}
		}
		return b
	}))
	s.sentRev = rev
}

// maxOrigins bounds the origins that one conversation may name: one for each
// opening of each database that ever wrote.
const maxOrigins = 100_000

func (s *Session) gotVectors(payload []byte) error {
	d, err := s.Reading.open(payload)
	if err != nil {
		return err
	}
	rev := d.Uint()
	loose := d.Vector(&s.Reading)
	var lineage []causal.Origin
	for range d.Count(16) {
		lineage = append(lineage, d.Origin())
	}
	n := d.Count(5)
	if n > maxOrigins {
		return replica.ProtocolErrorf("vectors of %d origins", n)
	}
	rows := make([]causal.Row, 0, n)
	for range n {
		w := causal.Row{}
		var ok bool
		if w.Origin, ok = s.Reading.Origin(d.Uint()); !ok {
			return replica.ProtocolErrorf("vectors name an unknown origin")
		}
		// In order, so that taking them in costs no more than reading them.
		if k := len(rows); k > 0 && rows[k-1].Origin.Compare(w.Origin) >= 0 {
			return replica.ProtocolErrorf("vectors are out of order")
		}
		for c := range causal.Columns {
			if w.Seqs[c] = d.Seq(); c != causal.Pruned && w.Seqs[c] > w.Seqs[causal.Covered] {
				return replica.ProtocolErrorf("vectors prove more than they claim")
			}
		}
		if w.Origin == s.Mine.Origin && w.Seqs[causal.Covered] > 0 && d.Err == nil {
			if err := s.checkOwn(w.Seqs[causal.Covered]); err != nil {
				return err
			}
		}
		rows = append(rows, w)
	}
	if n := loose.Seq(s.Mine.Origin); n > 0 && d.Err == nil {
		if err := s.checkOwn(n); err != nil {
			return err
		}
	}
	if err := d.End(); err != nil {
		return replica.ProtocolErrorf("vectors: %v", err)
	}
	s.Known, s.theirCloud = s.Known.Clone(), loose
	s.Known.Take(rows)
	if !s.Theirs.Apart { // it says only a part of it
		s.Known.Raise(causal.Pruned, causal.Untold)
	}
	s.host.With(func(r *replica.Replica) {
		m := r.NoteSeen(s.Theirs.Origin, s.Theirs.Name)
		if rev > m.Rev {
			m.Known, m.Rev = s.Known, rev
			r.StableCache = nil
		}
		r.NoteSuccession(s.Theirs.Origin, lineage)
	})
	if p := s.Pulling; p != nil && p.vector == nil && p.Repair == nil && s.Expect == WantPage {
		p.vector = s.Known.Vector(causal.Covered)
	}
	if s.Expect == wantVectors {
		s.Expect = WantPull // addresses may follow, and then it is our turn
		if s.Dialed {
			return s.beginDialer()
		}
	}
	return nil
}

// checkOwn refuses a peer that claims more of our own writes than we made.
func (s *Session) checkOwn(seq uint64) (err error) {
	s.host.With(func(r *replica.Replica) {
		if seq > r.Seq {
			err = replica.ProtocolErrorf("the peer claims write %d of this server, which has made only %d", seq, r.Seq)
		}
	})
	return err
}

// Names numbers origins in the frames of one direction: each is spelt out in the
// first frame that needs it.
type Names struct {
	List  []causal.Origin
	index map[causal.Origin]uint64
	Fresh int    // how many were spelt out
	rest  []byte // of frame
}

func (n *Names) Number(o causal.Origin) uint64 {
	i, ok := n.index[o]
	if !ok {
		if n.index == nil {
			n.index = map[causal.Origin]uint64{}
		}
		i = uint64(len(n.List))
		n.List = append(n.List, o)
		n.index[o] = i
	}
	return i
}

func (n *Names) Origin(i uint64) (causal.Origin, bool) {
	if i >= uint64(len(n.List)) {
		return causal.Origin{}, false
	}
	return n.List[i], true
}

// Frame puts the origins that body needs in front of it.
func (n *Names) Frame(body func(b []byte) []byte) []byte {
	n.rest = body(n.rest[:0])
	rest := n.rest
	b := make([]byte, 0, len(rest)+10+16*(len(n.List)-n.Fresh))
	b = binary.AppendUvarint(b, uint64(len(n.List)-n.Fresh))
	for _, o := range n.List[n.Fresh:] {
		b = append(b, o[:]...)
	}
	n.Fresh = len(n.List)
	return append(b, rest...)
}

// open reads the origins in front of a frame.
func (n *Names) open(payload []byte) (store.Decoder, error) {
	d := store.Decoder{B: payload}
	k := d.Count(16)
	if len(n.List)+k > maxOrigins {
		return d, replica.ProtocolErrorf("more than %d origins", maxOrigins)
	}
	n.List = slices.Grow(n.List, k)
	for range k {
		n.List = append(n.List, d.Origin())
	}
	return d, nil
}
