package overlay_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/level-replicator/replicator/internal/overlay"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/comparer"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/memdb"
	"pgregory.net/rapid"
)

var keys = rapid.StringOfN(rapid.RuneFrom([]rune("abc")), 0, 3, -1)

// A transaction over a snapshot reads as a map does that has both.
func TestOverlay_ReadsAsAPlainMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := map[string]string{}
		base := memdb.New(comparer.DefaultComparer, 1<<10)
		for k, v := range rapid.MapOfN(keys, rapid.String(), 0, 12).Draw(t, "base") {
			require.NoError(t, base.Put([]byte(k), []byte(v)))
			want[k] = v
		}
		layers := overlay.Layers{overlay.NewLayer()}
		staged := map[string]store.Write{}
		stage := func() {
			w := store.Write{Key: []byte(keys.Draw(t, "key")), Value: []byte(rapid.String().Draw(t, "value")), Deleted: rapid.Bool().Draw(t, "deleted")}
			require.NoError(t, layers.Put(&w))
			staged[string(w.Key)] = w
			if want[string(w.Key)] = string(w.Value); w.Deleted {
				delete(want, string(w.Key))
			}
		}
		for range rapid.IntRange(0, 20).Draw(t, "writes") {
			stage()
			if rapid.IntRange(0, 3).Draw(t, "freeze") == 0 {
				layers.Freeze()
			}
		}
		var sources []iterator.Iterator
		for _, l := range slices.Backward(layers.Freeze()) {
			sources = append(sources, l.NewIterator(nil))
		}
		it := &overlay.Iterator{Sources: append(sources, base.NewIterator(nil))}
		defer it.Release()
		then := maps.Clone(want)
		stage() // which the iterator does not show
		walk(t, it, then)

		for k, w := range staged {
			got, ok := layers.Get([]byte(k))
			require.True(t, ok)
			require.Equal(t, w.Deleted, got.Deleted)
			require.Equal(t, string(w.Value), string(got.Value))
		}
		ws := layers.Writes()
		require.Len(t, ws, len(staged))
		require.True(t, slices.IsSortedFunc(ws, func(a, b store.Write) int { return slices.Compare(a.Key, b.Key) }))
		for _, w := range ws {
			require.Equal(t, staged[string(w.Key)].Deleted, w.Deleted)
			require.Equal(t, string(staged[string(w.Key)].Value), string(w.Value))
		}
	})
}

// walk moves an iterator at random and compares it with a position in the sorted keys of a map, -1
// before the first.
func walk(t *rapid.T, it *overlay.Iterator, m map[string]string) {
	sorted := slices.Sorted(maps.Keys(m))
	at := -1
	for range rapid.IntRange(0, 30).Draw(t, "moves") {
		var got bool
		switch rapid.SampledFrom([]string{"first", "last", "seek", "next", "next", "prev", "prev"}).Draw(t, "move") {
		case "first":
			got, at = it.First(), 0
		case "last":
			got, at = it.Last(), len(sorted)-1
		case "seek":
			key := keys.Draw(t, "to")
			got = it.Seek([]byte(key))
			at, _ = slices.BinarySearch(sorted, key)
		case "next":
			got, at = it.Next(), min(at+1, len(sorted))
		case "prev":
			got, at = it.Prev(), max(at-1, -1)
		}
		within := at >= 0 && at < len(sorted)
		require.Equal(t, within, got)
		require.Equal(t, within, it.Valid())
		if within {
			require.Equal(t, sorted[at], string(it.Key()))
			require.Equal(t, m[sorted[at]], string(it.Value()))
		}
	}
	require.NoError(t, it.Error())
}
