package replicator_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
)

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
