package replicator

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/level-replicator/replicator/internal/overlay"
	"github.com/level-replicator/replicator/internal/sim"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// allocated is how many bytes f has asked for, of all that goes on in the process.
func allocated(f func()) float64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return float64(after.TotalAlloc - before.TotalAlloc)
}

// someWrites are n writes of different keys, in no order.
func someWrites(n int, value string) (ws []store.Write) {
	for i := range n {
		ws = append(ws, store.Write{Key: fmt.Appendf(nil, "%08x", uint32(i)*2654435761), Value: []byte(value)})
	}
	return ws
}

// goleveldb's own batch asks for 13 times as much for four times the keys.
func TestMemoryOfABatchGrowsWithItsSize(t *testing.T) {
	a := newSizedNode(t, newCrashWorld(1, 0, 0))
	value := string(make([]byte, 1000))
	cost := func(n int) float64 {
		ws := someWrites(n, value)
		return allocated(func() {
			tx := a.r.Begin()
			require.NoError(t, tx.Put(ws))
			require.Equal(t, n, tx.Finish().Len()/3)
		})
	}
	small, large := cost(10_000), cost(40_000)
	require.Less(t, large, 5*small, "four times the keys")
	require.Less(t, large, 4*40_000*1000.)
}

func TestCommitCopiesNoValues(t *testing.T) {
	value := string(make([]byte, 1000))
	cost := func(n int) float64 {
		var ls overlay.Layers = overlay.Layers{overlay.NewLayer()}
		for _, w := range someWrites(n, value) {
			require.NoError(t, ls.Put(&w))
		}
		return allocated(func() { require.Len(t, ls.Writes(), n) })
	}
	require.Less(t, cost(40_000), 40_000*100.)
}

func TestALargeBatchLeavesNoMemoryBehind(t *testing.T) {
	a := newSizedNode(t, newCrashWorld(1, 0, 0))
	a.put(t, someWrites(20_000, string(make([]byte, 1000)))...)
	require.Less(t, cap(a.r.Txn.Batch.All.Dump()), 1<<20)
	require.Less(t, cap(a.r.Txn.Batch.Log.B)+cap(a.r.Txn.Batch.Index.B), 8<<20)
	require.Less(t, cap(a.r.Txn.Changes), 20_000)
	require.Less(t, cap(a.r.Txn.Staged.List), 20_000)
}

func TestALargeBatchIsInKeyOrder(t *testing.T) {
	a := newSizedNode(t, newCrashWorld(1, 0, 0))
	ws := someWrites(5000, string(make([]byte, 1000)))
	ws = append(ws, store.Write{Key: ws[7].Key, Value: []byte("the last counts")}, store.Write{Key: ws[8].Key, Deleted: true})
	tx := a.r.Begin()
	require.NoError(t, tx.Put(ws))
	require.NoError(t, tx.Put([]store.Write{{Key: []byte("zz"), Value: []byte("behind")}, {Key: ws[7].Key, Value: []byte("again")}}))
	// Tables are cut out of the batch every few thousand records: it must rise in three runs.
	var order orderCounter
	require.NoError(t, tx.Finish().Replay(&order))
	require.Less(t, order.falls, 10)

	a.put(t, ws...)
	require.NoError(t, sim.CheckStore(a.db, a.r))
	got, err := a.db.Get(ws[7].Key, nil)
	require.NoError(t, err)
	require.Equal(t, "the last counts", string(got))
	_, err = a.db.Get(ws[8].Key, nil)
	require.Equal(t, leveldb.ErrNotFound, err)
	it := a.db.NewIterator(&util.Range{Limit: store.ReservedStart}, nil)
	defer it.Release()
	n := 0
	for it.Next() {
		n++
	}
	require.Equal(t, 4999, n)
}

// orderCounter counts the records of a batch whose key is below the one before.
type orderCounter struct {
	last  string
	falls int
}

func (o *orderCounter) Put(key, _ []byte) {
	if string(key) < o.last {
		o.falls++
	}
	o.last = string(key)
}

func (o *orderCounter) Delete(key []byte) { o.Put(key, nil) }

func TestASmallWriteWaitsForOneLargeBatchAtMost(t *testing.T) {
	a := newSizedNode(t, newCrashWorld(1, 0, 0))
	asking := func(n int, name string) *request {
		ws := []store.Write{{Key: []byte(name), Value: []byte("v")}}
		return &request{writes: append(ws, someWrites(n, string(make([]byte, 1000)))...), done: make(chan error, 1)}
	}
	large, other, small := asking(2000, "large"), asking(2000, "other"), asking(0, "small")
	a.queue.waiting = []*request{large, other, small}
	a.queue.lead()
	require.NoError(t, <-small.done)
	require.NoError(t, <-large.done)
	require.Empty(t, other.done, "it has a goroutine of its own to lead")
	a.queue.waiting = append(a.queue.waiting, asking(0, "late"))
	late := a.queue.waiting[1]
	a.queue.lead()
	require.NoError(t, <-late.done)
	require.NoError(t, <-other.done)
	require.Len(t, a.sizes, 4)
	require.Less(t, a.sizes[0], store.GroupSize)
	require.Less(t, a.sizes[2], store.GroupSize)
	require.NoError(t, sim.CheckStore(a.db, a.r))
}
