package replica

import (
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// design.md: J4
func TestAhead_IsAMapOfEntriesInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var a ahead
		model := map[causal.Dot]uint32{}
		var added []causal.Dot
		next := map[causal.Origin]uint64{}
		for range rapid.IntRange(1, 4).Draw(t, "runs") {
			o := causal.Origin{byte(rapid.IntRange(0, 1).Draw(t, "origin"))}
			next[o] += rapid.SampledFrom([]uint64{1, 1, 2, aheadChunkSize - 1, aheadChunkSize, 1 << 32, 1 << 40}).Draw(t, "gap")
			for range rapid.SampledFrom([]int{1, 2, 63, 64, 65, aheadChunkSize, aheadChunkSize + 1}).Draw(t, "entries") {
				d := causal.Dot{Origin: o, Seq: next[o]}
				if !a.above(d) {
					t.Fatalf("%v is not above what came before", d)
				}
				a.add(d, uint32(len(added)+1))
				model[d] = uint32(len(added) + 1)
				added = append(added, d)
				next[o]++
			}
			next[o]--
		}
		settle := rapid.IntRange(1, 7).Draw(t, "settle one in")
		for i, d := range added {
			if i%settle == 0 {
				a.settle(d)
				a.settle(d)
				delete(model, d)
			}
		}
		require.Equal(t, len(model), a.left)
		for _, d := range added {
			for _, d := range []causal.Dot{d, {Origin: d.Origin, Seq: d.Seq - 1}, {Origin: d.Origin, Seq: d.Seq + 1}} {
				want, waits := model[d]
				if got, ok := a.sum(d); ok != waits || got != want {
					t.Fatalf("%v: %d %t, not %d %t", d, got, ok, want, waits)
				}
			}
			if !a.has(d) || a.above(d) {
				t.Fatalf("%v was not added", d)
			}
		}
		rest := a.rest(len(model) + 1)
		require.Len(t, rest, len(model))
		for _, d := range rest {
			if _, ok := model[d]; !ok {
				t.Fatalf("%v is left", d)
			}
		}
		require.False(t, a.has(causal.Dot{Origin: causal.Origin{9}, Seq: 1}))
	})
}
