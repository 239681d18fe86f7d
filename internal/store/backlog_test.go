package store_test

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// TestBacklogBeginsWhereWritesAreDelayed: a join waits while there is one.
func TestBacklogBeginsWhereWritesAreDelayed(t *testing.T) {
	for _, delayed := range []int{8, 20, 30} {
		synctest.Test(t, func(t *testing.T) {
			db, err := leveldb.Open(storage.NewMemStorage(), &opt.Options{
				WriteBuffer: 1 << 10, CompactionL0Trigger: 1000, WriteL0SlowdownTrigger: delayed, WriteL0PauseTrigger: 1000,
			})
			require.NoError(t, err)
			defer func() {
				require.NoError(t, db.Close())
				time.Sleep(time.Minute) // virtual: until goleveldb has ended its last goroutine
			}()
			b := store.NewBacklog(db)
			for n := 0; n <= delayed+1; n = tables(t, db) {
				behind, err := b.IsBehind()
				require.NoError(t, err)
				require.Equal(t, n >= max(delayed, 9), behind, "%d tables, where %d delay writes", n, delayed)
				require.NoError(t, db.Put([]byte("k"), make([]byte, 600), nil))
			}
		})
	}
}

func tables(t *testing.T, db *leveldb.DB) int {
	t.Helper()
	s, err := db.GetProperty("leveldb.num-files-at-level0")
	require.NoError(t, err)
	n, err := strconv.Atoi(s)
	require.NoError(t, err)
	return n
}
