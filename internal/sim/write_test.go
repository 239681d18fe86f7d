package sim

import (
	"errors"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/crashfs"
	"github.com/level-replicator/replicator/internal/indexcache"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// design.md: W1
func TestWrite_FirstOfAKeyHasClockZero(t *testing.T) {
	a := newNode(t)
	a.put("k", "v")
	v := a.versions("k")
	require.Len(t, v, 1)
	require.Zero(t, v[0].Clock)
	require.EqualValues(t, 1, v[0].Seq)
	require.Equal(t, a.r.Self, v[0].Origin)
}

// design.md: W1, W2
func TestWrite_UpdateRaisesTheClockAndDeletesTheOldEntry(t *testing.T) {
	a := newNode(t)
	a.put("other", "x")
	a.put("k", "1")
	a.r.Cache = indexcache.Cache{} // found through the log-index on disk, not in memory
	a.put("k", "2")
	v := a.versions("k")
	require.Len(t, v, 1)
	require.EqualValues(t, 1, v[0].Clock)
	require.EqualValues(t, 3, v[0].Seq)
	require.Equal(t, []causal.Dot{{Origin: a.r.Self, Seq: 1}, {Origin: a.r.Self, Seq: 3}}, a.log(), "the entry of the first write of k is gone")
	a.del("k")
	require.EqualValues(t, 2, a.versions("k")[0].Clock)
	require.True(t, a.versions("k")[0].Deleted)
	require.Equal(t, "-", a.get("k"))
}

// design.md: W2
func TestWrite_IsOneBatch(t *testing.T) {
	fs := crashfs.New(nil)
	a := openNode(t, fs, replica.HighestClock)
	a.put("k", "old")
	before := a.log()
	cause := errors.New("disk full")
	fs.Fail(crashfs.Fault{Op: crashfs.OpWrite, Type: storage.TypeJournal, Nth: 1, Err: cause})
	err := a.Commit(func(t *replica.Txn) error {
		return t.Put([]store.Write{{Key: []byte("k"), Value: []byte("new"), Deleted: false}})
	})
	require.ErrorIs(t, err, cause)
	require.Equal(t, "old", a.get("k"))
	require.Equal(t, before, a.log())
	require.EqualValues(t, 0, a.versions("k")[0].Clock)
	require.EqualValues(t, 1, a.r.Known.Seq(causal.Covered, a.r.Self), "what was not committed is not covered")
}

// design.md: W4, G3
func TestWrite_PrunedContextIsCommittedWithSync(t *testing.T) {
	a := newNode(t)
	for i := range replica.PruneAbove + 2 {
		a.mergeFrom(&causal.Knowledge{}, foreign(byte(i+1), 1))
	}
	require.NoError(t, a.Commit(func(t *replica.Txn) error {
		for i := range replica.PruneAbove + 2 {
			t.Cover(causal.Dot{Origin: causal.Origin{byte(i + 1)}, Seq: 1})
		}
		return nil
	}))
	a.saved()
	tx := a.r.Begin()
	require.NoError(t, tx.Put([]store.Write{{Key: []byte("k"), Value: []byte("v")}}))
	require.True(t, tx.Sync)
	require.Empty(t, tx.Changes[0].Versions[0].Context)
}

func TestWrite_TimeRisesThoughTheWallClockWentBack(t *testing.T) {
	a := newNode(t)
	now := time.Now()
	a.r.Now = func() time.Time { return now }
	a.put("first", "v")
	now = now.Add(-time.Hour)
	a.put("second", "v")
	require.Greater(t, a.versions("second")[0].Stamp, a.versions("first")[0].Stamp)
}

func TestWrite_RefusesReservedKeys(t *testing.T) {
	a := newNode(t)
	require.ErrorIs(t, a.r.CheckUser([]byte("\xff\xff"), nil), store.ErrReservedKey)
	require.NoError(t, a.r.CheckUser([]byte("\xff\xfe"), nil))
}

func TestWrite_DeletingAnAbsentKeyLogsNothing(t *testing.T) {
	a := newNode(t)
	a.del("k")
	require.Empty(t, a.log())
	a.put("k", "v")
	a.del("k")
	a.del("k")
	require.Equal(t, []causal.Dot{{Origin: a.r.Self, Seq: 2}}, a.log())
}

// A power failure may take the batch that wrote a sibling and keep the one that brought another:
// what is left of the key fits together all the same.
//
// design.md: W3
func TestWrite_BatchCarriesTheWholeStateOfItsKeys(t *testing.T) {
	a := newNode(t)
	a.mergeFrom(&causal.Knowledge{}, foreign(1, 1))
	tx := a.r.Begin()
	_, err := tx.Merge([]byte("k"), []store.Version{foreign(2, 1)}, &causal.Knowledge{})
	require.NoError(t, err)
	put := putKeys{}
	require.NoError(t, tx.Finish().Replay(put))
	for what, key := range map[string][]byte{
		"value":           []byte("k"),
		"log-index":       store.KindKey(store.KindIndex, []byte("k")),
		"hint":            store.KindKey(store.KindConflict, []byte("k")),
		"log entry":       store.AppendLogKey(nil, a.r.Alias[causal.Origin{2}], 1),
		"sibling's entry": store.AppendLogKey(nil, a.r.Alias[causal.Origin{1}], 1),
	} {
		require.Contains(t, put, string(key), what)
	}
}

// putKeys are the keys that a batch puts.
type putKeys map[string]bool

func (p putKeys) Put(key, _ []byte) { p[string(key)] = true }

func (p putKeys) Delete([]byte) {}
