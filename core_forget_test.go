package replicator

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
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

func (n *node) purge() {
	require.NoError(n.t, n.commit(func(t *txn) error {
		_, err := t.purge(nil, 100)
		return err
	}))
}

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
	tx := a.r.begin()
	_, err := tx.purge(nil, 100)
	require.NoError(t, err)
	require.NotZero(t, tx.batch.Len())
	require.True(t, tx.sync)
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
