package replicator_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/testdb"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"go.uber.org/goleak"
)

// cluster makes replicas on an in-memory network.
type cluster struct {
	t   testing.TB
	net *replicatortest.Network
}

func newCluster(t testing.TB) *cluster {
	return &cluster{t, replicatortest.NewNetwork(1)}
}

// start opens a replica over a new database in memory.
func (c *cluster) start(name string, peers ...string) *replicator.DB {
	return c.open(name, replicatortest.MemDB(c.t), &replicator.Options{Peers: peers})
}

func (c *cluster) open(name string, raw *leveldb.DB, o *replicator.Options) *replicator.DB {
	c.t.Helper()
	h := c.net.Host(name)
	l, err := h.Listen("9000")
	require.NoError(c.t, err)
	o.Name, o.Listener, o.Dial, o.Insecure = name, l, h.Dial, true
	o.Logger = slog.New(slog.DiscardHandler)
	db, err := replicator.Replicate(raw, o)
	require.NoError(c.t, err)
	c.t.Cleanup(func() { db.Close() })
	return db
}

// requireAgreement waits, in virtual time, until all replicas hold the same, and
// compares them byte for byte.
func requireAgreement(t testing.TB, dbs ...*replicator.DB) {
	t.Helper()
	for range 600 {
		same := true
		for _, db := range dbs[1:] {
			same = same && db.Digest() == dbs[0].Digest()
		}
		if same {
			want := testdb.Contents(t, dbs[0])
			for _, db := range dbs[1:] {
				require.Equal(t, want, testdb.Contents(t, db))
			}
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("the replicas do not agree after a minute")
}

func put(t testing.TB, db *replicator.DB, key, value string) {
	t.Helper()
	require.NoError(t, db.Put([]byte(key), []byte(value), nil))
}

func value(t testing.TB, db *replicator.DB, key string) string {
	t.Helper()
	v, err := db.Get([]byte(key), nil)
	if errors.Is(err, leveldb.ErrNotFound) {
		return "-"
	}
	require.NoError(t, err)
	return string(v)
}

func TestThreeReplicasInALineAgreeByteForByte(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b, d := c.start("a"), c.start("b", "a:9000"), c.start("d", "b:9000")
		c.net.Block("a", "d")
		c.net.Block("d", "a")
		for i := range 100 {
			for _, db := range []*replicator.DB{a, b, d} {
				put(t, db, fmt.Sprintf("%s/%d", db.Status().Name, i), "v")
				put(t, db, fmt.Sprintf("shared/%d", i), db.Status().Name)
			}
		}
		require.NoError(t, d.Delete([]byte("d/7"), nil))
		requireAgreement(t, a, b, d)
		require.Equal(t, "-", value(t, a, "d/7"))
		require.Len(t, testdb.Contents(t, a), 399)
	})
}

func TestReplicaThatWasAwayCatchesUp(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b", "a:9000")
		stay := storage.NewMemStorage()
		raw, err := leveldb.Open(stay, nil)
		require.NoError(t, err)
		d := c.open("d", raw, &replicator.Options{Peers: []string{"a:9000"}})
		put(t, d, "before", "d")
		requireAgreement(t, a, b, d)
		require.NoError(t, d.Close())
		put(t, a, "before", "a")
		for i := range 500 {
			put(t, b, fmt.Sprint(i), "while away")
		}
		require.NoError(t, a.Delete([]byte("before"), nil))
		raw, err = leveldb.Open(stay, nil)
		require.NoError(t, err)
		d = c.open("d", raw, &replicator.Options{Peers: []string{"b:9000"}})
		requireAgreement(t, a, b, d)
		require.Equal(t, "-", value(t, d, "before"))
		require.Equal(t, "while away", value(t, d, "499"))
	})
}

func TestReplicaRefusesToWriteBeforeItTriedToReplicate(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		put(t, a, "k", "from a")
		c.net.Delay(100*time.Millisecond, 100*time.Millisecond)
		start := time.Now()
		b := c.start("b", "a:9000")
		select {
		case <-b.Ready():
			t.Fatal("ready before the first session could have ended")
		default:
		}
		require.Equal(t, "-", value(t, b, "k"), "reads do not wait")
		put(t, b, "k2", "from b")
		require.GreaterOrEqual(t, time.Since(start), 300*time.Millisecond, "a dial and a session at 100 ms each way")
		require.Equal(t, "from a", value(t, b, "k"), "the write waited until it was here")
	})
}

func TestReplicaWithoutReachablePeersIsReadyAfterATry(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		c.net.Host("nobody")
		start := time.Now()
		a := c.start("a", "nobody:9000")
		put(t, a, "k", "v")
		require.Less(t, time.Since(start), time.Second, "a refused connection is an attempt")

		c.net.Host("silent")
		c.net.Partition([]string{"silent"})
		start = time.Now()
		b := c.open("b", replicatortest.MemDB(t), &replicator.Options{Peers: []string{"silent:9000"}, ReadyTimeout: 700 * time.Millisecond})
		put(t, b, "k", "v")
		require.Equal(t, 700*time.Millisecond, time.Since(start), "at most ReadyTimeout")
	})
}

func TestFirstWriteAfterSilenceIsThereAtOnce(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b", "a:9000")
		requireAgreement(t, a, b)
		time.Sleep(10 * time.Minute) // rounds are 10 s apart now
		put(t, a, "k", "v")
		time.Sleep(time.Millisecond)
		require.Equal(t, "v", value(t, b, "k"))
	})
}

func TestVelocityShortensAndLengthensThePause(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		require.Equal(t, 10*time.Second, a.Status().Interval, "MaxInterval while nothing changes")
		put(t, a, "k", "v")
		one := a.Status()
		require.InDelta(t, 0.139, one.Velocity, 0.001, "ln 2 / 5 s for one change")
		require.InDelta(t, 144, one.Interval.Milliseconds(), 1)
		for i := range 100 {
			put(t, a, fmt.Sprint(i), "v")
			time.Sleep(100 * time.Millisecond)
		}
		busy := a.Status()
		require.InDelta(t, 7.6, busy.Velocity, 0.5, "10 per second, after two half-lives")
		require.Equal(t, 20*time.Millisecond, busy.Interval, "MinInterval")
		time.Sleep(5 * time.Second)
		require.InDelta(t, busy.Velocity/2, a.Status().Velocity, 0.01)
		time.Sleep(10 * time.Minute)
		require.Equal(t, 10*time.Second, a.Status().Interval)
	})
}

func TestWriteReachesAReplicaThatOnlyDials(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		c.net.Block("a", "b") // b can reach a, never the other way round
		a, b := c.start("a"), c.start("b", "a:9000")
		put(t, b, "from b", "v")
		put(t, a, "from a", "v")
		requireAgreement(t, a, b)
		require.Len(t, testdb.Contents(t, a), 2)
	})
}

func TestOneSeedAddressIsEnough(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		dbs := []*replicator.DB{c.start("seed")}
		for i := range 5 {
			dbs = append(dbs, c.start(fmt.Sprint("s", i), "seed:9000"))
		}
		time.Sleep(time.Minute)
		require.NoError(t, dbs[0].Close())
		put(t, dbs[1], "k", "v")
		requireAgreement(t, dbs[1:]...)
		require.Equal(t, "v", value(t, dbs[5], "k"), "they know each other through the seed, which is gone")
	})
}

func TestBatchIsAppliedWholeOrNotAtAll(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		a := newCluster(t).start("a")
		put(t, a, "k", "old")
		b := new(leveldb.Batch)
		b.Put([]byte("k"), []byte("new"))
		b.Put([]byte{0xff, 0xff, 'l'}, []byte("x"))
		require.ErrorIs(t, a.Write(b, nil), replicator.ErrReservedKey)
		require.Equal(t, "old", value(t, a, "k"))
		require.ErrorIs(t, a.Put([]byte{0xff, 0xff}, nil, nil), replicator.ErrReservedKey)
		put(t, a, "\xff", "the last free key")
		require.Len(t, testdb.Contents(t, a), 2, "ours are hidden")
		_, err := a.Get([]byte("\xff\xffmformat"), nil)
		require.ErrorIs(t, err, leveldb.ErrNotFound)
	})
}

func TestNothingIsLeftAfterClose(t *testing.T) {
	before := goleak.IgnoreCurrent()
	open := func(o *replicator.Options) *replicator.DB {
		raw, err := leveldb.Open(storage.NewMemStorage(), nil)
		require.NoError(t, err)
		o.Listen, o.Logger = "127.0.0.1:0", slog.New(slog.DiscardHandler)
		db, err := replicator.Replicate(raw, o)
		require.NoError(t, err)
		return db
	}
	a := open(&replicator.Options{})
	b := open(&replicator.Options{Peers: []string{a.Addr().String()}})
	require.NoError(t, a.Put([]byte("k"), bytes.Repeat([]byte("v"), 1<<20), nil))
	require.NoError(t, b.Sync(context.Background()))
	require.Equal(t, a.Digest(), b.Digest())
	idle, err := net.Dial("tcp", a.Addr().String()) // says nothing
	require.NoError(t, err)
	defer idle.Close()
	require.NoError(t, a.Close())
	require.NoError(t, b.Close())
	require.ErrorIs(t, a.Close(), leveldb.ErrClosed)
	require.ErrorIs(t, a.Put([]byte("k"), nil, nil), leveldb.ErrClosed)
	require.ErrorIs(t, b.Sync(context.Background()), leveldb.ErrClosed)
	goleak.VerifyNone(t, before, goleak.IgnoreTopFunction("github.com/syndtr/goleveldb/leveldb.(*DB).mpoolDrain"))
}

// design.md: O7
func TestDataThatWasThereBeforeIsReplicated(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		raw := replicatortest.MemDB(t)
		for i := range 3000 {
			require.NoError(t, raw.Put(fmt.Append(nil, "old", i), []byte("v"), nil))
		}
		a := c.open("a", raw, &replicator.Options{})
		b := c.start("b", "a:9000")
		<-a.Ready()
		requireAgreement(t, a, b)
		require.Len(t, testdb.Contents(t, b), 3000)
	})
}

func TestReplicateRefusesAHandleItCannotReplicate(t *testing.T) {
	raw := replicatortest.MemDB(t)
	require.NoError(t, raw.Put([]byte{0xff, 0xff, 'z'}, nil, nil))
	_, err := replicator.Replicate(raw, &replicator.Options{Listen: "127.0.0.1:0"})
	require.ErrorIs(t, err, replicator.ErrReservedKey)

	_, err = replicator.Replicate(nil, nil)
	require.ErrorContains(t, err, "nil")

	_, err = replicator.Replicate(replicatortest.MemDB(t), &replicator.Options{Listen: "0.0.0.0:0"})
	require.ErrorContains(t, err, "Insecure")

	_, err = replicator.Replicate(replicatortest.MemDB(t), &replicator.Options{Peers: []string{"nonsense"}, Secret: []byte("short"), MinInterval: -1})
	for _, field := range []string{"Options.Peers", "Options.Secret", "Options.MinInterval"} {
		require.ErrorContains(t, err, field)
	}
}

func TestHandleIsReplicatedOnceAtATime(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		stor := storage.NewMemStorage()
		raw, err := leveldb.Open(stor, nil)
		require.NoError(t, err)
		replicate := func(o *replicator.Options) error {
			l, err := c.net.Host("b").Listen("9000")
			require.NoError(t, err)
			defer l.Close()
			o.Listener, o.Insecure, o.Logger = l, true, quiet
			_, err = replicator.Replicate(raw, o)
			return err
		}
		require.ErrorContains(t, replicate(&replicator.Options{Cluster: strings.Repeat("long", 20)}), "Cluster")
		a := c.open("a", raw, &replicator.Options{}) // what was refused is not in the way
		put(t, a, "k", "v")
		require.ErrorContains(t, replicate(&replicator.Options{}), "the handle is replicated already")
		put(t, a, "l", "v")
		report, err := a.Verify(t.Context())
		require.NoError(t, err)
		require.Empty(t, report.Faults)
		require.NoError(t, a.Close())
		require.ErrorIs(t, replicate(&replicator.Options{}), leveldb.ErrClosed, "it says what is so")
		raw, err = leveldb.Open(stor, nil)
		require.NoError(t, err)
		require.Equal(t, "v", value(t, c.open("a", raw, &replicator.Options{}), "k"))
	})
}
