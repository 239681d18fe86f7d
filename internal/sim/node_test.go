package sim

import (
	"crypto/rand"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/crashfs"
	"github.com/level-replicator/replicator/internal/indexcache"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// countingStore counts the log entries that iterators pass.
type countingStore struct {
	store.Handle
	entries *int
}

func (s countingStore) Snapshot() (store.Snapshot, error) {
	sn, err := s.Handle.Snapshot()
	return countingSnapshot{sn, s.entries}, err
}

type countingSnapshot struct {
	store.Snapshot
	entries *int
}

func (s countingSnapshot) NewIterator(g *util.Range, ro *opt.ReadOptions) iterator.Iterator {
	return countingIterator{s.Snapshot.NewIterator(g, ro), s.entries}
}

type countingIterator struct {
	iterator.Iterator
	entries *int
}

func (it countingIterator) count(ok bool) bool {
	if ok && it.Key()[2] == store.KindLog {
		*it.entries++
	}
	return ok
}

func (it countingIterator) Last() bool { return it.count(it.Iterator.Last()) }

func (it countingIterator) Prev() bool { return it.count(it.Iterator.Prev()) }

func (it countingIterator) Next() bool { return it.count(it.Iterator.Next()) }

// node is a server without a shell: a replica over goleveldb, whose sessions are
// driven frame by frame.
type node struct {
	t  testing.TB
	db *leveldb.DB
	r  *replica.Replica

	entries int // log entries that serving has read
}

func (n *node) With(f func(r *replica.Replica)) { f(n.r) }

func (n *node) Commit(stage func(t *replica.Txn) error) error {
	t := n.r.Begin()
	if err := stage(t); err != nil {
		return err
	}
	b := t.Finish()
	if err := n.db.Write(b, &opt.WriteOptions{Sync: t.Sync}); err != nil {
		return err
	}
	n.r.Apply(t, t.Sync)
	return nil
}

func (n *node) Addresses() []string { return nil }

func (n *node) Learn([]string) {}

func (n *node) EnterPull(causal.Origin, int64) session.SkipReason { return session.NotSkipped }

func (n *node) LeavePull(causal.Origin) {}

func newNode(t testing.TB) *node { return openNode(t, storage.NewMemStorage(), replica.HighestClock) }

func openNode(t testing.TB, st storage.Storage, resolve replica.ResolveFunc) *node {
	db, err := leveldb.Open(st, nil)
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	n := &node{t: t, db: db}
	n.r = replica.NewReplica(replica.ReplicaConfig{Store: countingStore{store.Handle{DB: db}, &n.entries}, Draw: func() (o causal.Origin) { rand.Read(o[:]); return }, Now: time.Now, Resolve: resolve, MaxKey: 1 << 16, MaxValue: 1 << 26, MaxSkew: time.Minute, TombstoneTTL: time.Hour, PeerTTL: time.Hour, CacheSize: 1 << 20, FilterSize: 1 << 18})
	b, err := n.r.Open("")
	require.NoError(t, err)
	require.NoError(t, db.Write(b, &opt.WriteOptions{Sync: true}))
	return n
}

func (n *node) put(k, v string) {
	require.NoError(n.t, n.Commit(func(t *replica.Txn) error {
		return t.Put([]store.Write{{Key: []byte(k), Value: []byte(v), Deleted: false}})
	}))
}

func (n *node) del(k string) {
	require.NoError(n.t, n.Commit(func(t *replica.Txn) error { return t.Put([]store.Write{{Key: []byte(k), Value: nil, Deleted: true}}) }))
}

func (n *node) get(k string) string {
	v, err := n.db.Get([]byte(k), nil)
	if err == leveldb.ErrNotFound {
		return "-"
	}
	require.NoError(n.t, err)
	return string(v)
}

// versions are what the node holds of a key, with values, in canonical order.
func (n *node) versions(k string) []store.Version {
	s, err := n.r.Lookup([]byte(k))
	require.NoError(n.t, err)
	vs, err := store.ReadVersions(n.r.Store, []byte(k), s, n.r)
	require.NoError(n.t, err)
	return replica.Canonical(vs)
}

// log are the dots in the log.
func (n *node) log() (dots []causal.Dot) {
	it := n.db.NewIterator(store.KindRange(store.KindLog), nil)
	defer it.Release()
	for it.Next() {
		d, err := store.LogDot(it.Key(), n.r)
		require.NoError(n.t, err)
		dots = append(dots, d)
	}
	require.NoError(n.t, it.Error())
	return dots
}

// talk holds a session between two nodes to its end.
func talk(t testing.TB, a, b *node) (sa, sb *session.Session, bytes int) {
	return talkWith(t, a, b, func() {})
}

func talkWith(t testing.TB, a, b *node, between func()) (sa, sb *session.Session, bytes int) {
	p := session.Params{PageSize: 1 << 10, BatchSize: 1 << 16, MaxValue: 1 << 26, MaxKey: 1 << 16}
	if m := b.r.Self; a.r.Members[m] != nil {
		p.CachedPeer = m
	}
	sa, sb = session.NewSession(a, true, p), session.NewSession(b, false, p)
	drive(t, sa, sb, func(_, to *session.Session, f session.Frame) {
		bytes += session.FrameHead + len(f.Payload)
		require.NoError(t, to.Receive(f.Kind, f.Payload))
		between()
	})
	return
}

// drive carries frames between two sessions until both have ended. deliver has the
// receiver take a frame in.
func drive(t testing.TB, sa, sb *session.Session, deliver func(from, to *session.Session, f session.Frame)) {
	sa.Start()
	for !sa.Done || !sb.Done {
		moved := false
		for _, x := range []struct{ from, to *session.Session }{{sa, sb}, {sb, sa}} {
			for x.from.More() && len(x.from.Out) == 0 {
				require.NoError(t, x.from.Produce())
			}
			for len(x.from.Out) > 0 {
				f := x.from.Out[0]
				x.from.Out = x.from.Out[1:]
				moved = true
				deliver(x.from, x.to, f)
			}
		}
		require.True(t, moved, "stuck: %v %v", sa.Expect, sb.Expect)
	}
}

func requireEqualNodes(t testing.TB, a, b *node) {
	t.Helper()
	require.Equal(t, a.r.Known.VectorSum, b.r.Known.VectorSum)
	require.Equal(t, a.r.Digest, b.r.Digest)
	require.Equal(t, userData(t, a.db), userData(t, b.db))
}

func userData(t testing.TB, db *leveldb.DB) map[string]string {
	m := map[string]string{}
	it := db.NewIterator(store.Visible(nil), nil)
	defer it.Release()
	for it.Next() {
		m[string(it.Key())] = string(it.Value())
	}
	require.NoError(t, it.Error())
	return m
}

func TestFirstWriteOfAKeyGetsClockZero(t *testing.T) {
	a := newNode(t)
	a.put("k", "v")
	v := a.versions("k")
	require.Len(t, v, 1)
	require.Zero(t, v[0].Clock)
	require.EqualValues(t, 1, v[0].Seq)
	require.Equal(t, a.r.Self, v[0].Origin)
}

func TestUpdateFindsTheOldEntryRaisesTheClockAndDeletesTheOldEntry(t *testing.T) {
	a := newNode(t)
	a.put("other", "x")
	a.put("k", "1")
	a.r.Cache = indexcache.Cache{} // found through the log-index on disk, not in memory
	a.put("k", "2")
	v := a.versions("k")
	require.Len(t, v, 1)
	require.EqualValues(t, 1, v[0].Clock)
	require.EqualValues(t, 3, v[0].Seq)
	require.Equal(t, []causal.Dot{{Origin: a.r.Self, Seq: 1}, {Origin: a.r.Self, Seq: 3}}, a.log(), "the entry of the first write of k is gone")
	a.del("k")
	require.EqualValues(t, 2, a.versions("k")[0].Clock)
	require.True(t, a.versions("k")[0].Deleted)
	require.Equal(t, "-", a.get("k"))
}

func TestValueEntryAndIndexAreOneBatch(t *testing.T) {
	fs := crashfs.New(nil)
	a := openNode(t, fs, replica.HighestClock)
	a.put("k", "old")
	before := a.log()
	cause := errors.New("disk full")
	fs.Fail(crashfs.Fault{Op: crashfs.OpWrite, Type: storage.TypeJournal, Nth: 1, Err: cause})
	err := a.Commit(func(t *replica.Txn) error {
		return t.Put([]store.Write{{Key: []byte("k"), Value: []byte("new"), Deleted: false}})
	})
	require.ErrorIs(t, err, cause)
	require.Equal(t, "old", a.get("k"))
	require.Equal(t, before, a.log())
	require.EqualValues(t, 0, a.versions("k")[0].Clock)
	require.EqualValues(t, 1, a.r.Known.Seq(causal.Covered, a.r.Self), "what was not committed is not claimed")
}

func TestReverseReadingStopsAtTheFirstKnownEntry(t *testing.T) {
	a, b := newNode(t), newNode(t)
	for i := range 1000 {
		a.put(fmt.Sprint("old", i), "v")
	}
	talk(t, b, a)
	a.entries = 0
	for i := range 10 {
		a.put(fmt.Sprint("new", i), "v")
	}
	talk(t, b, a)
	requireEqualNodes(t, a, b)
	require.LessOrEqual(t, a.entries, 10, "of 1,010 entries only the unknown ones are read")
}

func TestUnknownLogIsCommitted(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "v")
	talk(t, b, a)
	require.Equal(t, "v", b.get("k"))
	require.Equal(t, a.log(), b.log(), "under the name that its writer gave it")
	requireEqualNodes(t, a, b)
}

func TestEarlierClockIsReplaced(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "1")
	talk(t, b, a)
	a.put("k", "2")
	a.put("k", "3")
	talk(t, b, a)
	require.Equal(t, "3", b.get("k"))
	require.Len(t, b.versions("k"), 1)
	require.Len(t, b.log(), 1)
}

func TestEqualClocksGoToTheResolver(t *testing.T) {
	var calls int
	longest := func(_ []byte, a, b *store.Version) store.Version {
		calls++
		if len(a.Value) > len(b.Value) {
			return *a
		}
		return *b
	}
	a, b := openNode(t, storage.NewMemStorage(), longest), openNode(t, storage.NewMemStorage(), longest)
	a.put("k", "the longer one")
	b.put("k", "short")
	talk(t, a, b)
	require.Positive(t, calls)
	require.Equal(t, "the longer one", a.get("k"))
	require.Equal(t, "the longer one", b.get("k"))
	require.Len(t, a.versions("k"), 2, "the other version is kept")
	require.EqualValues(t, 1, a.r.Conflicts)
	requireEqualNodes(t, a, b)
}

func TestEqualContentIsNoConflict(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "same")
	b.put("k", "same")
	talk(t, a, b)
	require.Zero(t, a.r.Conflicts)
	require.Len(t, a.versions("k"), 2)
	requireEqualNodes(t, a, b)
}

func TestQuietServerLosesNothingToABusyOne(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "base")
	talk(t, b, a)
	a.put("k", "a1")
	a.put("k", "a2")
	b.put("k", "b1")
	talk(t, a, b)
	require.Equal(t, "a2", a.get("k"), "the highest clock is shown")
	require.Len(t, a.versions("k"), 2, "and what was written without knowing of it is kept")
	b.put("k", "settled")
	talk(t, a, b)
	require.Len(t, a.versions("k"), 1)
	requireEqualNodes(t, a, b)
}

func TestThirdServerGetsAWriteThroughTheSecond(t *testing.T) {
	a, b, c := newNode(t), newNode(t), newNode(t)
	a.put("k", "v")
	talk(t, a, b)
	talk(t, b, c)
	require.Equal(t, "v", c.get("k"))
	c.put("k", "w")
	talk(t, b, c)
	talk(t, a, b)
	require.Equal(t, "w", a.get("k"))
	requireEqualNodes(t, a, c)
}

func TestIdleSessionIsShort(t *testing.T) {
	a, b := newNode(t), newNode(t)
	for i := range 100 {
		a.put(fmt.Sprint(i), "v")
	}
	for range 2 {
		talk(t, a, b)
	}
	sa, sb, bytes := talk(t, a, b)
	require.True(t, sa.Idle && sb.Idle)
	require.Less(t, bytes, 2*200)
}

func TestPullInPagesWhileTheServerIsWrittenTo(t *testing.T) {
	a, b := newNode(t), newNode(t)
	value := string(make([]byte, 300))
	for i := range 50 {
		a.put(fmt.Sprint("k", i), value)
	}
	n := 0
	talkWith(t, b, a, func() { // between any two frames
		if n++; n <= 40 {
			a.put(fmt.Sprint("k", n), "later")
			a.del(fmt.Sprint("k", 50-n))
		}
	})
	for _, d := range b.r.Known.Vector(causal.Covered) {
		require.True(t, a.r.Known.Covers(d))
	}
	for i := range 50 { // what b claims it holds, or something that saw it
		for _, v := range a.versions(fmt.Sprint("k", i)) {
			require.True(t, !b.r.Known.Covers(causal.Dot{Origin: v.Origin, Seq: v.Seq}) || len(b.versions(fmt.Sprint("k", i))) > 0)
		}
	}
	talk(t, b, a)
	requireEqualNodes(t, a, b)
}

func TestLargeValuesTravelInChunks(t *testing.T) {
	a, b := newNode(t), newNode(t)
	big := make([]byte, 100<<10)
	rand.Read(big)
	a.put("big", string(big))
	a.put("small", "s")
	b.put("big", string(big[:50<<10]))
	talk(t, a, b)
	require.Len(t, a.versions("big"), 2)
	requireEqualNodes(t, a, b)
}
