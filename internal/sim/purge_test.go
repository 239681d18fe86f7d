package sim

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// foreign is a version by another server.
func foreign(o byte, seq uint64, vv ...causal.Dot) store.Version {
	return store.Version{Dot: causal.Dot{Origin: causal.Origin{o}, Seq: seq}, Context: vv, Value: []byte(fmt.Sprint(o, "/", seq)), Count: 1}
}

func (n *node) mergeFrom(proof *causal.Knowledge, vs ...store.Version) {
	require.NoError(n.t, n.Commit(func(t *replica.Txn) error {
		_, err := t.Merge([]byte("k"), vs, proof)
		return err
	}))
}

func (n *node) purge() { require.NoError(n.t, LookOnce(n, 100)) }

func TestVersionThatAHeldOneSawIsNotMerged(t *testing.T) {
	a := newNode(t)
	x := foreign(1, 1)
	a.mergeFrom(&causal.Knowledge{}, foreign(2, 1, x.Dot))
	a.mergeFrom(&causal.Knowledge{}, x)
	require.Equal(t, []string{"2/1"}, a.values("k"))
}

func TestProofOfTheSenderSupersedesWhatItsVersionDoesNotName(t *testing.T) {
	a := newNode(t)
	a.mergeFrom(&causal.Knowledge{}, foreign(1, 1))
	proof := &causal.Knowledge{}
	proof.Raise(causal.Covered, causal.Dot{Origin: causal.Origin{1}, Seq: 1})
	proof.Raise(causal.Pruned, causal.Dot{Origin: causal.Origin{1}, Seq: 1})
	a.mergeFrom(proof, foreign(2, 1))
	require.Equal(t, []string{"2/1"}, a.values("k"))
}

func TestRepairBringsWhatReplacedWhatItDrops(t *testing.T) {
	a := newNode(t)
	a.mergeFrom(&causal.Knowledge{}, foreign(1, 1))
	proof := &causal.Knowledge{}
	proof.Raise(causal.Covered, causal.Dot{Origin: causal.Origin{1}, Seq: 1})
	proof.Raise(causal.Purged, causal.Dot{Origin: causal.Origin{1}, Seq: 1})
	require.NoError(t, a.Commit(func(t *replica.Txn) error { return t.DropPurged([]byte("k"), []store.Version{foreign(2, 1)}, proof) }))
	require.Equal(t, []string{"2/1"}, a.values("k"))
}

func TestWhoMissedAPurgeIsRepaired(t *testing.T) {
	a, c := newNode(t), newNode(t)
	a.put("k", "v")
	gossip(t, a, c)
	a.r.TombstoneTTL = 0
	a.del("k")
	a.saved()
	a.purge()
	require.Empty(t, a.log(), "it is as if k had never been")
	talk(t, c, a)
	require.Equal(t, "-", c.get("k"))
	requireEqualNodes(t, a, c)
}

func TestTombstoneStaysUntilItIsOnDiskAndAllMembersHaveIt(t *testing.T) {
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

func TestPurgeIsCommittedWithSync(t *testing.T) {
	a := newNode(t)
	a.put("k", "v")
	a.del("k")
	a.saved()
	synced := false
	note := func(t *replica.Txn) { synced = t.Sync && t.Batch.Len() > 0 }
	require.NoError(t, a.r.BeginPurge().Next(testKeeper{a, 100, note}))
	require.True(t, synced)
}

func TestProofOfAShortenedVectorIsCommittedWithSync(t *testing.T) {
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

func TestOneFlushOfTheMemtableProvesNothing(t *testing.T) {
	a := newNode(t)
	a.put("k", "v")
	a.r.Flushed(7)
	a.r.Flushed(8)
	require.Zero(t, a.r.Known.Seq(causal.Durable, a.r.Self), "it may have been in the second memtable")
	a.r.Flushed(9)
	require.EqualValues(t, 1, a.r.Known.Seq(causal.Durable, a.r.Self))
}

func TestServerReportsWhatItHasOnDiskNotWhatItClaims(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "v")
	talk(t, b, a)
	require.Zero(t, b.r.Members[a.r.Self].Known.Seq(causal.Durable, a.r.Self))
	a.saved()
	talk(t, b, a)
	require.EqualValues(t, 1, b.r.Members[a.r.Self].Known.Seq(causal.Durable, a.r.Self))
}

func TestUnfinishedPullSkipsNothingThatItsServerDidNotClaim(t *testing.T) {
	a, b, c := newNode(t), newNode(t), newNode(t)
	for i := range 50 {
		c.put(fmt.Sprint("k", i), strings.Repeat("x", 300))
	}
	cutTalk(t, b, c, 10)
	require.NotEmpty(t, b.r.Cloud, "b holds what it does not claim")
	cutTalk(t, a, b, 3)
	require.NotNil(t, a.r.Pending)
	require.Empty(t, a.r.Pending.Done[c.r.Self])
	require.True(t, a.r.Pending.Basis.Contains(b.r.Cloud[0]), "and only who covers what b held may be resumed at")
}

func TestMemberThatWasAwayTooLongHoldsNothingBack(t *testing.T) {
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

func TestOldTombstoneStaysUntilItIsOnDisk(t *testing.T) {
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
func TestTombstonesThatAreHeldBackAreLookedAtOnlyWhenSomethingHasChanged(t *testing.T) {
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

func TestTombstonesAreLookedAtWhenTheFirstOfThemIsStable(t *testing.T) {
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

func TestTombstonesAreLookedAtWhenTheFirstIsOld(t *testing.T) {
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

func TestTombstonesAreLookedAtWhenAMemberIsGivenUp(t *testing.T) {
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

func TestProofOfAllThatIsForgottenIsSyncedOnce(t *testing.T) {
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
	require.Equal(t, 1, synced, "further ones rest on a proof that is on disk")
	require.EqualValues(t, 100, a.r.Durable.Seq(causal.Purged, a.r.Self))
}

func TestDamagedTombstoneHoldsNothingElseUp(t *testing.T) {
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

func TestTokenIsLostOnlyIfNobodyCanStillBringItsWrite(t *testing.T) {
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
	require.False(t, lost(5), "a member claims it")
	require.True(t, lost(6))
	a.mergeFrom(&causal.Knowledge{}, foreign(1, 3))
	require.False(t, lost(6), "something of it is held")
	a.put("k", "and now something that saw it")
	require.True(t, lost(6))
	a.r.NoteSeen(gone, "a copy was opened")
	require.False(t, lost(6))
	a.r.NoteSuccession(now, []causal.Origin{gone})
	require.True(t, lost(6))
	require.False(t, a.r.Ended(a.r.Self))
}

func TestMemberSeenWhileTheClockWasAheadIsForgottenInTime(t *testing.T) {
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
