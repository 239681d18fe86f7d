package replicator

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

func TestFilterKnowsEveryKeyItTookAndFewOthers(t *testing.T) {
	for _, limit := range []int{64, 1 << 12, 1 << 20} {
		f := filter{limit: limit, whole: true}
		n := min(50_000, limit/blockBytes*blockKeys*4/5)
		for i := range n {
			f.add(fmt.Append(nil, "key", i))
		}
		require.LessOrEqual(t, f.blocks*blockBytes, limit)
		for i := range n {
			require.False(t, f.lacks(fmt.Append(nil, "key", i)), "limit %d, key %d", limit, i)
		}
		wrong := 0
		for i := range 10_000 {
			if !f.lacks(fmt.Append(nil, "other", i)) {
				wrong++
			}
		}
		t.Logf("%d of 10,000 wrong", wrong)
		require.Less(t, wrong, 500, "limit %d", limit)
	}
}

func TestFullFilterStillKnowsEveryKey(t *testing.T) {
	f := filter{limit: 1 << 12, whole: true}
	for i := range 20_000 {
		f.add(fmt.Append(nil, "key", i))
	}
	require.Equal(t, 1<<12, f.blocks*blockBytes)
	for i := range 20_000 {
		require.False(t, f.lacks(fmt.Append(nil, "key", i)))
	}
}

func TestFilterThatIsNotWholeTellsNothing(t *testing.T) {
	f := filter{limit: 1 << 12}
	require.False(t, f.lacks([]byte("a")))
	f.whole = true
	require.True(t, f.lacks([]byte("a")))
}

// TestKeysOfAnEarlierOpeningAreOverwrittenNotLoggedTwice opens a database again, after
// a clean close and as a crash would leave it: a key that the filter does not know
// would leave its old log entry behind.
func TestKeysOfAnEarlierOpeningAreOverwrittenNotLoggedTwice(t *testing.T) {
	for _, clean := range []bool{true, false} {
		stor := storage.NewMemStorage()
		const n = filterStep + 10 // more than one step
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
				db.at(func(r *replica) { whole = r.filter.whole })
			}
			db.at(func(r *replica) {
				for i := range n {
					require.False(t, r.filter.lacks(fmt.Append(nil, "key", i)))
				}
				unknown := 0
				for i := range 1000 {
					unknown += int(btoi(r.filter.lacks(fmt.Append(nil, "another", i))))
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
			require.NoError(t, raw.Delete(metaClean, nil))
			require.NoError(t, raw.Close())
		}
	}
}
