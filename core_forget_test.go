package replicator

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// foreign is a version by another server.
func foreign(o byte, seq uint64, vv ...dot) version {
	return version{dot: dot{Origin{o}, seq}, vv: vv, value: []byte(fmt.Sprint(o, "/", seq)), count: 1}
}

func (n *node) mergeFrom(proof *knowledge, vs ...version) {
	require.NoError(n.t, n.commit(func(t *txn) error {
		_, err := t.merge([]byte("k"), vs, proof)
		return err
	}))
}

func (n *node) purge() { require.NoError(n.t, lookOnce(n, 100)) }

// testHost is a server without a shell.
type testHost interface {
	at(f func(r *replica))
	commit(stage func(t *txn) error) error
}

// testKeeper looks after its store, with so many keys in one transaction.
type testKeeper struct {
	testHost
	step   int
	staged func(t *txn) // called for each transaction; may be nil
}

func (k testKeeper) each(keys [][]byte, stage stager) error {
	for len(keys) > 0 {
		done := 0
		err := k.commit(func(t *txn) (err error) {
			done, err = stage(t, keys[:min(k.step, len(keys))])
			if k.staged != nil {
				k.staged(t)
			}
			return err
		})
		if err != nil {
			return err
		}
		keys = keys[done:]
	}
	return nil
}

// lookOnce has a server look at all its tombstones, some at a time, and forget those that
// may be.
func lookOnce(h testHost, step int) error {
	var p *purging
	h.at(func(r *replica) { p = r.beginPurge() })
	for p.step = step; !p.done; {
		if err := p.next(testKeeper{testHost: h, step: (step + 1) / 2}); err != nil {
			return err
		}
	}
	return nil
}

// tidyUp does the rest of an opening.
func tidyUp(h testHost, step int, enough func() bool) error {
	var resolve resolveFunc
	h.at(func(r *replica) { resolve = r.resolve })
	for p := new(tidying); !p.done; {
		if err := p.next(testKeeper{testHost: h, step: step}, resolve, enough); err != nil {
			return err
		}
	}
	return nil
}

func never() bool { return false }

func TestVersionThatAHeldOneSawIsNotMerged(t *testing.T) {
	a := newNode(t)
	x := foreign(1, 1)
	a.mergeFrom(&knowledge{}, foreign(2, 1, x.dot))
	a.mergeFrom(&knowledge{}, x)
	require.Equal(t, []string{"2/1"}, a.values("k"))
}

func TestProofOfTheSenderSupersedesWhatItsVersionDoesNotName(t *testing.T) {
	a := newNode(t)
	a.mergeFrom(&knowledge{}, foreign(1, 1))
	proof := &knowledge{}
	proof.raise(claimed, dot{Origin{1}, 1})
	proof.raise(pruned, dot{Origin{1}, 1})
	a.mergeFrom(proof, foreign(2, 1))
	require.Equal(t, []string{"2/1"}, a.values("k"))
}

func TestRepairBringsWhatReplacedWhatItDrops(t *testing.T) {
	a := newNode(t)
	a.mergeFrom(&knowledge{}, foreign(1, 1))
	proof := &knowledge{}
	proof.raise(claimed, dot{Origin{1}, 1})
	proof.raise(purged, dot{Origin{1}, 1})
	require.NoError(t, a.commit(func(t *txn) error { return t.repair([]byte("k"), []version{foreign(2, 1)}, proof) }))
	require.Equal(t, []string{"2/1"}, a.values("k"))
}

func TestWhoMissedAPurgeIsRepaired(t *testing.T) {
	a, c := newNode(t), newNode(t)
	a.put("k", "v")
	gossip(t, a, c)
	a.r.tombstoneTTL = 0
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
	a.r.members[b.r.self].known.raise(claimed, dot{b.r.self, 3})
	a.r.members[b.r.self].known.raise(durable, dot{b.r.self, 3}) // as if b had said so and the pull had failed
	a.r.stableVec = nil
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
	note := func(t *txn) { synced = t.sync && t.batch.Len() > 0 }
	require.NoError(t, a.r.beginPurge().next(testKeeper{a, 100, note}))
	require.True(t, synced)
}

func TestProofOfAShortenedVectorIsCommittedWithSync(t *testing.T) {
	a := newNode(t)
	for i := range pruneAbove + 2 {
		a.mergeFrom(&knowledge{}, foreign(byte(i+1), 1))
	}
	require.NoError(t, a.commit(func(t *txn) error {
		for i := range pruneAbove + 2 {
			t.claim(dot{Origin{byte(i + 1)}, 1})
		}
		return nil
	}))
	a.saved()
	tx := a.r.begin()
	require.NoError(t, tx.put([]write{{key: []byte("k"), value: []byte("v")}}))
	require.True(t, tx.sync)
	require.Empty(t, tx.changes[0].versions[0].vv)
}

func TestOneFlushOfTheMemtableProvesNothing(t *testing.T) {
	a := newNode(t)
	a.put("k", "v")
	a.r.flushed(7)
	a.r.flushed(8)
	require.Zero(t, a.r.known.at(durable, a.r.self), "it may have been in the second memtable")
	a.r.flushed(9)
	require.EqualValues(t, 1, a.r.known.at(durable, a.r.self))
}

func TestServerReportsWhatItHasOnDiskNotWhatItClaims(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "v")
	talk(t, b, a)
	require.Zero(t, b.r.members[a.r.self].known.at(durable, a.r.self))
	a.saved()
	talk(t, b, a)
	require.EqualValues(t, 1, b.r.members[a.r.self].known.at(durable, a.r.self))
}

func TestUnfinishedPullSkipsNothingThatItsServerDidNotClaim(t *testing.T) {
	a, b, c := newNode(t), newNode(t), newNode(t)
	for i := range 50 {
		c.put(fmt.Sprint("k", i), strings.Repeat("x", 300))
	}
	cutTalk(t, b, c, 10)
	require.NotEmpty(t, b.r.loose, "b holds what it does not claim")
	cutTalk(t, a, b, 3)
	require.NotNil(t, a.r.pending)
	require.Empty(t, a.r.pending.done[c.r.self])
	require.True(t, a.r.pending.reach.has(b.r.loose[0]), "and only who covers what b held may be resumed at")
}

func TestMemberThatWasAwayTooLongHoldsNothingBack(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "v")
	gossip(t, a, b)
	a.del("k")
	a.saved()
	a.purge()
	require.Len(t, a.log(), 1)
	a.r.peerTTL, a.r.now = time.Minute, func() time.Time { return time.Now().Add(2 * time.Minute) }
	a.r.stableVec = nil
	a.purge()
	require.Empty(t, a.log())
}

func TestOldTombstoneStaysUntilItIsOnDisk(t *testing.T) {
	a := newNode(t)
	a.r.tombstoneTTL = 0
	a.put("k", "v")
	a.del("k")
	a.purge()
	require.Len(t, a.log(), 1)
	a.saved()
	a.purge()
	require.Empty(t, a.log())
}

func (n *node) due() bool { return n.r.purgeDue() }

// What is held back for a week must not be read every ten seconds.
func TestTombstonesThatAreHeldBackAreLookedAtOnlyWhenSomethingHasChanged(t *testing.T) {
	a, b := newNode(t), newNode(t)
	now := time.Now()
	a.r.now = func() time.Time { return now }
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
	require.EqualValues(t, 10, a.r.tombstones)
	for i := range 10 { // what is written meanwhile, and deleted, changes nothing
		require.False(t, a.due())
		a.put(fmt.Sprint("l", i), "v")
		a.del(fmt.Sprint("l", i))
		a.saved()
	}
	require.EqualValues(t, 20, a.r.tombstones)
	talk(t, b, a)
	require.False(t, a.due(), "b has it, but not on disk")
	b.saved()
	talk(t, b, a)
	talk(t, a, b)
	require.True(t, a.due(), "b has reported")
	a.purge()
	require.Zero(t, a.r.tombstones)
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
	require.EqualValues(t, 2, a.r.tombstones)
	require.False(t, a.due())
	cutOff := a.r.members[b.r.self]
	cutOff.known.raise(durable, dot{a.r.self, 3}) // as b reports before it pulls again
	a.r.stableVec = nil
	require.True(t, a.due())
	a.purge()
	require.EqualValues(t, 1, a.r.tombstones)
	require.False(t, a.due())
}

func TestTombstonesAreLookedAtWhenTheFirstIsOld(t *testing.T) {
	a, b := newNode(t), newNode(t)
	now := time.Now()
	a.r.now = func() time.Time { return now }
	a.put("k", "v")
	gossip(t, a, b)
	a.del("k")
	a.saved()
	a.purge()
	require.False(t, a.due())
	now = now.Add(a.r.tombstoneTTL - time.Second)
	a.r.peerTTL = 10 * time.Hour
	require.False(t, a.due())
	now = now.Add(time.Second)
	require.True(t, a.due())
	a.del("another") // nothing: it is not there
	a.put("another", "v")
	a.del("another")
	a.saved()
	a.purge()
	require.EqualValues(t, 1, a.r.tombstones)
	require.False(t, a.due(), "that one is young")
}

func TestTombstonesAreLookedAtWhenAMemberIsGivenUp(t *testing.T) {
	a, b := newNode(t), newNode(t)
	now := time.Now()
	a.r.now = func() time.Time { return now }
	a.r.tombstoneTTL = -1
	a.put("k", "v")
	gossip(t, a, b)
	a.del("k")
	a.saved()
	a.purge()
	require.False(t, a.due())
	now = now.Add(2 * a.r.peerTTL)
	require.NoError(t, a.commit(func(t *txn) error { t.stageMembers(); return nil }))
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
	note := func(t *txn) {
		batches++
		synced += int(btoi(t.sync))
	}
	require.NoError(t, a.r.beginPurge().next(testKeeper{a, 5, note}))
	require.Zero(t, a.r.tombstones)
	require.Equal(t, 10, batches)
	require.Equal(t, 1, synced, "further ones rest on a proof that is on disk")
	require.EqualValues(t, 100, a.r.disk.at(purged, a.r.self))
}

func TestDamagedTombstoneHoldsNothingElseUp(t *testing.T) {
	a := newNode(t)
	a.r.tombstoneTTL = 0
	for _, k := range []string{"a", "b", "c"} {
		a.put(k, "v")
		a.del(k)
	}
	s, err := a.r.lookup([]byte("b"))
	require.NoError(t, err)
	require.NoError(t, a.db.Delete(appendLogKey(nil, a.r.alias[a.r.self], s[0].seq), nil))
	a.r.members[Origin{1}] = &member{origin: Origin{1}, seen: time.Now(), met: true} // not heard yet: only age counts
	a.saved()
	a.r.now = func() time.Time { return time.Now().Add(time.Second) }
	a.purge()
	require.EqualValues(t, 1, a.r.tombstones)
	require.Len(t, a.versionsNamed("b"), 1)
}

func (n *node) versionsNamed(k string) state {
	s, err := n.r.lookup([]byte(k))
	require.NoError(n.t, err)
	return s
}

func TestTokenIsLostOnlyIfNobodyCanStillBringItsWrite(t *testing.T) {
	a := newNode(t)
	gone, now := Origin{1}, Origin{2}
	lost := func(seq uint64) bool {
		lost, err := a.r.lost(dot{gone, seq})
		require.NoError(t, err)
		return lost
	}
	require.False(t, lost(5), "nobody said that it has ended")
	m := a.r.heard(now, "now")
	a.r.succeeds(now, []Origin{gone})
	require.False(t, lost(5), "by a stranger")
	m.met = true
	require.True(t, lost(5))
	m.known.raise(claimed, dot{gone, 4})
	require.True(t, lost(5))
	other := a.r.heard(Origin{3}, "other")
	other.known.raise(claimed, dot{gone, 5})
	require.False(t, lost(5), "a member claims it")
	require.True(t, lost(6))
	a.mergeFrom(&knowledge{}, foreign(1, 3))
	require.False(t, lost(6), "something of it is held")
	a.put("k", "and now something that saw it")
	require.True(t, lost(6))
	a.r.heard(gone, "a copy was opened")
	require.False(t, lost(6))
	a.r.succeeds(now, []Origin{gone})
	require.True(t, lost(6))
	require.False(t, a.r.ended(a.r.self))
}

func TestMemberSeenWhileTheClockWasAheadIsForgottenInTime(t *testing.T) {
	st := storage.NewMemStorage()
	a, b := openNode(t, st, highestClock), newNode(t)
	now := time.Now()
	ahead := func() time.Time { return now.AddDate(4, 0, 0) }
	a.r.now, b.r.now = ahead, ahead
	talk(t, a, b)
	require.NoError(t, a.commit(func(t *txn) error { t.stageMembers(); return nil }))
	require.Len(t, a.r.counted(), 1)

	a.db.Close()
	a = openNode(t, st, highestClock) // its clock was set right meanwhile
	for i, minutes := range []time.Duration{0, 59, 61} {
		at := now.Add(minutes * time.Minute)
		a.r.now = func() time.Time { return at }
		require.Len(t, a.r.counted(), []int{1, 1, 0}[i], "a member that is gone counts for PeerTTL, an hour here, from when the clock is right")
		require.NoError(t, a.commit(func(t *txn) error { t.stageMembers(); return nil }))
	}
	require.Empty(t, a.r.members)
}
