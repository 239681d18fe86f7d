package replicator

import (
	"testing"

	"github.com/level-replicator/replicator/internal/session"
	"github.com/stretchr/testify/require"
)

func TestManySessionsShareTheWindow(t *testing.T) {
	db := serve(t, Options{})
	require.Equal(t, session.WindowSize, db.window())
	db.talking.Add(128)
	require.LessOrEqual(t, 128*db.window(), 4*session.WindowSize)
	require.GreaterOrEqual(t, db.window(), session.PageSize)
	db.talking.Add(-128)
}
