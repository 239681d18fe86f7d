package replica

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCacheGrowsWithTheNumberOfKeys(t *testing.T) {
	for _, c := range []struct{ size, most, want int }{
		{1 << 10, 0, 1 << 10},
		{1 << 10, 1 << 14, 16 * 200},
		{1 << 10, 2000, 2000},
		{1 << 20, 1 << 21, 1 << 20},
		{-1, 0, 0},
	} {
		r := New(Config{CacheSize: c.size, MostCache: c.most})
		r.fitCache()
		r.Keys, r.Tombstones = 150, 50
		r.fitCache()
		require.Equal(t, c.want, max(r.Cache.Limit, 0), "%+v", c)
		r.Keys = 0
		r.fitCache()
		require.Equal(t, c.want, max(r.Cache.Limit, 0), "%+v", c)
	}
}
