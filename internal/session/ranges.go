package session

import (
	"encoding/binary"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// overlap reports whether ranges have a dot in common: those of an honest probe have
// not, so that answering it is one pass over the log at most.
func overlap(gs []replica.DotRange) bool {
	sorted := slices.SortedFunc(slices.Values(gs), func(a, b replica.DotRange) int { return a.First.Compare(b.First) })
	for i := range sorted {
		if sorted[i].First.Compare(sorted[i].Last) > 0 || i > 0 && sorted[i].First.Compare(sorted[i-1].Last) <= 0 {
			return true
		}
	}
	return false
}

// appendDots lists the dots of a range, as runs of seqs that follow each other: of
// which origin, how many seqs after the run before it, and how many there are.
func appendDots(v *replica.View, b []byte, g replica.DotRange, counted bool, n *Names) ([]byte, error) {
	type run struct {
		causal.Dot
		length uint64
	}
	var runs []run
	err := v.Each(g, counted, func(e *store.Entry) error {
		if k := len(runs) - 1; k >= 0 && runs[k].Origin == e.Origin && runs[k].Seq+runs[k].length == e.Seq {
			runs[k].length++
		} else {
			runs = append(runs, run{e.Dot, 1})
		}
		return nil
	})
	b = binary.AppendUvarint(b, uint64(len(runs)))
	after := causal.Dot{}
	for _, r := range runs {
		if r.Origin != after.Origin {
			after = causal.Dot{Origin: r.Origin}
		}
		b = binary.AppendUvarint(b, n.Number(r.Origin))
		b = binary.AppendUvarint(b, r.Seq-after.Seq)
		b = binary.AppendUvarint(b, r.length)
		after.Seq = r.Seq + r.length
	}
	return b, err
}

// readDots reads a list of dots.
func readDots(d *store.Decoder, names *Names) (map[causal.Dot]bool, error) {
	dots := map[causal.Dot]bool{}
	after := causal.Dot{}
	for range d.Count(3) {
		o, ok := names.Origin(d.Uint())
		if !ok && d.Err == nil {
			return nil, replica.ProtocolErrorf("probed: an unknown origin")
		}
		if o != after.Origin {
			after = causal.Dot{Origin: o}
		}
		from, length := after.Seq+d.Seq(), d.Seq()
		if d.Err == nil && (length == 0 || len(dots) > replica.MaxListed || length > replica.MaxListed-uint64(len(dots)) || from > causal.MaxSeq-length) {
			return nil, replica.ProtocolErrorf("probed: a list of more than %d dots", replica.MaxListed)
		}
		for seq := from; seq < from+length && d.Err == nil; seq++ {
			dots[causal.Dot{Origin: o, Seq: seq}] = true
		}
		after.Seq = from + length
	}
	return dots, nil
}

// appendSplit writes the parts of a range.
func appendSplit(v *replica.View, b []byte, g replica.DotRange, counted bool, n *Names) ([]byte, error) {
	parts, err := v.Split(g, counted)
	b = binary.AppendUvarint(b, uint64(len(parts)))
	for _, p := range parts {
		b = store.AppendDot(b, p.Last, n)
		b = store.AppendSum(b, p.Sum)
	}
	return b, err
}

func readSplit(d *store.Decoder, names *Names, g replica.DotRange) ([]replica.DotRange, error) {
	var parts []replica.DotRange
	first := g.First
	for range min(d.Count(18), replica.SplitInto) {
		part := replica.DotRange{First: first, Last: d.Dot(names), Sum: d.Sum()}
		if part.Last.Compare(first) < 0 || part.Last.Compare(g.Last) > 0 {
			return nil, replica.ProtocolErrorf("probed: parts are out of order")
		}
		parts = append(parts, part)
		first = part.Last.Next()
	}
	if d.Err == nil && (len(parts) == 0 || parts[len(parts)-1].Last != g.Last || len(parts) == 1) {
		return nil, replica.ProtocolErrorf("probed: parts do not make up the range")
	}
	return parts, nil
}
