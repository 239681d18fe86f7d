package memberlist

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
)

// quick detects within seconds what takes the settings for a LAN far longer.
func quick() *memberlist.Config {
	c := memberlist.DefaultLocalConfig()
	c.ProbeInterval, c.ProbeTimeout, c.SuspicionMult = 300*time.Millisecond, 200*time.Millisecond, 2
	c.GossipInterval = 50 * time.Millisecond
	return c
}

// running is a running source of peers without a replica.
type running struct {
	*Members
	link   *memberlist.NetTransport
	addr   string // that others should find
	cancel context.CancelFunc
	ended  chan error

	mu    sync.Mutex
	found map[string]bool
}

func start(t *testing.T, cluster string, n int, o Options) *running {
	t.Helper()
	o.Config, o.Logger = quick(), slog.New(slog.DiscardHandler)
	link, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{"127.0.0.1"}, Logger: log.New(io.Discard, "", 0)})
	require.NoError(t, err)
	o.Config.Transport, o.Bind = link, fmt.Sprint("127.0.0.1:", link.GetAutoBindPort())
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Members: New(o), link: link, addr: fmt.Sprintf("127.0.0.1:%d", 20000+n), cancel: cancel, ended: make(chan error, 1), found: map[string]bool{}}
	self := replicator.Self{Cluster: cluster, Origin: replicator.Origin{byte(n), 1}, Addr: r.addr}
	go func() {
		r.ended <- r.Discover(ctx, self, func(addr string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.found[addr] = true
		})
	}()
	t.Cleanup(cancel)
	require.Eventually(t, func() bool { return r.Addr() != "" }, 10*time.Second, time.Millisecond)
	return r
}

func (r *running) hasFound(addrs []string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !slices.ContainsFunc(addrs, func(a string) bool { return a != r.addr && !r.found[a] })
}

func addresses(rs []*running) (addrs []string) {
	for _, r := range rs {
		addrs = append(addrs, r.addr)
	}
	slices.Sort(addrs)
	return addrs
}

// requireLive waits until each of them knows exactly the others.
func requireLive(t *testing.T, rs []*running) {
	t.Helper()
	want := addresses(rs)
	for _, r := range rs {
		others := slices.DeleteFunc(slices.Clone(want), func(a string) bool { return a == r.addr })
		require.Eventually(t, func() bool { return slices.Equal(others, r.Live()) }, 60*time.Second, 5*time.Millisecond, "at %s", r.addr)
	}
}

func TestTwentyMembersJoinFailAndLeave(t *testing.T) {
	rs := []*running{start(t, "c", 0, Options{})}
	for i := range 19 {
		// Each knows one other, not always the same.
		rs = append(rs, start(t, "c", i+1, Options{Seeds: []string{rs[i/2].Addr()}}))
	}
	requireLive(t, rs)
	for _, r := range rs {
		require.Eventually(t, func() bool { return r.hasFound(addresses(rs)) }, 10*time.Second, 5*time.Millisecond)
	}

	for _, r := range rs[15:] { // leave
		r.cancel()
	}
	for _, r := range rs[15:] {
		require.NoError(t, <-r.ended)
		require.Empty(t, r.Addr())
	}
	requireLive(t, rs[:15])
	for _, r := range rs[12:15] { // fail: no word of farewell
		require.NoError(t, r.link.Shutdown())
	}
	requireLive(t, rs[:12])

	late := start(t, "c", 77, Options{Seeds: []string{"127.0.0.1:1", rs[11].Addr()}})
	requireLive(t, append(rs[:12:12], late))
}

func TestOthersOfAnotherClusterOrSecretAreNotFound(t *testing.T) {
	secret := []byte("0123456789abcdef")
	a := start(t, "c", 1, Options{Secret: secret})
	seeds := []string{a.Addr()}
	fast := Options{Seeds: seeds, Interval: 50 * time.Millisecond}
	cluster, clear, wrong, right := fast, fast, fast, fast
	cluster.Secret, wrong.Secret, right.Secret = secret, []byte("another-0123456789"), secret
	strangers := []*running{start(t, "d", 2, cluster), start(t, "c", 3, clear), start(t, "c", 4, wrong)}
	b := start(t, "c", 5, right)
	requireLive(t, []*running{a, b})
	for _, s := range strangers {
		require.Empty(t, s.Live())
	}
}

func TestReplicasThatKnowOneGossipAddressReplicate(t *testing.T) {
	var dbs []*replicator.DB
	var seeds []string
	for range 3 {
		m := New(Options{Bind: "127.0.0.1:0", Seeds: seeds, Config: quick(), Logger: slog.New(slog.DiscardHandler)})
		raw, err := leveldb.Open(storage.NewMemStorage(), nil)
		require.NoError(t, err)
		db, err := replicator.Replicate(raw, &replicator.Options{
			Listen: "127.0.0.1:0", Discover: []replicator.Discoverer{m}, Logger: slog.New(slog.DiscardHandler),
			ReadyTimeout: 10 * time.Millisecond, MaxInterval: 100 * time.Millisecond,
		})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, db.Close()) })
		dbs = append(dbs, db)
		require.Eventually(t, func() bool { return m.Addr() != "" }, 10*time.Second, time.Millisecond)
		seeds = []string{m.Addr()}
	}
	require.NoError(t, dbs[0].Put([]byte("k"), []byte("v"), nil))
	for _, db := range dbs {
		require.Eventually(t, func() bool { v, _ := db.Get([]byte("k"), nil); return string(v) == "v" }, 20*time.Second, time.Millisecond)
	}
}

// fleet is replicas that discover one another by gossip alone, at new addresses each time
// they are opened.
type fleet struct {
	t       *testing.T
	stores  []storage.Storage
	dbs     []*replicator.DB
	members []*Members
	puts    int
}

func (f *fleet) open(i int, secret []byte, old ...[]byte) {
	f.t.Helper()
	if f.dbs[i] != nil {
		require.NoError(f.t, f.dbs[i].Close())
	}
	var seeds []string
	for j, m := range f.members {
		if j != i && m != nil {
			seeds = append(seeds, m.Addr())
		}
	}
	logger := slog.New(slog.DiscardHandler)
	m := New(Options{Bind: "127.0.0.1:0", Seeds: seeds, Secret: secret, OldSecrets: old, Config: quick(), Interval: 200 * time.Millisecond, Logger: logger})
	raw, err := leveldb.Open(f.stores[i], nil)
	require.NoError(f.t, err)
	f.dbs[i], err = replicator.Replicate(raw, &replicator.Options{
		Listen: "127.0.0.1:0", Discover: []replicator.Discoverer{m}, Secret: secret, OldSecrets: old, Logger: logger,
		ReadyTimeout: 10 * time.Millisecond, MaxInterval: 100 * time.Millisecond,
	})
	require.NoError(f.t, err)
	f.members[i] = m
	require.Eventually(f.t, func() bool { return m.Addr() != "" }, 10*time.Second, time.Millisecond)
}

// works requires that all know each other by gossip, and what each writes is on all.
func (f *fleet) works() {
	f.t.Helper()
	for i, m := range f.members {
		var want []string
		for j, db := range f.dbs {
			if j != i {
				want = append(want, db.Addr().String())
			}
		}
		slices.Sort(want)
		require.Eventually(f.t, func() bool { return slices.Equal(want, m.Live()) }, 30*time.Second, 5*time.Millisecond, "%d knows %v, want %v", i, m.Live(), want)
	}
	for _, db := range f.dbs {
		f.puts++
		key := fmt.Append(nil, f.puts)
		require.NoError(f.t, db.Put(key, key, nil))
		for _, other := range f.dbs {
			require.Eventually(f.t, func() bool { v, _ := other.Get(key, nil); return string(v) == string(key) }, 20*time.Second, time.Millisecond)
		}
	}
}

func TestSecretOfGossipIsChangedInThreePasses(t *testing.T) {
	a, b := []byte("0123456789abcdef"), []byte("another-0123456789")
	f := &fleet{t: t, dbs: make([]*replicator.DB, 3), members: make([]*Members, 3)}
	t.Cleanup(func() {
		for _, db := range f.dbs {
			db.Close()
		}
	})
	for i := range f.dbs {
		f.stores = append(f.stores, storage.NewMemStorage())
		f.open(i, a)
	}
	f.works()
	for pass, to := range [][][]byte{{a, b}, {b, a}, {b}} {
		for i := range f.dbs {
			f.open(i, to[0], to[1:]...)
			f.works()
		}
		t.Logf("pass %d is through", pass+1)
	}
	late := start(t, "", 9, Options{Seeds: []string{f.members[0].Addr()}, Secret: a, Interval: 50 * time.Millisecond})
	late.cancel()
	require.NoError(t, <-late.ended)
	require.Empty(t, late.found, "the old secret alone no longer lets anyone in")
}

func TestMemberThatNamesNoHostIsDialedWhereItGossips(t *testing.T) {
	for said, want := range map[string]string{
		"[::]:9000": "192.0.2.7:9000", ":9000": "192.0.2.7:9000", "0.0.0.0:9000": "192.0.2.7:9000",
		"db.example:9000": "db.example:9000", "[2001:db8::1]:9000": "[2001:db8::1]:9000",
		"": "", "nonsense": "", "h:0": "", "h:70000": "", "h:http": "",
	} {
		require.Equal(t, want, peerAddr(&memberlist.Node{Addr: []byte{192, 0, 2, 7}, Meta: []byte(said)}), said)
	}
}

func TestWrongOptionsAreNamed(t *testing.T) {
	for want, o := range map[string]Options{
		`Options.Bind: "nonsense"`:    {Bind: "nonsense"},
		`Options.Advertise: "h:x"`:    {Bind: "127.0.0.1:0", Advertise: "h:x"},
		"Options.Secret: 3 bytes":     {Bind: "127.0.0.1:0", Secret: []byte("abc")},
		"Options.Secret: 0 bytes":     {Bind: "127.0.0.1:0", OldSecrets: [][]byte{[]byte("0123456789abcdef")}},
		"Options.OldSecrets[1]: 2 by": {Bind: "127.0.0.1:0", Secret: []byte("0123456789abcdef"), OldSecrets: [][]byte{[]byte("0123456789abcdef"), []byte("ab")}},
		"cannot gossip on 192.0.2.1":  {Bind: "192.0.2.1:0"},
	} {
		o.Logger = slog.New(slog.DiscardHandler)
		require.ErrorContains(t, New(o).Discover(t.Context(), replicator.Self{Addr: ":9000"}, nil), want)
	}
}

func TestMembersKeepTheContractOfDiscoverers(t *testing.T) {
	a := start(t, "c", 1, Options{})
	b := start(t, "c", 2, Options{Seeds: []string{a.Addr()}})
	replicatortest.TestDiscoverer(t, replicatortest.DiscovererTest{
		New: func() replicator.Discoverer {
			return New(Options{Bind: "127.0.0.1:0", Seeds: []string{a.Addr()}, Config: quick(), Logger: slog.New(slog.DiscardHandler)})
		},
		Self: replicator.Self{Cluster: "c", Origin: replicator.Origin{3, 1}, Addr: "127.0.0.1:20003"},
		Want: []string{a.addr, b.addr},
	})
}
