package causal

import (
	"cmp"
	"slices"
)

// LastDot is the last in the order of dots.
var LastDot = Dot{Origin{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, MaxSeq}

// SpanMap are parts of the logs of some origins.
type SpanMap map[Origin]Spans

// Region is a part of one origin's log, from ≤ seq ≤ to, read in reverse.
type Region struct {
	Origin   Origin
	Alias    uint32
	From, To uint64
}

// Span is a range of seqs, both ends included.
type Span struct{ From, To uint64 }

// Spans are ranges of one origin's log.
//
// Invariant: sorted; between two of them lies a seq that is in neither.
type Spans []Span

// MaxSpans bounds the spans of one origin, on the wire and in memory. Whatever exceeds it is
// sent again.
const MaxSpans = 1 << 12

// SortedOrigins returns the origins of a map in order.
func SortedOrigins(m SpanMap) []Origin {
	os := make([]Origin, 0, len(m))
	for o := range m {
		os = append(os, o)
	}
	slices.SortFunc(os, Origin.Compare)
	return os
}

// Has reports whether a dot lies in the parts.
func (m SpanMap) Has(d Dot) bool {
	ss := m[d.Origin]
	i, _ := slices.BinarySearchFunc(ss, d.Seq, func(s Span, n uint64) int { return cmp.Compare(s.To, n) })
	return i < len(ss) && ss[i].From <= d.Seq
}

// Clone returns a copy that shares no memory with m.
func (m SpanMap) Clone() SpanMap {
	c := make(SpanMap, len(m))
	for o, ss := range m {
		c[o] = slices.Clone(ss)
	}
	return c
}

// Add joins other parts to m.
func (m SpanMap) Add(other SpanMap) {
	for o, ss := range other {
		for _, s := range ss {
			m[o] = m[o].Add(s)
		}
	}
}

// Add returns the spans with another range, unless that makes them too many.
func (ss Spans) Add(s Span) Spans {
	if s.From > s.To || len(ss) >= MaxSpans && !ss.touch(s) {
		return ss
	}
	i := 0
	for i < len(ss) && ss[i].To+1 < s.From {
		i++
	}
	j := i
	for j < len(ss) && ss[j].From <= s.To+1 {
		s.From, s.To = min(s.From, ss[j].From), max(s.To, ss[j].To)
		j++
	}
	return slices.Replace(ss, i, j, s)
}

// Without returns the spans without one seq.
func (ss Spans) Without(seq uint64) Spans {
	i := slices.IndexFunc(ss, func(s Span) bool { return s.From <= seq && seq <= s.To })
	if i < 0 {
		return ss
	}
	var rest Spans
	for _, s := range []Span{{ss[i].From, seq - 1}, {seq + 1, ss[i].To}} {
		if s.From <= s.To {
			rest = append(rest, s)
		}
	}
	if len(ss)+len(rest)-1 > MaxSpans { // the rest is sent again
		rest = rest[:1]
	}
	return slices.Replace(ss, i, i+1, rest...)
}

// touch reports whether a span would join others rather than stand alone.
func (ss Spans) touch(s Span) bool {
	return slices.ContainsFunc(ss, func(t Span) bool { return t.From <= s.To+1 && s.From <= t.To+1 })
}

// Subtract appends to regions the parts of g outside the spans, the highest first.
func (ss Spans) Subtract(regions []Region, g Region) []Region {
	for i := len(ss) - 1; i >= 0 && g.From <= g.To; i-- {
		if s := ss[i]; s.From <= g.To && s.To >= g.From {
			if s.To < g.To {
				regions = append(regions, Region{g.Origin, g.Alias, s.To + 1, g.To})
			}
			if s.From == 0 {
				return regions
			}
			g.To = s.From - 1
		}
	}
	if g.From <= g.To {
		regions = append(regions, g)
	}
	return regions
}
