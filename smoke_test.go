package replicator

import (
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

type rawStore struct{ *leveldb.DB }

func (s rawStore) snapshot() (snapshot, error) { return s.DB.GetSnapshot() }

type node struct {
	t  testing.TB
	db *leveldb.DB
	r  *replica
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
func (n *node) addresses() []string   { return nil }
func (n *node) learn([]string)        {}
func (n *node) enterPull(Origin) bool { return true }
func (n *node) leavePull(Origin)      {}

func newNode(t testing.TB) *node {
	db, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(t, err)
	n := &node{t: t, db: db}
	n.r = &replica{store: rawStore{db}, draw: func() (o Origin) { rand.Read(o[:]); return }, now: time.Now, resolve: HighestClock, maxKey: 1 << 16, maxValue: 1 << 26, maxSkew: time.Minute, tombstoneTTL: time.Hour, peerTTL: time.Hour, cache: cache{limit: 1 << 20}}
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

func talk(t testing.TB, a, b *node) (sa, sb *session, bytes int) {
	p := sessionParams{pageSize: 1 << 10, batchSize: 1 << 16, maxValue: 1 << 26, maxKey: 1 << 16}
	if m := b.r.self; a.r.members[m] != nil {
		p.remembered = m
	}
	sa, sb = newSession(a, true, p), newSession(b, false, p)
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
				bytes += 5 + len(f.payload)
				moved = true
				require.NoError(t, x.to.receive(f.kind, f.payload))
			}
		}
		require.True(t, moved, "stuck: %v %v", sa.expect, sb.expect)
	}
	return
}

func TestSmoke(t *testing.T) {
	a, b, c := newNode(t), newNode(t), newNode(t)
	a.put("k", "1")
	a.put("k", "2")
	b.put("k", "b")
	for i := range 200 {
		a.put(fmt.Sprint("x", i), "hello")
	}
	_, _, n := talk(t, a, b)
	t.Log(n)
	require.Equal(t, "2", a.get("k"))
	require.Equal(t, "2", b.get("k"))
	require.Equal(t, "hello", b.get("x17"))
	require.Equal(t, a.r.digest, b.r.digest)
	require.Equal(t, a.r.known.claims, b.r.known.claims)
	require.EqualValues(t, 1, a.r.disputed)
	talk(t, c, b)
	require.Equal(t, a.r.digest, c.r.digest)
	c.put("k", "c")
	require.EqualValues(t, 0, c.r.disputed)
	c.del("x3")
	talk(t, b, c)
	sa, _, _ := talk(t, a, b)
	require.False(t, sa.idle)
	require.Equal(t, "c", a.get("k"))
	require.Equal(t, "-", a.get("x3"))
	require.EqualValues(t, 0, a.r.disputed)
	talk(t, a, c)
	for range 3 {
		talk(t, a, b)
		talk(t, b, c)
		talk(t, a, c)
	}
	sa, sb, n := talk(t, a, b)
	require.True(t, sa.idle && sb.idle)
	t.Log(n)
	require.Equal(t, a.r.digest, c.r.digest)
	require.Equal(t, a.r.digest, b.r.digest)
}
