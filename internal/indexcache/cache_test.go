package indexcache

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
)

// TestCacheGivesWhatWasPutLast keeps many keys in caches of all sizes.
func TestCacheGivesWhatWasPutLast(t *testing.T) {
	for _, limit := range []int{1, 100, 4 << 10, 1 << 20} {
		rnd := rand.New(rand.NewPCG(1, uint64(limit)))
		c := Cache{Limit: limit}
		last := map[string]string{}
		hits := 0
		for i := range 50_000 {
			key := fmt.Appendf(nil, "%0*d", 1+rnd.IntN(30), rnd.IntN(2000))
			peeked, there := c.Peek(key)
			seen := string(peeked)
			rec, ok := c.Get(key)
			require.Equal(t, ok, there)
			require.Equal(t, string(rec), seen, "Peek is Get")
			if want, put := last[string(key)]; ok {
				require.True(t, put, "a key that nobody put")
				require.Equal(t, want, string(rec), "limit %d, step %d", limit, i)
				hits++
			}
			rec = binary.AppendUvarint(nil, rnd.Uint64()>>rnd.IntN(64))
			if rnd.IntN(10) == 0 {
				rec = nil
			}
			if rnd.IntN(2) == 0 {
				c.Put(key, rec)
				last[string(key)] = string(rec)
			} else if c.Update(key, rec); ok {
				last[string(key)] = string(rec)
			}
			require.LessOrEqual(t, c.young.size(), max(limit/2, 0))
			require.LessOrEqual(t, c.old.size(), max(limit/2, 0))
		}
		t.Logf("limit %d: %d hits", limit, hits)
		switch {
		case limit <= 100:
			require.Zero(t, hits, "not even a table fits")
		case limit >= 1<<20:
			require.Greater(t, hits, 10_000)
		}
	}
}

// TestCacheKeepsWhatIsUsed has a few keys in use among many that are not.
func TestCacheKeepsWhatIsUsed(t *testing.T) {
	c := Cache{Limit: 64 << 10}
	hot := fmt.Append(nil, "hot")
	c.Put(hot, []byte("r"))
	for i := range 100_000 {
		c.Put(fmt.Append(nil, "cold", i), []byte("record"))
		rec, ok := c.Get(hot)
		require.True(t, ok, "after %d others", i)
		require.Equal(t, "r", string(rec))
	}
	_, ok := c.Get(fmt.Append(nil, "cold", 0))
	require.False(t, ok)
}

func TestCacheLeavesOutWhatIsTooLarge(t *testing.T) {
	c := Cache{Limit: 4 << 20}
	large := make([]byte, chunkSize)
	c.Put(large, []byte("r"))
	c.Put([]byte("k"), large)
	for _, key := range [][]byte{large, []byte("k")} {
		_, ok := c.Get(key)
		require.False(t, ok)
	}
	c.Put([]byte("k"), []byte("r"))
	rec, ok := c.Get([]byte("k"))
	require.True(t, ok)
	require.Equal(t, "r", string(rec))
}

// TestCacheForgetsARecordThatBecameTooLarge: the old record must not be found then.
func TestCacheForgetsARecordThatBecameTooLarge(t *testing.T) {
	c := Cache{Limit: 4 << 20}
	c.Put([]byte("k"), []byte("r"))
	c.Put([]byte("k"), make([]byte, chunkSize))
	_, ok := c.Get([]byte("k"))
	require.False(t, ok)
}

func TestTableFindsKeysOfEqualHash(t *testing.T) {
	var keys []string
	var tb Table
	is := func(key string) func(uint32) bool { return func(at uint32) bool { return keys[at] == key } }
	for i := range 1000 {
		key := fmt.Sprint(i)
		keys = append(keys, key)
		tb.Set(uint32(i%3), uint32(i), is(key))
	}
	require.Equal(t, 1000, tb.Used)
	for i := range 1000 {
		at, ok := tb.Find(uint32(i%3), is(fmt.Sprint(i)))
		require.True(t, ok)
		require.EqualValues(t, i, at)
	}
	_, ok := tb.Find(1, is("x"))
	require.False(t, ok)
	tb.Reset()
	_, ok = tb.Find(0, is("0"))
	require.False(t, ok)
}

func TestTableGivesUpMemoryThatMostlyStoodEmpty(t *testing.T) {
	var tb Table
	never := func(uint32) bool { return false }
	for i := range uint32(10_000) {
		tb.Set(i, i, never)
	}
	size := len(tb.slots)
	tb.Reset()
	require.Len(t, tb.slots, size, "it was full")
	tb.Set(1, 1, never)
	tb.Reset()
	require.Empty(t, tb.slots)
	tb.Set(1, 1, never)
	at, ok := tb.Find(1, func(at uint32) bool { return at == 1 })
	require.True(t, ok)
	require.EqualValues(t, 1, at)
}

func TestSlabGivesEmptySlicesThatDoNotMeet(t *testing.T) {
	var s store.Slab[int]
	for range 3 {
		var taken [][]int
		for i := range 10_000 {
			p := s.Take(i % 5)
			require.Empty(t, p)
			for j := range i % 5 {
				p = append(p, i+j)
			}
			taken = append(taken, p)
		}
		for i, p := range taken {
			for j := range p {
				require.Equal(t, i+j, p[j])
			}
		}
		s.Reset()
	}
	require.LessOrEqual(t, cap(s.Used), store.SlabMost)
}
