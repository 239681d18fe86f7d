package replicator

import (
	"encoding/binary"
	"slices"
)

// sendVectors tells the peer what changed of our knowledge since it was told, of
// the state that the next page shows. first adds what is said only once.
func (s *session) sendVectors(first bool) {
	var rows []row
	var lineage []Origin
	var rev uint64
	var loose vector
	s.host.at(func(r *replica) {
		rows, rev, loose = r.known.since(s.sentRev), r.known.rev, r.loose.clone()
		s.told = r.known.claims
		if first && s.sentRev == 0 {
			lineage = r.lineage(lineageLimit)
		}
	})
	s.sendRows(rows, rev, loose, lineage)
}

func (s *session) sendRows(rows []row, rev uint64, loose vector, lineage []Origin) {
	s.send(frameVectors, s.sending.frame(func(b []byte) []byte {
		b = binary.AppendUvarint(b, rev)
		b = appendVector(b, loose, &s.sending)
		b = binary.AppendUvarint(b, uint64(len(lineage)))
		for _, o := range lineage {
			b = append(b, o[:]...)
		}
		b = binary.AppendUvarint(b, uint64(len(rows)))
		for _, w := range rows {
			b = binary.AppendUvarint(b, s.sending.number(w.origin))
			for _, n := range w.at {
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

func (s *session) gotVectors(payload []byte) error {
	d, err := s.reading.open(payload)
	if err != nil {
		return err
	}
	rev := d.uint()
	loose := d.vector(&s.reading)
	var lineage []Origin
	for range d.count(16) {
		lineage = append(lineage, d.origin())
	}
	n := d.count(5)
	if n > maxOrigins {
		return protocolErrorf("vectors of %d origins", n)
	}
	rows := make([]row, 0, n)
	for range n {
		w := row{}
		var ok bool
		if w.origin, ok = s.reading.origin(d.uint()); !ok {
			return protocolErrorf("vectors name an unknown origin")
		}
		// In order, so that taking them in costs no more than reading them.
		if k := len(rows); k > 0 && rows[k-1].origin.compare(w.origin) >= 0 {
			return protocolErrorf("vectors are out of order")
		}
		for c := range columns {
			if w.at[c] = d.seq(); w.at[c] > w.at[claimed] {
				return protocolErrorf("vectors prove more than they claim")
			}
		}
		if w.origin == s.mine.origin && w.at[claimed] > 0 && d.err == nil {
			if err := s.checkOwn(w.at[claimed]); err != nil {
				return err
			}
		}
		rows = append(rows, w)
	}
	if n := loose.seq(s.mine.origin); n > 0 && d.err == nil {
		if err := s.checkOwn(n); err != nil {
			return err
		}
	}
	if err := d.end(); err != nil {
		return protocolErrorf("vectors: %v", err)
	}
	s.peer, s.peerLoose = s.peer.clone(), loose
	s.peer.take(rows)
	s.host.at(func(r *replica) {
		m := r.heard(s.theirs.origin, s.theirs.name)
		if rev > m.rev {
			m.known, m.rev = s.peer, rev
			r.stableVec = nil
		}
		r.succeeds(s.theirs.origin, lineage)
	})
	if p := s.pulling; p != nil && p.claim == nil && p.repair == nil && s.expect == wantPage {
		p.claim = s.peer.vector(claimed)
	}
	if s.expect == wantVectors {
		s.expect = wantPull // addresses may follow, and then it is our turn
		if s.dialed {
			return s.opened()
		}
	}
	return nil
}

// checkOwn refuses a peer that claims more of our own writes than we made.
func (s *session) checkOwn(seq uint64) (err error) {
	s.host.at(func(r *replica) {
		if seq > r.seq {
			err = protocolErrorf("the peer claims write %d of this server, which has made only %d", seq, r.seq)
		}
	})
	return err
}

// names numbers origins in the frames of one direction: each is spelt out in the
// first frame that needs it.
type names struct {
	list  []Origin
	index map[Origin]uint64
	fresh int    // how many were spelt out
	rest  []byte // of frame
}

func (n *names) number(o Origin) uint64 {
	i, ok := n.index[o]
	if !ok {
		if n.index == nil {
			n.index = map[Origin]uint64{}
		}
		i = uint64(len(n.list))
		n.list = append(n.list, o)
		n.index[o] = i
	}
	return i
}

func (n *names) origin(i uint64) (Origin, bool) {
	if i >= uint64(len(n.list)) {
		return Origin{}, false
	}
	return n.list[i], true
}

// frame puts the origins that body needs in front of it.
func (n *names) frame(body func(b []byte) []byte) []byte {
	n.rest = body(n.rest[:0])
	rest := n.rest
	b := make([]byte, 0, len(rest)+10+16*(len(n.list)-n.fresh))
	b = binary.AppendUvarint(b, uint64(len(n.list)-n.fresh))
	for _, o := range n.list[n.fresh:] {
		b = append(b, o[:]...)
	}
	n.fresh = len(n.list)
	return append(b, rest...)
}

// open reads the origins in front of a frame.
func (n *names) open(payload []byte) (decoder, error) {
	d := decoder{b: payload}
	k := d.count(16)
	if len(n.list)+k > maxOrigins {
		return d, protocolErrorf("more than %d origins", maxOrigins)
	}
	n.list = slices.Grow(n.list, k)
	for range k {
		n.list = append(n.list, d.origin())
	}
	return d, nil
}
