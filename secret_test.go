package replicator_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/netaddr"
	"github.com/level-replicator/replicator/internal/testca"
	"github.com/level-replicator/replicator/internal/testdb"
	"github.com/level-replicator/replicator/internal/testdns"
	"github.com/level-replicator/replicator/internal/transport"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// serve opens a replica over a new database in memory, on loopback.
func serve(t testing.TB, o replicator.Options) *replicator.DB {
	t.Helper()
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	o.Logger = slog.New(slog.DiscardHandler)
	db, err := replicator.Replicate(replicatortest.MemDB(t), &o)
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	<-db.Ready()
	return db
}

// TestSecretIsRotatedAmongReplicasThatKnowANameOnly has each open at a new address, which
// the others learn from the name.
func TestSecretIsRotatedAmongReplicasThatKnowANameOnly(t *testing.T) {
	names, resolver := testdns.Start(t, "127.0.0.1:0")
	stores, dbs := make([]storage.Storage, 3), make([]*replicator.DB, 3)
	t.Cleanup(func() {
		for _, db := range dbs {
			db.Close()
		}
	})
	puts := 0
	works := func() {
		t.Helper()
		for _, db := range dbs {
			puts++
			key := fmt.Append(nil, puts)
			require.NoError(t, db.Put(key, key, nil))
			for _, other := range dbs {
				require.Eventually(t, func() bool { v, _ := other.Get(key, nil); return string(v) == string(key) }, 20*time.Second, time.Millisecond)
			}
		}
	}
	open := func(i int, secret []byte, old ...[]byte) {
		t.Helper()
		if dbs[i] != nil {
			require.NoError(t, dbs[i].Close())
		}
		raw, err := leveldb.Open(stores[i], nil)
		require.NoError(t, err)
		dbs[i], err = replicator.Replicate(raw, &replicator.Options{
			Listen: "127.0.0.1:0", Secret: secret, OldSecrets: old, Logger: slog.New(slog.DiscardHandler),
			Discover:     []replicator.Discoverer{replicator.DNS("_repl._tcp.test.", &replicator.DNSOptions{Resolver: resolver, Interval: 20 * time.Millisecond})},
			ReadyTimeout: 10 * time.Millisecond, MaxInterval: 100 * time.Millisecond,
		})
		require.NoError(t, err)
		records := []string{"m.test. 0 IN A 127.0.0.1"}
		for _, db := range dbs {
			if db != nil {
				records = append(records, fmt.Sprintf("_repl._tcp.test. 0 IN SRV 0 0 %d m.test.", netaddr.PortOf(db.Addr().String())))
			}
		}
		names.Set(t, records...)
	}
	for i := range dbs {
		stores[i] = storage.NewMemStorage()
		open(i, testca.SecretA)
	}
	works()
	for _, to := range [][][]byte{{testca.SecretA, testca.SecretB}, {testca.SecretB, testca.SecretA}, {testca.SecretB}} {
		for i := range dbs {
			open(i, to[0], to[1:]...)
			works()
		}
	}
}

func TestReplicasWithCertificatesOfOneAuthorityReplicate(t *testing.T) {
	a := testca.NewAuthority(t)
	seed := serve(t, replicator.Options{TLS: a.Config(t)})
	peers := []string{seed.Addr().String()}
	dbs := []*replicator.DB{seed, serve(t, replicator.Options{TLS: a.Config(t), Peers: peers}), serve(t, replicator.Options{TLS: a.Config(t), Peers: peers})}
	foreign := testca.NewAuthority(t).Config(t)
	foreign.RootCAs = a.Pool // it would take us
	stranger := serve(t, replicator.Options{TLS: foreign, Peers: peers})
	require.NoError(t, stranger.Put([]byte("stranger"), []byte("v"), nil))
	for i, db := range dbs {
		require.NoError(t, db.Put(fmt.Append(nil, i), []byte("v"), nil))
	}
	for _, db := range dbs {
		require.Eventually(t, func() bool { return len(testdb.Contents(t, db)) == 3 }, 20*time.Second, 5*time.Millisecond)
	}
	require.ErrorContains(t, stranger.Sync(t.Context()), "another authority")
	require.NotContains(t, testdb.Contents(t, seed), "stranger")
	older := a.Config(t)
	older.MaxVersion = tls.VersionTLS12
	_, err := tls.Dial("tcp", peers[0], older)
	require.ErrorContains(t, err, "protocol version")
}

// trio are three replicas over TCP that can be restarted with other options.
type trio struct {
	t     testing.TB
	store [3]storage.Storage
	addr  [3]string
	db    [3]*replicator.DB
	wrote int
}

func newTrio(t testing.TB) *trio {
	c := &trio{t: t}
	for i := range c.store {
		c.store[i] = storage.NewMemStorage()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		c.addr[i] = l.Addr().String()
		require.NoError(t, l.Close())
	}
	t.Cleanup(func() {
		for _, db := range c.db {
			db.Close()
		}
	})
	return c
}

// restart reopens replica i, with its data.
func (c *trio) restart(i int, o replicator.Options) {
	if c.db[i] != nil {
		require.NoError(c.t, c.db[i].Close())
	}
	raw, err := leveldb.Open(c.store[i], nil)
	require.NoError(c.t, err)
	o.Name, o.Listen, o.Peers = fmt.Sprint("n", i), c.addr[i], []string{c.addr[(i+1)%3]}
	o.MaxInterval, o.Logger = 500*time.Millisecond, slog.New(slog.DiscardHandler)
	c.db[i], err = replicator.Replicate(raw, &o)
	require.NoError(c.t, err)
}

// requireTogether writes at each replica and waits until all have it.
func (c *trio) requireTogether() {
	c.t.Helper()
	c.wrote++
	for i, db := range c.db {
		require.NoError(c.t, db.Put(fmt.Appendf(nil, "%d/%d", i, c.wrote), []byte("v"), nil))
	}
	require.Eventually(c.t, func() bool {
		d := c.db[0].Digest()
		return d == c.db[1].Digest() && d == c.db[2].Digest() && c.db[0].Status().Keys == int64(3*c.wrote)
	}, 15*time.Second, time.Millisecond, "%+v", c.db[0].Status().Peers)
}

func TestThreeReplicasWithASecretChangeItOneByOneAndNeverPart(t *testing.T) {
	c := newTrio(t)
	passes := []replicator.Options{
		{Secret: testca.SecretA},
		{Secret: testca.SecretA, OldSecrets: [][]byte{testca.SecretB}},
		{Secret: testca.SecretB, OldSecrets: [][]byte{testca.SecretA}},
		{Secret: testca.SecretB},
	}
	for i := range c.db {
		c.restart(i, passes[0])
	}
	c.requireTogether()
	for _, o := range passes[1:] {
		for i := range c.db {
			c.restart(i, o)
			c.requireTogether()
		}
	}
	for _, db := range c.db {
		for _, r := range db.Status().Refusals { // of a connection that a restart cut, perhaps
			require.NotEqual(t, transport.ErrOtherSecret.Error(), r.Reason)
		}
	}

	// Who was left behind with the old one is told apart, on both sides.
	stranger := serve(t, replicator.Options{Secret: testca.SecretA, Peers: []string{c.addr[0]}})
	require.Error(t, stranger.Sync(t.Context()))
	require.Contains(t, stranger.Status().Peers[0].Error, "secret")
	require.Eventually(t, func() bool {
		return slices.ContainsFunc(c.db[0].Status().Refusals, func(r replicator.Refusal) bool { return strings.Contains(r.Reason, "another secret") })
	}, time.Second, time.Millisecond, "%+v", c.db[0].Status().Refusals)
	require.Empty(t, testdb.Contents(t, stranger))
}

// recorder keeps what goes over the wire.
type recorder struct {
	net.Conn
	mu   *sync.Mutex
	seen *bytes.Buffer
}

func (r recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	r.seen.Write(p)
	r.mu.Unlock()
	return r.Conn.Write(p)
}

func (r recorder) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.mu.Lock()
	r.seen.Write(p[:n])
	r.mu.Unlock()
	return n, err
}

func TestNothingReadableGoesOverTheWireWithASecret(t *testing.T) {
	for _, secret := range [][]byte{nil, testca.SecretA} {
		var mu sync.Mutex
		var seen bytes.Buffer
		// Both record: a learns b's address, and may be the one who fetches.
		dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			return recorder{conn, &mu, &seen}, err
		}
		a := serve(t, replicator.Options{Secret: secret, Cluster: "the-cluster", Dial: dial})
		b := serve(t, replicator.Options{Secret: secret, Cluster: "the-cluster", Dial: dial, Peers: []string{a.Addr().String()}})
		require.NoError(t, b.Put([]byte("the-key"), []byte("the-value"), nil))
		require.NoError(t, b.Sync(t.Context()))
		require.Equal(t, map[string]string{"the-key": "the-value"}, testdb.Contents(t, a))
		mu.Lock()
		for _, s := range []string{"the-cluster", "the-key", "the-value"} {
			require.Equal(t, secret == nil, bytes.Contains(seen.Bytes(), []byte(s)), s)
		}
		mu.Unlock()
	}
}

func TestReplicasWithCertificatesReplicateAndAnotherAuthorityIsRefused(t *testing.T) {
	ours, theirs := testca.NewAuthority(t), testca.NewAuthority(t)
	config := func(a *testca.Authority, host string) *tls.Config {
		return &tls.Config{Certificates: a.Issue(t, host), ClientCAs: a.Pool, RootCAs: a.Pool}
	}
	a := serve(t, replicator.Options{TLS: config(ours, "a")})
	b := serve(t, replicator.Options{TLS: config(ours, "b"), Peers: []string{a.Addr().String()}})
	require.NoError(t, b.Put([]byte("k"), []byte("v"), nil))
	require.NoError(t, b.Sync(t.Context()))
	require.Equal(t, map[string]string{"k": "v"}, testdb.Contents(t, a))

	x := serve(t, replicator.Options{TLS: config(theirs, "x"), Peers: []string{a.Addr().String()}})
	err := x.Sync(t.Context())
	var step *replicator.PeerError
	require.ErrorAs(t, err, &step)
	require.Equal(t, a.Addr().String(), step.Peer)
	require.Equal(t, replicator.OpHandshake, step.Op)
	require.ErrorContains(t, err, "the peer's certificate is not trusted here")
	require.Empty(t, testdb.Contents(t, x))
}

func TestSessionsAfterTheFirstResumeItsHandshake(t *testing.T) {
	a := testca.NewAuthority(t)
	var full, resumed atomic.Int32
	config := a.Config(t)
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		if cs.DidResume {
			resumed.Add(1)
		} else {
			full.Add(1)
		}
		return nil
	}
	// Each dials the other once, at most, without a ticket.
	one := serve(t, replicator.Options{TLS: a.Config(t)})
	two := serve(t, replicator.Options{TLS: config, Peers: []string{one.Addr().String()}})
	for range 5 {
		require.NoError(t, two.Sync(t.Context()))
	}
	require.LessOrEqual(t, full.Load(), int32(2))
	require.GreaterOrEqual(t, resumed.Load(), int32(4))
}

func TestNoReplicaListensForStrangersUnlessToldTo(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", "[::]:0", ":0"} {
		raw, err := leveldb.Open(storage.NewMemStorage(), nil)
		require.NoError(t, err)
		_, err = replicator.Replicate(raw, &replicator.Options{Listen: addr})
		require.ErrorContains(t, err, "nothing keeps strangers out: set Options.Secret")
		_, err = raw.Get([]byte("k"), nil)
		require.ErrorIs(t, err, leveldb.ErrNotFound, "the handle is still the caller's")
		require.NoError(t, raw.Close())
		serve(t, replicator.Options{Listen: addr, Secret: replicator.GenerateSecret()})
		serve(t, replicator.Options{Listen: addr, Insecure: true})
	}
}

func TestGeneratedSecretsAreLongAndDiffer(t *testing.T) {
	a, b := replicator.GenerateSecret(), replicator.GenerateSecret()
	require.Len(t, a, 32)
	require.NotEqual(t, a, b)
}

// fleet is a cluster in memory whose replicas can be opened again with other secrets, as an operator
// does it.
type fleet struct {
	t      *testing.T
	net    *replicatortest.Network
	stores []storage.Storage
	dbs    []*replicator.DB
	puts   int
}

func newFleet(t *testing.T, n int, secret []byte, old ...[]byte) *fleet {
	f := &fleet{t: t, net: replicatortest.NewNetwork(1), dbs: make([]*replicator.DB, n)}
	for i := range n {
		f.stores = append(f.stores, storage.NewMemStorage())
		f.open(i, secret, old...)
	}
	t.Cleanup(func() {
		for _, db := range f.dbs {
			db.Close()
		}
	})
	return f
}

func (f *fleet) open(i int, secret []byte, old ...[]byte) {
	f.t.Helper()
	if f.dbs[i] != nil {
		require.NoError(f.t, f.dbs[i].Close())
	}
	raw, err := leveldb.Open(f.stores[i], nil)
	require.NoError(f.t, err)
	host := f.net.Host(fmt.Sprint("s", i))
	l, err := host.Listen("9000")
	require.NoError(f.t, err)
	o := &replicator.Options{Listener: l, Dial: host.Dial, Secret: secret, OldSecrets: old, Logger: slog.New(slog.DiscardHandler)}
	for j := range f.dbs {
		if j != i {
			o.Peers = append(o.Peers, fmt.Sprintf("s%d:9000", j))
		}
	}
	f.dbs[i], err = replicator.Replicate(raw, o)
	require.NoError(f.t, err)
}

// works requires that replica i and each other replica still bring each other their writes. Each pair is
// alone for a while, so that no third one carries them.
func (f *fleet) works(i int) {
	f.t.Helper()
	for j := range f.dbs {
		if j != i {
			f.net.Partition([]string{fmt.Sprint("s", i), fmt.Sprint("s", j)})
			for _, pair := range [][2]int{{i, j}, {j, i}} {
				f.puts++
				key := fmt.Appendf(nil, "k%d", f.puts)
				require.NoError(f.t, f.dbs[pair[0]].Put(key, key, nil))
				time.Sleep(15 * time.Second) // longer than any backoff
				v, err := f.dbs[pair[1]].Get(key, nil)
				require.NoError(f.t, err, "from s%d to s%d", pair[0], pair[1])
				require.Equal(f.t, key, v)
			}
			f.net.Heal()
		}
	}
}

func TestSecretIsRotatedOverThreeReplicasWithoutAPause(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while: every pair is left alone at every step")
	}
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		f := newFleet(t, 3, testca.SecretA)
		f.works(0)
		for pass, to := range [][][]byte{{testca.SecretA, testca.SecretB}, {testca.SecretB, testca.SecretA}, {testca.SecretB}} {
			for i := range f.dbs {
				f.open(i, to[0], to[1:]...)
				f.works(i)
			}
			t.Logf("pass %d is through", pass+1)
		}
		time.Sleep(15 * time.Second)
		require.Len(t, testdb.Contents(t, f.dbs[0]), f.puts)
	})
}

func TestReplicaThatMissedTheRotationIsOutUntilItHasTheSecret(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		f := newFleet(t, 3, testca.SecretB)
		f.open(2, testca.SecretA)
		require.NoError(t, f.dbs[0].Put([]byte("k"), []byte("v"), nil))
		require.NoError(t, f.dbs[2].Put([]byte("old"), []byte("v"), nil))
		time.Sleep(5 * time.Minute)
		require.Equal(t, f.dbs[0].Digest(), f.dbs[1].Digest())
		require.Equal(t, map[string]string{"k": "v"}, testdb.Contents(t, f.dbs[1]))
		require.Equal(t, map[string]string{"old": "v"}, testdb.Contents(t, f.dbs[2]))
		for _, p := range f.dbs[2].Status().Peers {
			require.Contains(t, p.Error, "another secret")
		}
		f.open(2, testca.SecretB)
		time.Sleep(30 * time.Second)
		require.Len(t, testdb.Contents(t, f.dbs[2]), 2)
		require.Len(t, testdb.Contents(t, f.dbs[0]), 2, "what it wrote meanwhile is not lost")
	})
}
