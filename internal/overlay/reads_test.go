package overlay_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/level-replicator/replicator/internal/overlay"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/comparer"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/memdb"
	"github.com/syndtr/goleveldb/leveldb/util"
	"pgregory.net/rapid"
)

// What an iterator saw is noted, and nothing else: a key that is added or removed changes what the same moves
// yield exactly if it is noted, but for the ends of the range, which count as seen.
func TestReads_AreWhatTheMovesDependOn(t *testing.T) {
	universe := func() (all []string) {
		for _, a := range []string{"", "a", "b", "c", "d"} {
			for _, b := range []string{"", "a", "b"} {
				if all = append(all, a+b); a == "" {
					break
				}
			}
		}
		return all
	}()
	rapid.Check(t, func(t *rapid.T) {
		base := rapid.MapOfN(rapid.SampledFrom(universe), rapid.Just("v"), 0, 8).Draw(t, "base")
		within := &util.Range{Start: []byte(rapid.SampledFrom(universe).Draw(t, "start")), Limit: []byte(rapid.SampledFrom(append(universe, "z")).Draw(t, "limit"))}
		if rapid.Bool().Draw(t, "from the first") {
			within.Start = nil
		}
		type move struct{ how, to string }
		var moves []move
		for range rapid.IntRange(0, 8).Draw(t, "moves") {
			moves = append(moves, move{rapid.SampledFrom([]string{"first", "last", "seek", "next", "next", "prev", "prev"}).Draw(t, "how"), rapid.SampledFrom(universe).Draw(t, "to")})
		}
		run := func(m map[string]string, rs *overlay.Reads) (saw []string) {
			db := memdb.New(comparer.DefaultComparer, 1<<10)
			for k, v := range m {
				require.NoError(t, db.Put([]byte(k), []byte(v)))
			}
			it := rs.Record(&overlay.Iterator{Sources: []iterator.Iterator{db.NewIterator(within)}}, within)
			defer it.Release()
			for _, mv := range moves {
				ok := map[string]func() bool{"first": it.First, "last": it.Last, "next": it.Next, "prev": it.Prev, "seek": func() bool { return it.Seek([]byte(mv.to)) }}[mv.how]()
				saw = append(saw, fmt.Sprintf("%v %s", ok, it.Key()))
			}
			return saw
		}
		var rs overlay.Reads
		saw := run(base, &rs)
		spans := rs.Spans()
		for i := range spans {
			require.Less(t, string(spans[i].Start), string(spans[i].Limit))
			require.True(t, i == 0 || string(spans[i-1].Limit) < string(spans[i].Start))
		}
		for _, k := range universe {
			other := maps.Clone(base)
			if _, ok := base[k]; ok {
				delete(other, k)
			} else {
				other[k] = "v"
			}
			if !slices.Equal(saw, run(other, new(overlay.Reads))) {
				require.True(t, spans.Contains([]byte(k)), "%q matters: %v %q", k, moves, spans)
			}
			inside := k >= string(within.Start) && k < string(within.Limit)
			require.False(t, !inside && spans.Contains([]byte(k)), "%q is outside of %q", k, within)
		}
	})
}

func TestReads_TakeMemoryForWhatIsApartOnly(t *testing.T) {
	db := memdb.New(comparer.DefaultComparer, 1<<20)
	for i := range 20_000 {
		require.NoError(t, db.Put(fmt.Appendf(nil, "%06d", i), nil))
	}
	var rs overlay.Reads
	within := &util.Range{Limit: []byte{0xff, 0xff}}
	it := rs.Record(db.NewIterator(within), within)
	n := 0
	for it.Next() {
		n++
	}
	require.Equal(t, 20_000, n)
	require.Len(t, rs.Spans(), 1)
	for i := range 20_000 { // each one is a range of its own, and they meet
		it.Seek(fmt.Appendf(nil, "%06d", i))
	}
	it.Release()
	require.Len(t, rs.Spans(), 1)
	for range 2 {
		rs.Note([]byte("zz"))
		rs.Note([]byte("zy"))
		rs.Note([]byte("000007"))
	}
	spans := rs.Spans()
	require.Len(t, spans, 1, "the end of a range that was passed is behind its last key")
	require.True(t, spans.Contains([]byte("zz")))
	require.True(t, overlay.IsKey(&util.Range{Start: []byte("k"), Limit: []byte("k\x00")}))
	require.False(t, overlay.IsKey(&spans[0]))
}
