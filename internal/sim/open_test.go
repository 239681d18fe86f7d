package sim

import (
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

// design.md: W4
func TestOpen_AfterACrashWritesTheOriginsThatItRead(t *testing.T) {
	a, b := newNode(t), newNode(t)
	b.put("k", "v")
	talk(t, a, b)
	r := replica.NewReplica(replica.ReplicaConfig{Store: a.r.Store, Draw: a.r.Draw, Now: a.r.Now, Resolve: replica.HighestClock})
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
