package replicator

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

func TestNothingWaitsForTheQueueOnceCloseHasGivenUp(t *testing.T) {
	db := serve(t, Options{})
	db.closeTimeout = 100 * time.Millisecond
	require.True(t, db.queue.acquire()) // for a commit that the disk never ends
	defer db.queue.release()
	require.ErrorContains(t, db.Close(), "gave up after 100ms")
	refused := make(chan error, 1)
	go func() { refused <- db.SetReadOnly() }()
	select {
	case err := <-refused:
		require.Equal(t, leveldb.ErrClosed, err)
	case <-time.After(10 * time.Second):
		t.Fatal("SetReadOnly waits for a slot that is never free again")
	}
	require.False(t, db.queue.acquire())
	_, err := db.Versions([]byte("k"))
	require.Equal(t, leveldb.ErrClosed, err)
}
