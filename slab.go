package replicator

// slab hands out memory that is taken back all at once. One that is nil leaves that to
// the garbage collector.
type slab[T any] struct{ used []T }

// slabMost is how many items a slab keeps for later use, and allocates at once.
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
func (s *slab[T]) reset() {
	if cap(s.used) > slabMost {
		s.used = nil
	}
	clear(s.used)
	s.used = s.used[:0]
}
