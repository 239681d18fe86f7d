package replicator

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

	"github.com/level-replicator/replicator/internal/netaddr"
	"github.com/level-replicator/replicator/internal/testca"
	"github.com/level-replicator/replicator/internal/transport"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// TestSecretIsRotatedAmongServersThatKnowANameOnly has each open at a new address, which
// the others learn from the name.
func TestSecretIsRotatedAmongServersThatKnowANameOnly(t *testing.T) {
	names, resolver := startNameServer(t)
	stores, dbs := make([]storage.Storage, 3), make([]*DB, 3)
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
		dbs[i], err = Replicate(raw, &Options{
			Listen: "127.0.0.1:0", Secret: secret, OldSecrets: old, Logger: slog.New(slog.DiscardHandler),
			Discover:     []Discoverer{DNS("_repl._tcp.test.", &DNSOptions{Resolver: resolver, Interval: 20 * time.Millisecond})},
			ReadyTimeout: 10 * time.Millisecond, MaxInterval: 100 * time.Millisecond,
		})
		require.NoError(t, err)
		records := []string{"m.test. 0 IN A 127.0.0.1"}
		for _, db := range dbs {
			if db != nil {
				records = append(records, fmt.Sprintf("_repl._tcp.test. 0 IN SRV 0 0 %d m.test.", netaddr.PortOf(db.Addr().String())))
			}
		}
		names.set(t, records...)
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

func TestServersWithCertificatesOfOneAuthorityReplicate(t *testing.T) {
	a := testca.NewAuthority(t)
	seed := serve(t, Options{TLS: a.Config(t)})
	peers := []string{seed.Addr().String()}
	dbs := []*DB{seed, serve(t, Options{TLS: a.Config(t), Peers: peers}), serve(t, Options{TLS: a.Config(t), Peers: peers})}
	foreign := testca.NewAuthority(t).Config(t)
	foreign.RootCAs = a.Pool // it would take us
	stranger := serve(t, Options{TLS: foreign, Peers: peers})
	require.NoError(t, stranger.Put([]byte("stranger"), []byte("v"), nil))
	for i, db := range dbs {
		require.NoError(t, db.Put(fmt.Append(nil, i), []byte("v"), nil))
	}
	require.Eventually(t, func() bool { return len(shown(t, dbs[1])) == 3 && len(shown(t, dbs[2])) == 3 }, 20*time.Second, 5*time.Millisecond)
	agree(t, dbs...)
	require.ErrorContains(t, stranger.Sync(t.Context()), "another authority")
	require.NotContains(t, shown(t, seed), "stranger")
	require.EqualValues(t, tls.VersionTLS13, seed.network.security.Config.MinVersion)
}

// trio are three servers over TCP that can be restarted with other options.
type trio struct {
	t     testing.TB
	store [3]storage.Storage
	addr  [3]string
	db    [3]*DB
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

// restart opens server i anew, with its data.
func (c *trio) restart(i int, o Options) {
	if c.db[i] != nil {
		require.NoError(c.t, c.db[i].Close())
	}
	raw, err := leveldb.Open(c.store[i], nil)
	require.NoError(c.t, err)
	o.Name, o.Listen, o.Peers = fmt.Sprint("n", i), c.addr[i], []string{c.addr[(i+1)%3]}
	o.MaxInterval, o.Logger = 500*time.Millisecond, slog.New(slog.DiscardHandler)
	c.db[i], err = Replicate(raw, &o)
	require.NoError(c.t, err)
}

// requireTogether writes at each server and waits until all have it.
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

func TestThreeServersWithASecretChangeItOneByOneAndNeverPart(t *testing.T) {
	c := newTrio(t)
	passes := []Options{
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
	stranger := serve(t, Options{Secret: testca.SecretA, Peers: []string{c.addr[0]}})
	require.Error(t, stranger.Sync(t.Context()))
	require.Contains(t, stranger.Status().Peers[0].Error, "secret")
	require.Eventually(t, func() bool {
		return slices.ContainsFunc(c.db[0].Status().Refusals, func(r Refusal) bool { return strings.Contains(r.Reason, "another secret") })
	}, time.Second, time.Millisecond, "%+v", c.db[0].Status().Refusals)
	require.Empty(t, shown(t, stranger))
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
		a := serve(t, Options{Secret: secret, Cluster: "the-cluster", Dial: dial})
		b := serve(t, Options{Secret: secret, Cluster: "the-cluster", Dial: dial, Peers: []string{a.Addr().String()}})
		require.NoError(t, b.Put([]byte("the-key"), []byte("the-value"), nil))
		require.NoError(t, b.Sync(t.Context()))
		require.Equal(t, map[string]string{"the-key": "the-value"}, shown(t, a))
		mu.Lock()
		for _, s := range []string{"the-cluster", "the-key", "the-value"} {
			require.Equal(t, secret == nil, bytes.Contains(seen.Bytes(), []byte(s)), s)
		}
		mu.Unlock()
	}
}

func TestServersWithCertificatesReplicateAndAnotherAuthorityIsRefused(t *testing.T) {
	ours, theirs := testca.NewAuthority(t), testca.NewAuthority(t)
	config := func(a *testca.Authority, host string) *tls.Config {
		return &tls.Config{Certificates: a.Issue(t, host), ClientCAs: a.Pool, RootCAs: a.Pool}
	}
	a := serve(t, Options{TLS: config(ours, "a")})
	b := serve(t, Options{TLS: config(ours, "b"), Peers: []string{a.Addr().String()}})
	require.NoError(t, b.Put([]byte("k"), []byte("v"), nil))
	require.NoError(t, b.Sync(t.Context()))
	require.Equal(t, map[string]string{"k": "v"}, shown(t, a))

	x := serve(t, Options{TLS: config(theirs, "x"), Peers: []string{a.Addr().String()}})
	err := x.Sync(t.Context())
	var step *PeerError
	require.ErrorAs(t, err, &step)
	require.Equal(t, a.Addr().String(), step.Peer)
	require.Equal(t, OpHandshake, step.Op)
	require.ErrorContains(t, err, "the peer's certificate is not trusted here")
	require.Empty(t, shown(t, x))
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
	one := serve(t, Options{TLS: a.Config(t)})
	two := serve(t, Options{TLS: config, Peers: []string{one.Addr().String()}})
	for range 5 {
		require.NoError(t, two.Sync(t.Context()))
	}
	require.LessOrEqual(t, full.Load(), int32(2))
	require.GreaterOrEqual(t, resumed.Load(), int32(4))
}

func TestNoServerListensForStrangersUnlessToldTo(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", "[::]:0", ":0"} {
		raw, err := leveldb.Open(storage.NewMemStorage(), nil)
		require.NoError(t, err)
		_, err = Replicate(raw, &Options{Listen: addr})
		require.ErrorContains(t, err, "nothing keeps strangers out: set Options.Secret")
		_, err = raw.Get([]byte("k"), nil)
		require.ErrorIs(t, err, leveldb.ErrNotFound, "the handle is still the caller's")
		require.NoError(t, raw.Close())
		serve(t, Options{Listen: addr, Secret: GenerateSecret()})
		serve(t, Options{Listen: addr, Insecure: true})
	}
}

func TestGeneratedSecretsAreLongAndDiffer(t *testing.T) {
	a, b := GenerateSecret(), GenerateSecret()
	require.Len(t, a, 32)
	require.NotEqual(t, a, b)
}
