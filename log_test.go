package replicator_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/crashfs"
)

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
				require.Equal(t, acked, contents(t, db))
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
