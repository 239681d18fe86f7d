package replicator

import (
	"encoding/binary"
	"maps"
	"slices"
)

// A repair finds where two servers differ by comparing ranges of their logs, in
// the order of origin and seq, by the sum of their dots' hashes, and splitting
// what differs (range-based set reconciliation, Meyer 2022). Then the keys in
// question are fetched as they are at the peer, and what the peer has proof
// against is dropped.
//
// There are two reasons for one: the peer purged what we never heard was
// deleted; or both claim the same and hold different versions, because a purge
// by age went two ways or because one of them is damaged. The second is settled.
//
// The same conversation fetches keys that are damaged here, and finds what differs
// when somebody asks.
//
// Both sides split what differs, in turn, so that a range shrinks by the square of
// splitInto with each round trip.
type repair struct {
	kind   repairKind
	ranges []dotRange // asked for, not yet answered
	queue  []dotRange // to be asked for
	probes int        // frames of questions so far
	keys   [][]byte   // that hold a version here which the peer does not hold
	dots   []dot      // that only the peer holds
}

type repairKind byte

const (
	toForget  repairKind = iota // what the peer has purged
	toSettle                    // claims are equal, digests are not
	toMend                      // fetches keys that are damaged here
	toCompare                   // changes nothing
)

// counted tells whether only dots matter that are in the digest: tombstones may
// be forgotten any time.
func (p *repair) counted() bool { return p.kind != toForget }

const (
	maxRepairs  = 3       // repairs in one pull
	splitInto   = 16      // parts of a range that differs
	maxListed   = 256     // dots that are listed rather than split
	probeRanges = 1 << 12 // ranges in one question
	maxProbes   = 1 << 12
	fetchKeys   = 1 << 10
)

func (s *session) startRepair(kind repairKind) error {
	p := &repair{kind: kind}
	if kind != toCompare {
		s.host.at((*replica).startOver)
	}
	s.pulling.repair, s.pulling.repaired = p, s.peer.vector(purged)
	state, err := s.view(func(*replica) {})
	if err != nil {
		return err
	}
	defer state.Release()
	whole := []dotRange{{last: lastDot}}
	if err := state.measure(whole, p.counted()); err != nil {
		return err
	}
	if err := s.ask(&state, whole[0]); err != nil {
		return err
	}
	return s.probe()
}

// ask queues a range that was measured, in parts if we hold much of it.
func (s *session) ask(state *view, g dotRange) error {
	p := s.pulling.repair
	if g.count <= s.params.listBelow {
		p.queue = append(p.queue, g)
		return nil
	}
	parts, err := state.split(g, p.counted())
	p.queue = append(p.queue, parts...)
	return err
}

// probe asks the peer about the next ranges.
func (s *session) probe() error {
	p := s.pulling.repair
	if p.probes++; p.probes > maxProbes {
		return protocolErrorf("probed: still no end after %d questions", maxProbes)
	}
	gs := p.queue[:min(len(p.queue), probeRanges)]
	p.queue = p.queue[len(gs):]
	p.ranges = gs
	n := &s.sending
	s.send(frameProbe, n.frame(func(b []byte) []byte {
		b = append(b, byte(btoi(p.counted())))
		b = binary.AppendUvarint(b, uint64(len(gs)))
		for _, g := range gs {
			b = appendDot(b, g.first, n)
			b = appendDot(b, g.last, n)
			b = appendSum(b, g.sum)
		}
		return b
	}))
	s.expect = wantProbed
	return nil
}

const (
	probedSame byte = iota
	probedDots
	probedSplit
)

// gotProbe answers: the same, or the dots if they are few, or the sums of parts.
func (s *session) gotProbe(payload []byte) error {
	d, err := s.reading.open(payload)
	if err != nil {
		return err
	}
	counted := d.byte()&1 != 0
	n := d.count(20)
	if n > probeRanges {
		return protocolErrorf("probe of %d ranges", n)
	}
	asked := make([]dotRange, 0, n)
	for range n {
		asked = append(asked, dotRange{first: d.dot(&s.reading), last: d.dot(&s.reading), sum: d.sum()})
	}
	if err := d.end(); err != nil {
		return protocolErrorf("probe: %v", err)
	}
	if overlap(asked) {
		return protocolErrorf("probe: ranges overlap")
	}
	state, err := s.view(func(*replica) {})
	if err != nil {
		return err
	}
	defer state.Release()
	s.tell(&state)
	ours := slices.Clone(asked)
	if err := state.measure(ours, counted); err != nil {
		return err
	}
	os := &s.sending
	var body []byte
	for i, g := range ours {
		switch {
		case g.sum == asked[i].sum:
			body = append(body, probedSame)
		case g.count <= s.params.listBelow:
			body, err = appendDots(&state, append(body, probedDots), g, counted, os)
		default:
			body, err = appendSplit(&state, append(body, probedSplit), g, counted, os)
		}
		if err != nil {
			return err
		}
	}
	s.send(frameProbed, os.frame(func(b []byte) []byte { return append(b, body...) }))
	return nil
}

func (s *session) gotProbed(payload []byte) error {
	d, err := s.reading.open(payload)
	if err != nil {
		return err
	}
	p := s.pulling.repair
	state, err := s.view(func(*replica) {})
	if err != nil {
		return err
	}
	defer state.Release()
	for _, g := range p.ranges {
		switch d.byte() {
		case probedSame:
		case probedDots:
			var theirs map[dot]bool
			if theirs, err = s.readDots(&d); err == nil && d.err == nil {
				err = s.compare(&state, g, theirs)
			}
		case probedSplit:
			var parts []dotRange
			if parts, err = s.readSplit(&d, g); err == nil {
				err = s.differing(&state, parts)
			}
		default:
			d.fail(errTrailing)
		}
		if d.err != nil {
			return protocolErrorf("probed: %v", d.err)
		}
		if err != nil {
			return err
		}
	}
	if err := d.end(); err != nil {
		return protocolErrorf("probed: %v", err)
	}
	p.ranges = nil
	if len(p.queue) > 0 {
		return s.probe()
	}
	return s.fetchNext()
}

// differing queues the parts whose sum is another here.
func (s *session) differing(state *view, parts []dotRange) error {
	p, mine := s.pulling.repair, slices.Clone(parts)
	if err := state.measure(mine, p.counted()); err != nil {
		return err
	}
	for i := range mine {
		if mine[i].sum != parts[i].sum {
			if err := s.ask(state, mine[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// compare works out what only one side holds of a range.
func (s *session) compare(state *view, g dotRange, theirs map[dot]bool) error {
	p := s.pulling.repair
	err := state.each(g, p.counted(), func(e *entry) error {
		if theirs[e.dot] {
			delete(theirs, e.dot)
			return nil
		}
		if !p.counted() && e.seq > s.peer.at(purged, e.origin) {
			return nil // the peer has no proof against it
		}
		p.keys = append(p.keys, slices.Clone(e.key))
		return nil
	})
	if p.counted() {
		p.dots = slices.AppendSeq(p.dots, maps.Keys(theirs))
		slices.SortFunc(p.dots, dot.compare)
	}
	return err
}

// fetchNext asks for some of the keys in question as they are at the peer, or
// concludes the pull.
func (s *session) fetchNext() error {
	p := s.pulling.repair
	if len(p.keys)+len(p.dots) == 0 {
		s.pulling.repair = nil
		if p.kind == toMend || p.kind == toCompare {
			return s.pulled()
		}
		return s.conclude()
	}
	var keys [][]byte
	size := 0
	for len(p.keys) > 0 && len(keys) < fetchKeys && size < s.params.pageSize {
		keys, size = append(keys, p.keys[0]), size+len(p.keys[0])
		p.keys = p.keys[1:]
	}
	dots := p.dots[:min(len(p.dots), fetchKeys)]
	p.dots = p.dots[len(dots):]
	n := &s.sending
	s.send(frameFetch, n.frame(func(b []byte) []byte {
		b = binary.AppendUvarint(b, uint64(len(keys)))
		for _, k := range keys {
			b = appendBytes(b, k)
		}
		b = binary.AppendUvarint(b, uint64(len(dots)))
		for _, d := range dots {
			b = appendDot(b, d, n)
		}
		return b
	}))
	s.expect = wantPage
	return nil
}

// repairKeys takes in keys as they are at the peer.
func (s *session) repairKeys(keys []heldKey) error {
	p := s.pulling.repair
	if p.kind == toCompare {
		return s.compareKeys(keys)
	}
	count := &s.stats.repaired
	if p.kind == toMend {
		count = &s.stats.mended
	}
	return s.inPieces(pieces{
		n:     len(keys),
		most:  mergeSlice,
		first: func(t *txn) error { t.learnProof(&s.peer); t.dropResume(); return nil },
		step: func(t *txn, i int) (back int, err error) {
			k := keys[i]
			if p.kind != toForget {
				return t.settle(k.key, k.versions, &s.peer)
			}
			return 0, t.repair(k.key, k.versions, &s.peer)
		},
		count: count,
	})
}

// repair takes in what the peer holds of a key, and then drops what the peer has
// purged: held here, not there, and within both its proof and its claim.
func (t *txn) repair(key []byte, theirs []version, peer *knowledge) error {
	if _, err := t.merge(key, theirs, peer); err != nil {
		return err
	}
	old, k, err := t.lookup(key)
	if err != nil {
		return err
	}
	full, err := t.full(key, old, k)
	if err != nil {
		return err
	}
	kept := make(state, 0, len(full))
	for _, v := range full {
		if state(theirs).has(v.dot) || v.seq > peer.at(purged, v.origin) || v.seq > peer.at(claimed, v.origin) {
			kept = append(kept, v)
		}
	}
	if kept.sameDots(old) {
		return nil
	}
	return t.replace(key, old, k, kept, false)
}

// settle brings a key to terms with a peer that claims the same and holds
// something else. Where the peer holds versions of the key, its proof stands.
// Where a whole key is missing, a purge cannot be told from damage, and what is
// held comes back: a deleted key that returns is the lesser evil. It returns how
// many versions came back.
func (t *txn) settle(key []byte, theirs []version, peer *knowledge) (back int, err error) {
	old, k, err := t.lookup(key)
	if err != nil {
		return 0, err
	}
	full, lost, err := t.intact(key, old, k)
	if err != nil {
		return 0, err
	}
	now := slices.Clone(full)
	if len(theirs) > 0 {
		now = slices.DeleteFunc(now, func(y version) bool { return !state(theirs).has(y.dot) && peer.proves(y.dot) })
	}
	all := slices.Clone(now)
	now = slices.DeleteFunc(now, func(y version) bool {
		return slices.ContainsFunc(all, func(z version) bool { return z.dot != y.dot && z.saw(y.dot) })
	})
	had := len(now) > 0
	for _, x := range theirs {
		if had && !lost.has(x.dot) && x.seq <= max(t.at(pruned, x.origin), t.at(purged, x.origin)) {
			continue
		}
		if slices.ContainsFunc(now, func(y version) bool { return y.dot == x.dot || y.saw(x.dot) }) {
			continue
		}
		now = append(slices.DeleteFunc(now, func(y version) bool { return x.saw(y.dot) }), x)
		if t.covers(x.dot) {
			back++
		} else {
			t.loose = t.loose.raise(x.dot)
		}
	}
	if now.sameDots(old) && len(lost) == 0 {
		return 0, nil
	}
	for _, y := range lost { // what nothing replaces stays, for somebody else to mend
		proved := len(theirs) > 0 && peer.proves(y.dot)
		if !proved && !slices.ContainsFunc(now, func(z version) bool { return z.dot == y.dot || z.saw(y.dot) }) {
			return 0, nil
		}
	}
	return back, t.stage(key, old, k, now, false)
}
