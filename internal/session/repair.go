package session

import (
	"encoding/binary"
	"maps"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// repair finds where two replicas differ by comparing ranges of their logs, in
// the order of origin and seq, by the sum of their dots' hashes, and splitting
// what differs (range-based set reconciliation, Meyer 2022). Then the keys in
// question are fetched as they are at the peer, and what the peer's watermarks
// exclude is dropped.
//
// There are two reasons for one: the peer purged what we never heard was
// deleted (R1); or both cover the same and hold different versions, because a purge
// by age went two ways or because one of them is corrupted: they reconcile (R2).
//
// The same frames fetch keys that are corrupted here (R4), and find what differs
// when somebody asks.
//
// Both sides split what differs, in turn, so that a range shrinks by the square of
// splitInto with each round trip.
type repair struct {
	kind   repairKind
	ranges []replica.DotRange // asked for, not yet answered
	queue  []replica.DotRange // to be asked for
	probes int                // frames of questions so far
	keys   [][]byte           // that hold a version here which the peer does not hold
	dots   []causal.Dot       // that only the peer holds
}

type repairKind byte

const (
	forPurge     repairKind = iota // what the peer has purged
	forReconcile                   // version vectors are equal, digests are not
	forRepair                      // fetches keys that are corrupted here
	forCompare                     // changes nothing
)

// inDigest reports whether only dots matter that are in the digest: tombstones may
// be purged any time.
func (p *repair) inDigest() bool { return p.kind != forPurge }

func (s *Session) startRepair(kind repairKind) error {
	p := &repair{kind: kind}
	if kind != forCompare {
		s.host.With((*replica.Replica).StartOver)
	}
	s.pulling.repair, s.pulling.repaired = p, s.known.Vector(causal.Purged)
	state, err := s.view(func(*replica.Replica) {})
	if err != nil {
		return err
	}
	defer state.Release()
	whole := []replica.DotRange{{Last: causal.LastDot}}
	if err := state.Measure(whole, p.inDigest()); err != nil {
		return err
	}
	if err := s.ask(&state, whole[0]); err != nil {
		return err
	}
	return s.probe()
}

// ask queues a range that was measured, in parts if we hold much of it.
func (s *Session) ask(state *replica.View, g replica.DotRange) error {
	p := s.pulling.repair
	if g.Count <= s.params.ListBelow {
		p.queue = append(p.queue, g)
		return nil
	}
	parts, err := state.Split(g, p.inDigest())
	p.queue = append(p.queue, parts...)
	return err
}

// probe asks the peer about the next ranges.
func (s *Session) probe() error {
	p := s.pulling.repair
	if p.probes++; p.probes > replica.MaxProbes {
		return replica.ProtocolErrorf("probed: still no end after %d questions", replica.MaxProbes)
	}
	gs := p.queue[:min(len(p.queue), replica.ProbeRanges)]
	p.queue = p.queue[len(gs):]
	p.ranges = gs
	n := &s.sending
	s.send(FrameProbe, n.Frame(func(b []byte) []byte {
		b = append(b, byte(store.Btoi(p.inDigest())))
		b = binary.AppendUvarint(b, uint64(len(gs)))
		for _, g := range gs {
			b = store.AppendDot(b, g.First, n)
			b = store.AppendDot(b, g.Last, n)
			b = store.AppendSum(b, g.Sum)
		}
		return b
	}))
	s.step = WaitProbeReply
	return nil
}

const (
	replySame byte = iota
	replyDots
	replySplit
)

// gotProbe answers: the same, or the dots if they are few, or the sums of parts.
func (s *Session) gotProbe(payload []byte) error {
	d, err := s.reading.open(payload)
	if err != nil {
		return err
	}
	counted := d.Byte()&1 != 0
	n := d.Count(20)
	if n > replica.ProbeRanges {
		return replica.ProtocolErrorf("probe of %d ranges", n)
	}
	asked := make([]replica.DotRange, 0, n)
	for range n {
		asked = append(asked, replica.DotRange{First: d.Dot(&s.reading), Last: d.Dot(&s.reading), Sum: d.Sum()})
	}
	if err := d.End(); err != nil {
		return replica.ProtocolErrorf("probe: %v", err)
	}
	if overlap(asked) {
		return replica.ProtocolErrorf("probe: ranges overlap")
	}
	state, err := s.view(func(*replica.Replica) {})
	if err != nil {
		return err
	}
	defer state.Release()
	s.tell(&state)
	ours := slices.Clone(asked)
	if err := state.Measure(ours, counted); err != nil {
		return err
	}
	os := &s.sending
	var body []byte
	for i, g := range ours {
		switch {
		case g.Sum == asked[i].Sum:
			body = append(body, replySame)
		case g.Count <= s.params.ListBelow:
			body, err = appendDots(&state, append(body, replyDots), g, counted, os)
		default:
			body, err = appendSplit(&state, append(body, replySplit), g, counted, os)
		}
		if err != nil {
			return err
		}
	}
	s.send(FrameProbeReply, os.Frame(func(b []byte) []byte { return append(b, body...) }))
	return nil
}

func (s *Session) gotProbeReply(payload []byte) error {
	d, err := s.reading.open(payload)
	if err != nil {
		return err
	}
	p := s.pulling.repair
	state, err := s.view(func(*replica.Replica) {})
	if err != nil {
		return err
	}
	defer state.Release()
	for _, g := range p.ranges {
		switch d.Byte() {
		case replySame:
		case replyDots:
			var theirs map[causal.Dot]bool
			if theirs, err = s.readDots(&d); err == nil && d.Err == nil {
				err = s.compare(&state, g, theirs)
			}
		case replySplit:
			var parts []replica.DotRange
			if parts, err = s.readSplit(&d, g); err == nil {
				err = s.differing(&state, parts)
			}
		default:
			d.Fail(store.ErrTrailing)
		}
		if d.Err != nil {
			return replica.ProtocolErrorf("probed: %v", d.Err)
		}
		if err != nil {
			return err
		}
	}
	if err := d.End(); err != nil {
		return replica.ProtocolErrorf("probed: %v", err)
	}
	p.ranges = nil
	if len(p.queue) > 0 {
		return s.probe()
	}
	return s.fetchNext()
}

// differing queues the parts whose sum is another here.
func (s *Session) differing(state *replica.View, parts []replica.DotRange) error {
	p, mine := s.pulling.repair, slices.Clone(parts)
	if err := state.Measure(mine, p.inDigest()); err != nil {
		return err
	}
	for i := range mine {
		if mine[i].Sum != parts[i].Sum {
			if err := s.ask(state, mine[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// compare works out what only one side holds of a range.
func (s *Session) compare(state *replica.View, g replica.DotRange, theirs map[causal.Dot]bool) error {
	p := s.pulling.repair
	err := state.Each(g, p.inDigest(), func(e *store.Entry) error {
		if theirs[e.Dot] {
			delete(theirs, e.Dot)
			return nil
		}
		if !p.inDigest() && e.Seq > s.known.Seq(causal.Purged, e.Origin) {
			return nil // no watermark of the peer excludes it
		}
		p.keys = append(p.keys, slices.Clone(e.Key))
		return nil
	})
	if p.inDigest() {
		p.dots = slices.AppendSeq(p.dots, maps.Keys(theirs))
		slices.SortFunc(p.dots, causal.Dot.Compare)
	}
	return err
}

// fetchNext asks for some of the keys in question as they are at the peer, or
// concludes the pull.
func (s *Session) fetchNext() error {
	p := s.pulling.repair
	if len(p.keys)+len(p.dots) == 0 {
		s.pulling.repair = nil
		if p.kind == forRepair || p.kind == forCompare {
			return s.pulled()
		}
		return s.conclude()
	}
	var keys [][]byte
	size := 0
	for len(p.keys) > 0 && len(keys) < replica.FetchKeys && size < s.params.PageSize {
		keys, size = append(keys, p.keys[0]), size+len(p.keys[0])
		p.keys = p.keys[1:]
	}
	dots := p.dots[:min(len(p.dots), replica.FetchKeys)]
	p.dots = p.dots[len(dots):]
	n := &s.sending
	s.send(FrameFetch, n.Frame(func(b []byte) []byte {
		b = binary.AppendUvarint(b, uint64(len(keys)))
		for _, k := range keys {
			b = store.AppendBytes(b, k)
		}
		b = binary.AppendUvarint(b, uint64(len(dots)))
		for _, d := range dots {
			b = store.AppendDot(b, d, n)
		}
		return b
	}))
	s.step = WaitPage
	return nil
}

// repairKeys takes in keys as they are at the peer.
func (s *Session) repairKeys(keys []replica.RemoteKey) error {
	p := s.pulling.repair
	if p.kind == forCompare {
		return s.compareKeys(keys)
	}
	count := &s.result.Repaired
	if p.kind == forRepair {
		count = nil // that they are corrupted was known
	}
	return s.commitInChunks(chunkedCommit{
		n:     len(keys),
		most:  mergeSlice,
		first: func(t *replica.Txn) error { t.JoinWatermarks(&s.known); t.DropResume(); return nil },
		step: func(t *replica.Txn, i int) (back int, err error) {
			k := keys[i]
			if p.kind != forPurge {
				return t.Reconcile(k.Key, k.Versions, &s.known)
			}
			return 0, t.DropPurged(k.Key, k.Versions, &s.known)
		},
		count: count,
	})
}
