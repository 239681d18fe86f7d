package replicator_test

import (
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/testdb"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
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
		for _, j := range js {
			j.forget()
		}
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
		for _, j := range js {
			j.forget()
		}
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
		for _, j := range js {
			j.forget()
		}
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
