package replicator

import (
	"fmt"
	"slices"
	"testing"

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
	n.r = newReplica(replicaConfig{store: handle{db}, draw: w.draw, now: w.now, resolve: highestClock, maxKey: 64 << 10, maxValue: 4 << 20,
		maxSkew: 1 << 40, tombstoneTTL: -1, peerTTL: 1 << 40, cacheSize: 1 << 20})
	b, err := n.r.open("")
	require.NoError(t, err)
	require.NoError(t, db.Write(b, nil))
	n.queue = &queue{raw: db, replica: n.r, slot: make(chan struct{}, 1), over: make(chan struct{}), failed: func(error) {},
		commits: func(t *txn) { n.sizes = append(n.sizes, t.size()) }}
	return n
}

func (n *sizedNode) put(t *testing.T, ws ...write) {
	require.NoError(t, n.queue.do(&request{writes: ws, done: make(chan error, 1)}))
}

// pull has one server bring over all that the other has, in frames as on the wire.
func (n *sizedNode) pull(t *testing.T, from *sizedNode) {
	t.Helper()
	n.sizes = nil
	p := sessionParams{pageSize: pageSize, batchSize: batchLimit, maxValue: 4 << 20, maxKey: 64 << 10}
	require.NoError(t, n.w.talkWith(n.crashNode, from.crashNode, p))
	require.Equal(t, from.r.digest, n.r.digest)
	require.NoError(t, checkStore(n.db, n.r))
}

func requireUnderMebibyte(t *testing.T, sizes []int) {
	t.Helper()
	require.NotEmpty(t, sizes)
	require.LessOrEqual(t, slices.Max(sizes), groupSize)
}

func TestBatchesOfClaimsWithManyOriginsStaySmall(t *testing.T) {
	w := newCrashWorld(1, 0, 0)
	a, b := newSizedNode(t, w), newSizedNode(t, w)
	for range 20 { // as a peer that was told of 20,000 openings
		require.NoError(t, a.commit(func(t *txn) error {
			for range 1000 {
				t.claim(dot{w.draw(), 1})
			}
			return nil
		}))
	}
	a.put(t, write{key: []byte("k"), value: []byte("v")})
	b.pull(t, a)
	requireUnderMebibyte(t, b.sizes)
	require.Equal(t, a.r.known.claims, b.r.known.claims)
}

func TestManyWritersShareBatchesThatStaySmall(t *testing.T) {
	w := newCrashWorld(1, 0, 0)
	a := newSizedNode(t, w)
	var waiting []*request
	for i := range 40 {
		waiting = append(waiting, &request{writes: []write{{key: fmt.Appendf(nil, "%d", i), value: make([]byte, 200<<10)}}, done: make(chan error, 1)})
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
		a.put(t, write{key: append(fmt.Appendf(nil, "%06d", i), make([]byte, 700)...), value: []byte("v")})
	}
	b.sizes = nil
	p := sessionParams{pageSize: 3900 << 10, batchSize: batchLimit, maxValue: 4 << 20, maxKey: 64 << 10}
	require.NoError(t, w.talkWith(b.crashNode, a.crashNode, p))
	requireUnderMebibyte(t, b.sizes)
	it := b.db.NewIterator(&util.Range{Limit: reservedStart}, nil)
	defer it.Release()
	n := 0
	for it.Next() {
		n++
	}
	require.NoError(t, it.Error())
	require.Equal(t, 4000, n)
}
