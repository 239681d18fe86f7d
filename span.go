package replicator

import (
	"errors"
	"fmt"
	"slices"
)

// span is a range of seqs, both ends included.
type span struct{ from, to uint64 }

// spans are ranges of one origin's log, sorted, apart from each other.
type spans []span

// add puts a range among others.
func (ss spans) add(s span) spans {
	if s.from > s.to || len(ss) >= maxSpans && !ss.touch(s) {
		return ss
	}
	i := 0
	for i < len(ss) && ss[i].to+1 < s.from {
		i++
	}
	j := i
	for j < len(ss) && ss[j].from <= s.to+1 {
		s.from, s.to = min(s.from, ss[j].from), max(s.to, ss[j].to)
		j++
	}
	return slices.Replace(ss, i, j, s)
}

// without takes one seq out.
func (ss spans) without(seq uint64) spans {
	i := slices.IndexFunc(ss, func(s span) bool { return s.from <= seq && seq <= s.to })
	if i < 0 {
		return ss
	}
	var rest spans
	for _, s := range []span{{ss[i].from, seq - 1}, {seq + 1, ss[i].to}} {
		if s.from <= s.to {
			rest = append(rest, s)
		}
	}
	if len(ss)+len(rest)-1 > maxSpans { // what is not remembered is only sent again
		rest = rest[:1]
	}
	return slices.Replace(ss, i, i+1, rest...)
}

// touch tells whether a span would join others rather than stand alone.
func (ss spans) touch(s span) bool {
	return slices.ContainsFunc(ss, func(t span) bool { return t.from <= s.to+1 && s.from <= t.to+1 })
}

// maxSpans bounds the spans of one origin, on the wire and in memory. What is not
// remembered is only sent again.
const maxSpans = 1 << 12

// spans reads spans, which must be in order and apart.
func (d *decoder) spans() (ss spans) {
	n := d.count(2)
	if n > maxSpans {
		d.fail(fmt.Errorf("replicator: %d spans, at most %d are allowed", n, maxSpans))
	}
	for range n {
		s := span{d.seq(), d.seq()}
		if k := len(ss); d.err == nil && (s.from == 0 || s.from > s.to || k > 0 && s.from <= ss[k-1].to+1) {
			d.fail(errors.New("replicator: spans are out of order"))
		}
		if d.err != nil {
			return nil
		}
		ss = append(ss, s)
	}
	return ss
}

// cut appends to regions what of g is not within the spans, the highest first.
func (ss spans) cut(regions []region, g region) []region {
	for i := len(ss) - 1; i >= 0 && g.from <= g.to; i-- {
		if s := ss[i]; s.from <= g.to && s.to >= g.from {
			if s.to < g.to {
				regions = append(regions, region{g.origin, g.alias, s.to + 1, g.to})
			}
			if s.from == 0 {
				return regions
			}
			g.to = s.from - 1
		}
	}
	if g.from <= g.to {
		regions = append(regions, g)
	}
	return regions
}
