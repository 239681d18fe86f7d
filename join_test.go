package replicator_test

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// A replica that joins reads nothing while it waits for its store, and is cut off if it reads nothing for long.
func TestReplicaWhoseStoreIsBehindJoinsInOneSession(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		batch := new(leveldb.Batch)
		for i := range uint64(20_000) {
			batch.Put(binary.BigEndian.AppendUint64(nil, i<<40), make([]byte, 100))
		}
		require.NoError(t, a.Write(batch, nil))

		// A store that delays writes from eight tables on, and merges none.
		raw, err := leveldb.Open(storage.NewMemStorage(), &opt.Options{WriteBuffer: 64 << 10, CompactionL0Trigger: 1 << 20, WriteL0PauseTrigger: 1 << 20})
		require.NoError(t, err)
		var broken []error
		b := c.open("b", raw, &replicator.Options{Peers: []string{"a:9000"}, Events: &replicator.Events{Session: func(e replicator.SessionEvent) {
			if e.Err != nil {
				broken = append(broken, e.Err)
			}
		}}})
		began := time.Now()
		for a.Digest() != b.Digest() && time.Since(began) < time.Hour {
			time.Sleep(time.Second)
		}
		require.Equal(t, a.Digest(), b.Digest())
		require.Greater(t, time.Since(began), 30*time.Second, "it did not wait")
		require.Empty(t, broken)
		require.NoError(t, b.Close())
		time.Sleep(time.Minute) // virtual: until goleveldb has ended its last goroutine
	})
}
