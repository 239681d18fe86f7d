package replicator

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/crashfs"
	"github.com/level-replicator/replicator/internal/indexcache"
	"github.com/level-replicator/replicator/internal/overlay"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/sim"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
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
}

func TestABatchOfManyIsInKeyOrder(t *testing.T) {
	for _, c := range []struct{ writes, size int }{{200, 10}, {20, 100_000}, {5000, 1000}} {
		testKeyOrder(t, c.writes, c.size)
	}
}

func testKeyOrder(t *testing.T, writes, size int) {
	a := newSizedNode(t, newCrashWorld(1, 0, 0))
	ws := someWrites(writes, string(make([]byte, size)))
	ws = append(ws, store.Write{Key: ws[7].Key, Value: []byte("the last counts")}, store.Write{Key: ws[8].Key, Deleted: true})
	tx := a.r.Begin()
	require.NoError(t, tx.Put(ws))
	require.NoError(t, tx.Put([]store.Write{{Key: []byte("zz"), Value: []byte("behind")}, {Key: ws[7].Key, Value: []byte("again")}}))
	// Tables are cut out of the batch every few thousand records: it must rise in three runs.
	var order orderCounter
	require.NoError(t, tx.Finish().Replay(&order))
	require.Less(t, order.falls, 10, "%d writes", writes)

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
	require.Equal(t, writes-1, n)
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

// sizedNode is a replica without a shell that notes how large each batch was.
type sizedNode struct {
	*crashNode
	sizes []int
}

func newSizedNode(t *testing.T, w *crashWorld) *sizedNode {
	db, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	n := &sizedNode{crashNode: &crashNode{w: w, db: db}}
	n.r = replica.New(replica.Config{Store: store.Handle{DB: db}, Draw: w.draw, Now: w.now, Resolve: replica.HighestClock, MaxKey: 64 << 10, MaxValue: 4 << 20,
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

// pull has one replica bring over all that the other has, in frames as on the wire.
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

func TestSlicesFollowTheTimeThatTheyTake(t *testing.T) {
	n := firstSlice
	for range 10 { // keys of 1 ms each
		n = nextSlice(n, time.Duration(n)*time.Millisecond)
	}
	require.Equal(t, 2, n)
	for range 10 { // of 1 µs
		n = nextSlice(n, time.Duration(n)*time.Microsecond)
	}
	require.Equal(t, mostSlice, n, "and never more, however quick they were")
	require.Equal(t, mostSlice/2, nextSlice(n, time.Hour), "an accident does not count for much")
	require.Equal(t, 1, nextSlice(1, time.Hour), "one at least")
	require.Equal(t, 2, nextSlice(1, 0))
}

const smallBuffer = 64 << 10

// starvedQueue is a queue over a store of which no further file can be opened.
func starvedQueue(t *testing.T, before func(raw *leveldb.DB), ops ...crashfs.Fault) (*queue, *crashfs.Storage) {
	t.Helper()
	fs := crashfs.New(nil)
	raw, err := leveldb.Open(fs, &opt.Options{WriteBuffer: smallBuffer, BlockCacher: opt.NoCacher})
	require.NoError(t, err)
	before(raw)
	for _, f := range ops {
		f.Err, f.Sticky = syscall.EMFILE, true
		fs.Fail(f)
	}
	return &queue{raw: raw, starved: func(error) {}, failed: func(err error) { t.Errorf("failed: %v", err) }}, fs
}

// filling is a batch that takes the whole of a write buffer.
func filling(key string) *leveldb.Batch {
	b := new(leveldb.Batch)
	b.Put([]byte(key), make([]byte, smallBuffer-len(key)-8)) // with 8 bytes for goleveldb's sequence number
	return b
}

var newJournal = crashfs.Fault{Op: crashfs.OpCreate, Type: storage.TypeJournal}

// design.md: W5
func TestWriteAfterWhichNoFileCouldBeOpenedIsWritten(t *testing.T) {
	q, _ := starvedQueue(t, func(*leveldb.DB) {}, newJournal)
	batch := filling("k")
	require.ErrorIs(t, q.raw.Write(batch, nil), syscall.EMFILE, "goleveldb says that it failed")
	require.True(t, has1(t, q.raw, "k"), "and it did not")

	q, _ = starvedQueue(t, func(*leveldb.DB) {}, newJournal)
	require.NoError(t, q.store(batch, nil))
	require.True(t, has1(t, q.raw, "k"))
}

func has1(t *testing.T, raw *leveldb.DB, key string) bool {
	t.Helper()
	ok, err := raw.Has([]byte(key), nil)
	require.NoError(t, err)
	return ok
}

// design.md: W5
func TestNothingIsWrittenWhileItIsInDoubtWhatWas(t *testing.T) {
	q, fs := starvedQueue(t, func(raw *leveldb.DB) {
		for _, k := range []string{"a", "z"} { // a table that any key may be in
			require.NoError(t, raw.Put([]byte(k), nil, nil))
		}
		require.NoError(t, raw.CompactRange(util.Range{}))
		require.NoError(t, raw.Put([]byte("m"), nil, nil))
	}, newJournal, crashfs.Fault{Op: crashfs.OpOpen, Type: storage.TypeTable})
	require.ErrorIs(t, q.store(filling("k"), nil), syscall.EMFILE)
	require.NotNil(t, q.shortage.doubt)
	small := new(leveldb.Batch)
	small.Put([]byte("small"), nil)
	require.ErrorIs(t, q.store(small, nil), syscall.EMFILE, "there is room for it, but not yet")
	fs.ClearFaults()
	require.NoError(t, q.store(small, nil))
	require.Nil(t, q.shortage.doubt)
	require.False(t, has1(t, q.raw, "k"))
	require.False(t, q.shortage.since.IsZero(), "a small write says nothing of a large one")
	require.NoError(t, q.store(filling("k"), nil))
	require.True(t, q.shortage.since.IsZero())
}

func TestStoreThatHangsAfterAShortageFails(t *testing.T) {
	q, _ := starvedQueue(t, func(raw *leveldb.DB) { require.NoError(t, raw.Put([]byte("m"), nil, nil)) }, newJournal)
	q.shortage.patience = 100 * time.Millisecond
	var failed error
	q.failed = func(err error) { failed = err }
	large := filling("k")
	large.Put([]byte("l"), bytes.Repeat([]byte("l"), 100)) // goleveldb makes a transaction of it
	require.ErrorIs(t, q.store(large, nil), syscall.EMFILE)
	require.NoError(t, failed)
	require.ErrorIs(t, q.store(large, nil), ErrFailed, "the lock was never given back")
	require.ErrorContains(t, failed, "has not answered for 100ms")
}

func TestBatchInDoubtIsNotWrittenOver(t *testing.T) {
	var r *replica.Replica
	q, _ := starvedQueue(t, func(raw *leveldb.DB) {
		w := newCrashWorld(1, 0, 0)
		r = replica.New(replica.Config{Store: store.Handle{DB: raw}, Draw: w.draw, Now: w.now, Resolve: replica.HighestClock, MaxKey: 64 << 10, MaxValue: 4 << 20})
		b, err := r.Open("")
		require.NoError(t, err)
		require.NoError(t, raw.Write(b, nil))
		for _, k := range []string{"a", "\xff\xff\xff"} { // a table that any key may be in
			require.NoError(t, raw.Put([]byte(k), nil, nil))
		}
		require.NoError(t, raw.CompactRange(util.Range{}))
		require.NoError(t, raw.Put([]byte("m"), make([]byte, 10_000), nil))
		r.Filter.Whole = true // what it has not written is not there
	}, newJournal, crashfs.Fault{Op: crashfs.OpOpen, Type: storage.TypeTable})
	q.replica = r
	tx := r.Begin()
	require.NoError(t, tx.Put([]store.Write{{Key: []byte("k"), Value: make([]byte, 64000)}}))
	require.ErrorIs(t, q.write(tx), syscall.EMFILE)
	require.NotNil(t, q.shortage.doubt)
	before := bytes.Clone(q.shortage.doubt.Dump())
	require.NoError(t, r.Begin().Put([]store.Write{{Key: []byte("other"), Value: make([]byte, 1000)}}))
	require.Equal(t, before, q.shortage.doubt.Dump())
}

func TestNothingWaitsForTheQueueOnceCloseHasGivenUp(t *testing.T) {
	db := serve(t, Options{})
	db.closeTimeout = 100 * time.Millisecond
	require.True(t, db.queue.acquire()) // for a commit that the disk never ends
	defer db.queue.release()
	require.ErrorContains(t, db.Close(), "gave up after 100ms")
	refused := make(chan error, 1)
	go func() { refused <- db.SetReadOnly() }()
	select {
	case err := <-refused:
		require.Equal(t, leveldb.ErrClosed, err)
	case <-time.After(10 * time.Second):
		t.Fatal("SetReadOnly waits for a slot that is never free again")
	}
	require.False(t, db.queue.acquire())
	_, err := db.Versions([]byte("k"))
	require.Equal(t, leveldb.ErrClosed, err)
}

func TestChangesOfAPullAreToldInOrderOfTimeBesideWritesOfCallers(t *testing.T) {
	ch := func(key string, at causal.Stamp, local bool) replica.Change {
		return replica.Change{Key: []byte(key), Local: local, Versions: store.Siblings{{Dot: causal.Dot{Origin: causal.Origin{1}, Seq: uint64(at)}, Stamp: at}}}
	}
	told := func(cs ...replica.Change) (s string) {
		for _, c := range inTime(cs) {
			s += string(c.Key)
		}
		return s
	}
	require.Equal(t, "abc", told(ch("c", 3, false), ch("b", 2, false), ch("a", 1, false)))
	require.Equal(t, "abxcd", told(ch("b", 2, false), ch("a", 1, false), ch("x", 0, true), ch("d", 4, false), ch("c", 3, false)),
		"a write in the same batch stays in its place")
	require.Equal(t, "abca", told(ch("b", 2, false), ch("a", 1, false), ch("a", 9, false), ch("c", 3, false)),
		"what one key shows first is told first")
	require.Empty(t, told())
}

// TestKeysOfAnEarlierOpeningAreOverwrittenNotLoggedTwice opens a database again, after
// a clean close and as a crash would leave it: a key that the filter does not know
// would leave its old log entry behind.
func TestKeysOfAnEarlierOpeningAreOverwrittenNotLoggedTwice(t *testing.T) {
	for _, clean := range []bool{true, false} {
		stor := storage.NewMemStorage()
		const n = indexcache.FilterStep + 10 // more than one step
		for range 2 {
			raw, err := leveldb.Open(stor, nil)
			require.NoError(t, err)
			db, err := Replicate(raw, &Options{Listen: "127.0.0.1:0"})
			require.NoError(t, err)
			for i := range n {
				require.NoError(t, db.Put(fmt.Append(nil, "key", i), []byte("v"), nil))
			}
			r, err := db.Verify(t.Context())
			require.NoError(t, err)
			require.True(t, r.OK(), "%+v", r.Faults)
			require.EqualValues(t, n, db.Status().Keys)
			whole := false
			for !whole { // it is filled in the background
				db.with(func(r *replica.Replica) { whole = r.Filter.Whole })
			}
			db.with(func(r *replica.Replica) {
				for i := range n {
					require.False(t, r.Filter.Lacks(fmt.Append(nil, "key", i)))
				}
				unknown := 0
				for i := range 1000 {
					unknown += int(store.Btoi(r.Filter.Lacks(fmt.Append(nil, "another", i))))
				}
				require.Greater(t, unknown, 950)
			})
			if clean {
				require.NoError(t, db.Close())
				continue
			}
			require.NoError(t, db.Close())
			raw, err = leveldb.Open(stor, nil)
			require.NoError(t, err)
			require.NoError(t, raw.Delete(store.MetaClean, nil))
			require.NoError(t, raw.Close())
		}
	}
}
