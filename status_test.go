package replicator_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

func TestStatusSaysHowFarAPeerIsAndSinceWhen(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b", "a:9000")
		put(t, a, "k", "v")
		requireAgreement(t, a, b)
		time.Sleep(time.Minute)
		p := peerOf(t, a, "b:9000")
		require.True(t, p.Agrees)
		require.Equal(t, a.Digest(), p.Digest)
		require.WithinDuration(t, time.Now(), p.Agreed, 30*time.Second)
		require.Zero(t, p.LagTime)

		c.net.Partition([]string{"a"}, []string{"b"})
		cut := time.Now()
		for i := range 3 {
			put(t, a, fmt.Sprint("a", i), "v")
		}
		put(t, b, "b", "v")
		time.Sleep(5 * time.Minute)
		p = peerOf(t, a, "b:9000")
		require.False(t, p.Agrees)
		require.False(t, p.Differs, "it does not claim the same")
		require.EqualValues(t, 3, p.Lag)
		require.InDelta(t, time.Since(cut).Seconds(), p.LagTime.Seconds(), 30)
		require.Contains(t, p.Error, "dial")

		require.NoError(t, a.SetReadOnly()) // it pulls nothing any more
		c.net.Heal()
		require.ErrorContains(t, b.Sync(t.Context()), "takes nothing")
		time.Sleep(time.Minute)
		p = peerOf(t, a, "b:9000")
		require.EqualValues(t, 1, p.Ahead)
		require.Zero(t, p.Lag)
		p = peerOf(t, b, "a:9000")
		require.EqualValues(t, 1, p.Lag)
		require.Greater(t, p.LagTime, time.Minute, "sessions that bring it nothing make it no less behind")
	})
}

func TestPeerThatHasJustPulledDoesNotLag(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		c.net.Block("b", "a")
		a, b := c.start("a", "b:9000"), c.start("b")
		requireAgreement(t, a, b)
		time.Sleep(10 * time.Minute) // rounds are 10 s apart now
		put(t, a, "k", "v")
		time.Sleep(time.Millisecond)
		require.Equal(t, "v", value(t, b, "k"))
		require.Zero(t, peerOf(t, a, "b:9000").Lag)
	})
}

func TestStatusTellsWhatAPowerFailureCouldTake(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b", "a:9000")
		put(t, a, "first", "v") // b records the new origin with Sync
		requireAgreement(t, a, b)
		put(t, a, "k", "v")
		requireAgreement(t, a, b)
		time.Sleep(time.Minute)
		require.EqualValues(t, 2, a.Status().NotDurable)
		require.EqualValues(t, 1, peerOf(t, a, "b:9000").NotDurable)
		require.NoError(t, a.WaitReplicated(t.Context(), 1))
		time.Sleep(time.Minute)
		require.Zero(t, b.Status().NotDurable)
		require.Zero(t, peerOf(t, a, "b:9000").NotDurable)
	})
}

func TestMemberThatHoldsBackForgettingIsNamed(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.open("b", replicatortest.MemDB(t), &replicator.Options{Peers: []string{"a:9000"}, Sync: true})
		require.NoError(t, a.Put([]byte("k"), []byte("v"), &opt.WriteOptions{Sync: true}))
		requireAgreement(t, a, b)
		time.Sleep(time.Minute)
		require.Empty(t, a.Status().Blockers, "there is nothing to forget")
		require.NoError(t, b.Close())
		gone := time.Now()
		require.NoError(t, a.Delete([]byte("k"), &opt.WriteOptions{Sync: true}))
		time.Sleep(10 * time.Minute)
		s := a.Status()
		require.EqualValues(t, 1, s.Tombstones)
		require.Len(t, s.Blockers, 1)
		require.Equal(t, "b", s.Blockers[0].Name)
		require.WithinDuration(t, gone, s.Blockers[0].Seen, 20*time.Second)
		require.WithinDuration(t, gone, s.Blockers[0].Since, 20*time.Second)
	})
}

func TestReplicaThatCameBackElsewhereIsNotMissed(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		stay := storage.NewMemStorage()
		raw, err := leveldb.Open(stay, nil)
		require.NoError(t, err)
		b := c.open("b", raw, &replicator.Options{Peers: []string{"a:9000"}})
		put(t, b, "k", "v")
		requireAgreement(t, a, b)
		require.False(t, peerOf(t, a, "b:9000").Moved)
		require.NoError(t, b.Close())
		time.Sleep(time.Minute)
		require.False(t, peerOf(t, a, "b:9000").Moved, "it is just away")
		raw, err = leveldb.Open(stay, nil)
		require.NoError(t, err)
		b = c.open("elsewhere", raw, &replicator.Options{Peers: []string{"a:9000"}})
		put(t, b, "k", "w")
		requireAgreement(t, a, b)
		time.Sleep(10 * time.Second)
		require.True(t, peerOf(t, a, "b:9000").Moved)
		require.False(t, peerOf(t, a, "elsewhere:9000").Moved)
	})
}

func TestStatusGoesThroughJSONUnharmed(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		alone := c.start("alone")
		text, err := json.Marshal(alone.Status())
		require.NoError(t, err)
		require.NotContains(t, string(text), "null", "an empty list is a list")
		require.NotContains(t, string(text), "0001-01-01")

		a, b := c.start("a", "nobody:1"), c.start("b", "a:9000")
		put(t, a, "k", "v")
		requireAgreement(t, a, b)
		s := a.Status()
		text, err = json.Marshal(s)
		require.NoError(t, err)
		var back replicator.Status
		require.NoError(t, json.Unmarshal(text, &back))
		again, err := json.Marshal(back)
		require.NoError(t, err)
		require.JSONEq(t, string(text), string(again))
		require.Equal(t, s.VersionVector, back.VersionVector)
	})
}

func TestLongPullTellsHowFarItIs(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.open("a", replicatortest.MemDB(t), &replicator.Options{Limits: replicator.Limits{WriteRate: 64 << 10}})
		for i := range 3000 {
			put(t, a, fmt.Sprint(i), strings.Repeat("v", 1000))
		}
		var mu sync.Mutex
		var told []replicator.Progress
		b := c.open("b", replicatortest.MemDB(t), &replicator.Options{Peers: []string{"a:9000"}, Events: &replicator.Events{
			Progress: func(p replicator.Progress) {
				mu.Lock()
				defer mu.Unlock()
				if p.Work == "pull" {
					told = append(told, p)
				}
			},
		}})
		time.Sleep(25 * time.Second)
		require.Len(t, b.Status().Work, 1)
		p := b.Status().Work[0]
		require.Equal(t, replicator.WorkPull, p.Work)
		require.Equal(t, "a:9000", p.Peer)
		require.EqualValues(t, 3000, p.Total)
		require.InDelta(t, 1500, p.Keys, 1000)
		require.InDelta(t, 25*64<<10, p.Bytes, 500<<10)
		require.Positive(t, p.Remaining)
		require.Less(t, p.Remaining, 2*time.Minute)
		requireAgreement(t, a, b)
		time.Sleep(time.Second)
		require.Empty(t, b.Status().Work)
		mu.Lock()
		defer mu.Unlock()
		require.True(t, told[len(told)-1].Done)
		require.EqualValues(t, 3000, told[len(told)-1].Keys)
	})
}

func BenchmarkStatus(b *testing.B) {
	c := newCluster(b)
	dbs := []*replicator.DB{c.start("s0")}
	for i := 1; i < 4; i++ {
		dbs = append(dbs, c.start(fmt.Sprint("s", i), "s0:9000"))
	}
	for _, db := range dbs {
		put(b, db, db.Status().Name, "v")
	}
	for _, db := range dbs {
		require.NoError(b, db.Sync(b.Context()))
	}
	b.ReportAllocs()
	for b.Loop() {
		dbs[0].Status()
	}
}

// What is held back is named again in each session, and is no reason to hold more of them.
func TestWhatIsHeldBackKeepsNobodyBusy(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		b := c.open("b", replicatortest.MemDB(t), &replicator.Options{Peers: []string{"a:9000"}, Limits: replicator.Limits{MaxValue: 100}})
		put(t, a, "large", strings.Repeat("x", 101))
		put(t, a, "small", "v")
		time.Sleep(time.Minute)
		require.Equal(t, "v", value(t, b, "small"))
		require.EqualValues(t, 1, b.Status().HeldBack)
		sessions, bytes := b.Status().Sessions, b.Status().BytesIn
		time.Sleep(time.Minute)
		require.Less(t, b.Status().Sessions-sessions, int64(30))
		require.Less(t, b.Status().BytesIn-bytes, int64(30<<10))
		put(t, a, "more", "v")
		time.Sleep(time.Second)
		require.Equal(t, "v", value(t, b, "more"))
		put(t, a, "large", "small")
		requireAgreement(t, a, b)
		require.Zero(t, b.Status().HeldBack)
	})
}

// livePair returns two replicas that have a live session, 2 ms apart.
func livePair(t *testing.T, events *replicator.Events) (a, b *replicator.DB) {
	c := newCluster(t)
	c.net.Delay(2*time.Millisecond, 2*time.Millisecond)
	a = c.open("a", replicatortest.MemDB(t), &replicator.Options{Events: events})
	b = c.open("b", replicatortest.MemDB(t), &replicator.Options{Peers: []string{"a:9000"}})
	put(t, a, "of a", "v")
	put(t, b, "of b", "v")
	requireAgreement(t, a, b)
	return a, b
}

func TestStatusOfALivePeerIsRightWithinMilliseconds(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		a, b := livePair(t, nil)
		began := time.Now()
		for i := range 2000 { // there is always something on its way
			put(t, a, fmt.Sprint("a", i%100), "v")
			put(t, b, fmt.Sprint("b", i%100), "v")
			time.Sleep(5 * time.Millisecond)
			if time.Since(began) < time.Second {
				continue
			}
			p := peerOf(t, a, "b:9000")
			require.False(t, p.Live.IsZero())
			require.Less(t, p.Lag, int64(20))
			require.Less(t, p.LagTime, 100*time.Millisecond)
			require.Less(t, p.Ahead, int64(20))
			require.Less(t, p.NotDurable-b.Status().NotDurable, int64(20))
			require.Less(t, time.Since(p.Last), 100*time.Millisecond)
		}
		time.Sleep(50 * time.Millisecond)
		for db, addr := range map[*replicator.DB]string{a: "b:9000", b: "a:9000"} {
			p := peerOf(t, db, addr)
			require.False(t, p.Live.IsZero())
			require.Zero(t, p.Lag)
			require.Zero(t, p.LagTime)
			require.Zero(t, p.Ahead)
		}
		require.Positive(t, peerOf(t, a, "b:9000").NotDurable)
		require.NoError(t, a.WaitReplicated(t.Context(), 1))
		require.Zero(t, peerOf(t, a, "b:9000").NotDurable)
		require.False(t, peerOf(t, a, "b:9000").Live.IsZero())
	})
}

func TestLagOfALivePeerBeginsWithTheWriteThatItLacks(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		a, _ := livePair(t, nil)
		time.Sleep(1500 * time.Millisecond)
		put(t, a, "k", "w")
		time.Sleep(3 * time.Millisecond)
		p := peerOf(t, a, "b:9000")
		require.False(t, p.Live.IsZero())
		require.EqualValues(t, 1, p.Lag, "it has not reported yet")
		require.LessOrEqual(t, p.LagTime, 3*time.Millisecond)
		time.Sleep(50 * time.Millisecond)
		require.Zero(t, peerOf(t, a, "b:9000").Lag)
	})
}

func TestStatusSaysSinceWhenASessionIsLive(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		a, b := livePair(t, nil)
		since := peerOf(t, a, "b:9000").Live
		require.WithinDuration(t, time.Now(), since, time.Second)
		require.Equal(t, 1, a.Status().Live)
		for i := range 100 {
			put(t, a, fmt.Sprint(i), "v")
			time.Sleep(50 * time.Millisecond)
		}
		require.Equal(t, since, peerOf(t, a, "b:9000").Live)
		s := a.Status()
		require.Equal(t, 10*time.Second, s.Interval, "no rounds are needed")
		require.InDelta(t, 20, s.Velocity, 11)
		require.Positive(t, s.Pushes)
		require.Equal(t, s.Pushes, s.Peers[0].Pushes)
		require.Equal(t, b.Status().Duplicates, peerOf(t, b, "a:9000").Duplicates)
		time.Sleep(time.Minute)
		s = a.Status()
		require.Zero(t, s.Live)
		require.Zero(t, s.Peers[0].Live)
		require.True(t, s.Peers[0].Agrees)
	})
}

func TestWhatGoesOverALiveSessionIsCountedOnce(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		var mu sync.Mutex
		var past []replicator.SessionEvent
		a, b := livePair(t, &replicator.Events{Session: func(e replicator.SessionEvent) {
			mu.Lock()
			defer mu.Unlock()
			past = append(past, e)
		}})
		for i := range 300 {
			put(t, a, fmt.Sprint("a", i), "v")
			put(t, b, fmt.Sprint("b", i), "v")
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(5 * time.Second)
		s := a.Status()
		require.Zero(t, s.Live)
		mu.Lock()
		defer mu.Unlock()
		var sum replicator.Status
		live := 0
		for _, e := range past {
			require.NoError(t, e.Err)
			if e.Live {
				live++
				require.Positive(t, e.BytesIn+e.BytesOut)
			} else {
				sum.Sessions++
			}
			sum.Pulled, sum.Served = sum.Pulled+int64(e.Pulled), sum.Served+int64(e.Served)
			sum.BytesIn, sum.BytesOut = sum.BytesIn+e.BytesIn, sum.BytesOut+e.BytesOut
		}
		require.Positive(t, live)
		p := s.Peers[0]
		require.Equal(t, s.Sessions, sum.Sessions)
		require.EqualValues(t, 301, s.Pulled, "each version once")
		for _, got := range [][]int64{{s.Pulled, s.Served, s.BytesIn, s.BytesOut}, {p.Pulled, p.Served, p.BytesIn, p.BytesOut}} {
			require.Equal(t, []int64{sum.Pulled, sum.Served, sum.BytesIn, sum.BytesOut}, got)
		}
		require.GreaterOrEqual(t, s.BytesIn, b.Status().BytesOut-100, "what the one sent, the other received")
	})
}

func TestDelayIsThatOfTheNetwork(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		n := newCluster(t)
		n.net.Delay(7*time.Millisecond, 7*time.Millisecond)
		a := n.start("a")
		for i := range 100 {
			put(t, a, fmt.Sprint("before", i), "v")
		}
		time.Sleep(time.Minute)
		b := n.start("b", "a:9000")
		c := n.open("c", replicatortest.MemDB(t), &replicator.Options{
			Peers: []string{"a:9000"}, Now: func() time.Time { return time.Now().Add(time.Second) },
		})
		requireAgreement(t, a, b, c)
		require.Empty(t, b.Status().Delays, "what was written before it was opened does not count")
		const writes = 500
		for i := range writes {
			put(t, a, fmt.Sprint(i), "v")
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(time.Second)
		require.Empty(t, a.Status().Delays, "nor does what is written here")
		s := b.Status()
		require.Len(t, s.Delays, 1)
		d := s.Delays[0]
		require.Equal(t, "a", d.Name)
		require.Equal(t, a.Status().Origin, d.Origin)
		require.EqualValues(t, writes, d.Count)
		require.Zero(t, d.Early)
		require.Equal(t, 7*time.Millisecond, d.Quantile(0.5))
		require.Equal(t, replicator.DelayBucket{Bound: 5 * time.Millisecond}, d.Buckets[2])
		require.Equal(t, replicator.DelayBucket{Bound: 10 * time.Millisecond, Count: writes}, d.Buckets[3])
		require.Equal(t, d.Buckets, s.Delay().Buckets)
		s = c.Status()
		require.Equal(t, 1007*time.Millisecond, s.Delay().Quantile(0.5), "its clock is a second ahead")

		put(t, c, "k", "v")
		time.Sleep(time.Second)
		s = a.Status()
		require.Len(t, s.Delays, 1)
		require.EqualValues(t, 1, s.Delays[0].Early)
		require.Zero(t, s.Delays[0].Sum)
	})
}
