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
