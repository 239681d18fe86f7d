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
	pulling *pulling

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
func (r *repair) inDigest() bool { return r.kind != forPurge }

func (p *pulling) startRepair(kind repairKind) error {
	s := p.session
	r := &repair{pulling: p, kind: kind}
	if kind != forCompare {
		s.host.With((*replica.Replica).StartOver)
	}
	p.repair, p.repaired = r, s.known.Vector(causal.Purged)
	state, err := s.view(nil)
	if err != nil {
		return err
	}
	defer state.Release()
	whole := []replica.DotRange{{Last: causal.LastDot}}
	if err := state.Measure(whole, r.inDigest()); err != nil {
		return err
	}
	if err := r.enqueue(&state, whole[0]); err != nil {
		return err
	}
	return r.probe()
}

// enqueue queues a range that was measured, in parts if we hold much of it.
func (r *repair) enqueue(state *replica.View, g replica.DotRange) error {
	if g.Count <= r.pulling.session.params.ListBelow {
		r.queue = append(r.queue, g)
		return nil
	}
	parts, err := state.Split(g, r.inDigest())
	r.queue = append(r.queue, parts...)
	return err
}

// probe asks the peer about the next ranges.
func (r *repair) probe() error {
	if r.probes++; r.probes > replica.MaxProbes {
		return replica.ProtocolErrorf("probed: still no end after %d questions", replica.MaxProbes)
	}
	gs := r.queue[:min(len(r.queue), replica.ProbeRanges)]
	r.queue = r.queue[len(gs):]
	r.ranges = gs
	n := &r.pulling.session.sending
	r.pulling.ask(FrameProbe, func(b []byte) []byte {
		b = append(b, byte(store.Btoi(r.inDigest())))
		b = binary.AppendUvarint(b, uint64(len(gs)))
		for _, g := range gs {
			b = store.AppendDot(b, g.First, n)
			b = store.AppendDot(b, g.Last, n)
			b = store.AppendSum(b, g.Sum)
		}
		return b
	})
	return nil
}

// gotReply takes in the answer to a probe.
func (r *repair) gotReply(payload []byte) error {
	s := r.pulling.session
	d, err := s.reading.open(payload)
	if err != nil {
		return err
	}
	state, err := s.view(nil)
	if err != nil {
		return err
	}
	defer state.Release()
	for _, g := range r.ranges {
		switch d.Byte() {
		case replySame:
		case replyDots:
			var theirs map[causal.Dot]bool
			if theirs, err = readDots(&d, &s.reading); err == nil && d.Err == nil {
				err = r.compare(&state, g, theirs)
			}
		case replySplit:
			var parts []replica.DotRange
			if parts, err = readSplit(&d, &s.reading, g); err == nil {
				err = r.differing(&state, parts)
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
	r.ranges = nil
	if len(r.queue) > 0 {
		return r.probe()
	}
	return r.fetchNext()
}

// differing queues the parts whose sum is another here.
func (r *repair) differing(state *replica.View, parts []replica.DotRange) error {
	mine := slices.Clone(parts)
	if err := state.Measure(mine, r.inDigest()); err != nil {
		return err
	}
	for i := range mine {
		if mine[i].Sum != parts[i].Sum {
			if err := r.enqueue(state, mine[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// compare works out what only one side holds of a range.
func (r *repair) compare(state *replica.View, g replica.DotRange, theirs map[causal.Dot]bool) error {
	err := state.Each(g, r.inDigest(), func(e *store.Entry) error {
		if theirs[e.Dot] {
			delete(theirs, e.Dot)
			return nil
		}
		if !r.inDigest() && e.Seq > r.pulling.session.known.Seq(causal.Purged, e.Origin) {
			return nil // no watermark of the peer excludes it
		}
		r.keys = append(r.keys, slices.Clone(e.Key))
		return nil
	})
	if r.inDigest() {
		r.dots = slices.AppendSeq(r.dots, maps.Keys(theirs))
		slices.SortFunc(r.dots, causal.Dot.Compare)
	}
	return err
}

// fetchNext asks for some of the keys in question as they are at the peer, or
// concludes the pull.
func (r *repair) fetchNext() error {
	p, s := r.pulling, r.pulling.session
	if len(r.keys)+len(r.dots) == 0 {
		p.repair = nil
		if r.kind == forRepair || r.kind == forCompare {
			return s.pulled()
		}
		return p.conclude()
	}
	var keys [][]byte
	size := 0
	for len(r.keys) > 0 && len(keys) < replica.FetchKeys && size < s.params.PageSize {
		keys, size = append(keys, r.keys[0]), size+len(r.keys[0])
		r.keys = r.keys[1:]
	}
	dots := r.dots[:min(len(r.dots), replica.FetchKeys)]
	r.dots = r.dots[len(dots):]
	n := &s.sending
	p.ask(FrameFetch, func(b []byte) []byte {
		b = binary.AppendUvarint(b, uint64(len(keys)))
		for _, k := range keys {
			b = store.AppendBytes(b, k)
		}
		b = binary.AppendUvarint(b, uint64(len(dots)))
		for _, d := range dots {
			b = store.AppendDot(b, d, n)
		}
		return b
	})
	return nil
}

// takeKeys takes in keys as they are at the peer.
func (r *repair) takeKeys(keys []replica.RemoteKey) error {
	if r.kind == forCompare {
		return r.compareKeys(keys)
	}
	s := r.pulling.session
	count := &s.result.Repaired
	if r.kind == forRepair {
		count = nil // that they are corrupted was known
	}
	m := chunkedCommit{
		n:     len(keys),
		most:  mergeSlice,
		first: func(t *replica.Txn) error { t.JoinWatermarks(&s.known); t.DropResume(); return nil },
		step: func(t *replica.Txn, i int) (back int, err error) {
			k := keys[i]
			if r.kind != forPurge {
				return t.Reconcile(k.Key, k.Versions, &s.known)
			}
			return 0, t.DropPurged(k.Key, k.Versions, &s.known)
		},
		count: count,
	}
	return m.commit(s.host)
}
