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
