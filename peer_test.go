package replicator_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/testdb"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// dead are addresses where nothing answers, and dialing takes until it times out.
func (c *cluster) dead(from string, n int) (addrs []string) {
	for i := range n {
		name := fmt.Sprint("dead", i)
		c.net.Host(name)
		c.net.Block(from, name)
		addrs = append(addrs, name+":9000")
	}
	return addrs
}

func TestDeadAddressesDoNotHoldUpTheLiveOnes(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		b, d := c.start("b"), c.start("d")
		a := c.start("a", append(c.dead("a", 1000), "b:9000", "d:9000")...)
		put(t, a, "first", "v")
		requireAgreement(t, a, b, d)
		worst := time.Duration(0)
		for i := range 200 {
			time.Sleep(170 * time.Millisecond)
			key, start := fmt.Sprint(i), time.Now()
			put(t, a, key, "v")
			for value(t, b, key) != "v" || value(t, d, key) != "v" {
				time.Sleep(time.Millisecond)
			}
			worst = max(worst, time.Since(start))
		}
		t.Logf("a write was told after %v at most", worst)
		require.LessOrEqual(t, worst, 25*time.Millisecond)

		start := time.Now()
		put(t, a, "replicated", "v")
		require.NoError(t, a.WaitReplicated(t.Context(), 2))
		require.Less(t, time.Since(start), 100*time.Millisecond)
	})
}

// open opens a replica whose host is a place on the network, with names that lead to several.
func (c *cluster) named(name string, o *replicator.Options, names map[string]func() []string) (*replicator.DB, *diary) {
	c.t.Helper()
	j := &diary{}
	h := c.net.Host(name)
	l, err := h.Listen("9000")
	require.NoError(c.t, err)
	o.Name, o.Listener, o.Insecure = name, l, true
	o.Logger = slog.New(slog.NewTextHandler(j, nil))
	// As the default does: one address after another, but for those to be avoided.
	o.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		list := names[addr]
		if list == nil {
			return h.Dial(ctx, network, addr)
		}
		first := errors.New("the name has no address")
		for i, a := range list() {
			if replicator.Avoid(ctx, a) {
				continue
			}
			conn, err := h.Dial(ctx, network, a)
			if err == nil {
				return conn, nil
			}
			if i == 0 {
				first = err
			}
		}
		return nil, first
	}
	db, err := replicator.Replicate(replicatortest.MemDB(c.t), o)
	require.NoError(c.t, err)
	c.t.Cleanup(func() { db.Close() })
	return db, j
}

// Each finds its own address first, as resolvers sort them.
func TestNameThatLeadsToAllLeadsToTheOthers(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		all := []string{"x:9000", "y:9000", "z:9000"}
		var dbs []*replicator.DB
		for i, name := range []string{"x", "y", "z"} {
			own := slices.Concat(all[i:i+1], all[:i], all[i+1:])
			db, _ := c.named(name, &replicator.Options{Peers: []string{"app:9000"}},
				map[string]func() []string{"app:9000": func() []string { return own }})
			dbs = append(dbs, db)
		}
		start := time.Now()
		for i, db := range dbs {
			put(t, db, fmt.Sprint(i), "v")
		}
		requireAgreement(t, dbs...)
		require.Less(t, time.Since(start), 10*time.Second)
		require.Len(t, testdb.Contents(t, dbs[0]), 3)
		for _, db := range dbs {
			require.NoError(t, db.Sync(t.Context()))
			require.False(t, db.Status().Alone)
		}
	})
}

func TestReplicaWhoseNameLeadsOnlyToItselfSaysSoAndLooksAgain(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		var mu sync.Mutex
		list := []string{"x:9000"}
		names := map[string]func() []string{"app:9000": func() []string {
			mu.Lock()
			defer mu.Unlock()
			return list
		}}
		x, j := c.named("x", &replicator.Options{Peers: []string{"app:9000"}}, names)
		time.Sleep(10 * time.Minute)
		require.True(t, x.Status().Alone)
		require.Equal(t, replicator.PeerSelf, peerOf(t, x, "app:9000").State)
		require.ErrorContains(t, x.Sync(t.Context()), "every address that is known (app:9000) leads to this replica itself")
		require.Equal(t, 1, strings.Count(j.log(), "leads to this replica itself"), j.log())
		require.Empty(t, x.Status().Refusals)
		require.Zero(t, x.Status().Sessions, "it has talked to nobody")

		y := c.start("y") // which knows nobody
		put(t, y, "k", "v")
		mu.Lock()
		list = []string{"x:9000", "y:9000"}
		mu.Unlock()
		start := time.Now()
		requireAgreement(t, x, y)
		require.Less(t, time.Since(start), 15*time.Second, "not an hour")
		require.False(t, x.Status().Alone)
		require.NoError(t, x.Sync(t.Context()))
		require.Equal(t, replicator.PeerOK, peerOf(t, x, "app:9000").State)
	})
}

func TestNameWhoseOtherAddressesDoNotAnswerFails(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		c.net.Host("y")
		x, _ := c.named("x", &replicator.Options{Peers: []string{"app:9000"}},
			map[string]func() []string{"app:9000": func() []string { return []string{"x:9000", "y:9000"} }})
		for range 20 {
			time.Sleep(2 * time.Second)
			require.Equal(t, replicator.PeerFailing, peerOf(t, x, "app:9000").State, "not its own: the other is down")
			require.Error(t, x.Sync(t.Context()))
			require.False(t, x.Status().Alone)
		}
		y := c.start("y")
		put(t, y, "k", "v")
		start := time.Now()
		requireAgreement(t, x, y)
		require.Less(t, time.Since(start), 15*time.Second)
	})
}

func TestAddPeerHasARestingAddressTriedAtOnce(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		c.net.Host("b")
		a := c.start("a", "b:9000")
		time.Sleep(time.Hour)
		b := c.start("b")
		put(t, b, "k", "v")
		require.NoError(t, a.AddPeer("b:9000"))
		time.Sleep(50 * time.Millisecond)
		require.Equal(t, "v", value(t, a, "k"))
	})
}

// A virtual address leads to one of three at random, of which this one may be one. Who
// answers there by turns is not gone, and WaitReplicated counts them all.
func TestVirtualAddressLeadsToAllInTurn(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		rng := rand.New(rand.NewPCG(1, 2))
		var mu sync.Mutex
		virtual := func(h *replicatortest.Host) func(ctx context.Context, network, addr string) (net.Conn, error) {
			return func(ctx context.Context, network, addr string) (net.Conn, error) {
				if addr == "10.0.0.1:9000" {
					mu.Lock()
					addr = []string{"x:9000", "y:9000", "z:9000"}[rng.IntN(3)]
					mu.Unlock()
				}
				return h.Dial(ctx, network, addr)
			}
		}
		var dbs []*replicator.DB
		for _, name := range []string{"x", "y", "z"} {
			h := c.net.Host(name)
			l, err := h.Listen("9000")
			require.NoError(t, err)
			db, err := replicator.Replicate(replicatortest.MemDB(t), &replicator.Options{
				Name: name, Listener: l, Advertise: "0.0.0.0:9000", Peers: []string{"10.0.0.1:9000"}, Dial: virtual(h), Insecure: true, Logger: quiet})
			require.NoError(t, err)
			t.Cleanup(func() { db.Close() })
			dbs = append(dbs, db)
		}
		for i := range 20 {
			start := time.Now()
			put(t, dbs[i%3], fmt.Sprint(i), "v")
			require.NoError(t, dbs[i%3].WaitReplicated(t.Context(), 2))
			if i > 0 {
				require.Less(t, time.Since(start), 12*time.Second)
			}
			require.False(t, dbs[i%3].Status().Alone)
		}
		requireAgreement(t, dbs...)
	})
}

// hidden opens a replica behind a router, which nobody can dial.
func (c *cluster) hidden(name, advertise string, raw *leveldb.DB) *replicator.DB {
	c.t.Helper()
	router := c.net.Host("router")
	h := c.net.Host(name)
	h.Behind(router)
	l, err := h.Listen("9000")
	require.NoError(c.t, err)
	db, err := replicator.Replicate(raw, &replicator.Options{
		Name: name, Listener: l, Advertise: advertise, Peers: []string{"hub:9000"}, Dial: h.Dial, Insecure: true, Logger: quiet})
	require.NoError(c.t, err)
	c.t.Cleanup(func() { db.Close() })
	return db
}

// replicated waits until a number of peers have on disk what was written. Those that cannot be
// dialed are asked when they come, which is twice in this time.
func replicated(t testing.TB, db *replicator.DB, peers int) error {
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Second)
	defer cancel()
	return db.WaitReplicated(ctx, peers)
}

// design.md: S1
func TestPeersBehindOneAddressAreToldApart(t *testing.T) {
	for why, advertise := range map[string]string{
		"the address that is seen":       "0.0.0.0:9000",
		"the same address of two nets":   "192.168.1.2:9000",
		"an address that means here":     "127.0.0.1:9000",
		"the address of the hub, by NAT": "hub:9000",
	} {
		t.Run(why, func(t *testing.T) {
			replicatortest.Bubble(t, 0, func(t *testing.T) {
				c := newCluster(t)
				hub := c.start("hub")
				names := []string{"n0", "n1", "n2"}
				var dbs []*replicator.DB
				stores := map[string]storage.Storage{}
				open := func(name string) *replicator.DB {
					if stores[name] == nil {
						stores[name] = storage.NewMemStorage()
					}
					raw, err := leveldb.Open(stores[name], nil)
					require.NoError(t, err)
					return c.hidden(name, advertise, raw)
				}
				for _, n := range names {
					dbs = append(dbs, open(n))
				}
				status := func() (list []string) {
					for _, p := range hub.Status().Peers {
						if p.Name != "" {
							list = append(list, p.Name+" "+string(p.State))
						}
					}
					slices.Sort(list)
					return list
				}
				for i := range 20 {
					put(t, dbs[i%3], fmt.Sprint(i), "v")
					put(t, hub, fmt.Sprint("hub", i), "v")
					require.NoError(t, replicated(t, hub, 3), "two rounds of theirs")
					requireAgreement(t, append(dbs, hub)...)
					require.Equal(t, []string{"n0 ok", "n1 ok", "n2 ok"}, status(), "no name flips")
				}

				// One is reopened, and one with a new disk: each counts once.
				require.NoError(t, dbs[0].Close())
				dbs[0] = open("n0")
				require.NoError(t, dbs[1].Close())
				delete(stores, "n1")
				dbs[1] = open("n1")
				put(t, hub, "again", "v")
				require.NoError(t, replicated(t, hub, 3))
				require.Error(t, replicated(t, hub, 4))
				time.Sleep(11 * time.Minute)
				synctest.Wait()
				require.Equal(t, []string{"n0 ok", "n1 ok", "n2 ok"}, status(), "those that were are forgotten")
				for _, p := range hub.Status().Peers {
					require.True(t, p.Agrees || p.Name == "", "%+v", p)
				}
			})
		})
	}
}

// A forwarded port leads to one of the two: the other must not be taken for it.
// design.md: S1
func TestForwardedPortLeadsToOneOfThoseBehindIt(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		h := c.net.Host("hub")
		l, err := h.Listen("9000")
		require.NoError(t, err)
		hub, err := replicator.Replicate(replicatortest.MemDB(t), &replicator.Options{
			Name: "hub", Listener: l, Insecure: true, Logger: quiet,
			Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				if addr == "router:9000" {
					addr = "n1:9000"
				}
				return h.Dial(ctx, network, addr)
			}})
		require.NoError(t, err)
		t.Cleanup(func() { hub.Close() })
		n0, n1 := c.hidden("n0", "0.0.0.0:9000", replicatortest.MemDB(t)), c.hidden("n1", "0.0.0.0:9000", replicatortest.MemDB(t))
		for i := range 20 {
			put(t, n0, fmt.Sprint("n0", i), "v")
			put(t, hub, fmt.Sprint("hub", i), "v")
			require.NoError(t, replicated(t, hub, 2))
			requireAgreement(t, hub, n0, n1)
			require.Equal(t, "n1", peerOf(t, hub, "router:9000").Name)
			time.Sleep(3 * time.Second)
		}
		require.Len(t, hub.Status().Peers, 2)
	})
}

func TestReplicaThatWasOpenForAMomentRemembersItsMembers(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		stay := storage.NewMemStorage()
		reopen := func(peers ...string) *replicator.DB {
			raw, err := leveldb.Open(stay, nil)
			require.NoError(t, err)
			return c.open("b", raw, &replicator.Options{Peers: peers})
		}
		put(t, a, "k", "v")
		b := reopen()
		time.Sleep(time.Second) // what is written soon after the opening was written
		require.NoError(t, b.AddPeer("a:9000"))
		require.NoError(t, b.Sync(t.Context()))
		require.NoError(t, b.Close()) // sooner than it is written again

		c.net.Block("a", "b")
		b = reopen()
		require.NoError(t, b.Delete([]byte("k"), nil))
		require.NoError(t, b.Close()) // it is on disk now, and would be forgotten if nobody held it back
		b = reopen()
		time.Sleep(time.Minute)
		require.EqualValues(t, 1, b.Status().Tombstones, "a has not heard of the deletion")
		require.NoError(t, b.Close())

		put(t, a, "k", "written without knowing of the deletion")
		c.net.Heal()
		b = reopen("a:9000")
		require.NoError(t, b.Sync(t.Context()))
		require.EqualValues(t, 1, b.Status().Conflicts)
		requireAgreement(t, a, b)
	})
}
