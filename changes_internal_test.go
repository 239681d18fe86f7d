package replicator

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

// The last consumer may leave at the moment of a commit that another one, which has just come, waits for.
func TestWakerThatStopsKeepsNoCommitToItself(t *testing.T) {
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	db := &DB{feeds: feeds{news: newSignal()}}
	for range 100 { // which of two things that are both so it sees first is up to chance
		changed := db.feeds.hub.Changed()
		db.feeds.news.Set()
		db.wakeConsumers(stopped)
		require.True(t, isClosed(changed) || db.feeds.news.Take(), "the commit is lost")
	}
}
