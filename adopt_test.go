package replicator_test

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/crashfs"
	"github.com/level-replicator/replicator/replicatortest"
)

func fill(t testing.TB, raw *leveldb.DB, n int) {
	b := new(leveldb.Batch)
	for i := range n {
		b.Put(fmt.Appendf(nil, "k%05d", i), fmt.Append(nil, "v", i))
	}
	require.NoError(t, raw.Write(b, &opt.WriteOptions{Sync: true}))
}

// The mark that adoption is not done must not go before all of it is on disk.
func TestMarkOfAdoptionOutlivesWhatItStandsFor(t *testing.T) {
	const n = 2000
	s := crashfs.New(nil)
	raw, err := leveldb.Open(s, &opt.Options{WriteBuffer: 64 << 10})
	require.NoError(t, err)
	fill(t, raw, n)
	require.NoError(t, raw.Close())
	rec := s.Record()
	replicatortest.Bubble(t, time.Minute, func(t *testing.T) {
		raw, err := leveldb.Open(s, &opt.Options{WriteBuffer: 64 << 10})
		require.NoError(t, err)
		db := newCluster(t).open("a", raw, &replicator.Options{})
		<-db.Ready()
		require.NoError(t, db.Close())
	})
	rng := rand.New(rand.NewPCG(5, 6))
	done := 0
	for op := (rec.First() + 2*rec.Last()) / 3; op <= rec.Last(); op++ {
		mode := crashfs.Modes[op%3]
		raw, err := leveldb.Open(rec.ImageAt(op, mode, rng), nil)
		require.NoError(t, err)
		opened, err := raw.Has([]byte("\xff\xffmformat"), nil)
		require.NoError(t, err)
		marked, err := raw.Has([]byte("\xff\xffmadopt"), nil)
		require.NoError(t, err)
		if opened && !marked {
			done++
			logged := 0
			it := raw.NewIterator(util.BytesPrefix([]byte("\xff\xffi")), nil)
			for it.Next() {
				logged++
			}
			it.Release()
			require.Equal(t, n, logged, "%s, %v", rec.Describe(op), mode)
		}
		require.NoError(t, raw.Close())
	}
	require.NotZero(t, done)
}

func TestAdoptLogsWhatWasWrittenPastTheWrapper(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		raw := replicatortest.MemDB(t)
		var work []replicator.Progress
		a := c.open("a", raw, &replicator.Options{Events: &replicator.Events{Progress: func(p replicator.Progress) { work = append(work, p) }}})
		b := c.start("b", "a:9000")
		put(t, a, "gone", "v")
		put(t, a, "changed", "v")
		put(t, a, "kept", "v")
		requireAgreement(t, a, b)
		work = nil
		require.NoError(t, raw.Delete([]byte("gone"), nil))
		require.NoError(t, raw.Put([]byte("changed"), []byte("w"), nil))
		fill(t, raw, 3000)
		require.NoError(t, a.Adopt(t.Context()))
		require.NoError(t, b.WaitFor(t.Context(), a.Token()))
		require.Equal(t, contents(t, a), contents(t, b))
		require.Equal(t, "-", value(t, b, "gone"))
		require.Equal(t, "w", value(t, b, "changed"))
		require.Len(t, contents(t, b), 3002)
		vs, err := a.Versions([]byte("kept"))
		require.NoError(t, err)
		require.Zero(t, vs[0].Clock, "what was logged is not logged again")
		require.Equal(t, "adopt", work[0].Work)
		require.False(t, work[0].Done)
		require.True(t, work[len(work)-1].Done)
		require.EqualValues(t, 3002, work[len(work)-1].Keys)
		require.Empty(t, a.Status().Work)
	})
}

func TestFollowerTakesWhatOthersWriteAndRefusesWrites(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		f := c.open("f", replicatortest.MemDB(t), &replicator.Options{Follower: true, Peers: []string{"a:9000"}})
		g := c.start("g", "f:9000")
		c.net.Block("a", "g")
		c.net.Block("g", "a")
		put(t, a, "k", "v")
		requireAgreement(t, a, f, g)
		require.Equal(t, "v", value(t, g, "k"), "a follower serves")
		require.ErrorIs(t, f.Put([]byte("k"), nil, nil), replicator.ErrFollower)
		require.ErrorIs(t, f.Delete([]byte("k"), nil), replicator.ErrFollower)
		batch := new(leveldb.Batch)
		require.NoError(t, f.Write(batch, nil))
		batch.Put([]byte("k"), nil)
		require.ErrorIs(t, f.Write(batch, nil), replicator.ErrFollower)
		require.ErrorIs(t, f.Adopt(t.Context()), replicator.ErrFollower)
		_, err := f.OpenTransaction()
		require.ErrorIs(t, err, replicator.ErrFollower)
		require.Equal(t, "v", value(t, f, "k"))
	})
}

func TestReadOnlyServerServesAndTakesNothing(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		var sessions atomic.Int64
		r := c.open("r", replicatortest.MemDB(t), &replicator.Options{Peers: []string{"a:9000"}, Events: &replicator.Events{Session: func(replicator.SessionEvent) { sessions.Add(1) }}})
		put(t, r, "k", "v")
		require.NoError(t, r.SetReadOnly())
		require.Equal(t, leveldb.ErrReadOnly, r.SetReadOnly())
		require.Equal(t, leveldb.ErrReadOnly, r.Put([]byte("k"), nil, nil))
		require.Equal(t, leveldb.ErrReadOnly, r.Adopt(t.Context()))
		_, err := r.OpenTransaction()
		require.Equal(t, leveldb.ErrReadOnly, err)
		require.NoError(t, a.WaitFor(t.Context(), r.Token()))
		require.Equal(t, "v", value(t, a, "k"), "it serves")

		put(t, a, "l", "v")
		before := sessions.Load()
		time.Sleep(10 * time.Minute)
		require.Equal(t, "-", value(t, r, "l"))
		require.Less(t, sessions.Load()-before, int64(400), "it spins")
		s := r.Status()
		require.True(t, s.ReadOnly)
		require.Equal(t, "ok", s.Peers[0].State)
		require.Contains(t, s.Peers[0].Error, "read-only")
		require.NoError(t, r.Close())
	})
}
