package replicator_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/crashfs"
	"github.com/level-replicator/replicator/internal/testdb"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"go.uber.org/goleak"
)

// triangle is three replicas that know of each other.
func triangle(t *testing.T, o replicator.Options) (c *cluster, dbs []*replicator.DB, js []*diary) {
	c = newCluster(t)
	c.net.Delay(time.Millisecond, time.Millisecond)
	names := []string{"a", "b", "c"}
	for i, name := range names {
		o := o
		o.Peers = []string{names[(i+1)%3] + ":9000", names[(i+2)%3] + ":9000"}
		db, j := c.watched(name, &o)
		dbs, js = append(dbs, db), append(js, j)
	}
	requireAgreement(t, dbs...)
	return c, dbs, js
}

// open returns how many connections the replicas hold open between them, seen from both ends.
func open(dbs []*replicator.DB) (n int) {
	for _, db := range dbs {
		for _, p := range db.Status().Peers {
			if !p.Live.IsZero() {
				n++
			}
		}
	}
	return n
}

func TestNewsIsPushedOverConnectionsThatStayOpen(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		_, dbs, js := triangle(t, replicator.Options{})
		put(t, dbs[0], "first", "v")
		time.Sleep(time.Second)
		forget(js)
		for i := range 300 {
			w := dbs[i%3]
			key := fmt.Sprint(i)
			put(t, w, key, "v")
			time.Sleep(3 * time.Millisecond)
			for _, db := range dbs {
				require.Equal(t, "v", value(t, db, key), "after write %d", i)
			}
		}
		dialed := 0
		for _, j := range js {
			for _, s := range j.sessions() {
				if s.Dialed && !s.Live {
					dialed++
				}
			}
		}
		require.Less(t, dialed, 10, "sessions")
		requireAgreement(t, dbs...)
		pushes, duplicates := int64(0), int64(0)
		for _, db := range dbs {
			s := db.Status()
			pushes, duplicates = pushes+s.Pushes, duplicates+s.Duplicates
		}
		require.GreaterOrEqual(t, pushes, int64(2*300-20))
		require.Less(t, duplicates, int64(600*2))
	})
}

func TestIdleClusterHoldsNoConnectionOpen(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		_, dbs, _ := triangle(t, replicator.Options{})
		put(t, dbs[0], "k", "v")
		time.Sleep(time.Second)
		require.Equal(t, 6, open(dbs), "each with both others")
		time.Sleep(time.Second + 100*time.Millisecond)
		require.Zero(t, open(dbs))
		time.Sleep(time.Minute)
		require.Zero(t, open(dbs))
		requireAgreement(t, dbs...)
	})
}

func TestConnectionsAreClosedAfterEachSessionIfAskedFor(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		_, dbs, _ := triangle(t, replicator.Options{IdleTimeout: -1})
		for i := range 20 {
			put(t, dbs[i%3], fmt.Sprint(i), "v")
			time.Sleep(20 * time.Millisecond)
			require.Zero(t, open(dbs))
		}
		requireAgreement(t, dbs...)
		require.Zero(t, dbs[0].Status().Pushes)
	})
}

// TestNewsIsRelayedAlongALine has a and c out of each other's reach.
func TestNewsIsRelayedAlongALine(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c, dbs, _ := triangle(t, replicator.Options{})
		c.net.Block("a", "c")
		c.net.Block("c", "a")
		c.net.Reset("a", "c")
		for i := range 100 {
			put(t, dbs[2*(i%2)], fmt.Sprint(i), "v")
			time.Sleep(20 * time.Millisecond)
		}
		for i := range 50 { // the line has settled by now
			key := fmt.Sprint("later", i)
			put(t, dbs[2*(i%2)], key, "v")
			time.Sleep(10 * time.Millisecond)
			require.Equal(t, "v", value(t, dbs[2-2*(i%2)], key), "write %d", i)
		}
		requireAgreement(t, dbs...)
	})
}

func TestBrokenConnectionsAreMadeAgain(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c, dbs, js := triangle(t, replicator.Options{})
		time.Sleep(time.Second)
		forget(js)
		for i := range 200 {
			put(t, dbs[i%3], fmt.Sprint(i), "v")
			time.Sleep(5 * time.Millisecond)
			if i%20 == 19 {
				c.net.Reset("a", "b")
				c.net.Reset("b", "c")
			}
		}
		time.Sleep(100 * time.Millisecond)
		for _, db := range dbs {
			require.Len(t, testdb.Contents(t, db), 200)
			require.Equal(t, replicator.PeerOK, db.Status().Peers[0].State)
		}
		for _, j := range js {
			require.NotContains(t, j.log(), "failing", "a connection that breaks is no fault of the peer")
		}
	})
}

func TestReadOnlyReplicaIsPushedNothing(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		_, dbs, _ := triangle(t, replicator.Options{})
		put(t, dbs[0], "k", "v")
		put(t, dbs[1], "l", "v")
		time.Sleep(time.Second)
		require.NoError(t, dbs[2].SetReadOnly())
		for i := range 100 {
			put(t, dbs[0], fmt.Sprint(i), "v")
			time.Sleep(10 * time.Millisecond)
		}
		require.Equal(t, "v", value(t, dbs[1], "99"))
		require.Equal(t, "-", value(t, dbs[2], "99"))
		require.Equal(t, 2, open(dbs), "those two that write")
		for _, db := range dbs {
			for _, p := range db.Status().Peers {
				require.Equal(t, replicator.PeerOK, p.State, p.Error)
			}
		}
	})
}

func TestSlowPeerGetsItsNewsInFewerPushes(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		raw := replicatortest.MemDB(t)
		a := c.open("a", raw, &replicator.Options{Peers: []string{"b:9000"}, Limits: replicator.Limits{WriteRate: 64 << 10}})
		b := c.start("b")
		put(t, a, "k", "v")
		requireAgreement(t, a, b)
		for i := range 2000 { // 400 kB a second of values, over and over for ten keys
			put(t, a, fmt.Sprint("k", i%10), fmt.Sprintf("%0400d", i))
			time.Sleep(time.Millisecond)
		}
		requireAgreement(t, a, b)
		require.Less(t, a.Status().Served, int64(1000), "what was replaced meanwhile need not be sent")
		require.Equal(t, fmt.Sprintf("%0400d", 1999), value(t, b, "k9"))
	})
}

func TestOpenConnectionsEndWhenSecretsAreRenewed(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		secrets := []atomic.Pointer[[]byte]{{}, {}}
		one, two := replicator.GenerateSecret(), replicator.GenerateSecret()
		var dbs []*replicator.DB
		for i, name := range []string{"a", "b"} {
			secrets[i].Store(&one)
			h := c.net.Host(name)
			l, err := h.Listen("9000")
			require.NoError(t, err)
			db, err := replicator.Replicate(replicatortest.MemDB(t), &replicator.Options{
				Name: name, Listener: l, Dial: h.Dial, Peers: []string{"a:9000", "b:9000"}, Logger: slog.New(slog.DiscardHandler),
				GetSecrets: func() ([]byte, [][]byte, error) { return *secrets[i].Load(), nil, nil },
			})
			require.NoError(t, err)
			t.Cleanup(func() { db.Close() })
			dbs = append(dbs, db)
		}
		write := func(from, n int) {
			for i := range n {
				put(t, dbs[0], fmt.Sprint(from+i), "v")
				time.Sleep(100 * time.Millisecond)
			}
		}
		write(0, 100)
		require.Equal(t, 2, open(dbs))
		require.Len(t, testdb.Contents(t, dbs[1]), 100)
		secrets[0].Store(&two) // b has only the old one now
		write(100, 200)
		require.Zero(t, open(dbs))
		require.Less(t, len(testdb.Contents(t, dbs[1])), 300, "what is written later does not reach it")
	})
}

func TestBothEndsPushMuchAtOnce(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		c.net.Delay(time.Millisecond, 5*time.Millisecond)
		a, b := c.start("a", "b:9000"), c.start("b", "a:9000")
		put(t, a, "k", "v")
		requireAgreement(t, a, b)
		large := make([]byte, 300<<10)
		for i := range 40 {
			require.NoError(t, a.Put(fmt.Append(nil, "a", i), large, nil))
			require.NoError(t, b.Put(fmt.Append(nil, "b", i), large, nil))
			time.Sleep(time.Millisecond)
		}
		requireAgreement(t, a, b)
		require.Len(t, testdb.Contents(t, a), 81)
		require.Less(t, a.Status().Sessions+b.Status().Sessions, int64(12))
	})
}

func TestWaitReplicatedIsAnsweredOverOpenConnections(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		_, dbs, js := triangle(t, replicator.Options{})
		put(t, dbs[0], "k", "v")
		put(t, dbs[1], "l", "v")
		time.Sleep(time.Second)
		forget(js)
		for i := range 50 {
			put(t, dbs[i%3], fmt.Sprint(i), "v")
			start := time.Now()
			require.NoError(t, dbs[i%3].WaitReplicated(t.Context(), 2))
			require.Less(t, time.Since(start), 10*time.Millisecond)
		}
		sessions := 0
		for _, j := range js {
			sessions += len(j.sessions())
		}
		require.Less(t, sessions, 8)
	})
}

// stalling is a storage whose writes wait while it is told to.
type stalling struct {
	storage.Storage
	until atomic.Int64 // in nanoseconds since 1970
}

func (s *stalling) stall(d time.Duration) { s.until.Store(time.Now().Add(d).UnixNano()) }

func (s *stalling) Create(fd storage.FileDesc) (storage.Writer, error) {
	w, err := s.Storage.Create(fd)
	return &stallingWriter{w, s}, err
}

type stallingWriter struct {
	storage.Writer
	s *stalling
}

func (w *stallingWriter) Write(p []byte) (int, error) {
	time.Sleep(time.Until(time.Unix(0, w.s.until.Load())))
	return w.Writer.Write(p)
}

// stallingDB is a database over a storage that can stall.
func stallingDB(t testing.TB) (*leveldb.DB, *stalling) {
	s := &stalling{Storage: storage.NewMemStorage()}
	raw, err := leveldb.Open(s, nil)
	require.NoError(t, err)
	return raw, s
}

func TestStoreThatStallsCutsNoConnection(t *testing.T) {
	for _, at := range []string{"writer", "peer"} {
		for _, much := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%v", at, much), func(t *testing.T) {
				replicatortest.Bubble(t, 0, func(t *testing.T) {
					c := newCluster(t)
					c.net.Delay(time.Millisecond, time.Millisecond)
					var stores []*stalling
					var dbs []*replicator.DB
					for _, name := range []string{"a", "b"} {
						raw, s := stallingDB(t)
						dbs = append(dbs, c.open(name, raw, &replicator.Options{Peers: []string{"a:9000", "b:9000"}, IdleTimeout: time.Minute}))
						stores = append(stores, s)
					}
					a, b := dbs[0], dbs[1]
					put(t, a, "k", "v")
					requireAgreement(t, a, b)
					put(t, a, "l", "v")
					time.Sleep(time.Second)
					live := func() (times []time.Time) {
						for _, db := range dbs {
							for _, p := range db.Status().Peers {
								times = append(times, p.Live)
							}
						}
						return times
					}
					before := live()
					put(t, b, "m", "v")
					time.Sleep(10 * time.Millisecond) // a is to report it in a moment
					if at == "writer" {
						stores[0].stall(25 * time.Second)
					} else {
						stores[1].stall(25 * time.Second)
					}
					n := 1
					if much {
						n = 40
					}
					for i := range n {
						go func() {
							require.NoError(t, a.Put(fmt.Append(nil, i), make([]byte, 300<<10), nil))
						}()
					}
					time.Sleep(20 * time.Second)
					put(t, b, "n", "v")
					time.Sleep(10 * time.Second)
					requireAgreement(t, a, b)
					require.Equal(t, before, live(), "the connection was made again")
				})
			})
		}
	}
}

// blackhole is a connection that can lose all, in silence.
type blackhole struct {
	net.Conn
	on *atomic.Bool
}

func (c *blackhole) Write(p []byte) (int, error) {
	if c.on.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *blackhole) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		if err != nil || !c.on.Load() {
			return n, err
		}
	}
}

func TestConnectionThatLosesAllIsFoundOut(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		c.net.Block("b", "a") // a dials
		lost := &atomic.Bool{}
		h := c.net.Host("a")
		l, err := h.Listen("9000")
		require.NoError(t, err)
		a, err := replicator.Replicate(replicatortest.MemDB(t), &replicator.Options{
			Name: "a", Listener: l, Insecure: true, Peers: []string{"b:9000"}, Logger: slog.New(slog.DiscardHandler), MaxInterval: time.Hour,
			Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := h.Dial(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				on := lost
				return &blackhole{conn, on}, nil
			},
		})
		require.NoError(t, err)
		t.Cleanup(func() { a.Close() })
		b := c.open("b", replicatortest.MemDB(t), &replicator.Options{MaxInterval: time.Hour})
		for i := range 20 {
			put(t, a, fmt.Sprint(i), "v")
			time.Sleep(100 * time.Millisecond)
		}
		require.Equal(t, "v", value(t, b, "19"))
		lost.Store(true)
		lost = &atomic.Bool{} // new connections are fine
		put(t, a, "k", "v")
		start := time.Now()
		require.NoError(t, a.WaitReplicated(t.Context(), 1))
		require.Less(t, time.Since(start), 2*time.Second, "the peer is asked in a session as well")
		for i := range 130 {
			put(t, a, fmt.Sprint("more", i), "v")
			put(t, b, fmt.Sprint("b", i), "v") // else it would leave, as there is no news
			time.Sleep(100 * time.Millisecond)
		}
		require.Equal(t, "v", value(t, b, "more120"))
	})
}

func TestNewsReachAReplicaThatOnlyDialsAfterItsConnectionBroke(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		c.net.Delay(time.Millisecond, time.Millisecond)
		a := c.start("a")
		b := c.start("b", "a:9000")
		c.net.Block("a", "b")
		put(t, a, "k", "v")
		requireAgreement(t, a, b)
		worst := time.Duration(0)
		for i := range 30 {
			for j := range 40 {
				put(t, a, fmt.Sprint(i, "-", j), "v")
				time.Sleep(20 * time.Millisecond)
			}
			time.Sleep(100 * time.Millisecond)
			if i%2 == 0 {
				c.net.Reset("a", "b")
			} else {
				time.Sleep(3 * time.Second) // it is closed
			}
			time.Sleep(time.Duration(i) * 3 * time.Millisecond)
			put(t, a, fmt.Sprint("after", i), "v")
			start := time.Now()
			for value(t, b, fmt.Sprint("after", i)) == "-" {
				time.Sleep(time.Millisecond)
			}
			if d := time.Since(start); d > worst {
				worst = d
				t.Logf("%d: %v", i, d)
			}
		}
		require.Less(t, worst, time.Second)
	})
}

func TestReplicaWithTwoAddressesIsToldOnce(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		c.net.Delay(time.Millisecond, time.Millisecond)
		h := c.net.Host("a")
		l, err := h.Listen("9000")
		require.NoError(t, err)
		dials := 0
		a, err := replicator.Replicate(replicatortest.MemDB(t), &replicator.Options{
			Name: "a", Listener: l, Insecure: true, Peers: []string{"b:9000", "alias:9000"}, Logger: slog.New(slog.DiscardHandler),
			Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				dials++
				return h.Dial(ctx, network, "b:9000")
			},
		})
		require.NoError(t, err)
		t.Cleanup(func() { a.Close() })
		b := c.start("b")
		for i := range 200 {
			if i == 40 {
				dials = 0
			}
			put(t, a, fmt.Sprint(i), "v")
			time.Sleep(20 * time.Millisecond)
		}
		require.Equal(t, "v", value(t, b, "199"))
		require.Less(t, dials, 8)
	})
}

func TestReplicaThatKeepsNoConnectionGetsNewsAtOnce(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		c.net.Delay(time.Millisecond, time.Millisecond)
		var dbs []*replicator.DB
		for i := range 7 {
			o := &replicator.Options{Peers: []string{"n0:9000"}}
			if i == 6 {
				o.IdleTimeout = -1
			}
			dbs = append(dbs, c.open(fmt.Sprint("n", i), replicatortest.MemDB(t), o))
		}
		requireAgreement(t, dbs...)
		time.Sleep(2 * time.Minute)
		worst := time.Duration(0)
		for i := range 300 {
			key := fmt.Sprint(i)
			put(t, dbs[i%6], key, "v")
			time.Sleep(50 * time.Millisecond)
			for start := time.Now(); value(t, dbs[6], key) == "-"; {
				time.Sleep(5 * time.Millisecond)
				worst = max(worst, time.Since(start))
			}
		}
		require.Less(t, worst, time.Second)
	})
}

func TestOpenConnectionsAreBounded(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		c.net.Delay(time.Millisecond, time.Millisecond)
		hub := c.open("hub", replicatortest.MemDB(t), &replicator.Options{Fanout: 2, Limits: replicator.Limits{MaxConns: 12}})
		put(t, hub, "k", "v")
		var dbs []*replicator.DB
		for i := range 14 {
			dbs = append(dbs, c.start(fmt.Sprint("n", i), "hub:9000"))
		}
		most := 0
		for i := range 100 {
			put(t, hub, fmt.Sprint(i), "v")
			time.Sleep(10 * time.Millisecond)
			n := 0
			for _, p := range hub.Status().Peers {
				if !p.Live.IsZero() {
					n++
				}
			}
			most = max(most, n)
		}
		require.LessOrEqual(t, most, 4)
		requireAgreement(t, append(dbs, hub)...)
	})
}

func TestSessionEventsCountEachVersionOnce(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		_, dbs, js := triangle(t, replicator.Options{})
		for i := range 100 {
			put(t, dbs[i%3], fmt.Sprint(i), "v")
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(10 * time.Second)
		require.Zero(t, open(dbs))
		for i, j := range js {
			var pulled, served, in, out int64
			for _, e := range j.sessions() {
				pulled, served, in, out = pulled+int64(e.Pulled), served+int64(e.Served), in+e.BytesIn, out+e.BytesOut
			}
			s := dbs[i].Status()
			require.Equal(t, []int64{s.Pulled, s.Served, s.BytesIn, s.BytesOut}, []int64{pulled, served, in, out})
			var sum [4]int64
			for _, p := range s.Peers {
				sum[0], sum[1], sum[2], sum[3] = sum[0]+p.Pulled, sum[1]+p.Served, sum[2]+p.BytesIn, sum[3]+p.BytesOut
			}
			require.Equal(t, []int64{s.Pulled, s.Served}, sum[:2])
		}
	})
}

func TestSessionsAreHeldBesideOpenConnections(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		_, dbs, _ := triangle(t, replicator.Options{})
		put(t, dbs[0], "k", "v")
		put(t, dbs[1], "l", "v")
		time.Sleep(time.Second)
		since := func() map[string]time.Time {
			times := map[string]time.Time{}
			for _, db := range dbs {
				for _, p := range db.Status().Peers {
					times[db.Status().Name+p.Addr] = p.Live
				}
			}
			return times
		}
		before := since()
		require.Equal(t, 6, open(dbs))
		for i := range 20 {
			w := dbs[i%3]
			put(t, w, fmt.Sprint(i), "v")
			require.NoError(t, dbs[(i+1)%3].WaitFor(t.Context(), w.WriteToken()))
			require.Equal(t, "v", value(t, dbs[(i+1)%3], fmt.Sprint(i)))
			require.NoError(t, w.Sync(t.Context()))
			for _, db := range dbs {
				require.Equal(t, "v", value(t, db, fmt.Sprint(i)))
			}
			c, err := w.Compare(t.Context(), w.Status().Peers[0].Addr)
			require.NoError(t, err)
			require.Empty(t, c.Differences)
		}
		require.Equal(t, before, since(), "the same connections are open")
	})
}

func TestClockThatJumpsEndsOpenConnectionsLikeSessions(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		c.net.Delay(time.Millisecond, time.Millisecond)
		var ahead atomic.Int64
		a, ja := c.watched("a", &replicator.Options{Peers: []string{"b:9000"}, Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
		b, jb := c.watched("b", &replicator.Options{Peers: []string{"a:9000"}})
		put(t, a, "k", "v")
		requireAgreement(t, a, b)
		put(t, a, "l", "v")
		put(t, b, "m", "v")
		time.Sleep(time.Second)
		require.Equal(t, 2, open([]*replicator.DB{a, b}))
		ja.forget()
		jb.forget()
		ahead.Store(int64(time.Hour))
		for i := range 100 {
			require.NoError(t, a.Put(fmt.Append(nil, i), make([]byte, 100<<10), nil))
			time.Sleep(100 * time.Millisecond)
		}
		require.Zero(t, open([]*replicator.DB{a, b}))
		require.Equal(t, replicator.PeerRefused, a.Status().Peers[0].State)
		require.Contains(t, a.Status().Peers[0].Error, "ahead")
		require.Contains(t, b.Status().Peers[0].Error, "ahead")
		link := func(j *diary) (live []replicator.SessionEvent) {
			for _, e := range j.sessions() {
				if e.Live {
					live = append(live, e)
				}
			}
			return live
		}
		require.LessOrEqual(t, len(link(ja)), 5, "sessions fail as well, at longer and longer pauses")
		require.ErrorContains(t, link(ja)[0].Err, "refused by the peer")
		require.ErrorIs(t, link(jb)[0].Err, replicator.ErrClockSkew)
		require.Less(t, len(ja.sessions()), 40)
		require.Contains(t, ja.log(), "peer is refused")
	})
}

func TestStoreThatFailsEndsOpenConnections(t *testing.T) {
	for name, local := range map[string]bool{"at a write": true, "at a push": false} {
		t.Run(name, func(t *testing.T) {
			replicatortest.Bubble(t, 0, func(t *testing.T) {
				c := newCluster(t)
				c.net.Delay(time.Millisecond, time.Millisecond)
				a, ja := c.watched("a", &replicator.Options{Peers: []string{"b:9000", "c:9000"}})
				b, _ := c.watched("b", &replicator.Options{Peers: []string{"a:9000", "c:9000"}})
				disk := crashfs.New(nil)
				raw, err := leveldb.Open(disk, nil)
				require.NoError(t, err)
				h := c.net.Host("c")
				l, err := h.Listen("9000")
				require.NoError(t, err)
				jc := &diary{}
				d, err := replicator.Replicate(raw, &replicator.Options{
					Name: "c", Listener: l, Dial: h.Dial, Insecure: true, Peers: []string{"a:9000", "b:9000"}, Logger: slog.New(slog.NewTextHandler(jc, nil)),
				})
				require.NoError(t, err)
				t.Cleanup(func() { d.Close() })
				dbs := []*replicator.DB{a, b, d}
				for i := range 20 {
					put(t, dbs[i%3], fmt.Sprint(i), "v")
					time.Sleep(20 * time.Millisecond)
				}
				requireAgreement(t, dbs...)
				require.Equal(t, 6, open(dbs))
				disk.Fail(crashfs.Fault{Op: crashfs.OpWrite, Err: errors.New("the disk is gone")})
				if local {
					require.ErrorIs(t, d.Put([]byte("k"), nil, nil), replicator.ErrFailed)
					time.Sleep(10 * time.Millisecond)
				}
				for i := range 100 {
					put(t, dbs[i%2], fmt.Sprint("later", i), "v")
					time.Sleep(20 * time.Millisecond)
				}
				require.Equal(t, "v", value(t, b, "later98"))
				require.NotEmpty(t, d.Status().Failed)
				require.Equal(t, 2, open(dbs), "those two that write")
				for _, db := range dbs {
					for _, p := range db.Status().Peers {
						require.Equal(t, replicator.PeerOK, p.State, p.Error)
					}
				}
				require.NotContains(t, jc.log(), "peer is failing", "it is no fault of theirs")
				if local {
					require.NotContains(t, ja.log(), "peer is refused", "nothing was pushed any more")
				}
			})
		})
	}
}

// resetting dials over TCP, and can reset what it dialed.
type resetting struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (r *resetting) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	if err == nil {
		r.mu.Lock()
		r.conns = append(r.conns, conn)
		r.mu.Unlock()
	}
	return conn, err
}

// reset cuts a connection, whoever uses it.
func (r *resetting) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.conns) > 0 {
		i := rand.IntN(len(r.conns))
		r.conns[i].(*net.TCPConn).SetLinger(0)
		r.conns[i].Close()
		r.conns = slices.Delete(r.conns, i, i+1)
	}
}

func TestReplicasAgreeThoughTheirConnectionsAreReset(t *testing.T) {
	before := goleak.IgnoreCurrent()
	network, secret := &resetting{}, replicator.GenerateSecret()
	var dbs []*replicator.DB
	var listeners []net.Listener
	var addrs []string
	for range 5 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		listeners, addrs = append(listeners, l), append(addrs, l.Addr().String())
	}
	for i, l := range listeners {
		raw, err := leveldb.Open(storage.NewMemStorage(), nil)
		require.NoError(t, err)
		db, err := replicator.Replicate(raw, &replicator.Options{
			Name: fmt.Sprint("n", i), Listener: l, Dial: network.dial, Peers: addrs, Secret: secret, Compression: replicator.CompressAll,
			Logger: slog.New(slog.DiscardHandler), Limits: replicator.Limits{MaxInFlight: 8 << 20},
		})
		require.NoError(t, err)
		defer db.Close()
		dbs = append(dbs, db)
	}
	var writing sync.WaitGroup
	end := time.Now().Add(3 * time.Second)
	for w := range 8 {
		writing.Go(func() {
			db, rng := dbs[w%5], rand.New(rand.NewPCG(1, uint64(w)))
			for i := 0; time.Now().Before(end); i++ {
				n := 100
				if i%50 == 0 {
					n = 400 << 10
				}
				if err := db.Put(fmt.Append(nil, rng.IntN(500)), make([]byte, rng.IntN(n)), nil); err != nil {
					t.Error(err)
				}
				if i%100 == 0 {
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
					if err := db.WaitReplicated(ctx, 2); err != nil {
						t.Error(err)
					}
					cancel()
				}
				<-time.After(time.Duration(rng.IntN(int(4 * time.Millisecond))))
			}
		})
	}
	for time.Now().Before(end) {
		<-time.After(20 * time.Millisecond)
		network.reset()
	}
	writing.Wait()
	require.Eventually(t, func() bool {
		for _, db := range dbs[1:] {
			if db.Digest() != dbs[0].Digest() {
				return false
			}
		}
		return true
	}, 20*time.Second, 5*time.Millisecond)
	pushes := int64(0)
	for _, db := range dbs {
		require.Equal(t, testdb.Contents(t, dbs[0]), testdb.Contents(t, db))
		pushes += db.Status().Pushes
	}
	require.NotZero(t, pushes)
	require.NoError(t, dbs[0].Put([]byte("k"), nil, nil)) // so that connections are open
	<-time.After(50 * time.Millisecond)
	for _, db := range dbs {
		start := time.Now()
		require.NoError(t, db.Close())
		require.Less(t, time.Since(start), 5*time.Second)
	}
	goleak.VerifyNone(t, before, goleak.IgnoreTopFunction("github.com/syndtr/goleveldb/leveldb.(*DB).mpoolDrain"))
}
