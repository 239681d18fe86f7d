package sim

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/indexcache"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

func TestRepair_CompareIgnoresWritesOnTheirWay(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "v")
	gossip(t, a, b)
	c := &session.Comparison{}
	p := session.Params{PageSize: 1 << 10, BatchSize: 1 << 16, MaxValue: 1 << 20, MaxKey: 1 << 10, Goal: session.Goal{Compare: c}}
	sa, sb := session.New(a, true, p), session.New(b, false, p)
	drive(t, sa, sb, func(from, to *session.Session, f session.Frame) {
		if f.Kind == session.FrameProbe { // after the pull
			a.put("from a", "v")
			b.put("from b", "v")
		}
		require.NoError(t, to.Receive(f.Kind, f.Payload))
	})
	require.Empty(t, c.List)
	require.Empty(t, c.More)
}

// design.md: R1
func TestRepair_BringsWhatReplacedWhatItDrops(t *testing.T) {
	a := newNode(t)
	a.mergeFrom(&causal.Knowledge{}, foreign(1, 1))
	peer := &causal.Knowledge{}
	peer.Raise(causal.Covered, causal.Dot{Origin: causal.Origin{1}, Seq: 1})
	peer.Raise(causal.Purged, causal.Dot{Origin: causal.Origin{1}, Seq: 1})
	require.NoError(t, a.Commit(func(t *replica.Txn) error { return t.DropPurged([]byte("k"), []store.Version{foreign(2, 1)}, peer) }))
	require.Equal(t, []string{"2/1"}, a.values("k"))
}

// design.md: R1
func TestRepair_FollowsAMissedPurge(t *testing.T) {
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

const rowValue = 100 // bytes of a value in these tests

// twins are two nodes with the same keys, of which one in four was written over once,
// so that the logs have holes.
func twins(t testing.TB, keys int) (a, b *node) {
	dirs := []string{t.TempDir(), t.TempDir()}
	open := func(dir string) (*node, storage.Storage) {
		st, err := storage.OpenFile(dir, false)
		require.NoError(t, err)
		t.Cleanup(func() { st.Close() })
		return openNode(t, st, replica.HighestClock), st
	}
	a, st := open(dirs[0])
	value := make([]byte, rowValue)
	write := func(from, to, step int) {
		require.NoError(t, a.Commit(func(t *replica.Txn) error {
			var ws []store.Write
			for i := from; i < to; i += step {
				ws = append(ws, store.Write{Key: fmt.Appendf(nil, "key%09d", i), Value: value})
			}
			return t.Put(ws)
		}))
	}
	for i := 0; i < keys; i += 1000 {
		write(i, min(i+1000, keys), 1)
	}
	for i := 0; i < keys; i += 4000 {
		write(i, min(i+4000, keys), 4)
	}
	a.saved()
	require.NoError(t, a.db.Close())
	require.NoError(t, st.Close())
	require.NoError(t, os.CopyFS(dirs[1], os.DirFS(dirs[0])))
	a, _ = open(dirs[0])
	b, _ = open(dirs[1])
	for range 3 { // until they remember each other
		talk(t, b, a)
	}
	return a, b
}

// lose deletes all that a node holds of a key, as corruption would.
func (n *node) lose(key string) {
	s, err := store.ReadIndex(n.r.Store, []byte(key), n.r)
	require.NoError(n.t, err)
	require.Len(n.t, s, 1)
	n.r.Counters.Count(s, -1)
	n.r.Cache = indexcache.Cache{Limit: n.r.Cache.Limit}
	for _, k := range [][]byte{[]byte(key), store.KindKey(store.KindIndex, []byte(key)), store.AppendLogKey(nil, n.r.Alias[s[0].Origin], s[0].Seq)} {
		require.NoError(n.t, n.db.Delete(k, nil))
	}
}

// cost is what a session took, as the dialer sees it.
type cost struct{ bytes, trips int }

func measured(t testing.TB, a, b *node) (c cost) {
	p := session.Params{PageSize: session.PageSize, BatchSize: replica.BatchLimit, MaxValue: 1 << 20, MaxKey: 1 << 10, CachedPeer: b.r.Self}
	sa, sb := session.New(a, true, p), session.New(b, false, p)
	var last *session.Session
	turned := false // the dialer's own half is over
	drive(t, sa, sb, func(from, to *session.Session, f session.Frame) {
		c.bytes += session.FrameHead + len(f.Payload)
		turned = turned || f.Kind == session.FrameTurn
		if from == sa && last != sa && !turned {
			c.trips++
		}
		last = from
		require.NoError(t, to.Receive(f.Kind, f.Payload))
	})
	return c
}

// design.md: R1
func TestRepair_CostFollowsTheDifference(t *testing.T) {
	keys := 200_000
	switch {
	case *scale:
		keys = 1_000_000
	case testing.Short():
		keys = 20_000
	}
	a, b := twins(t, keys)
	rng := rand.New(rand.NewPCG(1, 1))
	want := a.r.Digest
	for _, corrupted := range []int{1, 1000} {
		rows := 0
		lost := map[string]bool{}
		for len(lost) < corrupted {
			key := fmt.Sprintf("key%09d", rng.IntN(keys))
			if !lost[key] {
				lost[key] = true
				b.lose(key)
				rows += len(key) + rowValue
			}
		}
		require.NotEqual(t, want, b.r.Digest)
		c := measured(t, b, a)
		t.Logf("%d of %d keys: %d bytes, %d round trips", corrupted, keys, c.bytes, c.trips)
		require.Equal(t, want, b.r.Digest)
		require.Equal(t, want, a.r.Digest)
		for key := range lost {
			require.Len(t, b.get(key), rowValue)
		}
		if corrupted == 1 {
			require.LessOrEqual(t, c.bytes, 4<<10)
			require.LessOrEqual(t, c.trips, 4)
		} else {
			require.LessOrEqual(t, c.bytes, 3*rows+300<<10)
		}
		talk(t, b, a)
	}
}

// A whole key is missing, at the one side or at the other.
//
// design.md: R2, R3
func TestRepair_BringsBackAKeyThatWasLost(t *testing.T) {
	for _, first := range []bool{true, false} {
		a, b := newNode(t), newNode(t)
		a.put("k", "v")
		a.put("l", "v")
		gossip(t, a, b)
		b.lose("k")
		require.Equal(t, a.r.Known.VectorSum, b.r.Known.VectorSum)
		require.NotEqual(t, a.r.Digest, b.r.Digest)
		back := 0
		if first {
			sa, sb, _ := talk(t, a, b)
			back = sa.Result().Repaired + sb.Result().Repaired
		} else {
			sa, sb, _ := talk(t, b, a)
			back = sa.Result().Repaired + sb.Result().Repaired
		}
		require.Equal(t, 1, back)
		require.Equal(t, "v", b.get("k"))
		requireEqualNodes(t, a, b)
	}
}
