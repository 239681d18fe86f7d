package replicator

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
)

// pulling is the half of a session that brings over what we lack. Pages are
// merged as they come; the peer's claim is taken, and its proofs, when all of
// them are, and in the same batch if they fit into one.
type pulling struct {
	keys  []heldKey
	bytes int      // of the frames they came in
	size  int      // of the batch they will make, about
	marks []region // of the pages in keys
	reach vector   // what the peer claimed or held then
	whole bool     // the peer has sent all
	torn  bool     // it does not fit into one batch
	claim vector   // of the peer, in the first state of those that it sends; nil before that

	proof knowledge // of the peer, in the state of the pages in keys

	apart   []*apartKey // of which values are to be asked for
	asked   int         // how many of them were, the first
	wanting bool        // values are asked for
	back    heldBack    // what is not taken here

	settle   bool // claims were equal, digests were not
	repair   *repair
	repaired vector // what the peer had purged when a repair began
	rounds   int    // repairs begun
}

// heldKey is the state of a key at a peer.
type heldKey struct {
	key      []byte
	versions []version
	over     bool // the key is larger than is taken here
}

// startPull asks for what we lack. What an unfinished pull brought may be skipped
// by a peer whose claim covers all that its server knew.
func (s *session) startPull() error {
	var news int64
	none := false
	s.host.at(func(r *replica) {
		news = r.known.behind(&s.peer)
		none = s.nothingNew(r)
	})
	if none {
		return s.pulled()
	}
	if s.leftOut = s.host.enterPull(s.theirs.origin, news); s.leftOut != pullNow {
		return s.pulled()
	}
	p := &pulling{}
	var skip spanMap
	s.host.at(func(r *replica) {
		p.settle = s.differs()
		skip = r.skippable(&s.peer)
	})
	s.pulling = p
	if len(s.params.mend) > 0 {
		s.host.at((*replica).startOver)
		p.repair = &repair{kind: toMend, keys: s.params.mend}
		return s.fetchNext()
	}
	// A pull would bring nothing, if what the peer told of its claim since its hello is no
	// more than it claimed then; and so there is no claim to be taken.
	if p.settle && len(s.peerLoose) == 0 && s.peer.claims == s.theirs.claims {
		p.rounds = 1
		return s.startRepair(toSettle)
	}
	s.send(framePull, s.sending.frame(func(b []byte) []byte {
		b = binary.AppendUvarint(b, uint64(len(skip)))
		for _, o := range sortedOrigins(skip) {
			b = binary.AppendUvarint(b, s.sending.number(o))
			b = binary.AppendUvarint(b, uint64(len(skip[o])))
			for _, sp := range skip[o] {
				b = binary.AppendUvarint(b, sp.from)
				b = binary.AppendUvarint(b, sp.to)
			}
		}
		return b
	}))
	s.expect = wantPage
	return nil
}

// differs tells that the two claimed the same when they met, and did not hold the same.
func (s *session) differs() bool {
	return s.mine.claims == s.theirs.claims && s.mine.digest != s.theirs.digest
}

// nothingNew tells that a pull would bring nothing: all that the peer claims, holds
// beyond that, and can prove is known here. What it has learnt since it told of that is
// left to the next session.
func (s *session) nothingNew(r *replica) bool {
	return !s.differs() && !s.params.purpose.any() && len(s.peerLoose) == 0 &&
		s.peer.within(claimed, &r.known, claimed) && s.peer.within(pruned, &r.known, pruned) && s.peer.within(purged, &r.known, purged)
}

func sortedOrigins(m spanMap) []Origin {
	os := make([]Origin, 0, len(m))
	for o := range m {
		os = append(os, o)
	}
	slices.SortFunc(os, Origin.compare)
	return os
}

// spooled is a value that comes in chunks. Of one that is larger than is taken here only
// the size is kept.
type spooled struct {
	parts [][]byte
	size  uint64
}

func (v *spooled) value() []byte {
	value := bytes.Join(v.parts, nil)
	v.parts = nil
	return value
}

func (s *session) gotChunk(payload []byte) error {
	if len(payload) < 2 || s.pulling == nil {
		return protocolErrorf("an empty chunk")
	}
	last, part := payload[0]&1 != 0, payload[1:]
	if n := len(s.spool); n == 0 || s.spoolEnded {
		s.spool = append(s.spool, spooled{})
	}
	s.spoolEnded = last
	v := &s.spool[len(s.spool)-1]
	if v.size += uint64(len(part)); v.size <= uint64(s.params.maxValue) {
		v.parts = append(v.parts, part)
		s.spooled += len(part)
	} else {
		for _, part := range v.parts {
			s.spooled -= len(part)
		}
		v.parts = nil
	}
	// A server of before sends some values together, those of one key, say.
	if uint64(s.spooled) > 4*uint64(s.params.maxValue)+frameCap || len(s.spool) > maxVersions {
		return fmt.Errorf("%w: %d values of %d bytes in one page, MaxValue is %d", ErrTooLarge, len(s.spool), s.spooled, s.params.maxValue)
	}
	return nil
}

func (s *session) gotPage(payload []byte) error {
	d, err := s.reading.open(payload)
	if err != nil {
		return err
	}
	marks, err := s.readMarks(&d)
	if err != nil {
		return err
	}
	versions := 0
	n := d.count(2)
	keys := make([]heldKey, 0, min(n, maxVersions/16))
	for range n {
		k, err := s.readKey(&d)
		if err != nil {
			return err
		}
		if versions += len(k.versions); versions > maxVersions {
			return protocolErrorf("page of more than %d versions", maxVersions)
		}
		keys = append(keys, k)
	}
	if err := d.end(); err != nil {
		return protocolErrorf("page: %v", err)
	}
	came, size := len(payload)+s.spooled, 0
	s.spool, s.spooled = nil, 0
	if err := s.checkKeys(keys); err != nil {
		return err
	}
	p := s.pulling
	if p.asked > 0 {
		return s.gotWanted(keys)
	}
	if p.wanting {
		return protocolErrorf("a page more than was asked for")
	}
	if keys, err = p.sort(keys); err != nil {
		return err
	}
	if p.repair != nil {
		return s.repairKeys(keys)
	}
	for i := range keys {
		size += keys[i].size()
	}
	if len(p.keys) > 0 && (p.size+size > s.params.batchSize || !s.sameProof()) {
		if err := s.commitPages(); err != nil {
			return err
		}
	}
	p.keys = append(p.keys, keys...)
	p.bytes += came
	p.size += size
	p.proof = s.peer
	for _, m := range marks {
		p.reach = p.reach.raise(dot{m.origin, m.to})
		m.to = min(m.to, s.peer.at(claimed, m.origin))
		p.marks = append(p.marks, m)
	}
	p.reach = p.reach.join(s.peer.vector(claimed)).join(s.peerLoose)
	if size > s.params.batchSize { // nothing else fits into its batch, so it need not wait for more
		return s.commitPages()
	}
	return nil
}

// sort takes from the keys of a page those whose values are to be asked for, and notes
// what is not taken here.
func (p *pulling) sort(keys []heldKey) ([]heldKey, error) {
	var err error
	return slices.DeleteFunc(keys, func(k heldKey) bool {
		p.back.set(k)
		switch {
		case k.over:
			return true
		case slices.ContainsFunc(k.versions, func(v version) bool { return v.apart }):
			err = errors.Join(err, p.setApart(k))
			return true
		}
		return p.repair != nil && p.repair.kind != toCompare && k.lacks()
	}), err
}

// lacks tells whether a value of a key is not here.
func (k *heldKey) lacks() bool {
	return slices.ContainsFunc(k.versions, func(v version) bool { return !v.whole() })
}

// sameProof tells whether the pages that wait are of a state with the same proofs
// as the one that the peer speaks of now.
func (s *session) sameProof() bool { return s.pulling.proof.proofs == s.peer.proofs }

func (s *session) readMarks(d *decoder) ([]region, error) {
	n := d.count(3)
	if n > maxMarks {
		return nil, protocolErrorf("page with %d marks", n)
	}
	marks := make([]region, 0, n)
	for range n {
		o, ok := s.reading.origin(d.uint())
		if !ok {
			return nil, protocolErrorf("page names an unknown origin")
		}
		m := region{origin: o, from: d.seq(), to: d.seq()}
		if d.err == nil && (m.from == 0 || m.from > m.to) {
			return nil, protocolErrorf("page marks %d to %d", m.from, m.to)
		}
		marks = append(marks, m)
	}
	return marks, nil
}

func (s *session) readKey(d *decoder) (heldKey, error) {
	k := heldKey{key: d.bytes(len(d.b))}
	k.over = len(k.key) > s.params.maxKey
	n := d.count(3)
	if n > maxVersions {
		return k, protocolErrorf("key %.40q with %d versions", k.key, n)
	}
	k.versions = make([]version, 0, min(n, 4))
	for range n {
		var v version
		flags := d.byte()
		v.dot = d.dot(&s.reading)
		if v.seq == 0 && d.err == nil {
			return k, protocolErrorf("key %.40q: a version without a seq", k.key)
		}
		v.deleted, v.known, v.apart = flags&flagDeleted != 0, flags&flagKnown != 0, flags&flagApart != 0
		if v.known && v.apart {
			return k, protocolErrorf("key %.40q: a version that is known and is not", k.key)
		}
		if !v.known && !v.apart {
			d.body(&v, &s.reading)
			if err := s.readContent(d, flags, &v); err != nil {
				return k, err
			}
			if k.over {
				v.value, v.large = nil, max(1, v.large, uint64(len(v.value)))
			}
		}
		if d.err != nil {
			return k, protocolErrorf("page: %v", d.err)
		}
		k.versions = append(k.versions, v)
	}
	return k, nil
}

// readContent reads the value of a version, if it is taken here.
func (s *session) readContent(d *decoder, flags byte, v *version) error {
	switch {
	case flags&flagLarge != 0:
		v.large = max(1, d.upTo(math.MaxInt64))
	case v.deleted:
	case flags&flagChunked != 0:
		if len(s.spool) == 0 || len(s.spool) == 1 && !s.spoolEnded {
			return protocolErrorf("a chunked value without its chunks")
		}
		if x := &s.spool[0]; x.size > uint64(s.params.maxValue) {
			v.large = x.size
		} else {
			v.value = x.value()
		}
		s.spool = s.spool[1:]
	default:
		if v.value = d.bytes(len(d.b)); len(v.value) > s.params.maxValue {
			v.value, v.large = nil, uint64(len(v.value))
		}
	}
	return nil
}

// checkKeys refuses what no honest peer would send, before any of it is stored.
func (s *session) checkKeys(keys []heldKey) (err error) {
	s.host.at(func(r *replica) {
		latest := stampOf(r.now().Add(r.maxSkew))
		for _, k := range keys {
			switch {
			case reserved(k.key):
				err = protocolErrorf("an entry for the reserved key %.40q", k.key)
			case r.local != nil && r.local(k.key):
				err = protocolErrorf("an entry for a key that is in a local range here; all replicas of a cluster need the same Options.Local")
			}
			for i := range k.versions {
				v := &k.versions[i]
				if v.known {
					continue
				}
				if n := v.vv.seq(r.self); n > r.seq {
					err = protocolErrorf("a write that has seen write %d of this server, which has made only %d", n, r.seq)
				}
				if v.stamp > latest {
					err = fmt.Errorf("%w: a write by %s is %v ahead", ErrClockSkew, v.origin.Short(), v.stamp.time().Sub(r.now()))
				}
			}
			for i := range k.versions {
				if v := &k.versions[i]; v.origin == r.self && v.seq > r.seq {
					err = protocolErrorf("a write %d of this server, which has made only %d", v.seq, r.seq)
				}
			}
			if err != nil {
				return
			}
		}
	})
	return err
}

// learnProof takes in what the peer can prove, as far as it is claimed here too. A
// version may rely on it, so it comes with the first that is merged.
func (t *txn) learnProof(peer *knowledge) {
	for _, w := range peer.rows {
		t.prove(pruned, dot{w.origin, w.at[pruned]})
		t.prove(purged, dot{w.origin, w.at[purged]})
	}
}

// pieces are steps that are committed as one batch, or as several if that would
// be too large.
type pieces struct {
	n     int                // steps
	first func(t *txn) error // comes before the steps in each batch; may be nil
	step  func(t *txn, i int) (int, error)
	ends  func(i int) bool   // a batch may well end with this step; nil: with any
	last  func(t *txn) error // comes after the last step; may be nil
	count *int               // rises by what the steps return, once committed; may be nil
	most  int                // steps after which a batch ends at the next good place, as writers wait for it; 0: they are one batch if it is not too large
}

// mergeSlice is how many keys of a pull that is not one batch anyway are merged at a time:
// that takes about 2 ms.
const mergeSlice = 128

// errPiece ends the staging of a batch that became too large.
var errPiece = errors.New("replicator: batch is too large")

// inPieces commits steps, in one batch if it is not larger than batchLimit. The
// step that was one too many is found by staging it; then the batch is staged
// again up to the last good place to end, once, so this costs little.
func (s *session) inPieces(p pieces) error {
	for from := 0; ; {
		to, cut := p.n, false
		for {
			count := 0
			err := s.host.commit(func(t *txn) (err error) {
				if count = 0; p.first != nil {
					if err := p.first(t); err != nil {
						return err
					}
				}
				end := from
				for i := from; i < to; i++ {
					n, err := p.step(t, i)
					if err != nil {
						return err
					}
					if count += n; !cut && t.large() && i > from {
						if to = end; end == from {
							to = i
						}
						return errPiece
					}
					if p.ends != nil && !p.ends(i) {
						continue
					}
					if end = i + 1; p.most > 0 && end-from >= p.most {
						if to = end; to < p.n {
							return nil
						}
					}
				}
				if p.last != nil && to == p.n {
					return p.last(t)
				}
				return nil
			})
			if err == errPiece && !cut {
				cut = true
				continue
			}
			if err != nil {
				return err
			}
			if p.count != nil {
				*p.count += count
			}
			break
		}
		if to == p.n {
			return nil
		}
		from = to
	}
}

// merging are the pages that wait, to be merged.
func (s *session) merging() pieces {
	p := s.pulling
	m := pieces{n: len(p.keys), count: &s.stats.pulled, ends: func(i int) bool { return p.keys[i].begins() }}
	if p.torn {
		m.most = mergeSlice
	}
	if m.n > 0 {
		m.first = func(t *txn) error { t.learnProof(&p.proof); return nil }
	}
	m.step = func(t *txn, i int) (int, error) { return t.merge(p.keys[i].key, p.keys[i].versions, &p.proof) }
	return m
}

// begins tells whether a key was written first in its writer's batch: the log is
// read in reverse, so the batch ends with it.
func (k *heldKey) begins() bool {
	return !slices.ContainsFunc(k.versions, func(v version) bool { return !v.known && v.offset > 0 })
}

// size estimates what a key comes to in a batch, with log and index.
func (k *heldKey) size() int {
	n := 4 * len(k.key)
	for i := range k.versions {
		v := &k.versions[i]
		n += writeOverhead + 8*len(v.vv) + len(v.value)
		if len(k.versions) > 1 {
			n += len(v.value)
		}
	}
	return n
}

func (p *pulling) clear() { p.keys, p.marks, p.bytes, p.size, p.reach = nil, nil, 0, 0, nil }

// retained is how many bytes of received frames the session still needs.
func (s *session) retained() int {
	n := s.spooled
	if s.pulling != nil {
		n += s.pulling.bytes
		for _, a := range s.pulling.apart {
			n += a.bytes + len(a.key) + 16*len(a.names)
		}
	}
	return n
}

// commitPages commits what has come so far of a pull that is not whole.
func (s *session) commitPages() error {
	p := s.pulling
	p.torn = true
	if err := s.inPieces(s.merging()); err != nil {
		return err
	}
	s.host.at(func(r *replica) { r.remember(p.marks, p.reach, &p.back, &s.peer) })
	p.clear()
	return nil
}

// abandon ends a session that was cut off. What came of a pull is kept.
func (s *session) abandon() error {
	s.leaveServing()
	defer s.leavePull()
	p := s.pulling
	if p == nil || p.repair != nil {
		return nil
	}
	if len(p.keys) > 0 {
		if err := s.commitPages(); err != nil {
			return err
		}
	}
	for _, a := range p.apart {
		if a.bytes > 0 {
			if err := s.mergePart(a); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *session) gotEnd(payload []byte) error {
	if len(payload) != 1 {
		return protocolErrorf("an end of %d bytes", len(payload))
	}
	p := s.pulling
	switch {
	case p.asked > 0:
		return protocolErrorf("an end, and no answer to a want")
	case p.repair == nil && !p.wanting:
		p.whole = payload[0]&1 != 0
	}
	return s.wantNext()
}

// allCame goes on when all of a pull, or of a fetch, is here.
func (s *session) allCame() error {
	p := s.pulling
	p.wanting = false
	if p.repair != nil {
		return s.fetchNext()
	}
	if !p.whole || p.back.over {
		s.partial, s.held = !p.whole, p.back.over // to come again brings nothing of what is held back
		if err := s.commitPages(); err != nil {
			return err
		}
		return s.pulled()
	}
	if p.claim == nil { // it said nothing new
		p.claim = s.peer.vector(claimed)
	}
	return s.conclude()
}

// conclude takes the peer's claim, unless a repair must come first: the peer may
// have forgotten deletions that we never heard of, or one side may be damaged.
func (s *session) conclude() error {
	p := s.pulling
	repair := false
	s.host.at(func(r *replica) { repair = !s.provedHere(r) })
	if settle := p.settle && p.rounds == 0; repair || settle {
		if len(p.keys) > 0 {
			if err := s.commitPages(); err != nil {
				return err
			}
		}
		if p.rounds++; p.rounds > maxRepairs {
			return s.pulled()
		}
		if settle {
			return s.startRepair(toSettle)
		}
		return s.startRepair(toForget)
	}
	if err := s.recordOrigins(); err != nil {
		return err
	}
	m := s.merging()
	var claim vector
	var above spanMap
	m.last = func(t *txn) error {
		t.sync = t.sync || s.theirs.wants
		claim, above = p.claim, nil
		if len(p.back.keys) > 0 {
			claim, above = p.back.allow(&t.r.known, p.claim, &s.peer)
		}
		for _, d := range claim {
			t.claim(d)
		}
		t.learnProof(&s.peer)
		return nil
	}
	if err := s.inPieces(m); err != nil {
		return err
	}
	s.host.at(func(r *replica) {
		if r.resume.rev++; len(p.back.keys) == 0 {
			r.pending = nil
		} else { // the next pull brings what is above the claim once more
			r.remember(p.marks, p.reach, &p.back, &s.peer)
		}
		s.stats.heldBefore = len(r.heldBack)
		r.holdBack(&p.back, above)
		s.held = len(p.back.keys) > 0
		s.stats.heldNow = len(r.heldBack)
	})
	p.clear()
	if s.params.compare != nil {
		return s.startCompare()
	}
	return s.pulled()
}

// originStep is how many new origins the claim may bring in one batch.
const originStep = 1024

// recordOrigins gives aliases to the origins of a claim that brings very many.
func (s *session) recordOrigins() error {
	var fresh []Origin
	s.host.at(func(r *replica) {
		for _, d := range s.pulling.claim {
			if _, ok := r.alias[d.origin]; !ok {
				fresh = append(fresh, d.origin)
			}
		}
	})
	for len(fresh) > originStep {
		err := s.host.commit(func(t *txn) error {
			for _, o := range fresh[:originStep] {
				t.r.number(o)
			}
			return nil
		})
		if err != nil {
			return err
		}
		fresh = fresh[originStep:]
	}
	return nil
}

// provedHere tells whether what the peer purged is claimed here or was repaired.
func (s *session) provedHere(r *replica) bool {
	for _, w := range s.peer.rows {
		if n := w.at[purged]; n > r.known.at(claimed, w.origin) && n > s.pulling.repaired.seq(w.origin) {
			return false
		}
	}
	return true
}

// pulled ends our pull: then it is the peer's turn, or all is said.
func (s *session) pulled() error {
	s.leavePull()
	s.reportDurable()
	if s.dialed {
		s.send(frameTurn, nil)
		s.expect = wantTheirs
		return nil
	}
	s.send(frameBye, []byte{byte(s.leftOut)})
	s.part()
	return nil
}

func (s *session) gotBye(payload []byte) error {
	if len(payload) != 1 || payload[0] > byte(pullNever) {
		return protocolErrorf("a bye of % x", payload)
	}
	s.theyLeft = leftOut(payload[0])
	s.part()
	return nil
}

// reportDurable brings to disk what is claimed here, if the peer waits for that,
// and tells it. If that fails it tells what is on disk.
func (s *session) reportDurable() {
	if h, ok := s.host.(hardener); ok && s.theirs.wants {
		h.harden()
		s.sendVectors(false)
	}
}
