package replicator

import (
	"fmt"
	"testing"

	"github.com/level-replicator/replicator/internal/indexcache"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// TestKeysOfAnEarlierOpeningAreOverwrittenNotLoggedTwice opens a database again, after
// a clean close and as a crash would leave it: a key that the filter does not know
// would leave its old log entry behind.
func TestKeysOfAnEarlierOpeningAreOverwrittenNotLoggedTwice(t *testing.T) {
	for _, clean := range []bool{true, false} {
		stor := storage.NewMemStorage()
		const n = indexcache.FilterStep + 10 // more than one step
		for range 2 {
			raw, err := leveldb.Open(stor, nil)
			require.NoError(t, err)
			db, err := Replicate(raw, &Options{Listen: "127.0.0.1:0"})
			require.NoError(t, err)
			for i := range n {
				require.NoError(t, db.Put(fmt.Append(nil, "key", i), []byte("v"), nil))
			}
			r, err := db.Verify(t.Context())
			require.NoError(t, err)
			require.True(t, r.OK(), "%+v", r.Faults)
			require.EqualValues(t, n, db.Status().Keys)
			whole := false
			for !whole { // it is filled in the background
				db.with(func(r *replica.Replica) { whole = r.Filter.Whole })
			}
			db.with(func(r *replica.Replica) {
				for i := range n {
					require.False(t, r.Filter.Lacks(fmt.Append(nil, "key", i)))
				}
				unknown := 0
				for i := range 1000 {
					unknown += int(store.Btoi(r.Filter.Lacks(fmt.Append(nil, "another", i))))
				}
				require.Greater(t, unknown, 950)
			})
			if clean {
				require.NoError(t, db.Close())
				continue
			}
			require.NoError(t, db.Close())
			raw, err = leveldb.Open(stor, nil)
			require.NoError(t, err)
			require.NoError(t, raw.Delete(store.MetaClean, nil))
			require.NoError(t, raw.Close())
		}
	}
}
