package sim

import (
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// design.md: M8
func TestMerge_AsksTheResolverAgainAboutAKeyThatGrew(t *testing.T) {
	a := newNode(t)
	a.put("k", "v")
	asked := 0
	a.r.Resolve = func(key []byte, x, y *store.Version) store.Version {
		asked++
		return replica.HighestClock(key, x, y)
	}
	ds := new(replica.Decisions)
	undecided := func(vs ...store.Version) bool {
		tx := a.r.Begin()
		tx.Decisions = ds
		_, err := tx.Merge([]byte("k"), vs, &causal.Knowledge{})
		require.NoError(t, err)
		return ds.Undecided()
	}
	decide := func() (pairs int) {
		asked = 0
		require.True(t, ds.Decide(a.r.Resolve, Never))
		return asked
	}
	vs := []store.Version{foreign(1, 1)}
	require.True(t, undecided(vs...))
	require.Equal(t, 1, decide())
	require.False(t, undecided(vs...), "it was asked")
	vs = append(vs, foreign(2, 1))
	require.True(t, undecided(vs...), "but not about these three")
	require.Equal(t, 2, decide())
	require.Equal(t, 2, asked, "never while the request is staged")
	for o := byte(3); ; o++ {
		if vs, asked = append(vs, foreign(o, 1)), 0; !undecided(vs...) {
			break
		}
		require.Zero(t, asked)
		require.Less(t, o, byte(20), "in the end it is asked at once")
		decide()
	}
	require.Equal(t, len(vs), asked)
}

// design.md: M3
func TestMerge_DropsWhatTheVersionHasSeen(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "1")
	talk(t, b, a)
	a.put("k", "2")
	a.put("k", "3")
	talk(t, b, a)
	require.Equal(t, "3", b.get("k"))
	require.Len(t, b.versions("k"), 1)
	require.Len(t, b.log(), 1)
}

// design.md: M5, M8
func TestMerge_ConcurrentVersionsGoToTheResolver(t *testing.T) {
	var calls int
	longest := func(_ []byte, a, b *store.Version) store.Version {
		calls++
		if len(a.Value) > len(b.Value) {
			return *a
		}
		return *b
	}
	a, b := openNode(t, storage.NewMemStorage(), longest), openNode(t, storage.NewMemStorage(), longest)
	a.put("k", "the longer one")
	b.put("k", "short")
	talk(t, a, b)
	require.Positive(t, calls)
	require.Equal(t, "the longer one", a.get("k"))
	require.Equal(t, "the longer one", b.get("k"))
	require.Len(t, a.versions("k"), 2, "the other version is kept")
	require.EqualValues(t, 1, a.r.Conflicts)
	requireEqualNodes(t, a, b)
}

// design.md: M8
func TestMerge_EqualContentIsNoConflict(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "same")
	b.put("k", "same")
	talk(t, a, b)
	require.Zero(t, a.r.Conflicts)
	require.Len(t, a.versions("k"), 2)
	requireEqualNodes(t, a, b)
}

// design.md: M5
func TestMerge_KeepsConcurrentVersionsWhateverTheirClocks(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "base")
	talk(t, b, a)
	a.put("k", "a1")
	a.put("k", "a2")
	b.put("k", "b1")
	talk(t, a, b)
	require.Equal(t, "a2", a.get("k"), "the highest clock wins")
	require.Len(t, a.versions("k"), 2, "and what was written without knowing of it is kept")
	b.put("k", "resolved")
	talk(t, a, b)
	require.Len(t, a.versions("k"), 1)
	requireEqualNodes(t, a, b)
}

// design.md: M2
func TestMerge_SkipsWhatAHeldVersionHasSeen(t *testing.T) {
	a := newNode(t)
	x := foreign(1, 1)
	a.mergeFrom(&causal.Knowledge{}, foreign(2, 1, x.Dot))
	a.mergeFrom(&causal.Knowledge{}, x)
	require.Equal(t, []string{"2/1"}, a.values("k"))
}

// design.md: M4
func TestMerge_WatermarkOfTheSenderSupersedes(t *testing.T) {
	a := newNode(t)
	a.mergeFrom(&causal.Knowledge{}, foreign(1, 1))
	peer := &causal.Knowledge{}
	peer.Raise(causal.Covered, causal.Dot{Origin: causal.Origin{1}, Seq: 1})
	peer.Raise(causal.Pruned, causal.Dot{Origin: causal.Origin{1}, Seq: 1})
	a.mergeFrom(peer, foreign(2, 1))
	require.Equal(t, []string{"2/1"}, a.values("k"))
}

// design.md: M1
func TestMerge_SkipsWhatIsCovered(t *testing.T) {
	a := newNode(t)
	a.mergeFrom(&causal.Knowledge{}, foreign(1, 1))
	require.NoError(t, a.Commit(func(t *replica.Txn) error {
		t.Cover(causal.Dot{Origin: causal.Origin{2}, Seq: 7})
		return nil
	}))
	a.mergeFrom(&causal.Knowledge{}, foreign(1, 1), foreign(2, 7))
	require.Equal(t, []string{"1/1"}, a.values("k"), "2/7 was superseded or purged")
	a.mergeFrom(&causal.Knowledge{}, foreign(1, 1), foreign(2, 8))
	require.Equal(t, []string{"1/1", "2/8"}, a.values("k"))
}

// design.md: M4, M6
func TestMerge_WatermarkSparesWhatTheSenderHolds(t *testing.T) {
	a := newNode(t)
	a.mergeFrom(&causal.Knowledge{}, foreign(1, 1), foreign(2, 1))
	theirs := &causal.Knowledge{}
	for o := range byte(2) {
		theirs.Raise(causal.Covered, causal.Dot{Origin: causal.Origin{o + 1}, Seq: 1})
		theirs.Raise(causal.Pruned, causal.Dot{Origin: causal.Origin{o + 1}, Seq: 1})
	}
	held := foreign(1, 1)
	held.NameOnly = true // a is known to have it
	a.mergeFrom(theirs, held, foreign(3, 1))
	require.Equal(t, []string{"1/1", "3/1"}, a.values("k"), "only 2/1 was superseded there")
}

// design.md: M7
func TestMerge_TakesInThePurgedWatermarkAsFarAsItCovers(t *testing.T) {
	a := newNode(t)
	theirs := &causal.Knowledge{}
	for _, c := range []causal.Column{causal.Covered, causal.Pruned, causal.Purged} {
		theirs.Raise(c, causal.Dot{Origin: causal.Origin{1}, Seq: 5})
	}
	require.NoError(t, a.Commit(func(t *replica.Txn) error {
		t.Cover(causal.Dot{Origin: causal.Origin{1}, Seq: 3})
		t.JoinWatermarks(theirs)
		return nil
	}))
	require.EqualValues(t, 3, a.r.Known.Seq(causal.Purged, causal.Origin{1}))
	require.EqualValues(t, 5, a.r.Known.Seq(causal.Pruned, causal.Origin{1}))
	require.False(t, a.r.Known.Superseded(causal.Dot{Origin: causal.Origin{1}, Seq: 4}), "it proves nothing beyond the version vector")
}
