package replicator_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
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

// TestDamagedTablesNeverLookLikeDeletions flips bits all over the tables of a
// replica. Whatever it still says, no peer may come to lack a key for it.
// design.md: R3, R4
func TestDamagedTablesNeverLookLikeDeletions(t *testing.T) {
	served := 0
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		fs := crashfs.New(nil)
		db := onDisk(t, fs, replicator.Options{})
		for i := range 600 {
			require.NoError(t, db.Put(fmt.Appendf(nil, "k%03d", i), fmt.Appendf(nil, "%0300d", i), nil))
		}
		peer := onDisk(t, crashfs.New(nil), replicator.Options{Peers: []string{db.Addr().String()}})
		syncedWith(t, peer)
		want := testdb.Contents(t, peer)
		require.Len(t, want, 600)
		require.NoError(t, db.CompactRange(util.Range{}))
		require.NoError(t, closeInTime(t, db))

		for range 1 + rng.IntN(4) {
			_, _, err := fs.FlipRandomBit(storage.TypeTable, rng)
			require.NoError(t, err)
		}
		raw, err := leveldb.Open(fs, &opt.Options{BlockCacher: opt.NoCacher})
		if err != nil { // goleveldb says so, and that is well
			require.NoError(t, closeInTime(t, peer))
			continue
		}
		damaged, err := replicator.Replicate(raw, &replicator.Options{Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
		if err != nil { // it says so, and that is well
			_ = raw.Close()
			require.NoError(t, closeInTime(t, peer))
			continue
		}
		served++
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		_ = damaged.Adopt(ctx)
		_ = damaged.Put([]byte("k000"), []byte("news"), nil)
		require.NoError(t, peer.AddPeer(damaged.Addr().String()))
		for range 3 {
			_ = peer.Sync(ctx)
		}
		cancel()
		got := testdb.Contents(t, peer)
		for k := range want {
			require.Contains(t, got, k, "seed %d", seed)
			if k != "k000" {
				require.Equal(t, want[k], got[k], "seed %d", seed)
			}
		}
		_ = closeInTime(t, damaged)
		require.NoError(t, closeInTime(t, peer))
	}
	require.Positive(t, served, "the damage must not always be found at the opening")
}

// TestReplicaWithDamagedTablesIsMendedByItsPeer goes the way of docs/operations.md:
// have goleveldb recover what it can, then Repair.
func TestReplicaWithDamagedTablesIsMendedByItsPeer(t *testing.T) {
	mended := 0
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 2))
		fs := crashfs.New(nil)
		peer := onDisk(t, crashfs.New(nil), replicator.Options{})
		db := onDisk(t, fs, replicator.Options{Peers: []string{peer.Addr().String()}})
		for i := range 60 { // large enough for several tables
			ours, theirs := new(leveldb.Batch), new(leveldb.Batch)
			for j := range 50 {
				ours.Put(fmt.Appendf(nil, "d%02d/%02d", i, j), randomBytes(rng, 1500))
				theirs.Put(fmt.Appendf(nil, "p%02d/%02d", i, j), randomBytes(rng, 1500))
			}
			require.NoError(t, errors.Join(db.Write(ours, nil), peer.Write(theirs, nil)))
		}
		syncedWith(t, db)
		want := testdb.Contents(t, peer)
		require.Len(t, want, 6000)
		require.NoError(t, db.CompactRange(util.Range{}))
		require.NoError(t, closeInTime(t, db))
		_, _, err := fs.FlipRandomBit(storage.TypeTable, rng)
		require.NoError(t, err)

		raw, err := leveldb.Recover(fs, &opt.Options{Strict: opt.DefaultStrict | opt.StrictRecovery})
		require.NoError(t, err)
		db, err = replicator.Replicate(raw, &replicator.Options{Listen: "127.0.0.1:0", Peers: []string{peer.Addr().String()}, Logger: slog.New(slog.DiscardHandler)})
		if err != nil { // what makes sense of the rest was lost: it must be filled from a peer
			require.NoError(t, raw.Close())
			require.NoError(t, closeInTime(t, peer))
			continue
		}
		mended++
		r, err := db.Repair(t.Context())
		require.NoError(t, err)
		require.Empty(t, r.Faults, "seed %d", seed)
		_ = db.Sync(t.Context()) // the peer still tells of where this replica listened before
		require.Equal(t, want, testdb.Contents(t, db), "seed %d", seed)
		require.Equal(t, want, testdb.Contents(t, peer), "seed %d", seed)
		require.Equal(t, peer.Digest(), db.Digest(), "seed %d", seed)
		require.NoError(t, closeInTime(t, db))
		require.NoError(t, closeInTime(t, peer))
	}
	require.Positive(t, mended)
}

func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// openDir opens a directory whose store flushes its memtable often and merges no tables.
func openDir(t *testing.T, dir string, log *bytes.Buffer, peers ...string) *replicator.DB {
	raw, err := leveldb.OpenFile(dir, &opt.Options{WriteBuffer: 32 << 10, CompactionL0Trigger: 1000, WriteL0SlowdownTrigger: 1000, WriteL0PauseTrigger: 1000})
	require.NoError(t, err)
	o := replicator.Options{Listen: "127.0.0.1:0", Peers: peers, Logger: slog.New(slog.DiscardHandler)}
	if log != nil {
		o.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelError}))
	}
	db, err := replicator.Replicate(raw, &o)
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	<-db.Ready()
	return db
}

func fillDir(t *testing.T, db *replicator.DB, from, to int, wo *opt.WriteOptions) {
	for i := from; i < to; i++ {
		require.NoError(t, db.Put(fmt.Appendf(nil, "key-%04d", i), make([]byte, 500), wo))
	}
}

// halveManifest cuts the file that names the tables in half.
func halveManifest(t *testing.T, dir string) {
	files, err := filepath.Glob(filepath.Join(dir, "MANIFEST-*"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	info, err := os.Stat(files[0])
	require.NoError(t, err)
	require.NoError(t, os.Truncate(files[0], info.Size()/2))
}

func TestStoreOlderThanItsMarkSaysSo(t *testing.T) {
	for name, wo := range map[string]*opt.WriteOptions{"unsynced": nil, "synced": {Sync: true}} {
		t.Run(name, func(t *testing.T) {
			dirA, dirB := t.TempDir(), t.TempDir()
			a := openDir(t, dirA, nil)
			b := openDir(t, dirB, nil, a.Addr().String())
			fillDir(t, a, 0, 300, wo)
			require.NoError(t, b.Sync(context.Background()))
			require.False(t, a.Status().Rewound)
			old := a.Status().Origin
			require.NoError(t, a.Close())
			halveManifest(t, dirA)

			var log bytes.Buffer
			a = openDir(t, dirA, &log)
			require.Contains(t, log.String(), "older")
			s := a.Status()
			require.True(t, s.Rewound)
			require.Less(t, s.Keys, int64(300), "nothing was lost: the test shows nothing")
			for _, c := range s.VersionVector {
				require.NotEqual(t, old, c.Origin, "writes are claimed of which nobody knows whether they are held")
			}
			report, err := a.Verify(context.Background())
			require.NoError(t, err)
			require.Contains(t, fmt.Sprint(report.Faults), "older")

			require.NoError(t, a.AddPeer(b.Addr().String()))
			_ = a.Sync(context.Background()) // b may tell the address that a had before, where nobody answers
			require.EqualValues(t, 300, a.Status().Keys)
			require.Equal(t, b.Digest(), a.Digest())
			require.False(t, a.Status().Rewound, "all that was lost has come back")
			report, err = a.Verify(context.Background())
			require.NoError(t, err)
			require.True(t, report.OK(), "%v", report.Faults)
		})
	}
}

func TestStoreOlderThanItsMarkGoesOnAlone(t *testing.T) {
	dir := t.TempDir()
	db := openDir(t, dir, nil)
	fillDir(t, db, 0, 300, nil)
	require.NoError(t, db.Close())
	halveManifest(t, dir)

	db = openDir(t, dir, nil)
	require.True(t, db.Status().Rewound)
	keys := db.Status().Keys
	fillDir(t, db, 300, 400, nil)
	require.NoError(t, db.Close())
	db = openDir(t, dir, nil)
	require.False(t, db.Status().Rewound, "it is as it was closed")
	require.Equal(t, keys+100, db.Status().Keys)
	report, err := db.Verify(context.Background())
	require.NoError(t, err)
	require.True(t, report.OK(), "%v", report.Faults)
}

// design.md: O3
func TestCleanCloseIsNoOlderThanItsMark(t *testing.T) {
	dir := t.TempDir()
	for i, n := range []int{0, 1, 300, 0, 1, 300} { // some closes flush, others need not
		db := openDir(t, dir, nil)
		require.False(t, db.Status().Rewound, "opening %d", i)
		fillDir(t, db, 0, n, nil)
		require.NoError(t, db.Close())
		if i%2 == 0 { // somebody opens it without replicator meanwhile
			raw, err := leveldb.OpenFile(dir, nil)
			require.NoError(t, err)
			require.NoError(t, raw.Close())
		}
	}
}

func TestVerifyNamesWhatDoesNotFitTogether(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		raw := replicatortest.MemDB(t)
		a, b := c.open("a", raw, &replicator.Options{}), c.start("b", "a:9000")
		requireAgreement(t, a, b)
		c.net.Partition([]string{"a"}, []string{"b"})
		for i := range 100 {
			put(t, a, fmt.Sprintf("k%02d", i), "v")
		}
		put(t, b, "k07", "conflict")
		require.NoError(t, a.Delete([]byte("k10"), nil))
		c.net.Heal()
		requireAgreement(t, a, b)
		r, err := a.Verify(context.Background())
		require.NoError(t, err)
		require.Empty(t, r.Faults)
		require.True(t, r.OK())
		require.EqualValues(t, 100, r.Keys)
		require.EqualValues(t, 101, r.Versions)
		require.Equal(t, a.Digest(), r.Digest)

		require.NoError(t, raw.Put([]byte("k01"), []byte("past the wrapper"), nil))
		require.NoError(t, raw.Put([]byte("k10"), []byte("alive again"), nil))
		require.NoError(t, raw.Put([]byte("stranger"), nil, nil))
		require.NoError(t, raw.Delete([]byte("k02"), nil))
		require.NoError(t, raw.Put([]byte("k07"), []byte("not what the resolver says"), nil))
		it := raw.NewIterator(util.BytesPrefix([]byte("\xff\xffl")), nil)
		require.True(t, it.First()) // the log entry of k00
		require.NoError(t, raw.Delete(it.Key(), nil))
		it.Release()
		r, err = a.Verify(context.Background())
		require.NoError(t, err)
		var keys []string
		for _, f := range r.Faults {
			keys = append(keys, string(f.Key))
		}
		require.ElementsMatch(t, []string{"k00", "k01", "k02", "k07", "k10", "stranger"}, keys)

		ended, cancel := context.WithCancel(context.Background())
		cancel()
		_, err = a.Verify(ended)
		require.ErrorIs(t, err, context.Canceled)
	})
}
