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

// covered has a node cover what others wrote, and have all of it on disk.
func (n *node) covered(ds ...causal.Dot) {
	require.NoError(n.t, n.Commit(func(t *replica.Txn) error {
		for _, d := range ds {
			t.Cover(d)
		}
		return nil
	}))
	n.saved()
}

// longContext has a node hold a version on disk whose context is long enough to be pruned.
func (n *node) longContext() (v store.Version, seen causal.Vector) {
	for i := range replica.PruneAbove {
		seen = seen.Raise(causal.Dot{Origin: causal.Origin{byte(i + 2)}, Seq: 1})
	}
	v = foreign(1, 1, seen...)
	n.mergeFrom(&causal.Knowledge{}, v)
	n.covered(append(seen, v.Dot)...)
	return v, seen
}

// write stages a write of the key, and returns its context.
func (n *node) write() (*replica.Txn, causal.Vector) {
	t := n.r.Begin()
	require.NoError(n.t, t.Put([]store.Write{{Key: []byte("k"), Value: []byte("v")}}))
	return t, t.Changes[0].Versions[0].Context
}

// design.md: W4, G3
func TestWrite_PrunedContextIsCommittedWithSync(t *testing.T) {
	a := newNode(t)
	v, _ := a.longContext()
	tx, context := a.write()
	require.True(t, tx.Sync)
	require.Equal(t, causal.Vector{v.Dot}, context, "what this write replaces can come back until it is on disk")
}

// design.md: G3
func TestWrite_ContextNamesWhatAMemberMayLack(t *testing.T) {
	a, b := newNode(t), newNode(t)
	talk(t, a, b)
	v, seen := a.longContext()
	_, context := a.write()
	require.ElementsMatch(t, append(seen, v.Dot), context)
	talk(t, b, a)
	_, context = a.write()
	require.ElementsMatch(t, append(seen, v.Dot), context, "it may have it in memory only")
	b.saved()
	talk(t, b, a)
	_, context = a.write()
	require.Equal(t, causal.Vector{v.Dot}, context)
}

// design.md: G3
func TestWrite_SyncsWhatMakesALongContextShort(t *testing.T) {
	for n, left := range map[int]int{replica.PruneWithSync - 1: replica.PruneWithSync - 1, replica.PruneWithSync: 0} {
		a := newNode(t)
		var ds []causal.Dot
		for i := range n {
			v := foreign(byte(i+1), 1)
			a.mergeFrom(&causal.Knowledge{}, v)
			ds = append(ds, v.Dot)
		}
		a.covered(ds...)
		require.NoError(t, a.Commit(func(t *replica.Txn) error { // another key took the watermark to disk
			for _, d := range ds {
				t.RequireDurable(causal.Pruned, d)
			}
			return nil
		}))
		tx, context := a.write()
		require.Equal(t, left == 0, tx.Sync)
		require.Len(t, context, left)
	}
}

// A power failure takes a write and brings back what it replaced, while another replica has the
// write from a pull that broke off: it does not cover what was replaced, so it proves nothing.
//
// design.md: G3
func TestWrite_ContextLeavesOutNothingThatAPowerFailureBringsBack(t *testing.T) {
	s := newScenario(t, "HighestClock", 2)
	s.conf.pageSize, s.conf.batchSize = 1, 1
	a, b := s.nodes[0], s.nodes[1]
	for range replica.PruneAbove + 1 { // a has met nobody: whatever it has on disk is stable
		s.put(a, "k", "replaced")
		s.put(a, "l", "")
		require.NoError(t, a.close())
		require.NoError(t, a.open())
	}
	replaced := a.holds["k"].live[0]
	s.put(a, "l", "") // with Sync, for the watermark: that of k is on disk with it
	s.put(a, "k", "kept elsewhere")
	require.Less(t, len(a.holds["k"].live[0].Context), replica.PruneAbove)
	s.cutOff(s.pullUntil(b, a, func() bool { return b.holds["k"] != nil }))
	require.False(t, b.r.Known.Covers(replaced.Dot))
	a.down()
	a.disk = newSimDisk(a.disk.afterPowerFailure(s.rand, 0))
	require.NoError(t, a.open())
	require.Equal(t, []*ghostWrite{replaced}, a.holds["k"].live)

	s.talk(b, a)
	s.talk(a, b)
	require.NoError(t, a.reissue())
	s.talk(a, b)
	for _, n := range s.nodes {
		require.Len(t, n.holds["k"].live, 1)
		require.EqualValues(t, "kept elsewhere", n.holds["k"].live[0].Value)
	}
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
