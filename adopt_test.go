package replicator_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/crashfs"
	"github.com/level-replicator/replicator/internal/testdb"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"
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
		require.Equal(t, testdb.Contents(t, a), testdb.Contents(t, b))
		require.Equal(t, "-", value(t, b, "gone"))
		require.Equal(t, "w", value(t, b, "changed"))
		require.Len(t, testdb.Contents(t, b), 3002)
		vs, err := a.Versions([]byte("kept"))
		require.NoError(t, err)
		require.Zero(t, vs[0].Clock, "what was logged is not logged again")
		require.Equal(t, replicator.WorkAdopt, work[0].Work)
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

func TestReadOnlyReplicaServesAndTakesNothing(t *testing.T) {
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
		require.Equal(t, replicator.PeerOK, s.Peers[0].State)
		require.Contains(t, s.Peers[0].Error, "read-only")
		require.NoError(t, r.Close())
	})
}

// Of a key in conflict, too, what was written past the wrapper is logged: while it is
// open, and while it was closed, whatever its resolver would show.
// design.md: M9
func TestAdoptLogsWhatWasWrittenPastAKeyInConflict(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		stor := storage.NewMemStorage()
		raw, err := leveldb.Open(stor, nil)
		require.NoError(t, err)
		keys := []string{"changed", "closed", "deleted", "equal", "gone", "left", "shown deleted"}
		a, b := c.open("a", raw, &replicator.Options{}), c.start("b")
		for _, k := range keys {
			put(t, a, k, "v of a")
			put(t, b, k, "v of b")
		}
		put(t, b, "equal", "v of a")
		require.NoError(t, b.Delete([]byte("shown deleted"), nil))
		put(t, b, "shown deleted", "again")
		require.NoError(t, b.Delete([]byte("shown deleted"), nil))
		require.NoError(t, a.AddPeer("b:9000"))
		requireAgreement(t, a, b)
		require.Equal(t, "-", value(t, a, "shown deleted"))
		for _, k := range []string{"changed", "equal", "shown deleted"} {
			require.NoError(t, raw.Put([]byte(k), []byte("past it"), nil))
		}
		require.NoError(t, raw.Delete([]byte("deleted"), nil))
		before, err := a.Versions([]byte("left"))
		require.NoError(t, err)
		require.Len(t, before, 2)
		report, err := a.Verify(t.Context())
		require.NoError(t, err)
		require.Len(t, report.Faults, 4)
		require.NoError(t, a.Adopt(t.Context()))
		requireAgreement(t, a, b)
		for _, k := range []string{"changed", "equal", "shown deleted"} {
			require.Equal(t, "past it", value(t, b, k), k)
		}
		require.Equal(t, "-", value(t, b, "deleted"))
		require.EqualValues(t, 3, b.Status().Conflicts, "nobody decided about the others")

		require.NoError(t, a.Close())
		raw, err = leveldb.Open(stor, nil)
		require.NoError(t, err)
		require.NoError(t, raw.Put([]byte("closed"), []byte("past it"), nil))
		require.NoError(t, raw.Delete([]byte("gone"), nil))
		require.NoError(t, raw.Put([]byte("\xff\xffxleft"), nil, nil)) // as an earlier release wrote it
		shorter := func(_ []byte, x, y replicator.Version) replicator.Version {
			return replicator.Version{Value: []byte("both")}
		}
		a = c.open("a", raw, &replicator.Options{Peers: []string{"b:9000"}, Resolver: shorter})
		require.Equal(t, "both", value(t, a, "left"), "another resolver decides again")
		require.Equal(t, "past it", value(t, a, "closed"), "and not about what it did not show")
		require.NoError(t, a.Adopt(t.Context()))
		require.NoError(t, b.WaitFor(t.Context(), a.Token()))
		require.Equal(t, "past it", value(t, b, "closed"))
		require.Equal(t, "-", value(t, b, "gone"))
		after, err := a.Versions([]byte("left"))
		require.NoError(t, err)
		require.Equal(t, before, after, "what is logged already is left alone")
		report, err = a.Verify(t.Context())
		require.NoError(t, err)
		require.Empty(t, report.Faults)
	})
}

// design.md: O7
func TestFollowerIsRefusedOverDataThatWasNeverLogged(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		put(t, a, "k", "of the master")
		stor := storage.NewMemStorage()
		raw, err := leveldb.Open(stor, nil)
		require.NoError(t, err)
		require.NoError(t, raw.Put([]byte("local/k"), []byte("v"), nil))
		follower := func() (*replicator.DB, error) {
			h := c.net.Host("f")
			l, err := h.Listen("9000")
			require.NoError(t, err)
			defer l.Close()
			return replicator.Replicate(raw, &replicator.Options{Follower: true, Listener: l, Dial: h.Dial, Insecure: true, Peers: []string{"a:9000"}, LocalRanges: localRange("local/"), Logger: quiet})
		}
		require.NoError(t, raw.Put([]byte("k"), []byte("stale"), nil))
		_, err = follower()
		require.ErrorContains(t, err, "Options.Follower: the handle holds data that was never logged")
		require.NoError(t, raw.Delete([]byte("k"), nil))
		f := c.open("f", raw, &replicator.Options{Follower: true, Peers: []string{"a:9000"}, LocalRanges: localRange("local/")})
		require.NoError(t, f.Sync(t.Context()))
		require.Equal(t, map[string]string{"k": "of the master", "local/k": "v"}, testdb.Contents(t, f))
		require.NoError(t, f.Close())

		// An adoption that was cut off is one of data that was never logged.
		raw, err = leveldb.Open(stor, nil)
		require.NoError(t, err)
		require.NoError(t, raw.Put([]byte("\xff\xffmadopt"), []byte{1}, nil))
		_, err = follower()
		require.ErrorContains(t, err, "Options.Follower: the handle holds data that was never logged")
		require.NoError(t, raw.Close())
		require.Equal(t, "of the master", value(t, a, "k"))
	})
}

// design.md: O8
func TestLocalRangesStayAsTheyWereWhenTheDatabaseWasMade(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		stor := storage.NewMemStorage()
		open := func() *leveldb.DB {
			raw, err := leveldb.Open(stor, nil)
			require.NoError(t, err)
			return raw
		}
		with := func(ranges ...*util.Range) *replicator.Options { return &replicator.Options{LocalRanges: ranges} }
		r := func(start, limit string) *util.Range { return &util.Range{Start: []byte(start), Limit: []byte(limit)} }
		require.NoError(t, c.open("a", open(), with(r("l", "m"), r("x", "y"))).Close())
		for i, other := range []*replicator.Options{with(), with(r("l", "m")), with(r("l", "n"), r("x", "y")), with(r("l", "m"), r("x", "z"))} {
			raw := open()
			l, err := c.net.Host(fmt.Sprint("other", i)).Listen("9000")
			require.NoError(t, err)
			other.Listener, other.Insecure, other.Logger = l, true, quiet
			_, err = replicator.Replicate(raw, other)
			require.ErrorContains(t, err, `want "l" to "m", "x" to "y"`)
			require.NoError(t, raw.Close())
			require.NoError(t, l.Close())
		}
		require.NoError(t, c.open("b", open(), with(r("x", "y"), r("lx", "m"), r("l", "lxx"), r("q", "p"))).Close(), "the same keys")

		raw := open() // of a release that did not keep them
		require.NoError(t, raw.Delete([]byte("\xff\xffmlocal"), nil))
		require.NoError(t, c.open("d", raw, with(&util.Range{Start: []byte("z")})).Close())
		require.NoError(t, c.open("e", open(), with(&util.Range{Start: []byte("z"), Limit: []byte{0xff, 0xff}})).Close())
	})
}

// The mark of an earlier release does not say what a key in conflict shows; the
// resolver does.
func TestAdoptLogsWhatWasWrittenPastAKeyInConflictOfAnEarlierRelease(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		raw := replicatortest.MemDB(t)
		a, b := c.open("a", raw, &replicator.Options{}), c.start("b")
		for _, k := range []string{"changed", "left"} {
			put(t, a, k, "v of a")
			put(t, b, k, "v of b")
		}
		require.NoError(t, a.AddPeer("b:9000"))
		requireAgreement(t, a, b)
		for _, k := range []string{"changed", "left"} {
			require.NoError(t, raw.Put([]byte("\xff\xffx"+k), nil, nil))
		}
		require.NoError(t, raw.Put([]byte("changed"), []byte("past it"), nil))
		require.NoError(t, a.Adopt(t.Context()))
		requireAgreement(t, a, b)
		require.Equal(t, "past it", value(t, b, "changed"))
		require.EqualValues(t, 1, a.Status().Conflicts)
	})
}

func localRange(prefix string) []*util.Range { return []*util.Range{util.BytesPrefix([]byte(prefix))} }

// A crash anywhere in the first adoption leaves nothing unlogged for good.
func TestAdoptionGoesOnAfterACrash(t *testing.T) {
	const keys = 3000
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		stor := crashfs.New(nil)
		raw, err := leveldb.Open(stor, &opt.Options{WriteBuffer: 64 << 10})
		require.NoError(t, err)
		for i := range keys {
			require.NoError(t, raw.Put(fmt.Appendf(nil, "%05d", i), []byte("v"), &opt.WriteOptions{Sync: i == keys-1}))
		}
		require.NoError(t, raw.CompactRange(util.Range{}))
		rec := stor.Record()
		a := c.open("a", raw, &replicator.Options{})
		<-a.Ready()
		last := rec.Last()
		require.NoError(t, a.Close())
		rng := rand.New(rand.NewPCG(1, 2))
		for n := range 12 {
			op := rec.First() + (last-rec.First())*n/11
			mode := crashfs.Modes[n%len(crashfs.Modes)]
			raw, err := leveldb.Open(rec.ImageAt(op, mode, rng), &opt.Options{WriteBuffer: 64 << 10})
			require.NoError(t, err)
			again := c.open(fmt.Sprint("again", n), raw, &replicator.Options{})
			<-again.Ready()
			require.EqualValues(t, keys, again.Status().Keys, "%s at operation %d of %d", mode, op, last)
			require.NoError(t, again.Close())
		}
	})
}

func TestEqualDataOnSeveralReplicasIsNoConflict(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		var dbs []*replicator.DB
		for _, name := range []string{"a", "b", "d"} {
			raw := replicatortest.MemDB(t)
			for i := range 500 {
				require.NoError(t, raw.Put(fmt.Append(nil, i), []byte("the same"), nil))
			}
			dbs = append(dbs, c.open(name, raw, &replicator.Options{Peers: []string{"a:9000", "b:9000"}}))
		}
		requireAgreement(t, dbs...)
		for _, db := range dbs {
			require.Zero(t, db.Status().Conflicts)
			require.Len(t, testdb.Contents(t, db), 500)
			for range db.Conflicts(context.Background()) {
				t.Fatal("equal content is no conflict")
			}
		}
	})
}

func TestAdoptLogsChangesMadeOnTheHandle(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		raw := replicatortest.MemDB(t)
		a := c.open("a", raw, &replicator.Options{})
		b := c.start("b", "a:9000")
		for _, k := range []string{"changed", "deleted", "left alone"} {
			put(t, a, k, "logged")
		}
		requireAgreement(t, a, b)
		require.NoError(t, raw.Put([]byte("changed"), []byte("past it"), nil))
		require.NoError(t, raw.Put([]byte("new"), []byte("past it"), nil))
		require.NoError(t, raw.Delete([]byte("deleted"), nil))
		before, err := a.Versions([]byte("left alone"))
		require.NoError(t, err)
		require.NoError(t, a.Adopt(context.Background()))
		requireAgreement(t, a, b)
		require.Equal(t, map[string]string{"changed": "past it", "new": "past it", "left alone": "logged"}, testdb.Contents(t, b))
		after, err := a.Versions([]byte("left alone"))
		require.NoError(t, err)
		require.Equal(t, before, after, "what is logged already is left alone")
	})
}
