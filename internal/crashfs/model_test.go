package crashfs_test

import (
	"io"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/storage"

	"github.com/level-replicator/replicator/internal/crashfs"
)

var (
	journal  = storage.FileDesc{Type: storage.TypeJournal, Num: 1}
	table    = storage.FileDesc{Type: storage.TypeTable, Num: 2}
	table3   = storage.FileDesc{Type: storage.TypeTable, Num: 3}
	manifest = storage.FileDesc{Type: storage.TypeManifest, Num: 4}
)

func seeded(n uint64) *rand.Rand { return rand.New(rand.NewPCG(n, 1)) }

func create(t *testing.T, s storage.Storage, fd storage.FileDesc, content string, sync bool) storage.Writer {
	t.Helper()
	w, err := s.Create(fd)
	require.NoError(t, err)
	_, err = w.Write([]byte(content))
	require.NoError(t, err)
	if sync {
		require.NoError(t, w.Sync())
	}
	return w
}

// content is the file's, or "absent".
func content(t *testing.T, s storage.Storage, fd storage.FileDesc) string {
	t.Helper()
	r, err := s.Open(fd)
	if err != nil {
		require.ErrorIs(t, err, os.ErrNotExist)
		return "absent"
	}
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	return string(b)
}

func TestStorageKeepsGoleveldbsContract(t *testing.T) {
	s := crashfs.New(nil)
	l, err := s.Lock()
	require.NoError(t, err)
	_, err = s.Lock()
	require.ErrorIs(t, err, storage.ErrLocked)
	l.Unlock()
	_, err = s.Lock()
	require.NoError(t, err)

	_, err = s.GetMeta()
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, s.SetMeta(manifest))
	_, err = s.GetMeta()
	require.ErrorIs(t, err, os.ErrNotExist, "the meta file points to nothing")
	require.NoError(t, create(t, s, manifest, "m", true).Close())
	fd, err := s.GetMeta()
	require.NoError(t, err)
	require.Equal(t, manifest, fd)

	w := create(t, s, table, "abc", false)
	require.NoError(t, w.Close())
	require.ErrorIs(t, w.Close(), storage.ErrClosed)
	_, err = w.Write([]byte("x"))
	require.ErrorIs(t, err, storage.ErrClosed)
	fds, err := s.List(storage.TypeAll)
	require.NoError(t, err)
	require.Equal(t, []storage.FileDesc{manifest, table}, fds)

	r, err := s.Open(table)
	require.NoError(t, err)
	require.NoError(t, s.Rename(table, table3))
	require.Equal(t, "absent", content(t, s, table))
	require.Equal(t, "abc", content(t, s, table3))
	require.NoError(t, s.Remove(table3))
	require.ErrorIs(t, s.Remove(table3), os.ErrNotExist)
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Equal(t, "abc", string(b), "a reader keeps the file that was removed")
	require.Equal(t, 1, s.OpenFiles())
	require.NoError(t, r.Close())
	require.Zero(t, s.OpenFiles())
	_, err = s.Create(storage.FileDesc{Type: storage.TypeAll})
	require.ErrorIs(t, err, storage.ErrInvalidFile)
}

func TestPowerFailureKeepsWhatWasSyncedAndPrefixesOfTheRest(t *testing.T) {
	s := crashfs.New(nil)
	w := create(t, s, journal, "synced", true)
	_, err := w.Write([]byte("-tail"))
	require.NoError(t, err)
	create(t, s, table, "new", false)

	require.Equal(t, "synced", content(t, s.Image(crashfs.DropUnsynced, nil), journal))
	require.Equal(t, "absent", content(t, s.Image(crashfs.DropUnsynced, nil), table))
	require.Equal(t, "synced-tail", content(t, s.Image(crashfs.Everything, nil), journal))
	require.Equal(t, "new", content(t, s.Image(crashfs.Everything, nil), table))

	rng, journals, tables := seeded(1), map[string]int{}, map[string]int{}
	for range 300 {
		image := s.Image(crashfs.RandomPrefix, rng)
		journals[content(t, image, journal)]++
		tables[content(t, image, table)]++
	}
	require.Len(t, journals, 6)
	require.Len(t, tables, 5, "absent, empty, n, ne, new")
	for range 30 {
		zeroed := content(t, s.Image(crashfs.RandomPrefixZeroed, rng), journal)
		require.Equal(t, "synced", zeroed[:6])
		journals[zeroed]++
	}
	require.Greater(t, len(journals), 6, "some tail must have been zeroed")
}

func TestDirectoryOperationsAreDurableWhenTheDirectoryWasSynced(t *testing.T) {
	for _, strict := range []bool{false, true} {
		s := crashfs.New(&crashfs.Options{StrictDirectory: strict})
		create(t, s, journal, "j", true)
		m := create(t, s, manifest, "m", true)
		create(t, s, table, "t", true)
		require.NoError(t, s.Remove(journal))

		image := s.Image(crashfs.DropUnsynced, nil)
		require.Equal(t, "j", content(t, image, journal), "the removal is not on disk")
		require.Equal(t, "m", content(t, image, manifest))
		if strict {
			require.Equal(t, "absent", content(t, image, table))
		} else {
			require.Equal(t, "t", content(t, image, table))
		}
		require.NoError(t, m.Sync())
		image = s.Image(crashfs.DropUnsynced, nil)
		require.Equal(t, "absent", content(t, image, journal))
		require.Equal(t, "t", content(t, image, table))
	}
}

func TestRenameIsAtomicInEveryImage(t *testing.T) {
	for _, strict := range []bool{false, true} {
		s := crashfs.New(&crashfs.Options{StrictDirectory: strict})
		create(t, s, table, "new", true)
		create(t, s, table3, "old", true)
		require.NoError(t, s.SetMeta(manifest)) // syncs the directory
		require.NoError(t, s.Rename(table, table3))
		seen, rng := map[[2]string]bool{}, seeded(2)
		for range 50 {
			image := s.Image(crashfs.RandomPrefix, rng)
			seen[[2]string{content(t, image, table), content(t, image, table3)}] = true
		}
		require.Equal(t, map[[2]string]bool{{"new", "old"}: true, {"absent", "new"}: true}, seen)
	}
}

func TestOnlyStrictDirectoriesKeepALaterFileWithoutAnEarlierOne(t *testing.T) {
	for _, strict := range []bool{false, true} {
		s := crashfs.New(&crashfs.Options{StrictDirectory: strict})
		create(t, s, table, "", false)
		create(t, s, table3, "", false)
		reordered, rng := 0, seeded(4)
		for range 50 {
			image := s.Image(crashfs.RandomPrefix, rng)
			if content(t, image, table) == "absent" && content(t, image, table3) != "absent" {
				reordered++
			}
		}
		require.Equal(t, strict, reordered > 0)
	}
}

func TestSettingTheSameMetaAgainSyncsNothing(t *testing.T) {
	s := crashfs.New(&crashfs.Options{StrictDirectory: true})
	require.NoError(t, s.SetMeta(manifest))
	create(t, s, table, "t", true)
	require.NoError(t, s.SetMeta(manifest))
	require.Equal(t, "absent", content(t, s.Image(crashfs.DropUnsynced, nil), table))
}

func TestFileCreatedOverAnOldOneIsOneOfThem(t *testing.T) {
	s := crashfs.New(nil)
	create(t, s, table, "old", true)
	require.NoError(t, s.Remove(table))
	w := create(t, s, table, "new!", false)
	require.Equal(t, "old", content(t, s.Image(crashfs.DropUnsynced, nil), table))
	require.NoError(t, w.Sync())
	image := s.Image(crashfs.DropUnsynced, nil)
	require.Equal(t, "new!", content(t, image, table))
	rng := seeded(3)
	for range 20 {
		require.Equal(t, "new!", content(t, s.Image(crashfs.RandomPrefix, rng), table),
			"the earlier removal must not come back over the synced file")
	}
}

func TestImagesAndTheirSourceDoNotTouchEachOther(t *testing.T) {
	s := crashfs.New(nil)
	rec := s.Record()
	w := create(t, s, journal, "shared", true)
	at := s.Ops()
	image := s.Image(crashfs.DropUnsynced, nil)
	_, err := w.Write([]byte("-source"))
	require.NoError(t, err)
	require.NoError(t, s.FlipBit(journal, 0))
	require.NoError(t, image.FlipBit(journal, 1))
	require.Equal(t, "qhared", content(t, image, journal))
	require.Equal(t, "rhared-source", content(t, s, journal))
	require.Equal(t, "shared", content(t, rec.ImageAt(at, crashfs.Everything, nil), journal))
	create(t, image, table, "image", true)
	require.Equal(t, "absent", content(t, s, table))
	require.Equal(t, "qhared", content(t, image, journal), "a new file on the image is not an old one")
}

func TestRecordingShowsEveryMomentAsItWas(t *testing.T) {
	s := crashfs.New(nil)
	create(t, s, table3, "before", true)
	rec := s.Record()
	require.Equal(t, s.Ops(), rec.First())
	type moment struct{ kept, all map[storage.FileDesc]string }
	look := func(s *crashfs.Storage) map[storage.FileDesc]string {
		m := map[storage.FileDesc]string{}
		for _, fd := range []storage.FileDesc{journal, table, table3, manifest} {
			m[fd] = content(t, s, fd)
		}
		return m
	}
	lived := map[int]moment{}
	note := func() {
		lived[s.Ops()] = moment{look(s.Image(crashfs.DropUnsynced, nil)), look(s.Image(crashfs.Everything, nil))}
	}
	note()
	for _, do := range []func() error{
		func() error { create(t, s, journal, "j", false); return nil },
		func() error { return s.Remove(table3) },
		func() error { create(t, s, table, "t", true); return nil },
		func() error { return s.SetMeta(manifest) },
		func() error { return s.Truncate(table, 0) },
		func() error { return s.Rename(table, table3) },
	} {
		require.NoError(t, do())
		note()
	}
	require.Equal(t, s.Ops(), rec.Last())
	for range 2 { // twice: the second pass makes the replay start over
		for op := rec.First(); op <= rec.Last(); op++ {
			kept := look(rec.ImageAt(op, crashfs.DropUnsynced, nil))
			if want, ok := lived[op]; ok {
				require.Equal(t, want.kept, kept, rec.Describe(op))
				require.Equal(t, want.all, look(rec.ImageAt(op, crashfs.Everything, nil)), rec.Describe(op))
			}
		}
	}
	require.Panics(t, func() { rec.ImageAt(rec.Last()+1, crashfs.Everything, nil) })
	require.Panics(t, func() { rec.ImageAt(rec.First()-1, crashfs.Everything, nil) })
}

func TestPowerOffFreezesTheStorage(t *testing.T) {
	s := crashfs.New(nil)
	w := create(t, s, journal, "kept", true)
	s.CrashAt(s.Ops() + 1)
	_, err := w.Write([]byte("+last"))
	require.NoError(t, err)
	require.True(t, s.Crashed())
	_, err = w.Write([]byte("+never"))
	require.ErrorIs(t, err, crashfs.ErrPowerOff)
	require.ErrorIs(t, w.Sync(), crashfs.ErrPowerOff)
	_, err = s.Open(journal)
	require.ErrorIs(t, err, crashfs.ErrPowerOff)
	_, err = s.List(storage.TypeAll)
	require.ErrorIs(t, err, crashfs.ErrPowerOff)
	require.NoError(t, w.Close())
	require.Equal(t, "kept", content(t, s.Image(crashfs.DropUnsynced, nil), journal))
	require.Equal(t, "kept+last", content(t, s.Image(crashfs.Everything, nil), journal))
}

func TestFaultsHitTheNthMatchingOperationOnly(t *testing.T) {
	s := crashfs.New(nil)
	w := create(t, s, journal, "", false)
	s.Fail(crashfs.Fault{Op: crashfs.OpWrite, Type: storage.TypeTable})
	s.Fail(crashfs.Fault{Op: crashfs.OpWrite, Type: storage.TypeJournal, Nth: 2})
	_, err := w.Write([]byte("a"))
	require.NoError(t, err)
	_, err = w.Write([]byte("b"))
	require.ErrorIs(t, err, syscall.EIO)
	_, err = w.Write([]byte("c"))
	require.NoError(t, err)
	require.Equal(t, "ac", content(t, s, journal))

	s.Fail(crashfs.Fault{Op: crashfs.OpRemove, Err: os.ErrPermission, Sticky: true})
	require.ErrorIs(t, s.Remove(journal), os.ErrPermission)
	require.ErrorIs(t, s.Remove(journal), os.ErrPermission)
	s.ClearFaults()

	s.SetSpace(2)
	n, err := w.Write([]byte("def"))
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.Equal(t, 2, n)
	require.Equal(t, "acde", content(t, s, journal))
	s.ClearFaults()
	require.NoError(t, s.Remove(journal))
}

func TestFailedSyncLosesItsBytesEvenIfALaterOneSucceeds(t *testing.T) {
	s := crashfs.New(nil)
	w := create(t, s, journal, "one", true)
	_, err := w.Write([]byte("two"))
	require.NoError(t, err)
	s.Fail(crashfs.Fault{Op: crashfs.OpSync})
	require.ErrorIs(t, w.Sync(), syscall.EIO)
	require.Equal(t, "one", content(t, s.Image(crashfs.DropUnsynced, nil), journal))
	_, err = w.Write([]byte("three"))
	require.NoError(t, err)
	require.NoError(t, w.Sync())
	require.Equal(t, "onetwothree", content(t, s, journal))
	require.Equal(t, "one\x00\x00\x00three", content(t, s.Image(crashfs.DropUnsynced, nil), journal))
}

func TestRandomBitIsFlippedInAFileOfTheType(t *testing.T) {
	s := crashfs.New(nil)
	_, _, err := s.FlipRandomBit(storage.TypeTable, seeded(1))
	require.Error(t, err)
	create(t, s, journal, "jjjj", true)
	create(t, s, table, "tttt", true)
	r, err := s.Open(table)
	require.NoError(t, err)
	fd, bit, err := s.FlipRandomBit(storage.TypeTable, seeded(1))
	require.NoError(t, err)
	require.Equal(t, table, fd)
	require.Less(t, bit, int64(32))
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	require.NotEqual(t, "tttt", string(b), "an open reader sees the corruption")
	require.Equal(t, "jjjj", content(t, s, journal))
}
