package store

// Slab hands out memory that is taken back all at once. One that is nil leaves that to
// the garbage collector.
type Slab[T any] struct{ Used []T }

// SlabMost is how many items a slab allocates at once. Twice as many are kept for later use.
const SlabMost = 1 << 12

// Take returns an empty slice with room for n items. It is valid until the slab is reset.
func (s *Slab[T]) Take(n int) []T {
	if s == nil {
		return make([]T, 0, n)
	}
	if cap(s.Used)-len(s.Used) < n {
		s.Used = make([]T, 0, max(n, min(2*cap(s.Used), SlabMost), 16))
	}
	i := len(s.Used)
	s.Used = s.Used[:i+n]
	return s.Used[i : i : i+n]
}

// Reset takes back all that was handed out.
func (s *Slab[T]) Reset() { s.Used = Emptied(s.Used) }

// Emptied keeps the memory of a slice for later use, if it is not large, but nothing
// that was in it.
func Emptied[T any](s []T) []T {
	if cap(s) > 2*SlabMost {
		return nil
	}
	clear(s)
	return s[:0]
}
