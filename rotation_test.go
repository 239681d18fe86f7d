package replicator

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/netaddr"
	"github.com/level-replicator/replicator/internal/testca"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// fleet is servers on an in-memory network that can be opened again with other
// secrets, as an operator does it.
type fleet struct {
	t      *testing.T
	net    *replicatortest.Network
	stores []storage.Storage
	dbs    []*DB
	puts   int
}

func newFleet(t *testing.T, n int, secret []byte, old ...[]byte) *fleet {
	f := &fleet{t: t, net: replicatortest.NewNetwork(1), dbs: make([]*DB, n)}
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
	o := &Options{Listener: l, Dial: host.Dial, Secret: secret, OldSecrets: old, Logger: slog.New(slog.DiscardHandler)}
	for j := range f.dbs {
		if j != i {
			o.Peers = append(o.Peers, fmt.Sprintf("s%d:9000", j))
		}
	}
	f.dbs[i], err = Replicate(raw, o)
	require.NoError(f.t, err)
}

// works writes on server i and on each other and wants it there, by direct sessions:
// each pair is alone with each other for a while.
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

func TestSecretIsRotatedOverThreeServersWithoutAPause(t *testing.T) {
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
		require.Len(t, shown(t, f.dbs[0]), f.puts)
	})
}

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

func TestServerThatMissedTheRotationIsOutUntilItHasTheSecret(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		f := newFleet(t, 3, testca.SecretB)
		f.open(2, testca.SecretA)
		require.NoError(t, f.dbs[0].Put([]byte("k"), []byte("v"), nil))
		require.NoError(t, f.dbs[2].Put([]byte("old"), []byte("v"), nil))
		time.Sleep(5 * time.Minute)
		require.Equal(t, f.dbs[0].Digest(), f.dbs[1].Digest())
		require.Equal(t, map[string]string{"k": "v"}, shown(t, f.dbs[1]))
		require.Equal(t, map[string]string{"old": "v"}, shown(t, f.dbs[2]))
		for _, p := range f.dbs[2].Status().Peers {
			require.Contains(t, p.Error, "another secret")
		}
		f.open(2, testca.SecretB)
		time.Sleep(30 * time.Second)
		require.Len(t, shown(t, f.dbs[2]), 2)
		require.Len(t, shown(t, f.dbs[0]), 2, "what it wrote meanwhile is not lost")
	})
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
	require.EqualValues(t, tls.VersionTLS13, seed.security.Config.MinVersion)
}
