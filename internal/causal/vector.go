package causal

import "slices"

// Vector is a version vector: for each origin the greatest seq seen. A write
// with that seq or a smaller one is within the vector.
//
// Invariant: sorted by origin, no origin twice, no seq of 0.
type Vector []Dot

func (v Vector) find(o Origin) (int, bool) {
	// Nearly all contexts are short: a key has one or two writers.
	if len(v) <= 8 {
		for i := range v {
			if c := v[i].Origin.Compare(o); c >= 0 {
				return i, c == 0
			}
		}
		return len(v), false
	}
	return slices.BinarySearchFunc(v, o, func(d Dot, o Origin) int { return d.Origin.Compare(o) })
}

// Seq returns the greatest seq of an origin within v, 0 if there is none.
func (v Vector) Seq(o Origin) uint64 {
	if i, ok := v.find(o); ok {
		return v[i].Seq
	}
	return 0
}

// CoveredBy reports whether all of v is covered by k or within w.
func (v Vector) CoveredBy(k *Knowledge, w Vector) bool {
	rest := k.Rows
	for _, d := range v {
		var a, b uint64
		rest, a = seek(rest, Covered, d.Origin)
		if w, b = w.Seek(d.Origin); d.Seq > max(a, b) {
			return false
		}
	}
	return true
}

// Seek returns the rest of v after an origin, and the seq of that origin. To ask for one origin after the other, in
// order, costs less than to look each up.
func (v Vector) Seek(o Origin) (rest Vector, seq uint64) {
	for len(v) > 0 {
		switch order := v[0].Origin.Compare(o); {
		case order == 0:
			return v[1:], v[0].Seq
		case order > 0:
			return v, 0
		}
		v = v[1:]
	}
	return nil, 0
}

// Contains reports whether d is within v.
func (v Vector) Contains(d Dot) bool { return d.Seq <= v.Seq(d.Origin) }

// Raise puts d within v and returns the vector, which may share memory with v.
func (v Vector) Raise(d Dot) Vector {
	if d.Seq == 0 {
		return v
	}
	i, ok := v.find(d.Origin)
	if !ok {
		return slices.Insert(v, i, d)
	}
	v[i].Seq = max(v[i].Seq, d.Seq)
	return v
}

// Join puts all of w within v and returns the vector, which may share memory
// with v but not with w.
func (v Vector) Join(w Vector) Vector {
	if len(w) <= 8 {
		for _, d := range w {
			v = v.Raise(d)
		}
		return v
	}
	i, fresh := 0, 0
	for _, d := range w {
		for i < len(v) && v[i].Origin.Compare(d.Origin) < 0 {
			i++
		}
		if i < len(v) && v[i].Origin == d.Origin {
			v[i].Seq = max(v[i].Seq, d.Seq)
		} else {
			fresh++
		}
	}
	if fresh == 0 {
		return v
	}
	joined := make(Vector, 0, len(v)+fresh)
	i = 0
	for _, d := range w {
		for i < len(v) && v[i].Origin.Compare(d.Origin) < 0 {
			joined = append(joined, v[i])
			i++
		}
		if i == len(v) || v[i].Origin != d.Origin {
			joined = append(joined, d)
		}
	}
	return append(joined, v[i:]...)
}

// Within reports whether all of v is within w.
func (v Vector) Within(w Vector) bool {
	for _, d := range v {
		if !w.Contains(d) {
			return false
		}
	}
	return true
}

// Clone returns a copy.
func (v Vector) Clone() Vector { return slices.Clone(v) }
