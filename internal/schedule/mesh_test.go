package schedule_test

import (
	"testing"

	"github.com/level-replicator/replicator/internal/schedule"
	"github.com/stretchr/testify/require"
)

func TestMeshOfFewReplicasHasAllLinks(t *testing.T) {
	m := schedule.Mesh{Fanout: fanout}
	require.True(t, m.Small(2*fanout))
	require.False(t, m.Small(2*fanout+1))
	require.True(t, m.Room(2*fanout-1))
	require.False(t, m.Room(2*fanout))
	for _, c := range []struct {
		name       string
		links      int
		all, small bool
		enough     bool
		sessions   int
	}{
		{"none", 0, false, false, false, fanout},
		{"none, and nobody answers", 0, true, true, false, fanout},
		{"some of few", fanout, false, true, false, fanout},
		{"all of few", 2, true, true, true, fanout},
		{"too few of many", 1, false, false, false, fanout - 1},
		{"enough of many", fanout, false, false, true, 1},
	} {
		require.Equal(t, c.enough, m.Enough(c.links, c.all, c.small), c.name)
		require.Equal(t, c.sessions, m.Sessions(c.links, c.small), c.name)
	}
}
