package transport

import (
	"context"
	"fmt"

	"golang.org/x/sync/semaphore"
)

// Budget bounds the bytes that are held in memory at once. Whoever waits is
// served in order. Take the whole of a frame in one acquire: two who hold a
// part and wait for the rest would wait for each other.
type Budget struct {
	Max int64
	sem *semaphore.Weighted
}

func NewBudget(maxBytes int) *Budget {
	return &Budget{int64(maxBytes), semaphore.NewWeighted(int64(maxBytes))}
}

// Acquire waits until n bytes are free or ctx ends.
func (f *Budget) Acquire(ctx context.Context, n int) error {
	if int64(n) > f.Max {
		return fmt.Errorf("%d bytes at once, want at most MaxInFlight, which is %d", n, f.Max)
	}
	return f.sem.Acquire(ctx, int64(n))
}

// Try acquires n bytes if they are free.
func (f *Budget) Try(n int) bool { return f.sem.TryAcquire(int64(n)) }

// Release frees n bytes of those acquired.
func (f *Budget) Release(n int) {
	if n > 0 {
		f.sem.Release(int64(n))
	}
}

// SmallRoom is the part of MaxInFlight that is kept for sessions that hold little.
func SmallRoom(maxInFlight int) int { return maxInFlight / 8 }

// Share returns how much of the room for small frames one session may have: most, or a quarter
// of it.
func (f *Budget) Share(most int) int { return int(min(int64(most), f.Max/4)) }
