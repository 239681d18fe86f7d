package replicator_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/crashfs"
	"github.com/level-replicator/replicator/internal/testdb"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// onDisk starts a replica on a storage, reachable on the loopback interface.
func onDisk(t *testing.T, st storage.Storage, o replicator.Options) *replicator.DB {
	raw, err := leveldb.Open(st, &opt.Options{WriteBuffer: 64 << 10, CompactionTableSize: 32 << 10, BlockCacher: opt.NoCacher})
	require.NoError(t, err)
	o.Listen, o.Logger, o.MaxInterval = "127.0.0.1:0", slog.New(slog.DiscardHandler), time.Hour
	db, err := replicator.Replicate(raw, &o)
	require.NoError(t, err)
	return db
}

// closeInTime closes a replica; that it takes long is a failure.
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
func TestReplicaWithAFailingDiskRefusesWritesAndServes(t *testing.T) {
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
			require.Equal(t, testdb.Contents(t, db), testdb.Contents(t, peer))
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

// requireFailed checks what a replica says once its store failed to write.
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

// noHandles has every operation fail that needs a new file handle.
func noHandles(fs *crashfs.Storage, ops ...crashfs.Fault) {
	for _, f := range ops {
		f.Err, f.Sticky = syscall.EMFILE, true
		fs.Fail(f)
	}
}

var (
	createJournal = crashfs.Fault{Op: crashfs.OpCreate, Type: storage.TypeJournal}
	createTable   = crashfs.Fault{Op: crashfs.OpCreate, Type: storage.TypeTable}
	openTable     = crashfs.Fault{Op: crashfs.OpOpen, Type: storage.TypeTable}
	// fsync of the manifest ends with one of the directory, which is opened for it. The
	// file itself is on disk then, which crashfs does not know: no power failure after it.
	syncManifest = crashfs.Fault{Op: crashfs.OpSync, Type: storage.TypeManifest}
)

func TestStoreGoesOnOnceThereAreFileHandlesAgain(t *testing.T) {
	for name, faults := range map[string][]crashfs.Fault{
		"journal creation": {createJournal},
		"table creation":   {createTable},
		"manifest fsync":   {syncManifest},
		"all of them":      {createJournal, createTable, openTable, syncManifest},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fs := crashfs.New(nil)
			var log bytes.Buffer
			raw, err := leveldb.Open(fs, &opt.Options{WriteBuffer: 64 << 10, CompactionTableSize: 32 << 10, BlockCacher: opt.NoCacher})
			require.NoError(t, err)
			db, err := replicator.Replicate(raw, &replicator.Options{
				Listen: "127.0.0.1:0", MaxInterval: time.Hour, Logger: slog.New(slog.NewTextHandler(&log, nil)),
			})
			require.NoError(t, err)
			acked := map[string]string{}
			put := func(i int) error {
				k, v := fmt.Sprint("k", i%300), fmt.Sprintf("%0300d", i)
				err := db.Put([]byte(k), []byte(v), &opt.WriteOptions{Sync: true})
				if err == nil {
					acked[k] = v
				}
				return err
			}
			n := 0
			for ; n < 500; n++ {
				require.NoError(t, put(n))
			}
			noHandles(fs, faults...)
			for ; err == nil; n++ {
				require.Less(t, n, 10_000, "no write fails")
				err = put(n)
			}
			for range 20 {
				require.ErrorIs(t, err, syscall.EMFILE)
				require.NotErrorIs(t, err, replicator.ErrFailed)
				n++
				if err = put(n); err == nil { // a small one may still fit
					break
				}
			}
			require.Contains(t, db.Status().Starved, "too many open files")
			require.Empty(t, db.Status().Failed)

			fs.ClearFaults()
			n++
			require.Eventually(t, func() bool { return put(n) == nil }, 30*time.Second, 10*time.Millisecond)
			for ; n < 2000; n++ { // goleveldb may still say what failed, until it has tried again
				require.Eventually(t, func() bool { return put(n) == nil }, 30*time.Second, 10*time.Millisecond)
			}
			require.Eventually(t, func() bool { return db.Status().Starved == "" }, 30*time.Second, 10*time.Millisecond)
			check := func(db *replicator.DB) {
				t.Helper()
				require.Equal(t, acked, testdb.Contents(t, db))
				r, err := db.Verify(t.Context())
				require.NoError(t, err)
				require.Empty(t, r.Faults)
			}
			check(db)
			peer := onDisk(t, crashfs.New(nil), replicator.Options{Peers: []string{db.Addr().String()}})
			syncedWith(t, peer)
			check(peer)
			require.NoError(t, closeInTime(t, peer))

			modes := crashfs.Modes
			if slices.Contains(faults, syncManifest) {
				modes = []crashfs.Mode{crashfs.Everything}
			}
			for _, mode := range modes {
				after := onDisk(t, fs.Image(mode, rand.New(rand.NewPCG(1, 2))), replicator.Options{})
				check(after)
				require.NoError(t, closeInTime(t, after))
			}
			require.NoError(t, closeInTime(t, db))
			require.Less(t, strings.Count(log.String(), "no file handle left"), 5, "%s", &log)
			require.Contains(t, log.String(), "writes again")
			db = onDisk(t, fs, replicator.Options{})
			check(db)
			require.NoError(t, closeInTime(t, db))
		})
	}
}

// heldFlush holds goleveldb's memtable flush back just before its end, once, and
// notes whether the handle was being closed then.
type heldFlush struct {
	*crashfs.Storage
	armed, held, over, closedEarly atomic.Bool
	under                          chan struct{} // closed when the flush is held
	gate                           chan struct{}
}

func (s *heldFlush) Log(text string) {
	switch {
	case strings.HasPrefix(text, "memdb@flush committed") && s.armed.Load() && s.held.CompareAndSwap(false, true):
		close(s.under)
		<-s.gate
		s.over.Store(true)
	case strings.HasPrefix(text, "db@close closing") && !s.over.Load():
		s.closedEarly.Store(true)
	}
}

// design.md: O3
func TestCloseWaitsUntilNothingIsFlushed(t *testing.T) {
	st := &heldFlush{Storage: crashfs.New(nil), under: make(chan struct{}), gate: make(chan struct{})}
	raw, err := leveldb.Open(st, &opt.Options{WriteBuffer: 32 << 10})
	require.NoError(t, err)
	db, err := replicator.Replicate(raw, &replicator.Options{Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	st.armed.Store(true)
	go func() { // a Put may wait for the flush, too, if it fills the next memtable
		<-st.under
		time.AfterFunc(100*time.Millisecond, func() { close(st.gate) })
	}()
	for i := 0; !st.held.Load(); i++ { // with Sync: Close need not flush
		require.NoError(t, db.Put(fmt.Append(nil, i%10), make([]byte, 500), &opt.WriteOptions{Sync: true}))
	}
	require.NoError(t, db.Close())
	require.False(t, st.closedEarly.Load(), "goleveldb may panic when it is closed while it flushes")
}
