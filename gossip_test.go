package replicator_test

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/testdb"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
)

// diary collects what a replica does and logs. Safe for concurrent use.
type diary struct {
	mu    sync.Mutex
	dials []time.Time
	past  []replicator.SessionEvent
	text  bytes.Buffer
}

func (j *diary) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *diary) log() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

func (j *diary) sessions() []replicator.SessionEvent {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]replicator.SessionEvent{}, j.past...)
}

func (j *diary) forget() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.dials, j.past = nil, nil
	j.text.Reset()
}

// forget has all of them forget.
func forget(js []*diary) {
	for _, j := range js {
		j.forget()
	}
}

// watched opens a replica that keeps a diary.
func (c *cluster) watched(name string, o *replicator.Options) (*replicator.DB, *diary) {
	c.t.Helper()
	j := &diary{}
	h := c.net.Host(name)
	l, err := h.Listen("9000")
	require.NoError(c.t, err)
	o.Name, o.Listener, o.Insecure = name, l, true
	o.Logger = slog.New(slog.NewTextHandler(j, nil))
	o.Events = &replicator.Events{Session: func(e replicator.SessionEvent) {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.past = append(j.past, e)
	}}
	o.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		j.mu.Lock()
		j.dials = append(j.dials, time.Now())
		j.mu.Unlock()
		return h.Dial(ctx, network, addr)
	}
	db, err := replicator.Replicate(replicatortest.MemDB(c.t), o)
	require.NoError(c.t, err)
	c.t.Cleanup(func() { db.Close() })
	return db, j
}

func peerOf(t testing.TB, db *replicator.DB, addr string) replicator.PeerStatus {
	t.Helper()
	for _, p := range db.Status().Peers {
		if p.Addr == addr {
			return p
		}
	}
	t.Fatalf("%s is not a peer of %s", addr, db.Status().Name)
	return replicator.PeerStatus{}
}

func TestNewsThatArriveCountAsVelocity(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b", "a:9000")
		requireAgreement(t, a, b)
		for i := range 50 {
			put(t, a, fmt.Sprint(i), "v")
		}
		requireAgreement(t, a, b)
		require.Greater(t, b.Status().Velocity, 5.0, "b wrote nothing")
		require.Equal(t, 10*time.Second, b.Status().Interval, "a live session brings them")
	})
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.open("b", replicatortest.MemDB(t), &replicator.Options{Peers: []string{"a:9000"}, IdleTimeout: -1})
		requireAgreement(t, a, b)
		for i := range 50 {
			put(t, a, fmt.Sprint(i), "v")
		}
		requireAgreement(t, a, b)
		require.Equal(t, 20*time.Millisecond, b.Status().Interval)
	})
}

func TestIdleRoundsHoldFanoutSessionsEachMaxInterval(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		var addrs []string
		for i := range 8 {
			c.start(fmt.Sprint("p", i))
			addrs = append(addrs, fmt.Sprint("p", i, ":9000"))
		}
		_, j := c.watched("a", &replicator.Options{Peers: addrs, Fanout: 2, MaxInterval: 5 * time.Second})
		time.Sleep(time.Minute)
		j.forget()
		time.Sleep(100 * time.Second)
		j.mu.Lock()
		defer j.mu.Unlock()
		require.InDelta(t, 40, len(j.dials), 10, "2 sessions each 5 s ± 20 %%")
	})
}

func TestIdleSessionsAreShort(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, j := c.watched("a", &replicator.Options{Peers: []string{"b:9000"}})
		b := c.start("b", "a:9000")
		for i := range 100 {
			put(t, a, fmt.Sprint(i), "v")
		}
		requireAgreement(t, a, b)
		time.Sleep(2 * time.Minute)
		j.forget()
		time.Sleep(2 * time.Minute)
		require.NotEmpty(t, j.sessions())
		for _, e := range j.sessions() {
			require.True(t, e.Idle)
			require.LessOrEqual(t, max(e.BytesIn, e.BytesOut), int64(200))
		}
	})
}

func TestChangedAddressBookIsToldOnceAndThenSessionsAreIdle(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, j := c.watched("a", &replicator.Options{Peers: []string{"seed:9000"}})
		c.start("seed")
		time.Sleep(time.Minute)
		c.start("late", "seed:9000") // nobody writes anything
		time.Sleep(time.Minute)
		require.Equal(t, replicator.SourceLearnt, peerOf(t, a, "late:9000").Source)
		require.Equal(t, replicator.PeerOK, peerOf(t, a, "late:9000").State)
		j.forget()
		time.Sleep(2 * time.Minute)
		for _, e := range j.sessions() {
			require.True(t, e.Idle)
		}
	})
}

func TestConfiguredPeerIsTriedForEverWithGrowingPauses(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		c.net.Host("b")
		a, j := c.watched("a", &replicator.Options{Peers: []string{"b:9000"}})
		put(t, a, "k", "v")
		time.Sleep(3 * time.Hour)
		j.mu.Lock()
		dials := append([]time.Time{}, j.dials...)
		j.mu.Unlock()
		require.Greater(t, len(dials), 3*3600/14, "it is never given up")
		require.Less(t, len(dials), 3*3600/6, "nothing is hammered")
		pauses := map[time.Duration]bool{}
		for i := 20; i < len(dials); i++ {
			pauses[dials[i].Sub(dials[i-1]).Round(10*time.Millisecond)] = true
		}
		require.Greater(t, len(pauses), 50, "jitter")
		require.Equal(t, 1, strings.Count(j.log(), "peer is failing"), "one line for one change of state")
		p := peerOf(t, a, "b:9000")
		require.Equal(t, replicator.PeerFailing, p.State)
		require.Contains(t, p.Error, "dial b:9000: ")
		require.Equal(t, len(dials), p.Failures)

		b := c.start("b")
		requireAgreement(t, a, b)
		require.Less(t, time.Since(dials[len(dials)-1]), 15*time.Second)
		require.Contains(t, j.log(), "peer is ok")
	})
}

func TestLearntAddressThatNeverAnswersIsForgotten(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a", "seed:9000")
		c.start("seed")
		x := c.start("x", "seed:9000")
		time.Sleep(time.Minute)
		peerOf(t, a, "x:9000")
		require.NoError(t, x.Close())
		time.Sleep(3 * time.Hour)
		require.Len(t, a.Status().Peers, 1, "only seed")
	})
}

func TestPeerThatCannotBeDialedIsOkAsLongAsItDials(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		c.net.Block("a", "b")
		a, j := c.watched("a", &replicator.Options{Peers: []string{"b:9000"}})
		b := c.start("b", "a:9000")
		time.Sleep(time.Minute)
		j.forget()
		for i := range 100 {
			put(t, b, fmt.Sprint(i), "v")
			time.Sleep(100 * time.Millisecond)
		}
		requireAgreement(t, a, b)
		p := peerOf(t, a, "b:9000")
		require.Equal(t, replicator.PeerOK, p.State)
		require.Contains(t, p.Error, "dial", "but Status says that it could not be dialed")
		require.NotContains(t, j.log(), "peer is", "no change of state")
		j.mu.Lock()
		defer j.mu.Unlock()
		require.Less(t, len(j.dials), 6, "its sessions do not reset the pauses between our attempts")
	})
}

func TestClockAnHourAheadStopsOnlyItsOwnWritesAndHeals(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		ahead := time.Hour
		a, ja := c.watched("a", &replicator.Options{})
		b := c.start("b", "a:9000")
		bad, _ := c.watched("bad", &replicator.Options{Peers: []string{"a:9000", "b:9000"}, Now: func() time.Time { return time.Now().Add(ahead) }})
		put(t, bad, "from the future", "v")
		for i := range 10 {
			put(t, a, fmt.Sprint(i), "v")
			time.Sleep(time.Second)
		}
		requireAgreement(t, a, b)
		time.Sleep(30 * time.Second) // until bad dials once more
		require.Equal(t, "-", value(t, a, "from the future"))
		require.Contains(t, peerOf(t, a, "bad:9000").Error, "stamped too far in the future")
		require.Contains(t, peerOf(t, bad, "a:9000").Error, "stamped too far in the future", "the other side knows why, too")
		require.Contains(t, ja.log(), "too far in the future")
		require.Len(t, testdb.Contents(t, bad), 11, "it gets what others wrote")

		time.Sleep(ahead)
		requireAgreement(t, a, b, bad)
		require.Equal(t, "v", value(t, a, "from the future"), "nothing was dropped")
	})
}

// Each holds some writes of the other that it does not claim yet, its pull having
// been cut off. That must not keep either from going on where it was.
func TestReplicasWhosePullsAreBothCutOffGoOnWhereTheyWere(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b")
		for i := range 600 {
			put(t, a, fmt.Sprint("a", i), strings.Repeat("v", 4000))
			put(t, b, fmt.Sprint("b", i), strings.Repeat("v", 4000))
		}
		c.net.CutAfter(700 << 10) // each has 2.4 MB for the other
		require.NoError(t, a.AddPeer("b:9000"))
		require.NoError(t, b.AddPeer("a:9000"))
		requireAgreement(t, a, b)
		require.Len(t, testdb.Contents(t, a), 1200)
		require.Less(t, a.Status().Served+b.Status().Served, int64(3*1200), "little was sent twice")
	})
}

// A page is 256 KiB, and no connection lives as long as that takes.
func TestLinkThatBreaksWithinEveryPageMakesProgress(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b")
		for i := range 500 {
			put(t, a, fmt.Sprint("a", i), strings.Repeat("v", 4000))
		}
		c.net.CutAfter(60 << 10)
		require.NoError(t, b.AddPeer("a:9000"))
		requireAgreement(t, a, b)
		require.Len(t, testdb.Contents(t, b), 500)
		require.Less(t, a.Status().Served, int64(3*500), "little was sent twice")
	})
}

// TestReplicasThatTellEachOtherAreNotAskedAgainAndAgain has one of three write, ten times a
// second, which alone would have each hold rounds every 20 ms where connections do not stay open.
func TestReplicasThatTellEachOtherAreNotAskedAgainAndAgain(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		peers := func(others ...string) *replicator.Options { return &replicator.Options{Peers: others, IdleTimeout: -1} }
		a, ja := c.watched("a", peers("b:9000", "c:9000"))
		b, jb := c.watched("b", peers("a:9000", "c:9000"))
		d, jc := c.watched("c", peers("a:9000", "b:9000"))
		requireAgreement(t, a, b, d)
		time.Sleep(time.Second)
		js := []*diary{ja, jb, jc}
		forget(js)
		for i := range 100 {
			put(t, a, fmt.Sprint(i), "v")
			time.Sleep(100 * time.Millisecond)
			require.Equal(t, "v", value(t, b, fmt.Sprint(i)))
			require.Equal(t, "v", value(t, d, fmt.Sprint(i)))
		}
		dialed := 0
		for _, j := range js {
			for _, s := range j.sessions() {
				dialed += int(map[bool]int{true: 1}[s.Dialed])
			}
		}
		t.Logf("%d sessions", dialed)
		// 200 tell of a write, and each of six pairs talks once a second; b and c may tell
		// each other what both have just heard.
		require.Less(t, dialed, 200+200+6*10+50)
		require.GreaterOrEqual(t, dialed, 200+6*5)
	})
}

func TestPeerThatIsAtWorkForLongIsWaitedFor(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		thinking := 0
		slow := func(key []byte, a, b replicator.Version) replicator.Version {
			thinking++
			time.Sleep(40 * time.Second) // four times as long as a peer may be silent
			return replicator.HighestClock(key, a, b)
		}
		a := c.start("a")
		b := c.open("b", replicatortest.MemDB(t), &replicator.Options{Resolver: slow, MaxInterval: time.Hour})
		put(t, a, "k", "by a")
		put(t, b, "k", "by b")
		require.NoError(t, b.AddPeer("a:9000"))
		require.NoError(t, b.Sync(t.Context()))
		require.Positive(t, thinking)
		require.Equal(t, a.Digest(), b.Digest())
		require.Len(t, b.Status().Peers, 1)
		require.Empty(t, b.Status().Peers[0].Error)
	})
}

var crowdSize = flag.Int("crowd", 0, "how many replicas write at the same moment, over loopback as well; 50 and 200 are of interest")

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

// TestReplicasThatAllWriteAtOnceAgreeSoon has as many writers as replicas, the worst case for the
// number of sessions. In virtual time no processor is ever busy.
//
//	go test -run TestReplicasThatAllWriteAtOnce -v -crowd 200 .
func TestReplicasThatAllWriteAtOnceAgreeSoon(t *testing.T) {
	replicatortest.Bubble(t, 10*time.Minute, func(t *testing.T) {
		c, network := &crowd{t: t}, replicatortest.NewNetwork(1)
		network.Delay(500*time.Microsecond, 2*time.Millisecond)
		for i := range cmp.Or(*crowdSize, 50) {
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
	if *crowdSize == 0 {
		t.Skip("only with -crowd, which says how many replicas")
	}
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
