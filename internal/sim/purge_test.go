package sim

import (
	"fmt"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// design.md: G1
func TestPurge_WaitsUntilAllMembersHaveItOnDisk(t *testing.T) {
	a, b := newNode(t), newNode(t)
	b.put("first", "v") // without Sync: from now on b has to wait for flushes
	a.put("k", "v")
	a.del("k")
	a.purge()
	require.Len(t, a.versions("k"), 1, "not on disk")
	talk(t, b, a)
	talk(t, b, a)
	a.saved()
	a.purge()
	require.Len(t, a.versions("k"), 1, "b has it, but not on disk")
	b.saved()
	b.put("other", "written before anybody knows")
	b.saved()
	talk(t, b, a)
	b.put("another", "on disk at b")
	b.saved()
	a.r.Members[b.r.Self].Known.Raise(causal.Covered, causal.Dot{Origin: b.r.Self, Seq: 3})
	a.r.Members[b.r.Self].Known.Raise(causal.Durable, causal.Dot{Origin: b.r.Self, Seq: 3}) // as if b had said so and the pull had failed
	a.r.StableCache = nil
	a.purge()
	require.Len(t, a.versions("k"), 1, "what b wrote before may still be under way")
	talk(t, b, a)
	talk(t, b, a)
	a.purge()
	require.Empty(t, a.versions("k"))
}

// A crash took the write that the deletion of a reissued orphan has seen, so nobody can have it on disk.
// design.md: G1, O5
func TestPurge_NobodyIsBlamedForWhatACrashTook(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "v")
	a.reopen(replica.HighestClock)
	require.NoError(t, a.Commit(func(t *replica.Txn) error { return new(replica.Reissuing).Stage(t, 100) }))
	a.del("k")
	a.saved()
	b.put("first", "v") // without Sync: from now on b has to wait for flushes
	talk(t, b, a)
	a.purge()
	require.NotEmpty(t, a.r.Blockers(), "it has not reported")
	b.saved()
	talk(t, b, a)
	talk(t, b, a)
	a.saved()
	a.purge()
	require.Len(t, a.versions("k"), 1)
	require.Empty(t, a.r.Blockers())
}

// design.md: W4, G1
func TestPurge_IsCommittedWithSync(t *testing.T) {
	a := newNode(t)
	a.put("k", "v")
	a.del("k")
	a.saved()
	synced := false
	note := func(t *replica.Txn) { synced = t.Sync && t.Batch.Len() > 0 }
	require.NoError(t, a.r.BeginPurge().Next(testKeeper{a, 100, note}))
	require.True(t, synced)
}

// A watermark that came with a pull may be known and not on disk.
// design.md: G1, C2
func TestPurge_SyncsAWatermarkThatWasOnlyLearnt(t *testing.T) {
	a := newNode(t)
	a.put("k", "v")
	a.del("k")
	a.saved()
	a.r.Known.Raise(causal.Purged, causal.Dot{Origin: a.r.Self, Seq: 2})
	synced := false
	note := func(t *replica.Txn) { synced = t.Sync && t.Batch.Len() > 0 }
	require.NoError(t, a.r.BeginPurge().Next(testKeeper{a, 100, note}))
	require.True(t, synced)
	require.EqualValues(t, 2, a.r.Durable.Seq(causal.Purged, a.r.Self))
}

// design.md: G1
func TestPurge_MemberAwayBeyondPeerTTLHoldsNothingBack(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "v")
	gossip(t, a, b)
	a.del("k")
	a.saved()
	a.purge()
	require.Len(t, a.log(), 1)
	a.r.PeerTTL, a.r.Now = time.Minute, func() time.Time { return time.Now().Add(2 * time.Minute) }
	a.r.StableCache = nil
	a.purge()
	require.Empty(t, a.log())
}

// A power failure does not leave a replica that believes itself alone, though it may take all that was not synced.
//
// design.md: G6
func TestPurge_MemberIsOnDiskWithItsFirstWrite(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "v")
	b.put("l", "of b")
	a.del("k")
	talk(t, a, b)
	_, err := a.db.Get(store.KindKey(store.KindMember, b.r.Self[:]), nil)
	require.NoError(t, err, "it came with the number of b's origin, with Sync")
	a.saved()
	a.reopen(replica.HighestClock)
	a.purge()
	require.Positive(t, a.r.Tombstones, "b may hold something beside it")
}

// What a successor replaces is waited for until the successor is on disk.
//
// design.md: G6
func TestPurge_SucceededMemberStaysUntilItsSuccessorWasMet(t *testing.T) {
	a, b := newNode(t), newNode(t)
	b.put("l", "of b")
	gossip(t, a, b)
	upkeep := func() {
		require.NoError(t, a.Commit(func(tx *replica.Txn) error { tx.StageUpkeep(); return nil }))
	}
	upkeep()
	old := store.KindKey(store.KindMember, b.r.Self[:])
	b.reopen(replica.HighestClock)
	a.r.NoteSeen(b.r.Self, "")
	a.r.NoteSuccession(b.r.Self, b.r.Lineage(replica.LineageLimit))
	upkeep()
	_, err := a.db.Get(old, nil)
	require.NoError(t, err, "the successor has not been met, and is not on disk")
	talk(t, a, b)
	upkeep()
	_, err = a.db.Get(old, nil)
	require.ErrorIs(t, err, leveldb.ErrNotFound)
}

// design.md: G1
func TestPurge_OldTombstoneWaitsForTheCheckpoint(t *testing.T) {
	a := newNode(t)
	a.r.TombstoneTTL = 0
	a.put("k", "v")
	a.del("k")
	a.purge()
	require.Len(t, a.log(), 1)
	a.saved()
	a.purge()
	require.Empty(t, a.log())
}

func (n *node) due() bool { return n.r.PurgeDue() }

// What is held back for a week must not be read every ten seconds.
// design.md: G5
func TestPurge_LooksAgainOnlyAfterAChange(t *testing.T) {
	a, b := newNode(t), newNode(t)
	now := time.Now()
	a.r.Now = func() time.Time { return now }
	require.False(t, a.due(), "there is none")
	for i := range 10 {
		a.put(fmt.Sprint("k", i), "v")
	}
	gossip(t, a, b)
	for i := range 10 {
		a.del(fmt.Sprint("k", i))
	}
	a.saved()
	require.True(t, a.due(), "they were never looked at")
	a.purge()
	require.EqualValues(t, 10, a.r.Tombstones)
	for i := range 10 { // what is written meanwhile, and deleted, changes nothing
		require.False(t, a.due())
		a.put(fmt.Sprint("l", i), "v")
		a.del(fmt.Sprint("l", i))
		a.saved()
	}
	require.EqualValues(t, 20, a.r.Tombstones)
	talk(t, b, a)
	require.False(t, a.due(), "b has it, but not on disk")
	b.saved()
	talk(t, b, a)
	talk(t, a, b)
	require.True(t, a.due(), "b has reported")
	a.purge()
	require.Zero(t, a.r.Tombstones)
	require.False(t, a.due())
}

// design.md: G5
func TestPurge_LooksAgainOnceATombstoneIsStable(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "v")
	a.put("l", "v")
	gossip(t, a, b)
	a.del("k")
	talk(t, b, a) // b has this one, and not
	a.del("l")    // that one
	a.saved()
	a.purge()
	require.EqualValues(t, 2, a.r.Tombstones)
	require.False(t, a.due())
	cutOff := a.r.Members[b.r.Self]
	cutOff.Known.Raise(causal.Durable, causal.Dot{Origin: a.r.Self, Seq: 3}) // as b reports before it pulls again
	a.r.StableCache = nil
	require.True(t, a.due())
	a.purge()
	require.EqualValues(t, 1, a.r.Tombstones)
	require.False(t, a.due())
}

// design.md: G5
func TestPurge_LooksAgainOnceATombstoneIsOld(t *testing.T) {
	a, b := newNode(t), newNode(t)
	now := time.Now()
	a.r.Now = func() time.Time { return now }
	a.put("k", "v")
	gossip(t, a, b)
	a.del("k")
	a.saved()
	a.purge()
	require.False(t, a.due())
	now = now.Add(a.r.TombstoneTTL - time.Second)
	a.r.PeerTTL = 10 * time.Hour
	require.False(t, a.due())
	now = now.Add(time.Second)
	require.True(t, a.due())
	a.del("another") // nothing: it is not there
	a.put("another", "v")
	a.del("another")
	a.saved()
	a.purge()
	require.EqualValues(t, 1, a.r.Tombstones)
	require.False(t, a.due(), "that one is young")
}

// design.md: G5
func TestPurge_LooksAgainOnceAMemberIsForgotten(t *testing.T) {
	a, b := newNode(t), newNode(t)
	now := time.Now()
	a.r.Now = func() time.Time { return now }
	a.r.TombstoneTTL = -1
	a.put("k", "v")
	gossip(t, a, b)
	a.del("k")
	a.saved()
	a.purge()
	require.False(t, a.due())
	now = now.Add(2 * a.r.PeerTTL)
	require.NoError(t, a.Commit(func(t *replica.Txn) error { t.StageMembers(); return nil }))
	require.True(t, a.due())
	a.purge()
	require.Empty(t, a.log())
}

// design.md: G1
func TestPurge_SyncsItsWatermarkOnce(t *testing.T) {
	a := newNode(t)
	for i := range 50 {
		a.put(fmt.Sprint("k", i), "v")
	}
	for i := range 50 {
		a.del(fmt.Sprint("k", i))
	}
	a.saved()
	synced, batches := 0, 0
	note := func(t *replica.Txn) {
		batches++
		synced += int(store.Btoi(t.Sync))
	}
	require.NoError(t, a.r.BeginPurge().Next(testKeeper{a, 5, note}))
	require.Zero(t, a.r.Tombstones)
	require.Equal(t, 10, batches)
	require.Equal(t, 1, synced, "further ones rest on a watermark that is on disk")
	require.EqualValues(t, 100, a.r.Durable.Seq(causal.Purged, a.r.Self))
}

// design.md: R4
func TestPurge_PassesOverACorruptedTombstone(t *testing.T) {
	a := newNode(t)
	a.r.TombstoneTTL = 0
	for _, k := range []string{"a", "b", "c"} {
		a.put(k, "v")
		a.del(k)
	}
	s, err := a.r.Lookup([]byte("b"))
	require.NoError(t, err)
	require.NoError(t, a.db.Delete(store.AppendLogKey(nil, a.r.Alias[a.r.Self], s[0].Seq), nil))
	a.r.Members[causal.Origin{1}] = &replica.Member{Origin: causal.Origin{1}, Seen: time.Now(), Met: true} // not heard yet: only age counts
	a.saved()
	a.r.Now = func() time.Time { return time.Now().Add(time.Second) }
	a.purge()
	require.EqualValues(t, 1, a.r.Tombstones)
	require.Len(t, a.versionsNamed("b"), 1)
}

func (n *node) versionsNamed(k string) store.Siblings {
	s, err := n.r.Lookup([]byte(k))
	require.NoError(n.t, err)
	return s
}

func TestPurge_MemberSeenWhileTheClockWasAheadIsForgotten(t *testing.T) {
	st := storage.NewMemStorage()
	a, b := openNode(t, st, replica.HighestClock), newNode(t)
	now := time.Now()
	ahead := func() time.Time { return now.AddDate(4, 0, 0) }
	a.r.Now, b.r.Now = ahead, ahead
	talk(t, a, b)
	require.NoError(t, a.Commit(func(t *replica.Txn) error { t.StageMembers(); return nil }))
	require.Len(t, a.r.ActiveMembers(), 1)

	a.db.Close()
	a = openNode(t, st, replica.HighestClock) // its clock was set right meanwhile
	for i, minutes := range []time.Duration{0, 59, 61} {
		at := now.Add(minutes * time.Minute)
		a.r.Now = func() time.Time { return at }
		require.Len(t, a.r.ActiveMembers(), []int{1, 1, 0}[i], "a member that is gone counts for PeerTTL, an hour here, from when the clock is right")
		require.NoError(t, a.Commit(func(t *replica.Txn) error { t.StageMembers(); return nil }))
	}
	require.Empty(t, a.r.Members)
}
