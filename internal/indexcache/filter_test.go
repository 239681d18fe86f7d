package indexcache

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFilterKnowsEveryKeyItTookAndFewOthers(t *testing.T) {
	for _, limit := range []int{64, 1 << 12, 1 << 20} {
		f := Filter{Limit: limit, Whole: true}
		n := min(50_000, limit/BlockBytes*blockKeys*4/5)
		for i := range n {
			f.Add(fmt.Append(nil, "key", i))
		}
		require.LessOrEqual(t, f.blocks*BlockBytes, limit)
		for i := range n {
			require.False(t, f.Lacks(fmt.Append(nil, "key", i)), "limit %d, key %d", limit, i)
		}
		wrong := 0
		for i := range 10_000 {
			if !f.Lacks(fmt.Append(nil, "other", i)) {
				wrong++
			}
		}
		t.Logf("%d of 10,000 wrong", wrong)
		require.Less(t, wrong, 500, "limit %d", limit)
	}
}

func TestFullFilterStillKnowsEveryKey(t *testing.T) {
	f := Filter{Limit: 1 << 12, Whole: true}
	for i := range 20_000 {
		f.Add(fmt.Append(nil, "key", i))
	}
	require.Equal(t, 1<<12, f.blocks*BlockBytes)
	for i := range 20_000 {
		require.False(t, f.Lacks(fmt.Append(nil, "key", i)))
	}
}

func TestFilterThatIsNotWholeTellsNothing(t *testing.T) {
	f := Filter{Limit: 1 << 12}
	require.False(t, f.Lacks([]byte("a")))
	f.Whole = true
	require.True(t, f.Lacks([]byte("a")))
}

func TestFilterGrowsWithItsKeys(t *testing.T) {
	for _, reserved := range []int64{0, 100_000, 300_000} {
		f := Filter{Limit: 64 << 20, Whole: true}
		f.Reserve(reserved)
		if reserved > 0 {
			require.Len(t, f.levels, 1)
			require.LessOrEqual(t, int64(f.blocks*BlockBytes), 2*reserved)
		}
		for i := range 300_000 {
			f.Add(fmt.Append(nil, "key", i))
			if n := int64(i) + 1; n > 10_000 && n > reserved {
				require.LessOrEqual(t, int64(f.blocks*BlockBytes), 10*n, "after %d keys", n)
			}
		}
		wrong := 0
		for i := range 300_000 {
			require.False(t, f.Lacks(fmt.Append(nil, "key", i)))
			wrong += 1 - btoi(f.Lacks(fmt.Append(nil, "other", i)))
		}
		require.Less(t, wrong, 300_000/100, "%d levels", len(f.levels))
	}
}

// TestLargeFilterTakesFourBytesAKeyAtMost goes by the levels alone.
func TestLargeFilterTakesFiveBytesAKeyAtMost(t *testing.T) {
	f := Filter{Limit: 1 << 30}
	for keys := 0; f.blocks < f.Limit/BlockBytes; {
		before := f.blocks
		f.grow()
		if before >= filterLarge/BlockBytes {
			require.LessOrEqual(t, f.blocks*BlockBytes, 4*keys, "%d blocks", f.blocks)
		}
		keys += f.room
	}
	require.Less(t, len(f.levels), 16)
}

func TestReserveTakesNoMoreThanTheLimit(t *testing.T) {
	f := Filter{Limit: 1 << 20}
	f.Reserve(1 << 40)
	require.Equal(t, 1<<20, f.blocks*BlockBytes)
	f.Reserve(1 << 40)
	require.Len(t, f.levels, 1)
	none := Filter{Limit: -1}
	none.Reserve(1 << 40)
	none.Add([]byte("k"))
	require.Zero(t, none.blocks)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
