package replicator

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestChangesOfAPullAreToldInOrderOfTimeBesideWritesOfCallers(t *testing.T) {
	ch := func(key string, at stamp, local bool) change {
		return change{key: []byte(key), local: local, versions: state{{dot: dot{Origin{1}, uint64(at)}, stamp: at}}}
	}
	told := func(cs ...change) (s string) {
		for _, c := range inTime(cs) {
			s += string(c.key)
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
