package sim

import (
	"fmt"
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
)

// design.md: C3
func TestCheckpoint_LearntWatermarkIsWrittenBeforeAContextReliesOnIt(t *testing.T) {
	relyOnLearntWatermark(t, "l") // whose context is shortened by it
}

// design.md: C3
func TestCheckpoint_WriteCarriesTheWatermarkThatItsContextNeeds(t *testing.T) {
	relyOnLearntWatermark(t, "k") // whose context was shortened elsewhere
}

// relyOnLearntWatermark has a replica write a key while the watermark of what is missing in its
// context is known and not on disk, and lose all but that write.
func relyOnLearntWatermark(t *testing.T, key string) {
	s := newScenario(t, "HighestClock", 2)
	a, b := s.nodes[0], s.nodes[1]
	s.talk(a, b)
	require.NoError(t, a.upkeep())          // b is a member, whose report a waits for at each opening
	for i := range replica.PruneAbove + 2 { // two keys with long contexts: each opening writes both
		s.put(a, "k", fmt.Sprint(i))
		s.put(a, "l", fmt.Sprint(i))
		require.NoError(t, a.close())
		require.NoError(t, a.open())
	}
	s.put(a, "other", "v") // so that b knows a's present origin: recording one would sync the rest
	s.talk(a, b)
	for _, n := range s.nodes { // all is on disk, and both know it of both; b has not written that down
		n.disk.flushAll()
		n.r.NoteOnDisk(n.r.FlushMark())
	}
	s.talk(a, b)
	s.talk(a, b)
	s.put(a, "k", "shortened")
	require.LessOrEqual(t, len(a.holds["k"].live[0].Context), 1)
	s.talk(b, a) // with the key comes the watermark
	first := b.holds["l"].live[0].Context[0]
	require.True(t, b.r.Known.Superseded(first))

	// The write is on disk, and nothing that was not synced.
	require.NoError(t, b.commitWith(func(t *replica.Txn) error {
		return t.Put([]store.Write{{Key: []byte(key), Value: []byte("relies on it")}})
	}, true))
	v := b.holds[key].live[0]
	require.LessOrEqual(t, len(v.Context), 2)
	b.down()
	b.disk = newSimDisk(b.disk.afterPowerFailure(s.rand, 0))
	require.NoError(t, b.open())
	require.Same(t, v, b.holds[key].live[0])
	for _, e := range v.key.writes {
		if v.past.has(e.nth) && !v.Context.Contains(e.Dot) {
			require.True(t, b.r.Known.Superseded(e.Dot), "nothing tells that %v was superseded", e.Dot)
		}
	}
}

// design.md: C1
func TestCheckpoint_NeedsTwoFlushes(t *testing.T) {
	a := newNode(t)
	a.put("k", "v")
	a.r.Flushed(7)
	a.r.Flushed(8)
	require.Zero(t, a.r.Known.Seq(causal.Durable, a.r.Self), "it may have been in the second memtable")
	a.r.Flushed(9)
	require.EqualValues(t, 1, a.r.Known.Seq(causal.Durable, a.r.Self))
}

// design.md: G1
func TestCheckpoint_IsWhatPeersReport(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "v")
	talk(t, b, a)
	require.Zero(t, b.r.Members[a.r.Self].Known.Seq(causal.Durable, a.r.Self))
	a.saved()
	talk(t, b, a)
	require.EqualValues(t, 1, b.r.Members[a.r.Self].Known.Seq(causal.Durable, a.r.Self))
}

// design.md: C2
func TestCheckpoint_IsWrittenWithTheWatermarkThatNeedsIt(t *testing.T) {
	a := newNode(t)
	self := a.r.Self
	a.put("k", "v")
	a.del("k")
	a.r.NoteOnDisk(a.r.FlushMark()) // on disk, but it is written nowhere
	a.purge()
	require.Empty(t, a.log())
	a.reopen(replica.HighestClock)
	require.EqualValues(t, 2, a.r.Known.Seq(causal.Covered, self))
	require.EqualValues(t, 2, a.r.Known.Seq(causal.Purged, self))
}
