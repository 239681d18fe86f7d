package replicator

import (
	"crypto/rand"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/level-replicator/replicator/internal/crashfs"
)

// countingStore counts the log entries that iterators pass.
type countingStore struct {
	handle
	entries *int
}

func (s countingStore) snapshot() (snapshot, error) {
	sn, err := s.handle.snapshot()
	return countingSnapshot{sn, s.entries}, err
}

type countingSnapshot struct {
	snapshot
	entries *int
}

func (s countingSnapshot) NewIterator(g *util.Range, ro *opt.ReadOptions) iterator.Iterator {
	return countingIterator{s.snapshot.NewIterator(g, ro), s.entries}
}

type countingIterator struct {
	iterator.Iterator
	entries *int
}

func (it countingIterator) count(ok bool) bool {
	if ok && it.Key()[2] == kindLog {
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
	r  *replica

	entries int // log entries that serving has read
}

func (n *node) at(f func(r *replica)) { f(n.r) }
func (n *node) commit(stage func(t *txn) error) error {
	t := n.r.begin()
	if err := stage(t); err != nil {
		return err
	}
	b := t.finish()
	if err := n.db.Write(b, &opt.WriteOptions{Sync: t.sync}); err != nil {
		return err
	}
	n.r.apply(t, t.sync)
	return nil
}
func (n *node) addresses() []string             { return nil }
func (n *node) learn([]string)                  {}
func (n *node) enterPull(Origin, int64) leftOut { return pullNow }
func (n *node) leavePull(Origin)                {}

func newNode(t testing.TB) *node { return openNode(t, storage.NewMemStorage(), highestClock) }

func openNode(t testing.TB, st storage.Storage, resolve resolveFunc) *node {
	db, err := leveldb.Open(st, nil)
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	n := &node{t: t, db: db}
	n.r = newReplica(replicaConfig{store: countingStore{handle{db}, &n.entries}, draw: func() (o Origin) { rand.Read(o[:]); return }, now: time.Now, resolve: resolve, maxKey: 1 << 16, maxValue: 1 << 26, maxSkew: time.Minute, tombstoneTTL: time.Hour, peerTTL: time.Hour, cacheSize: 1 << 20, filterSize: 1 << 18})
	b, err := n.r.open("")
	require.NoError(t, err)
	require.NoError(t, db.Write(b, &opt.WriteOptions{Sync: true}))
	return n
}

func (n *node) put(k, v string) {
	require.NoError(n.t, n.commit(func(t *txn) error { return t.put([]write{{[]byte(k), []byte(v), false}}) }))
}
func (n *node) del(k string) {
	require.NoError(n.t, n.commit(func(t *txn) error { return t.put([]write{{[]byte(k), nil, true}}) }))
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
func (n *node) versions(k string) []version {
	s, err := n.r.lookup([]byte(k))
	require.NoError(n.t, err)
	vs, err := readVersions(n.r.store, []byte(k), s, n.r)
	require.NoError(n.t, err)
	return canonical(vs)
}

// log are the dots in the log.
func (n *node) log() (dots []dot) {
	it := n.db.NewIterator(kindRange(kindLog), nil)
	defer it.Release()
	for it.Next() {
		d, err := logDot(it.Key(), n.r)
		require.NoError(n.t, err)
		dots = append(dots, d)
	}
	require.NoError(n.t, it.Error())
	return dots
}

// talk holds a session between two nodes to its end.
func talk(t testing.TB, a, b *node) (sa, sb *session, bytes int) {
	return talkWith(t, a, b, func() {})
}

func talkWith(t testing.TB, a, b *node, between func()) (sa, sb *session, bytes int) {
	p := sessionParams{pageSize: 1 << 10, batchSize: 1 << 16, maxValue: 1 << 26, maxKey: 1 << 16}
	if m := b.r.self; a.r.members[m] != nil {
		p.remembered = m
	}
	sa, sb = newSession(a, true, p), newSession(b, false, p)
	drive(t, sa, sb, func(_, to *session, f frame) {
		bytes += frameHead + len(f.payload)
		require.NoError(t, to.receive(f.kind, f.payload))
		between()
	})
	return
}

// drive carries frames between two sessions until both have ended. deliver has the
// receiver take a frame in.
func drive(t testing.TB, sa, sb *session, deliver func(from, to *session, f frame)) {
	sa.start()
	for !sa.done || !sb.done {
		moved := false
		for _, x := range []struct{ from, to *session }{{sa, sb}, {sb, sa}} {
			for x.from.more() && len(x.from.out) == 0 {
				require.NoError(t, x.from.produce())
			}
			for len(x.from.out) > 0 {
				f := x.from.out[0]
				x.from.out = x.from.out[1:]
				moved = true
				deliver(x.from, x.to, f)
			}
		}
		require.True(t, moved, "stuck: %v %v", sa.expect, sb.expect)
	}
}

func requireEqualNodes(t testing.TB, a, b *node) {
	t.Helper()
	require.Equal(t, a.r.known.claims, b.r.known.claims)
	require.Equal(t, a.r.digest, b.r.digest)
	require.Equal(t, userData(t, a.db), userData(t, b.db))
}

func userData(t testing.TB, db *leveldb.DB) map[string]string {
	m := map[string]string{}
	it := db.NewIterator(visible(nil), nil)
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
	require.Zero(t, v[0].clock)
	require.EqualValues(t, 1, v[0].seq)
	require.Equal(t, a.r.self, v[0].origin)
}

func TestUpdateFindsTheOldEntryRaisesTheClockAndDeletesTheOldEntry(t *testing.T) {
	a := newNode(t)
	a.put("other", "x")
	a.put("k", "1")
	a.r.cache = cache{} // found through the log-index on disk, not in memory
	a.put("k", "2")
	v := a.versions("k")
	require.Len(t, v, 1)
	require.EqualValues(t, 1, v[0].clock)
	require.EqualValues(t, 3, v[0].seq)
	require.Equal(t, []dot{{a.r.self, 1}, {a.r.self, 3}}, a.log(), "the entry of the first write of k is gone")
	a.del("k")
	require.EqualValues(t, 2, a.versions("k")[0].clock)
	require.True(t, a.versions("k")[0].deleted)
	require.Equal(t, "-", a.get("k"))
}

func TestValueEntryAndIndexAreOneBatch(t *testing.T) {
	fs := crashfs.New(nil)
	a := openNode(t, fs, highestClock)
	a.put("k", "old")
	before := a.log()
	cause := errors.New("disk full")
	fs.Fail(crashfs.Fault{Op: crashfs.OpWrite, Type: storage.TypeJournal, Nth: 1, Err: cause})
	err := a.commit(func(t *txn) error { return t.put([]write{{[]byte("k"), []byte("new"), false}}) })
	require.ErrorIs(t, err, cause)
	require.Equal(t, "old", a.get("k"))
	require.Equal(t, before, a.log())
	require.EqualValues(t, 0, a.versions("k")[0].clock)
	require.EqualValues(t, 1, a.r.known.at(claimed, a.r.self), "what was not committed is not claimed")
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
	longest := func(_ []byte, a, b *version) version {
		calls++
		if len(a.value) > len(b.value) {
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
	require.EqualValues(t, 1, a.r.disputed)
	requireEqualNodes(t, a, b)
}

func TestEqualContentIsNoConflict(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "same")
	b.put("k", "same")
	talk(t, a, b)
	require.Zero(t, a.r.disputed)
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
	require.True(t, sa.idle && sb.idle)
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
	for _, d := range b.r.known.vector(claimed) {
		require.True(t, a.r.known.covers(d))
	}
	for i := range 50 { // what b claims it holds, or something that saw it
		for _, v := range a.versions(fmt.Sprint("k", i)) {
			require.True(t, !b.r.known.covers(dot{v.origin, v.seq}) || len(b.versions(fmt.Sprint("k", i))) > 0)
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
