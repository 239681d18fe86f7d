package sim

import (
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
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
	if ok && store.Reserved(it.Key()) && it.Key()[2] == store.KindLog {
		*it.entries++
	}
	return ok
}

func (it countingIterator) Last() bool { return it.count(it.Iterator.Last()) }

func (it countingIterator) Prev() bool { return it.count(it.Iterator.Prev()) }

func (it countingIterator) Next() bool { return it.count(it.Iterator.Next()) }

// node is a replica without a shell: a replica over goleveldb, whose sessions are
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
	n.r = replica.New(replica.Config{Store: countingStore{store.Handle{DB: db}, &n.entries}, Draw: func() (o causal.Origin) { rand.Read(o[:]); return }, Now: time.Now, Resolve: resolve, MaxKey: 1 << 16, MaxValue: 1 << 26, MaxSkew: time.Minute, TombstoneTTL: time.Hour, PeerTTL: time.Hour, CacheSize: 1 << 20, FilterSize: 1 << 18})
	b, err := n.r.Open("")
	require.NoError(t, err)
	require.NoError(t, db.Write(b, &opt.WriteOptions{Sync: true}))
	require.NoError(t, TidyUp(n, 1<<12, Never))
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
	sa, sb = session.New(a, true, p), session.New(b, false, p)
	drive(t, sa, sb, func(_, to *session.Session, f session.Frame) {
		bytes += session.FrameHead + len(f.Payload)
		require.NoError(t, to.Receive(f.Kind, f.Payload))
		between()
	})
	return
}

func speak(t testing.TB, s *session.Session) []session.Frame {
	out, err := Speak(s)
	require.NoError(t, err)
	return out
}

// drive carries frames between two sessions until both have ended. deliver has the
// receiver take a frame in.
func drive(t testing.TB, sa, sb *session.Session, deliver func(from, to *session.Session, f session.Frame)) {
	sa.Start()
	for !sa.Done() || !sb.Done() {
		moved := false
		for _, x := range []struct{ from, to *session.Session }{{sa, sb}, {sb, sa}} {
			for _, f := range speak(t, x.from) {
				moved = true
				deliver(x.from, x.to, f)
			}
		}
		require.True(t, moved, "stuck: %v %v", sa.Step(), sb.Step())
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

// foreign is a version by another replica.
func foreign(o byte, seq uint64, context ...causal.Dot) store.Version {
	return store.Version{Dot: causal.Dot{Origin: causal.Origin{o}, Seq: seq}, Context: context, Value: []byte(fmt.Sprint(o, "/", seq)), Count: 1}
}

// countIndex counts what the log-index names.
func countIndex(t testing.TB, n *node) (c store.Counters) {
	it := n.db.NewIterator(store.KindRange(store.KindIndex), nil)
	defer it.Release()
	for it.Next() {
		s, err := store.DecodeIndex(it.Value(), n.r)
		require.NoError(t, err)
		c.Count(s, +1)
	}
	require.NoError(t, it.Error())
	return c
}

// raiseWatermark raises a watermark, as that of a peer would.
func raiseWatermark(t *replica.Txn, c causal.Column, d causal.Dot) {
	var peer causal.Knowledge
	peer.Raise(c, d)
	t.JoinWatermarks(&peer)
}

func (n *node) mergeFrom(peer *causal.Knowledge, vs ...store.Version) {
	require.NoError(n.t, n.Commit(func(t *replica.Txn) error {
		_, err := t.Merge([]byte("k"), vs, peer)
		return err
	}))
}

func (n *node) purge() { require.NoError(n.t, LookOnce(n, 100)) }

// quarrel holds a session that must end in an error, and returns it.
func quarrel(t testing.TB, a, b *node) error {
	p := session.Params{PageSize: 1 << 10, BatchSize: 1 << 16, MaxValue: 1 << 20, MaxKey: 1 << 16}
	sa, sb := session.New(a, true, p), session.New(b, false, p)
	sa.Start()
	for range 100 {
		for _, x := range []struct{ from, to *session.Session }{{sa, sb}, {sb, sa}} {
			for _, f := range speak(t, x.from) {
				if err := x.to.Receive(f.Kind, f.Payload); err != nil {
					require.True(t, x.to.Done(), "it goes on after an error")
					return err
				}
			}
		}
	}
	return nil
}
