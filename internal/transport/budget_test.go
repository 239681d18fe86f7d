package transport

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestInflightServesInOrderAndWakesEverybody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewBudget(100)
		require.NoError(t, f.Acquire(t.Context(), 100))
		order := make(chan int, 4)
		for i, n := range []int{100, 1, 50, 49} {
			go func() {
				if f.Acquire(context.Background(), n) == nil {
					order <- i
					if n == 100 {
						time.Sleep(time.Second)
						f.Release(n)
					}
				}
			}()
			synctest.Wait()
		}
		f.Release(99)
		synctest.Wait()
		require.Empty(t, order, "small ones do not overtake")
		f.Release(1)
		synctest.Wait()
		require.Len(t, order, 1)
		require.Equal(t, 0, <-order)
		time.Sleep(2 * time.Second)
		require.ElementsMatch(t, []int{1, 2, 3}, []int{<-order, <-order, <-order})
	})
}

func TestInflightGivesUpWithTheContextAndLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewBudget(100)
		require.NoError(t, f.Acquire(t.Context(), 60))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		small := make(chan error, 1)
		go func() {
			time.Sleep(time.Millisecond)
			small <- f.Acquire(context.Background(), 40)
		}()
		require.ErrorIs(t, f.Acquire(ctx, 50), context.DeadlineExceeded)
		require.NoError(t, <-small, "who queued behind goes on")
		f.Release(60)
		f.Release(40)
		require.NoError(t, f.Acquire(t.Context(), 100))
	})
}

func TestMoreThanTheWholeBoundIsAnErrorAtOnce(t *testing.T) {
	err := NewBudget(100).Acquire(context.Background(), 101)
	require.ErrorContains(t, err, "101 bytes at once, want at most MaxInFlight, which is 100")
}
