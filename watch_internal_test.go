package replicator

import (
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
)

func TestChangesOfAPullAreToldInOrderOfTimeBesideWritesOfCallers(t *testing.T) {
	ch := func(key string, at causal.Stamp, local bool) replica.Change {
		return replica.Change{Key: []byte(key), Local: local, Versions: store.Siblings{{Dot: causal.Dot{Origin: causal.Origin{1}, Seq: uint64(at)}, Stamp: at}}}
	}
	told := func(cs ...replica.Change) (s string) {
		for _, c := range inTime(cs) {
			s += string(c.Key)
		}
		return s
	}
	require.Equal(t, "abc", told(ch("c", 3, false), ch("b", 2, false), ch("a", 1, false)))
	require.Equal(t, "abxcd", told(ch("b", 2, false), ch("a", 1, false), ch("x", 0, true), ch("d", 4, false), ch("c", 3, false)),
		"a write in the same batch stays in its place")
	require.Equal(t, "abca", told(ch("b", 2, false), ch("a", 1, false), ch("a", 9, false), ch("c", 3, false)),
		"what one key shows first is told first")
	require.Empty(t, told())
}
