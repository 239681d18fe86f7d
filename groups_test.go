package replicator

import (
	"fmt"
	"slices"
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/sim"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// sizedNode is a server without a shell that notes how large each batch was.
type sizedNode struct {
	*crashNode
	sizes []int
}

func newSizedNode(t *testing.T, w *crashWorld) *sizedNode {
	db, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	n := &sizedNode{crashNode: &crashNode{w: w, db: db}}
	n.r = replica.NewReplica(replica.ReplicaConfig{Store: store.Handle{DB: db}, Draw: w.draw, Now: w.now, Resolve: replica.HighestClock, MaxKey: 64 << 10, MaxValue: 4 << 20,
		MaxSkew: 1 << 40, TombstoneTTL: -1, PeerTTL: 1 << 40, CacheSize: 1 << 20})
	b, err := n.r.Open("")
	require.NoError(t, err)
	require.NoError(t, db.Write(b, nil))
	n.queue = &queue{raw: db, replica: n.r, slot: make(chan struct{}, 1), over: make(chan struct{}), failed: func(error) {},
		commits: func(t *replica.Txn) { n.sizes = append(n.sizes, t.Size()) }}
	return n
}

func (n *sizedNode) put(t *testing.T, ws ...store.Write) {
	require.NoError(t, n.queue.do(&request{writes: ws, done: make(chan error, 1)}))
}

// pull has one server bring over all that the other has, in frames as on the wire.
func (n *sizedNode) pull(t *testing.T, from *sizedNode) {
	t.Helper()
	n.sizes = nil
	p := session.Params{PageSize: session.PageSize, BatchSize: replica.BatchLimit, MaxValue: 4 << 20, MaxKey: 64 << 10}
	require.NoError(t, n.w.talkWith(n.crashNode, from.crashNode, p))
	require.Equal(t, from.r.Digest, n.r.Digest)
	require.NoError(t, sim.CheckStore(n.db, n.r))
}

func requireUnderMebibyte(t *testing.T, sizes []int) {
	t.Helper()
	require.NotEmpty(t, sizes)
	require.LessOrEqual(t, slices.Max(sizes), store.GroupSize)
}

func TestBatchesOfClaimsWithManyOriginsStaySmall(t *testing.T) {
	w := newCrashWorld(1, 0, 0)
	a, b := newSizedNode(t, w), newSizedNode(t, w)
	for range 20 { // as a peer that was told of 20,000 openings
		require.NoError(t, a.Commit(func(t *replica.Txn) error {
			for range 1000 {
				t.Cover(causal.Dot{Origin: w.draw(), Seq: 1})
			}
			return nil
		}))
	}
	a.put(t, store.Write{Key: []byte("k"), Value: []byte("v")})
	b.pull(t, a)
	requireUnderMebibyte(t, b.sizes)
	require.Equal(t, a.r.Known.VectorSum, b.r.Known.VectorSum)
}

func TestManyWritersShareBatchesThatStaySmall(t *testing.T) {
	w := newCrashWorld(1, 0, 0)
	a := newSizedNode(t, w)
	var waiting []*request
	for i := range 40 {
		waiting = append(waiting, &request{writes: []store.Write{{Key: fmt.Appendf(nil, "%d", i), Value: make([]byte, 200<<10)}}, done: make(chan error, 1)})
	}
	a.queue.slot <- struct{}{} // a commit is under way while they come
	a.queue.waiting = waiting
	a.queue.lead()
	<-a.queue.slot
	for _, req := range waiting {
		require.NoError(t, <-req.done)
	}
	requireUnderMebibyte(t, a.sizes)
	require.Less(t, len(a.sizes), 15, "writers no longer share batches")
}

// A hostile member may put into one frame what an honest one would send in many.
func TestBatchesOfAHostilePageStaySmall(t *testing.T) {
	w := newCrashWorld(1, 0, 0)
	a, b := newSizedNode(t, w), newSizedNode(t, w)
	for i := range 4000 {
		a.put(t, store.Write{Key: append(fmt.Appendf(nil, "%06d", i), make([]byte, 700)...), Value: []byte("v")})
	}
	b.sizes = nil
	p := session.Params{PageSize: 3900 << 10, BatchSize: replica.BatchLimit, MaxValue: 4 << 20, MaxKey: 64 << 10}
	require.NoError(t, w.talkWith(b.crashNode, a.crashNode, p))
	requireUnderMebibyte(t, b.sizes)
	it := b.db.NewIterator(&util.Range{Limit: store.ReservedStart}, nil)
	defer it.Release()
	n := 0
	for it.Next() {
		n++
	}
	require.NoError(t, it.Error())
	require.Equal(t, 4000, n)
}
