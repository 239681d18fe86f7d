package replicator

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

// dotRange is a part of the log: first ≤ dot ≤ last.
type dotRange struct {
	first, last dot
	sum         sum
	count       uint64
}

var lastDot = dot{Origin{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, maxSeq}

// next is the dot after d, in the order of origin and seq.
func (d dot) next() dot {
	if d.seq < maxSeq {
		return dot{d.origin, d.seq + 1}
	}
	d.seq = 0
	for i := len(d.origin) - 1; i >= 0; i-- {
		if d.origin[i]++; d.origin[i] != 0 {
			break
		}
	}
	return d
}

// each calls f with the live log entries of a range in order; counted leaves out
// those that are not in the digest.
func (v *view) each(g dotRange, counted bool, f func(e *entry) error) error {
	if v.sorted == nil {
		v.sorted = slices.SortedFunc(maps.Keys(v.index), Origin.compare)
	}
	i, _ := slices.BinarySearchFunc(v.sorted, g.first.origin, Origin.compare)
	for ; i < len(v.sorted) && v.sorted[i].compare(g.last.origin) <= 0; i++ {
		o := v.sorted[i]
		from, to := uint64(0), uint64(maxSeq)
		if o == g.first.origin {
			from = g.first.seq
		}
		if o == g.last.origin {
			to = g.last.seq
		}
		if from > to {
			continue
		}
		if err := v.eachOf(v.index[o], from, to, counted, f); err != nil {
			return err
		}
	}
	return nil
}

func (v *view) eachOf(alias uint32, from, to uint64, counted bool, f func(e *entry) error) error {
	it := v.NewIterator(logRange(alias, from, to), nil)
	defer it.Release()
	for it.Next() {
		e, err := decodeEntry(it.Key(), it.Value(), v)
		if err != nil {
			return fmt.Errorf("log entry %x: %w", it.Key(), err)
		}
		if counted && !e.counted {
			continue
		}
		if v.litter {
			if s, err := readIndex(v, e.key, v); err != nil {
				return err
			} else if !s.has(e.dot) {
				continue
			}
		}
		if err := f(&e); err != nil {
			return err
		}
	}
	return it.Error()
}

// measure fills in sum and count of ranges.
func (v *view) measure(gs []dotRange, counted bool) error {
	for i := range gs {
		g := &gs[i]
		g.sum, g.count = sum{}, 0
		err := v.each(*g, counted, func(e *entry) error {
			g.sum, g.count = g.sum.add(e.hash()), g.count+1
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// overlap tells whether ranges have a dot in common: those of an honest probe have
// not, so that answering it is one pass over the log at most.
func overlap(gs []dotRange) bool {
	sorted := slices.SortedFunc(slices.Values(gs), func(a, b dotRange) int { return a.first.compare(b.first) })
	for i := range sorted {
		if sorted[i].first.compare(sorted[i].last) > 0 || i > 0 && sorted[i].first.compare(sorted[i-1].last) <= 0 {
			return true
		}
	}
	return false
}

// appendDots lists the dots of a range, as runs of seqs that follow each other: of
// which origin, how many seqs after the run before it, and how many there are.
func appendDots(v *view, b []byte, g dotRange, counted bool, n *names) ([]byte, error) {
	type run struct {
		dot
		length uint64
	}
	var runs []run
	err := v.each(g, counted, func(e *entry) error {
		if k := len(runs) - 1; k >= 0 && runs[k].origin == e.origin && runs[k].seq+runs[k].length == e.seq {
			runs[k].length++
		} else {
			runs = append(runs, run{e.dot, 1})
		}
		return nil
	})
	b = binary.AppendUvarint(b, uint64(len(runs)))
	after := dot{}
	for _, r := range runs {
		if r.origin != after.origin {
			after = dot{origin: r.origin}
		}
		b = binary.AppendUvarint(b, n.number(r.origin))
		b = binary.AppendUvarint(b, r.seq-after.seq)
		b = binary.AppendUvarint(b, r.length)
		after.seq = r.seq + r.length
	}
	return b, err
}

// readDots reads a list of dots.
func (s *session) readDots(d *decoder) (map[dot]bool, error) {
	dots := map[dot]bool{}
	after := dot{}
	for range d.count(3) {
		o, ok := s.reading.origin(d.uint())
		if !ok && d.err == nil {
			return nil, protocolErrorf("probed: an unknown origin")
		}
		if o != after.origin {
			after = dot{origin: o}
		}
		from, length := after.seq+d.seq(), d.seq()
		if d.err == nil && (length == 0 || len(dots) > maxListed || length > maxListed-uint64(len(dots)) || from > maxSeq-length) {
			return nil, protocolErrorf("probed: a list of more than %d dots", maxListed)
		}
		for seq := from; seq < from+length && d.err == nil; seq++ {
			dots[dot{o, seq}] = true
		}
		after.seq = from + length
	}
	return dots, nil
}

// split cuts a range that was measured into parts of as many dots.
func (v *view) split(g dotRange, counted bool) ([]dotRange, error) {
	size := (g.count + splitInto - 1) / splitInto
	parts := make([]dotRange, 0, splitInto)
	part := dotRange{first: g.first}
	err := v.each(g, counted, func(e *entry) error {
		if part.count == size {
			parts, part = append(parts, part), dotRange{first: part.last.next()}
		}
		part.last, part.sum, part.count = e.dot, part.sum.add(e.hash()), part.count+1
		return nil
	})
	part.last = g.last
	return append(parts, part), err
}

// appendSplit writes the parts of a range.
func appendSplit(v *view, b []byte, g dotRange, counted bool, n *names) ([]byte, error) {
	parts, err := v.split(g, counted)
	b = binary.AppendUvarint(b, uint64(len(parts)))
	for _, p := range parts {
		b = appendDot(b, p.last, n)
		b = appendSum(b, p.sum)
	}
	return b, err
}

func (s *session) readSplit(d *decoder, g dotRange) ([]dotRange, error) {
	var parts []dotRange
	first := g.first
	for range min(d.count(18), splitInto) {
		part := dotRange{first: first, last: d.dot(&s.reading), sum: d.sum()}
		if part.last.compare(first) < 0 || part.last.compare(g.last) > 0 {
			return nil, protocolErrorf("probed: parts are out of order")
		}
		parts = append(parts, part)
		first = part.last.next()
	}
	if d.err == nil && (len(parts) == 0 || parts[len(parts)-1].last != g.last || len(parts) == 1) {
		return nil, protocolErrorf("probed: parts do not make up the range")
	}
	return parts, nil
}
