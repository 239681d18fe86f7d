package replicator_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/crashfs"
	"github.com/level-replicator/replicator/internal/fuzzing"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// disks are replicas on storages whose power can fail.
type disks struct {
	*cluster
	stores []*crashfs.Storage
	dbs    []*replicator.DB
}

func newDisks(t testing.TB, n int, o func(i int) *replicator.Options) *disks {
	d := &disks{cluster: newCluster(t)}
	for i := range n {
		d.stores = append(d.stores, crashfs.New(nil))
		raw, err := leveldb.Open(d.stores[i], &opt.Options{WriteBuffer: 256 << 10})
		require.NoError(t, err)
		oo := o(i)
		if i > 0 {
			oo.Peers = []string{"n0:9000"}
		}
		d.dbs = append(d.dbs, d.open(fmt.Sprintf("n%d", i), raw, oo))
	}
	return d
}

// holders counts the replicas, but for one, on whose disk a key is after a power
// failure now.
func (d *disks) holders(key string, but int, mode crashfs.Mode, rng *rand.Rand) (n int) {
	for i, s := range d.stores {
		if i == but {
			continue
		}
		raw, err := leveldb.Open(s.Image(mode, rng), nil)
		require.NoError(d.t, err)
		ok, err := raw.Has([]byte(key), nil)
		require.NoError(d.t, err)
		if ok {
			n++
		}
		require.NoError(d.t, raw.Close())
	}
	return n
}

func plain(int) *replicator.Options { return &replicator.Options{} }

func TestReplicatedWriteSurvivesTheLossOfAnyReplica(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		// Two of the five write with Sync what they pull, the others do not.
		d := newDisks(t, 5, func(i int) *replicator.Options { return &replicator.Options{Sync: i%2 == 1} })
		for i := range 8 {
			w := i % 5
			key := fmt.Sprint("k", i)
			put(t, d.dbs[(i+1)%5], fmt.Sprint("noise", i), "written without Sync at another replica")
			put(t, d.dbs[w], key, "v")
			start := time.Now()
			require.NoError(t, d.dbs[w].WaitReplicated(t.Context(), 2))
			require.Less(t, time.Since(start), 200*time.Millisecond, "it waited for a round")
			for _, mode := range crashfs.Modes {
				require.GreaterOrEqual(t, d.holders(key, w, mode, rng), 2, "%s after %v", key, mode)
			}
		}
	})
}

// What the peers have pulled long ago without Sync, they must bring to disk when
// they are asked, although there is nothing else to talk about.
func TestWhatPeersHoldInMemoryIsBroughtToDisk(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		d := newDisks(t, 3, plain)
		put(t, d.dbs[0], "first", "the name of a new origin is written with Sync")
		requireAgreement(t, d.dbs...)
		for i := range 3 {
			time.Sleep(time.Minute) // until they write no longer with Sync for who asked before
			key := fmt.Sprint("k", i)
			put(t, d.dbs[0], key, "v")
			requireAgreement(t, d.dbs...)
			time.Sleep(time.Minute)
			require.Zero(t, d.holders(key, 0, crashfs.DropUnsynced, nil), "the test shows nothing")
			require.NoError(t, d.dbs[0].WaitReplicated(t.Context(), 2))
			require.Equal(t, 2, d.holders(key, 0, crashfs.DropUnsynced, nil))
		}
	})
}

func TestReplicatedWriteIsTakenBackFromThePeersAfterALoss(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		d := newDisks(t, 3, plain)
		put(t, d.dbs[0], "k", "v")
		require.NoError(t, d.dbs[0].WaitReplicated(t.Context(), 2))
		// The power of all fails, and the writer's disk is gone.
		left := []*crashfs.Storage{d.stores[1].Image(crashfs.DropUnsynced, nil), d.stores[2].Image(crashfs.DropUnsynced, nil)}
		for _, db := range d.dbs {
			require.NoError(t, db.Close())
		}
		again := []*replicator.DB{d.start("n0")}
		for i, s := range left {
			raw, err := leveldb.Open(s, nil)
			require.NoError(t, err)
			again = append(again, d.open(fmt.Sprint("n", i+1), raw, &replicator.Options{Peers: []string{"n0:9000"}}))
		}
		requireAgreement(t, again...)
		require.Equal(t, "v", value(t, again[0], "k"))
	})
}

func TestTooFewPeersEndWithTheContextAndTheirNumber(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		d := newDisks(t, 4, plain)
		put(t, d.dbs[1], "k", "v")
		requireAgreement(t, d.dbs...)
		d.net.Partition([]string{"n0", "n1"}, []string{"n2", "n3"})
		put(t, d.dbs[1], "k", "w")
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		err := d.dbs[1].WaitReplicated(ctx, 2)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		var few *replicator.NotReplicatedError
		require.ErrorAs(t, err, &few)
		require.Equal(t, 1, few.Have)
		require.Equal(t, 2, few.Want)
		require.Contains(t, err.Error(), "1 of 2 peers")
		require.Equal(t, "w", value(t, d.dbs[1], "k"))

		d.net.Heal()
		require.NoError(t, d.dbs[1].WaitReplicated(t.Context(), 3))
	})
}

func TestReopenedOrReplacedPeerCountsOnce(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		d := newDisks(t, 2, plain)
		put(t, d.dbs[0], "k", "v")
		require.NoError(t, d.dbs[0].WaitReplicated(t.Context(), 1))
		few := func() int {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			err := d.dbs[0].WaitReplicated(ctx, 2)
			var few *replicator.NotReplicatedError
			require.ErrorAs(t, err, &few)
			return few.Have
		}
		require.NoError(t, d.dbs[1].Close())
		raw, err := leveldb.Open(d.stores[1], nil)
		require.NoError(t, err)
		again := d.open("n1", raw, &replicator.Options{Peers: []string{"n0:9000"}})
		require.NoError(t, again.Sync(t.Context()))
		require.Equal(t, 1, few())
		require.NoError(t, again.Close())
		d.start("n1", "n0:9000") // with a new disk
		require.Equal(t, 1, few())
	})
}

func TestWaitReplicatedWaitsForNothingThatIsThere(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		d := newDisks(t, 3, plain)
		put(t, d.dbs[0], "k", "v")
		require.NoError(t, d.dbs[0].WaitReplicated(t.Context(), 2))
		synctest.Wait() // the session that brought the report is counted when it ends
		sessions := d.dbs[0].Status().Sessions
		require.NoError(t, d.dbs[0].WaitReplicated(t.Context(), 2))
		require.NoError(t, d.dbs[0].WaitReplicated(t.Context(), 0))
		require.Equal(t, sessions, d.dbs[0].Status().Sessions)
		require.NoError(t, d.dbs[0].Close())
		require.Equal(t, leveldb.ErrClosed, d.dbs[0].WaitReplicated(t.Context(), 0))
		require.Equal(t, leveldb.ErrClosed, d.dbs[0].WaitReplicated(t.Context(), 1))
	})
}

func TestWaitEndsWithClose(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		put(t, a, "k", "v")
		other := c.start("b")
		put(t, other, "k", "v")
		ends := make(chan error, 2)
		go func() { ends <- a.WaitReplicated(t.Context(), 1) }()
		go func() { ends <- a.WaitFor(t.Context(), other.Token()) }()
		time.Sleep(time.Second)
		require.NoError(t, a.Close())
		require.Equal(t, leveldb.ErrClosed, <-ends)
		require.Equal(t, leveldb.ErrClosed, <-ends)
	})
}

// A peer that cannot take anything must not be asked without pause.
func TestWaitingForAReadOnlyPeerDoesNotSpin(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b", "a:9000")
		put(t, a, "k", "v")
		requireAgreement(t, a, b)
		require.NoError(t, b.SetReadOnly())
		put(t, a, "k", "w")
		before := a.Status().Sessions
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.ErrorIs(t, a.WaitReplicated(ctx, 1), context.DeadlineExceeded)
		require.Less(t, a.Status().Sessions-before, int64(400))
	})
}

func TestWaitForReturnsOnceTheWriteCanBeRead(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b, d := c.start("a"), c.start("b", "a:9000"), c.start("d", "b:9000")
		c.net.Delay(time.Millisecond, 40*time.Millisecond)
		for i := range 100 {
			from, to := []*replicator.DB{a, b, d}[i%3], []*replicator.DB{a, b, d}[(i/3)%3]
			key := fmt.Sprint("k", i%7)
			put(t, from, key, fmt.Sprint(i))
			text := from.Token().String()
			token, err := replicator.ParseToken(text)
			require.NoError(t, err)
			require.NoError(t, to.WaitFor(t.Context(), token))
			require.Equal(t, fmt.Sprint(i), value(t, to, key), "the token was %d bytes", len(text))
		}
	})
}

func TestWaitForIsNotEarly(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b", "a:9000")
		put(t, a, "k", "v")
		requireAgreement(t, a, b)
		require.NoError(t, b.WaitFor(t.Context(), replicator.Token{}))
		c.net.Partition([]string{"a"}, []string{"b"})
		put(t, a, "k", "w")
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err := b.WaitFor(ctx, a.Token())
		require.ErrorIs(t, err, context.DeadlineExceeded)
		done := make(chan error, 1)
		go func() { done <- b.WaitFor(t.Context(), a.Token()) }()
		time.Sleep(time.Second)
		require.Empty(t, done)
		c.net.Heal()
		require.NoError(t, <-done)
		require.Equal(t, "w", value(t, b, "k"))
	})
}

func TestMalformedTokenIsRefused(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		put(t, a, "k", "v")
		text := a.Token().String()
		for _, bad := range []string{"", "!", text[:len(text)-2], text + "AAAA", strings.ToLower(text) + "=", "AQ" + text, text + "\n", "\r" + text} {
			_, err := replicator.ParseToken(bad)
			require.ErrorIs(t, err, replicator.ErrToken, "%q", bad)
		}
		var out replicator.Token
		js, err := json.Marshal(a.Token())
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(js, &out))
		require.Equal(t, text, out.String())
	})
}

// Over real connections, with real time.
func TestWaitingOverTCP(t *testing.T) {
	start := func(peers ...string) *replicator.DB {
		db, err := replicator.Replicate(replicatortest.MemDB(t), &replicator.Options{Listen: "127.0.0.1:0", Peers: peers, Logger: quiet})
		require.NoError(t, err)
		t.Cleanup(func() { db.Close() })
		return db
	}
	a := start()
	b, c := start(a.Addr().String()), start(a.Addr().String())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i := range 5 {
		put(t, a, "k", fmt.Sprint(i))
		require.NoError(t, a.WaitReplicated(ctx, 2))
		require.Equal(t, fmt.Sprint(i), value(t, b, "k"))
		put(t, c, "l", fmt.Sprint(i))
		require.NoError(t, b.WaitFor(ctx, c.Token()))
		require.Equal(t, fmt.Sprint(i), value(t, b, "l"))
	}
	cancelled, stop := context.WithCancel(ctx)
	stop()
	require.True(t, errors.Is(a.WaitReplicated(cancelled, 5), context.Canceled))
}

var quiet = slog.New(slog.DiscardHandler)

// killed opens what the end of the process, or of the power, leaves of an open database.
func (c *cluster) killed(name string, db *replicator.DB, s *crashfs.Storage, mode crashfs.Mode, peers ...string) *replicator.DB {
	image := s.Image(mode, nil)
	require.NoError(c.t, db.Close())
	raw, err := leveldb.Open(image, nil)
	require.NoError(c.t, err)
	return c.open(name, raw, &replicator.Options{Peers: peers})
}

// A write that was not synced is issued again after a crash, if it is still there, under
// a name that its token does not know. Whoever waits for it is told.
// design.md: O5
func TestTokenOfAWriteThatACrashTookTheNameOfIsLost(t *testing.T) {
	for _, mode := range []crashfs.Mode{crashfs.Everything, crashfs.DropUnsynced} {
		replicatortest.Bubble(t, 0, func(t *testing.T) {
			c := newCluster(t)
			b := c.start("b", "a:9000")
			s := crashfs.New(nil)
			raw, err := leveldb.Open(s, nil)
			require.NoError(t, err)
			a := c.open("a", raw, &replicator.Options{})
			require.NoError(t, a.Put([]byte("first"), []byte("v"), &opt.WriteOptions{Sync: true}))
			requireAgreement(t, a, b)
			first := a.WriteToken()
			c.net.Partition([]string{"a"}, []string{"b"})
			time.Sleep(10*time.Second + 50*time.Millisecond) // when nothing else is committed, with Sync perhaps
			put(t, a, "k", "w")
			tokens := []replicator.Token{a.Token(), a.WriteToken()}
			waiting := make(chan error, 1)
			go func() { waiting <- b.WaitFor(t.Context(), tokens[0]) }()
			time.Sleep(time.Minute)
			require.Empty(t, waiting, "it may still come")
			a = c.killed("a", a, s, mode, "b:9000")
			c.net.Heal()
			require.ErrorIs(t, <-waiting, replicator.ErrTokenLost)
			for _, db := range []*replicator.DB{a, b} {
				for _, token := range tokens {
					start := time.Now()
					require.ErrorIs(t, db.WaitFor(t.Context(), token), replicator.ErrTokenLost)
					require.Less(t, time.Since(start), 5*time.Second)
				}
				require.NoError(t, db.WaitFor(t.Context(), first))
				require.NoError(t, db.WaitFor(t.Context(), a.Token()))
				require.Equal(t, map[crashfs.Mode]string{crashfs.Everything: "w", crashfs.DropUnsynced: "-"}[mode], value(t, db, "k"))
			}
		})
	}
}

// A write with Sync keeps its name, although what is pulled is not synced.
// design.md: O6
func TestTokenOfASyncedWriteOutlivesACrash(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		b := c.start("b", "a:9000")
		s := crashfs.New(nil)
		raw, err := leveldb.Open(s, nil)
		require.NoError(t, err)
		a := c.open("a", raw, &replicator.Options{})
		put(t, b, "pulled", "without Sync")
		requireAgreement(t, a, b)
		put(t, b, "pulled", "without Sync, again")
		requireAgreement(t, a, b)
		c.net.Partition([]string{"a"}, []string{"b"})
		require.NoError(t, a.Put([]byte("k"), []byte("w"), &opt.WriteOptions{Sync: true}))
		require.NotZero(t, a.Status().NotDurable, "the test shows nothing")
		token := a.Token()
		a = c.killed("a", a, s, crashfs.DropUnsynced, "b:9000")
		c.net.Heal()
		for _, db := range []*replicator.DB{a, b} {
			require.NoError(t, db.WaitFor(t.Context(), token))
			require.Equal(t, "w", value(t, db, "k"))
		}
		v, err := b.Versions([]byte("k"))
		require.NoError(t, err)
		require.EqualValues(t, 1, v[0].Seq)
	})
}

// What a peer pulled before the crash is not lost, however late it answers; nor is what
// the original still writes of which a copy was opened.
// design.md: O5
func TestTokenIsNotLostWhileSomebodyHasTheWrite(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		s := crashfs.New(nil)
		raw, err := leveldb.Open(s, nil)
		require.NoError(t, err)
		a := c.open("a", raw, &replicator.Options{})
		put(t, a, "first", "v")
		image := s.Image(crashfs.Everything, nil)
		put(t, a, "k", "w")
		token := a.Token()
		raw, err = leveldb.Open(image, nil)
		require.NoError(t, err)
		c.net.Delay(300*time.Millisecond, 900*time.Millisecond)
		x := c.open("copy", raw, &replicator.Options{Peers: []string{"a:9000"}})
		require.NoError(t, x.WaitFor(t.Context(), token))
		require.Equal(t, "w", value(t, x, "k"))
	})
}

func TestTokenIsLostWithoutPeersToo(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		s := crashfs.New(nil)
		raw, err := leveldb.Open(s, nil)
		require.NoError(t, err)
		a := c.open("a", raw, &replicator.Options{})
		require.Equal(t, replicator.Token{}, a.WriteToken())
		<-a.Ready()
		time.Sleep(10*time.Second + 50*time.Millisecond) // when nothing else is committed, with Sync perhaps
		put(t, a, "k", "w")
		token := a.Token()
		require.Equal(t, token, a.WriteToken())
		require.NoError(t, a.WaitFor(t.Context(), token))
		a = c.killed("a", a, s, crashfs.Everything)
		require.ErrorIs(t, a.WaitFor(t.Context(), token), replicator.ErrTokenLost)
		require.Equal(t, "w", value(t, a, "k"))
		require.NoError(t, a.WaitFor(t.Context(), a.Token()))
	})
}

// A token of the writes of one opening is as small after 300 of them.
func TestWriteTokenStaysSmall(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		stor := storage.NewMemStorage()
		var a *replicator.DB
		for i := range 300 {
			raw, err := leveldb.Open(stor, nil)
			require.NoError(t, err)
			a = c.open("a", raw, &replicator.Options{})
			put(t, a, "k", fmt.Sprint(i))
			if i < 299 {
				require.NoError(t, a.Close())
			}
		}
		require.Greater(t, len(a.Token().String()), 6000)
		require.LessOrEqual(t, len(a.WriteToken().String()), 36)
		b := c.start("b", "a:9000")
		require.NoError(t, b.WaitFor(t.Context(), a.WriteToken()))
		require.Equal(t, "299", value(t, b, "k"))
	})
}

// Who takes nothing any more says so, to whoever waits and to whoever syncs.
func TestReadOnlyReplicaEndsWaitsAndSyncsWithAnError(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, r := c.start("a"), c.start("r", "a:9000")
		put(t, a, "k", "v")
		requireAgreement(t, a, r)
		c.net.Partition([]string{"a"}, []string{"r"})
		put(t, a, "k", "w")
		token := a.Token()
		waiting := make(chan error, 1)
		go func() { waiting <- r.WaitFor(t.Context(), token) }()
		time.Sleep(time.Second)
		require.Empty(t, waiting)
		require.NoError(t, r.SetReadOnly())
		require.ErrorIs(t, <-waiting, leveldb.ErrReadOnly)
		c.net.Heal()
		time.Sleep(time.Minute)
		require.ErrorIs(t, r.WaitFor(t.Context(), token), leveldb.ErrReadOnly)
		require.NoError(t, r.WaitFor(t.Context(), r.Token()), "nothing is missing")
		require.ErrorIs(t, r.Sync(t.Context()), leveldb.ErrReadOnly)
		var step *replicator.PeerError
		require.ErrorAs(t, a.Sync(t.Context()), &step)
		require.Equal(t, replicator.OpServe, step.Op)
		require.ErrorContains(t, step, "takes nothing")
		require.Equal(t, "v", value(t, r, "k"))
	})
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, r := c.start("a"), c.start("r", "a:9000")
		put(t, a, "k", "v")
		requireAgreement(t, a, r)
		require.NoError(t, r.SetReadOnly())
		require.NoError(t, r.Sync(t.Context()), "there was nothing to take")
		require.NoError(t, a.Sync(t.Context()))
	})
}

// slowDisk is a storage whose Sync takes long.
type slowDisk struct {
	storage.Storage
	takes time.Duration
	syncs *atomic.Int64
}

func (d slowDisk) Create(fd storage.FileDesc) (storage.Writer, error) {
	w, err := d.Storage.Create(fd)
	return slowFile{w, d}, err
}

type slowFile struct {
	storage.Writer
	slowDisk
}

func (f slowFile) Sync() error {
	f.syncs.Add(1)
	time.Sleep(f.takes)
	return f.Writer.Sync()
}

// A peer that holds in memory what is waited for writes it again with Sync: at most
// one sync for what it pulls now, and one for what it has pulled before. The upkeep of its store,
// which goes on meanwhile, may take one in between.
func TestWaitReplicatedTakesTwoSyncsOfAPeerAtMost(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, other := c.start("a"), c.start("other", "a:9000")
		var syncs atomic.Int64
		raw, err := leveldb.Open(slowDisk{storage.NewMemStorage(), 12 * time.Second, &syncs}, nil)
		require.NoError(t, err)
		b := c.open("b", raw, &replicator.Options{Peers: []string{"a:9000"}})
		put(t, a, "k", "v")
		put(t, other, "k", "w")
		requireAgreement(t, a, other, b)
		for i := range 6 {
			time.Sleep(5 * time.Minute) // until it writes no longer with Sync for who asked before
			put(t, a, "k", fmt.Sprint(i))
			put(t, other, "l", fmt.Sprint(i))
			if i%2 == 1 {
				requireAgreement(t, a, other, b)
				time.Sleep(time.Second)
			}
			syncs.Store(0)
			start := time.Now()
			require.NoError(t, a.WaitReplicated(t.Context(), 2))
			require.LessOrEqual(t, time.Since(start), 36*time.Second)
			require.LessOrEqual(t, syncs.Load(), int64(3))
		}
	})
}

// What is in doubt is written again as it is, and nobody takes that for news.
func TestWhatIsWrittenAgainForAReportIsNoNews(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		conflicts := 0
		raw := replicatortest.MemDB(t)
		b := c.open("b", raw, &replicator.Options{Events: &replicator.Events{Conflict: func([]byte, []replicator.Version) { conflicts++ }}})
		put(t, a, "k", "a")
		put(t, b, "k", "b")
		put(t, a, "gone", "v")
		require.NoError(t, a.Delete([]byte("gone"), nil))
		require.NoError(t, b.AddPeer("a:9000"))
		requireAgreement(t, a, b)
		require.NoError(t, raw.Put([]byte("k"), []byte("past it"), nil))
		time.Sleep(time.Minute)
		recent, before := b.Status().Recent, conflicts
		require.Equal(t, 1, before)
		require.NoError(t, a.WaitReplicated(t.Context(), 1))
		require.Equal(t, recent, b.Status().Recent)
		require.Equal(t, before, conflicts)
		require.Equal(t, "past it", value(t, b, "k"), "that is for Adopt to decide about")
	})
}

// Writes of local keys are nowhere logged, so only a flush brings them to disk.
func TestReportForAPeerLeavesNoLocalWriteBehind(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		d := newDisks(t, 2, func(int) *replicator.Options { return &replicator.Options{LocalRanges: localRange("local/")} })
		put(t, d.dbs[0], "k", "v")
		requireAgreement(t, d.dbs...)
		time.Sleep(time.Minute)
		put(t, d.dbs[1], "local/k", "v")
		put(t, d.dbs[0], "k", "w")
		require.NoError(t, d.dbs[0].WaitReplicated(t.Context(), 1))
		require.NoError(t, d.dbs[1].Close())
		require.Equal(t, 1, d.holders("local/k", 0, crashfs.DropUnsynced, nil))
	})
}

func FuzzToken(f *testing.F) {
	c := &fuzzing.Corpus{F: f}
	c.Add("AQ")
	c.Add("AQAAAAAAAAAAAAAAAAAAAAAB")
	fuzzing.Run1(c, func(t testing.TB, text string) {
		if token, err := replicator.ParseToken(text); err == nil {
			require.Equal(t, text, token.String())
		}
	})
}
