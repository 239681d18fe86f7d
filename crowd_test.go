package replicator_test

import (
	"flag"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
)

var crowdSize = flag.Int("crowd", 0, "how many replicas write at the same moment; 50 and 200 are of interest")

// crowd is many replicas in one process, each of which knows all others.
type crowd struct {
	t        *testing.T
	dbs      []*replicator.DB
	sessions atomic.Int64 // that ended, well or not
}

// join adds a replica, whose options say where it listens and how it dials.
func (c *crowd) join(o *replicator.Options, seeds []string) {
	o.Name, o.Peers, o.Logger = fmt.Sprint("replica ", len(c.dbs)), seeds, slog.New(slog.DiscardHandler)
	o.Events = &replicator.Events{Session: func(e replicator.SessionEvent) {
		if e.Dialed {
			c.sessions.Add(1)
		}
	}}
	db, err := replicator.Replicate(replicatortest.MemDB(c.t), o)
	require.NoError(c.t, err)
	c.t.Cleanup(func() { db.Close() })
	c.dbs = append(c.dbs, db)
}

// settle waits until each knows all others and little is said.
func (c *crowd) settle() {
	c.t.Helper()
	strangers := func() (n int) {
		for _, db := range c.dbs {
			known := 0
			for _, p := range db.Status().Peers {
				if p.State != replicator.PeerSelf {
					known++
				}
			}
			n += max(0, len(c.dbs)-1-known)
		}
		return n
	}
	for range 120 {
		before := c.sessions.Load()
		<-time.After(time.Second)
		if c.sessions.Load()-before < int64(len(c.dbs)) && strangers() == 0 {
			return
		}
	}
	require.Fail(c.t, "no rest after two minutes", "%d times a replica does not know another", strangers())
}

// agree waits until all hold a number of keys, and the same.
func (c *crowd) agree(keys int, limit time.Duration) {
	c.t.Helper()
	behind := func() (n int) {
		for _, db := range c.dbs {
			if s := db.Status(); s.Keys != int64(keys) || s.Digest != c.dbs[0].Digest() {
				n++
			}
		}
		return n
	}
	for start := time.Now(); behind() > 0; <-time.After(5 * time.Millisecond) {
		require.Less(c.t, time.Since(start), limit, "%d replicas are behind, after %d sessions", behind(), c.sessions.Load())
	}
}

// write has each write a key at the same moment.
func (c *crowd) write() {
	var ready, written sync.WaitGroup
	gun := make(chan struct{})
	for i, db := range c.dbs {
		ready.Add(1)
		written.Go(func() {
			ready.Done()
			<-gun
			require.NoError(c.t, db.Put(fmt.Append(nil, "key ", i), []byte("v"), nil))
		})
	}
	ready.Wait()
	close(gun)
	written.Wait()
}

// requireQuickAgreement has all write at once, and bounds how long it takes until they agree, and how
// many sessions they hold until ten seconds after: two for each pair, about.
func (c *crowd) requireQuickAgreement() {
	c.t.Helper()
	c.settle()
	c.sessions.Store(0)
	start := time.Now()
	c.write()
	c.agree(len(c.dbs), 2*time.Minute)
	took, sessions := time.Since(start), c.sessions.Load()
	<-time.After(10 * time.Second)
	all := c.sessions.Load()
	c.t.Logf("%d replicas agree after %v and %d sessions; %d sessions in the ten seconds that followed",
		len(c.dbs), took.Round(time.Millisecond), sessions, all-sessions)
	require.LessOrEqual(c.t, took, 3*time.Second)
	require.LessOrEqual(c.t, all, int64(len(c.dbs)*len(c.dbs)))
}

func needCrowd(t *testing.T) {
	if *crowdSize == 0 {
		t.Skip("only with -crowd, which says how many replicas")
	}
}

// TestReplicasThatAllWriteAtOnceAgreeSoon has as many writers as replicas, the worst case for the
// number of sessions. In virtual time no processor is ever busy.
//
//	go test -run TestReplicasThatAllWriteAtOnce -v -crowd 50 .
func TestReplicasThatAllWriteAtOnceAgreeSoon(t *testing.T) {
	needCrowd(t)
	replicatortest.Bubble(t, 10*time.Minute, func(t *testing.T) {
		c, network := &crowd{t: t}, replicatortest.NewNetwork(1)
		network.Delay(500*time.Microsecond, 2*time.Millisecond)
		for i := range *crowdSize {
			h := network.Host(fmt.Sprint("h", i))
			l, err := h.Listen("9000")
			require.NoError(t, err)
			c.join(&replicator.Options{Listener: l, Dial: h.Dial, Insecure: true}, []string{"h0:9000", "h1:9000", "h2:9000"})
		}
		c.requireQuickAgreement()
	})
}

// TestReplicasThatAllWriteAtOnceOnLoopbackAgreeSoon needs a machine at rest.
func TestReplicasThatAllWriteAtOnceOnLoopbackAgreeSoon(t *testing.T) {
	needCrowd(t)
	var listeners []net.Listener
	var addrs []string
	for range *crowdSize {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		listeners, addrs = append(listeners, l), append(addrs, l.Addr().String())
	}
	c := &crowd{t: t}
	for _, l := range listeners {
		c.join(&replicator.Options{Listener: l}, addrs[:min(3, len(addrs))])
	}
	c.requireQuickAgreement()
}
