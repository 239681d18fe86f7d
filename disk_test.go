package replicator_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/crashfs"
)

// onDisk starts a server on a storage, reachable on the loopback interface.
func onDisk(t *testing.T, st storage.Storage, o replicator.Options) *replicator.DB {
	raw, err := leveldb.Open(st, &opt.Options{WriteBuffer: 64 << 10, CompactionTableSize: 32 << 10, BlockCacher: opt.NoCacher})
	require.NoError(t, err)
	o.Listen, o.Logger, o.MaxInterval = "127.0.0.1:0", slog.New(slog.DiscardHandler), time.Hour
	db, err := replicator.Replicate(raw, &o)
	require.NoError(t, err)
	return db
}

// closeInTime closes a server; that it takes long is a failure.
func closeInTime(t *testing.T, db *replicator.DB) error {
	t.Helper()
	closed := make(chan error, 1)
	go func() { closed <- db.Close() }()
	select {
	case err := <-closed:
		return err
	case <-time.After(25 * time.Second): // it would give up after 30
		t.Fatal("Close hangs")
		return nil
	}
}

func syncedWith(t *testing.T, db *replicator.DB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, db.Sync(ctx))
}

// design.md: W5
func TestServerWithAFailingDiskRefusesWritesAndServes(t *testing.T) {
	for name, c := range map[string]struct {
		fail  func(fs *crashfs.Storage)
		cause error
		sync  bool
	}{
		"full disk":        {func(fs *crashfs.Storage) { fs.SetSpace(1000) }, syscall.ENOSPC, false},
		"journal write":    {fault(crashfs.OpWrite, storage.TypeJournal, false), syscall.EIO, false},
		"journal fsync":    {fault(crashfs.OpSync, storage.TypeJournal, false), syscall.EIO, true},
		"journal creation": {fault(crashfs.OpCreate, storage.TypeJournal, true), syscall.EIO, false},
		"manifest write":   {fault(crashfs.OpWrite, storage.TypeManifest, true), syscall.EIO, false},
		"manifest fsync":   {fault(crashfs.OpSync, storage.TypeManifest, true), syscall.EIO, false},
		"table write":      {fault(crashfs.OpWrite, storage.TypeTable, true), syscall.EIO, false},
		"table fsync":      {fault(crashfs.OpSync, storage.TypeTable, true), syscall.EIO, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fs := crashfs.New(nil)
			var told atomic.Int32
			db := onDisk(t, fs, replicator.Options{Events: &replicator.Events{Failed: func(err error) {
				told.Add(1)
				if !errors.Is(err, c.cause) {
					t.Errorf("the event names %v", err)
				}
			}}})
			wo := &opt.WriteOptions{Sync: c.sync}
			acked := map[string]string{}
			for i := range 50 {
				k, v := fmt.Sprint("before/", i), fmt.Sprint("value ", i)
				require.NoError(t, db.Put([]byte(k), []byte(v), wo))
				acked[k] = v
			}
			c.fail(fs)
			var err error
			var failed string
			for i := 0; err == nil; i++ {
				require.Less(t, i, 10_000, "no write fails")
				k, v := fmt.Sprint("after/", i%400), fmt.Sprintf("%0200d", i)
				failed = k
				if err = db.Put([]byte(k), []byte(v), wo); err == nil {
					acked[k] = v
				}
			}
			requireFailed(t, db, err, c.cause)

			// What was acknowledged is read and served.
			for k, v := range acked {
				require.Equal(t, v, value(t, db, k))
			}
			peer := onDisk(t, crashfs.New(nil), replicator.Options{Peers: []string{db.Addr().String()}})
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			_ = peer.Sync(ctx) // the other half of the session fails
			require.Equal(t, contents(t, db), contents(t, peer))
			require.NoError(t, closeInTime(t, peer))

			_ = closeInTime(t, db)
			require.EqualValues(t, 1, told.Load())
			fs.ClearFaults()
			db = onDisk(t, fs, replicator.Options{})
			require.NoError(t, db.Put([]byte("again"), []byte("v"), nil))
			for k, v := range acked {
				if k != failed { // that write may be there
					require.Equal(t, v, value(t, db, k))
				}
			}
			require.NoError(t, closeInTime(t, db))
		})
	}
}

func fault(op crashfs.Op, ft storage.FileType, sticky bool) func(*crashfs.Storage) {
	return func(fs *crashfs.Storage) { fs.Fail(crashfs.Fault{Op: op, Type: ft, Sticky: sticky}) }
}

// requireFailed checks what a server says once its store failed to write.
func requireFailed(t *testing.T, db *replicator.DB, err, cause error) {
	t.Helper()
	require.ErrorIs(t, err, replicator.ErrFailed)
	require.ErrorIs(t, err, cause)
	require.Contains(t, err.Error(), "close the database and open it again")
	require.Contains(t, err.Error(), cause.Error())
	again := db.Put([]byte("another"), []byte("v"), nil)
	require.ErrorIs(t, again, replicator.ErrFailed, "goleveldb might do it, and let the failed write replace it")
	require.ErrorIs(t, again, cause)
	require.ErrorIs(t, db.Delete([]byte("before/0"), nil), replicator.ErrFailed)
	require.Contains(t, db.Status().Failed, cause.Error())
}

// TestDamagedTablesNeverLookLikeDeletions flips bits all over the tables of a
// server. Whatever it still says, no peer may come to lack a key for it.
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
		want := contents(t, peer)
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
		got := contents(t, peer)
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

// TestServerWithDamagedTablesIsMendedByItsPeer goes the way of docs/operations.md:
// have goleveldb recover what it can, then Repair.
func TestServerWithDamagedTablesIsMendedByItsPeer(t *testing.T) {
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
		want := contents(t, peer)
		require.Len(t, want, 6000)
		require.NoError(t, db.CompactRange(util.Range{}))
		require.NoError(t, closeInTime(t, db))
		_, _, err := fs.FlipRandomBit(storage.TypeTable, rng)
		require.NoError(t, err)

		raw, err := leveldb.Recover(fs, &opt.Options{Strict: opt.DefaultStrict | opt.StrictRecovery})
		require.NoError(t, err)
		db, err = replicator.Replicate(raw, &replicator.Options{Listen: "127.0.0.1:0", Peers: []string{peer.Addr().String()}, Logger: slog.New(slog.DiscardHandler)})
		if err != nil { // what makes sense of the rest was lost: it must be filled anew
			require.NoError(t, raw.Close())
			require.NoError(t, closeInTime(t, peer))
			continue
		}
		mended++
		r, err := db.Repair(t.Context())
		require.NoError(t, err)
		require.Empty(t, r.Faults, "seed %d", seed)
		_ = db.Sync(t.Context()) // the peer still tells of where this server listened before
		require.Equal(t, want, contents(t, db), "seed %d", seed)
		require.Equal(t, want, contents(t, peer), "seed %d", seed)
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
