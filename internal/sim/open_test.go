package sim

import (
	"fmt"
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// design.md: O5
func TestOpen_TokenIsLostOnlyIfNobodyCanBringItsWrite(t *testing.T) {
	a := newNode(t)
	gone, now := causal.Origin{1}, causal.Origin{2}
	lost := func(seq uint64) bool {
		lost, err := a.r.Lost(causal.Dot{Origin: gone, Seq: seq})
		require.NoError(t, err)
		return lost
	}
	require.False(t, lost(5), "nobody said that it has ended")
	m := a.r.NoteSeen(now, "now")
	a.r.NoteSuccession(now, []causal.Origin{gone})
	require.False(t, lost(5), "by a stranger")
	m.Met = true
	require.True(t, lost(5))
	m.Known.Raise(causal.Covered, causal.Dot{Origin: gone, Seq: 4})
	require.True(t, lost(5))
	other := a.r.NoteSeen(causal.Origin{3}, "other")
	other.Known.Raise(causal.Covered, causal.Dot{Origin: gone, Seq: 5})
	require.False(t, lost(5), "a member covers it")
	require.True(t, lost(6))
	a.mergeFrom(&causal.Knowledge{}, foreign(1, 3))
	require.False(t, lost(6), "something of it is held")
	a.put("k", "and now something that saw it")
	require.True(t, lost(6))
	a.r.NoteSeen(gone, "a copy was opened")
	require.False(t, lost(6))
	a.r.NoteSuccession(now, []causal.Origin{gone})
	require.True(t, lost(6))
	own, err := a.r.Lost(causal.Dot{Origin: a.r.Self, Seq: a.r.Seq + 1})
	require.NoError(t, err)
	require.False(t, own, "this incarnation has not ended")
}

// design.md: W4
func TestOpen_AfterACrashWritesTheOriginsThatItRead(t *testing.T) {
	a, b := newNode(t), newNode(t)
	b.put("k", "v")
	talk(t, a, b)
	r := replica.New(replica.Config{Store: a.r.Store, Draw: a.r.Draw, Now: a.r.Now, Resolve: replica.HighestClock})
	batch, err := r.Open("")
	require.NoError(t, err)
	rec := &originCounter{}
	require.NoError(t, batch.Replay(rec))
	require.Equal(t, 3, rec.n, "those of a, b and of the new opening")
}

// originCounter counts the origin records in a batch.
type originCounter struct{ n int }

func (c *originCounter) Put(key, _ []byte) {
	if key[2] == store.KindOrigin {
		c.n++
	}
}

func (c *originCounter) Delete([]byte) {}

var _ leveldb.BatchReplay = (*originCounter)(nil)

// design.md: O1
func TestOpen_EachHasAnOriginOfItsOwn(t *testing.T) {
	a := newNode(t)
	a.put("k", "v")
	b := a.copied()
	require.NotEqual(t, a.r.Self, b.r.Self)
	a.put("k", "of a")
	b.put("k", "of the copy")
	talk(t, a, b)
	require.Len(t, a.versions("k"), 2, "they are two writes")
	requireEqualNodes(t, a, b)
}

// design.md: O2
func TestOpen_AfterACrashRestartsFromTheCheckpoint(t *testing.T) {
	a := newNode(t)
	self := a.r.Self
	a.put("k", "on disk")
	a.saved()
	a.put("l", "perhaps not")
	require.NoError(t, a.Commit(func(t *replica.Txn) error {
		raiseWatermark(t, causal.Pruned, causal.Dot{Origin: self, Seq: 2})
		raiseWatermark(t, causal.Purged, causal.Dot{Origin: self, Seq: 2})
		return nil
	}))
	a.reopen(replica.HighestClock)
	require.EqualValues(t, 1, a.r.Known.Seq(causal.Covered, self))
	require.EqualValues(t, 1, a.r.Known.Seq(causal.Purged, self))
	require.EqualValues(t, 2, a.r.Known.Seq(causal.Pruned, self))
	require.True(t, a.r.Cloud.Contains(causal.Dot{Origin: self, Seq: 2}), "it is held")
}

// design.md: O5
func TestOpen_OrphanIsReissuedWithItsDotInTheContext(t *testing.T) {
	a := newNode(t)
	a.put("k", "v")
	was := a.versions("k")[0]
	a.reopen(replica.HighestClock)
	require.True(t, a.r.Orphans())
	require.NoError(t, a.Commit(func(t *replica.Txn) error { return new(replica.Reissuing).Stage(t, 100) }))
	require.False(t, a.r.Orphans())
	vs := a.versions("k")
	require.Len(t, vs, 1)
	require.NotEqual(t, was.Origin, vs[0].Origin)
	require.NotEqual(t, a.r.Self, vs[0].Origin)
	require.True(t, vs[0].HasSeen(was.Dot))
	require.Equal(t, was.Clock, vs[0].Clock)
	require.Equal(t, was.Stamp, vs[0].Stamp)
	require.Equal(t, "v", a.get("k"))
	require.Zero(t, a.r.Known.Seq(causal.Covered, was.Origin), "a peer that is away may hold it")
	require.True(t, a.r.Known.Covers(vs[0].Dot))
}

// An orphan comes back from a peer whose watermarks do not cover it yet, and so stands beside an earlier
// version that its shortened context leaves out. Under its new name it says that it saw that.
// design.md: O5
func TestOpen_ReissuedOrphanReplacesEarlierVersionsOfItsOrigin(t *testing.T) {
	for name, synced := range map[string]bool{"covered": true, "an orphan, too": false} {
		t.Run(name, func(t *testing.T) {
			a := newNode(t)
			self := a.r.Self
			require.NoError(t, a.Commit(func(t *replica.Txn) error {
				t.Sync = synced
				return t.Put([]store.Write{{Key: []byte("k"), Value: []byte("1")}})
			}))
			a.reopen(replica.HighestClock)
			require.Equal(t, !synced, a.r.Orphans())
			x := store.Version{Dot: causal.Dot{Origin: self, Seq: 2}, Clock: 1, Stamp: 2, Value: []byte("2"), Count: 1}
			a.mergeFrom(&causal.Knowledge{}, x)
			require.Len(t, a.versions("k"), 2)
			require.True(t, a.r.Orphans())

			require.NoError(t, a.Commit(func(txn *replica.Txn) error {
				err := new(replica.Reissuing).Stage(txn, 100)
				require.Len(t, txn.Changes, 1)
				require.False(t, txn.Changes[0].Quiet, "a version is gone, and with it a conflict")
				return err
			}))
			require.False(t, a.r.Orphans())
			vs := a.versions("k")
			require.Len(t, vs, 1)
			require.True(t, vs[0].HasSeen(x.Dot))
			require.Equal(t, x.Stamp, vs[0].Stamp)
			require.Equal(t, "2", a.get("k"))
			require.Zero(t, a.r.Conflicts)
		})
	}
}

// All of a pass are reissued under the same origins, which stay for ever; but an orphan that a peer brings
// may be of a key that was reissued, or lie where the log was read.
//
// design.md: O5
func TestOpen_OrphansAreReissuedUnderFewOrigins(t *testing.T) {
	a := newNode(t)
	a.put("first opening", "v")
	a.saved()
	before := a.r.Self
	a.reopen(replica.HighestClock)
	self := a.r.Self
	a.put("lost", "v")
	for i := range 20 {
		a.put(fmt.Sprint("k", i), "v")
	}
	a.lose("lost")
	a.reopen(replica.HighestClock)
	p := new(replica.Reissuing)
	next := func() bool {
		more, err := ReissueSome(a, p, 3)
		require.NoError(t, err)
		return more
	}
	for next() {
	}
	require.False(t, a.r.Orphans())
	drawn := a.versions("k0")[0].Origin
	for i := range 20 {
		require.Equal(t, drawn, a.versions(fmt.Sprint("k", i))[0].Origin)
	}

	bring := func(key string, d causal.Dot) {
		require.NoError(t, a.Commit(func(t *replica.Txn) error {
			_, err := t.Merge([]byte(key), []store.Version{{Dot: d, Value: []byte("w"), Stamp: 1, Count: 1}}, &causal.Knowledge{})
			return err
		}))
		require.True(t, a.r.Orphans())
		for next() {
		}
		require.False(t, a.r.Orphans())
		for _, v := range a.versions(key) {
			require.True(t, a.r.Known.Covers(v.Dot), "%v of key %s", v.Dot, key)
		}
	}
	bring("lost", causal.Dot{Origin: self, Seq: 1})
	bring("k0", causal.Dot{Origin: before, Seq: 2})
	vs := a.versions("k0")
	require.Len(t, vs, 2)
	require.NotEqual(t, vs[0].Origin, vs[1].Origin, "neither has seen the other")
}

// design.md: O6
func TestOpen_SyncedWritesAreNoOrphans(t *testing.T) {
	a := newNode(t)
	self := a.r.Self
	for _, k := range []string{"k", "l"} {
		require.NoError(t, a.Commit(func(t *replica.Txn) error {
			t.Sync = true
			return t.Put([]store.Write{{Key: []byte(k), Value: []byte("v")}})
		}))
	}
	a.reopen(replica.HighestClock)
	require.False(t, a.r.Orphans())
	require.EqualValues(t, 2, a.r.Known.Seq(causal.Covered, self))
}

// design.md: O4
func TestOpen_AfterACrashServesNoStaleEntries(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "1")
	stale := store.AppendLogKey(nil, a.r.Alias[a.r.Self], 1)
	rec, err := a.db.Get(stale, nil)
	require.NoError(t, err)
	a.put("k", "2")
	require.NoError(t, a.db.Put(stale, rec, nil)) // as if the batch that deleted it had been lost in part
	old := a.r.Self
	r := replica.New(replica.Config{Store: a.r.Store, Draw: a.r.Draw, Now: a.r.Now, Resolve: replica.HighestClock, MaxKey: a.r.MaxKey, MaxValue: a.r.MaxValue})
	batch, err := r.Open("")
	require.NoError(t, err)
	require.NoError(t, a.db.Write(batch, nil))
	a.r = r
	require.True(t, a.r.MayHaveStale)
	talk(t, b, a)
	require.Equal(t, []causal.Dot{{Origin: old, Seq: 2}}, b.log())
	require.NoError(t, TidyUp(a, 100, Never))
	require.False(t, a.r.MayHaveStale)
	require.Equal(t, []causal.Dot{{Origin: old, Seq: 2}}, a.log())
}
