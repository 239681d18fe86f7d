package replicator

// slab hands out memory that is taken back all at once. One that is nil leaves that to
// the garbage collector.
type slab[T any] struct{ used []T }

// slabMost is how many items a slab allocates at once. Twice as many are kept for later use.
const slabMost = 1 << 12

// take gives an empty slice with room for n items. It is valid until the slab is reset.
func (s *slab[T]) take(n int) []T {
	if s == nil {
		return make([]T, 0, n)
	}
	if cap(s.used)-len(s.used) < n {
		s.used = make([]T, 0, max(n, min(2*cap(s.used), slabMost), 16))
	}
	i := len(s.used)
	s.used = s.used[:i+n]
	return s.used[i : i : i+n]
}

// reset takes back all that was handed out.
func (s *slab[T]) reset() { s.used = emptied(s.used) }

// emptied keeps the memory of a slice for later use, if it is not large, but nothing
// that was in it.
func emptied[T any](s []T) []T {
	if cap(s) > 2*slabMost {
		return nil
	}
	clear(s)
	return s[:0]
}
