package replicator_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"

	"github.com/level-replicator/replicator"
)

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
