package causal_test

import (
	"slices"
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestRing_LeadsThroughAllAndBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfNDistinct(origins, 1, 6, rapid.ID).Draw(t, "origins")
		all = slices.DeleteFunc(all, func(o causal.Origin) bool { return o == causal.Origin{} })
		if len(all) < 2 {
			return
		}
		met := map[causal.Origin]bool{}
		for at := all[0]; !met[at]; {
			met[at] = true
			r := causal.NewRing(at)
			for _, o := range append(all, causal.Origin{}) {
				r.Add(o)
			}
			at = r.Next()
		}
		require.Len(t, met, len(all))
	})
	r := causal.NewRing(causal.Origin{1})
	r.Add(causal.Origin{1})
	require.Zero(t, r.Next())
}
