package crashfs_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/level-replicator/replicator/internal/crashfs"
)

var reserved = []byte("\xff\xffb")

// flushReserved writes one key and compacts over that key alone. It flushes the
// memtable that holds the key, if that is still the one being written to.
func flushReserved(db *leveldb.DB) error {
	if err := db.Put(reserved, []byte("x"), nil); err != nil {
		return err
	}
	return db.CompactRange(util.Range{Start: reserved, Limit: append(bytes.Clone(reserved), 0)})
}

// barrier makes durable what was written before: it flushes until MemComp has
// grown by two, which the first flush alone does not always do.
func barrier(t *testing.T, db *leveldb.DB) {
	t.Helper()
	for start := memComp(t, db); memComp(t, db) < start+2; {
		require.NoError(t, flushReserved(db))
	}
}

func TestFlushingUntilMemCompGrewByTwoIsABarrier(t *testing.T) {
	for extra := range 100 { // the memtable is full to a different degree each time
		s := crashfs.New(nil)
		db := open(t, s)
		for i := range 100 {
			require.NoError(t, db.Put(key(i, 0), bytes.Repeat([]byte{1}, 200), nil))
		}
		require.NoError(t, db.Put(key(100, 0), bytes.Repeat([]byte{1}, 80*extra), nil))
		barrier(t, db)
		image := s.Image(crashfs.DropUnsynced, nil)
		require.NoError(t, db.Close())
		require.Len(t, boot(t, image), 102, "with %d bytes more", 80*extra)
	}
}

// Overwriting one key with zeros until MemComp has grown by two is a barrier
// too. It costs two write buffers of journal, whatever the size of the database;
// CompactRange rewrites every table that its flush overlaps.
func TestOverwritingOneKeyUntilMemCompGrewByTwoIsABarrier(t *testing.T) {
	s := crashfs.New(nil)
	db := open(t, s)
	for round := range 20 {
		for i := range 50 {
			require.NoError(t, db.Put(key(round, i), bytes.Repeat([]byte{1}, 20*round), nil))
		}
		for start := memComp(t, db); memComp(t, db) < start+2; {
			require.NoError(t, db.Put(reserved, make([]byte, 1000), nil))
		}
		require.Len(t, boot(t, s.Image(crashfs.DropUnsynced, nil)), (round+1)*50+1)
	}
	quiesce(t, db)
	require.NoError(t, db.Close())
}

func TestBarrierHoldsWhileOthersWrite(t *testing.T) {
	s := crashfs.New(nil)
	db := open(t, s)
	stop := make(chan struct{})
	errs := make(chan error, 2)
	var writers sync.WaitGroup
	for w := range cap(errs) {
		writers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := db.Put(key(w, i%1000), bytes.Repeat([]byte{1}, 700), nil); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	for i := range 60 {
		k := fmt.Appendf(nil, "mine-%d", i)
		require.NoError(t, db.Put(k, []byte("v"), nil))
		barrier(t, db)
		image := open(t, s.Image(crashfs.DropUnsynced, nil))
		_, err := image.Get(k, nil)
		require.NoError(t, err, "write %d", i)
		require.NoError(t, image.Close())
	}
	close(stop)
	writers.Wait()
	require.Empty(t, errs)
	quiesce(t, db)
	require.NoError(t, db.Close())
}

// lateFlush holds goleveldb's memtable flush back just before it begins. It
// stands for an unlucky schedule, which happens in about one of 400 tries.
type lateFlush struct {
	*crashfs.Storage
	gate chan struct{}
}

func (s *lateFlush) Log(text string) {
	if strings.HasPrefix(text, "memdb@flush N") {
		<-s.gate
	}
}

// If the reserved key fills the memtable to the last byte, its Put freezes that
// memtable. CompactRange then looks at the new, empty one, finds nothing in
// range and does not wait for the frozen one.
func TestOneFlushIsNoBarrierIfThePutFillsTheMemtable(t *testing.T) {
	const overhead = 8 // of a record in the memtable
	s := &lateFlush{crashfs.New(nil), make(chan struct{})}
	db := open(t, s)
	room := smallBuffer().WriteBuffer - (len(reserved) + 1 + overhead)
	require.NoError(t, db.Put([]byte("k"), make([]byte, room-1-overhead), nil))
	start := memComp(t, db)
	require.NoError(t, flushReserved(db))
	image := s.Image(crashfs.DropUnsynced, nil)
	require.Equal(t, start, memComp(t, db), "MemComp reports no flush")
	close(s.gate)
	barrier(t, db)
	after := s.Image(crashfs.DropUnsynced, nil)
	require.NoError(t, db.Close())
	require.NotContains(t, boot(t, image), "k")
	require.Contains(t, boot(t, after), "k")
}

func TestFlippedBitEndsAnIterationEarlyWithAnError(t *testing.T) {
	s := crashfs.New(nil)
	db := open(t, s)
	noise := rand.NewChaCha8([32]byte{1}) // it must not compress to nothing
	for i := range 500 {
		value := make([]byte, 100)
		_, _ = noise.Read(value)
		require.NoError(t, db.Put(key(i, 0), value, nil))
	}
	require.NoError(t, db.CompactRange(util.Range{}))
	require.NoError(t, db.Close())
	// Close may leave tables behind that the compaction replaced; opening removes them.
	require.NoError(t, open(t, s).Close())
	tables, err := s.List(table.Type)
	require.NoError(t, err)
	require.NoError(t, s.FlipBit(tables[0], 8*5_000))
	db = open(t, s)
	it := db.NewIterator(nil, nil)
	n := 0
	for it.Next() {
		n++
	}
	require.Error(t, it.Error())
	it.Release()
	require.Less(t, n, 500)
	require.NoError(t, db.Close())
}

func TestFullDiskLosesNoAcknowledgedWrite(t *testing.T) {
	s := crashfs.New(nil)
	db := open(t, s)
	s.SetSpace(5_000)
	written := 0
	var err error
	for ; err == nil; written++ {
		err = db.Put(key(written, 0), make([]byte, 100), &opt.WriteOptions{Sync: true})
	}
	s.ClearFaults()
	require.Error(t, db.Put([]byte("later"), nil, nil), "goleveldb's journal stays broken until it rotates")
	_, err = db.Get(key(written-2, 0), nil)
	require.NoError(t, err)
	image := s.Image(crashfs.DropUnsynced, nil)
	require.NoError(t, db.Close())
	require.Len(t, boot(t, image), written-1)
}

func TestDatabaseOnFrozenStorageCanBeClosedAndItsImageOpened(t *testing.T) {
	for after := range 40 {
		s := crashfs.New(nil)
		db := open(t, s)
		s.CrashAt(s.Ops() + after*3)
		n := 0
		var err error
		for err == nil {
			if err = db.Put(key(n, 0), make([]byte, 100), &opt.WriteOptions{Sync: true}); err == nil {
				n++
			}
		}
		require.ErrorContains(t, err, crashfs.ErrPowerOff.Error()) // goleveldb flattens some
		require.True(t, s.Crashed())
		_ = db.Close() // may report the failure, must return
		content := boot(t, s.Image(crashfs.DropUnsynced, nil))
		for i := range n {
			require.Contains(t, content, string(key(i, 0)))
		}
	}
}

func TestEqualSeedsGiveEqualImages(t *testing.T) {
	r := record(t, nil, 150, everyTwentieth)
	different := false
	for op := r.rec.First(); op <= r.rec.Last(); op += 37 {
		for _, mode := range crashfs.Modes {
			a, b := r.rec.ImageAt(op, mode, seeded(7)), r.rec.ImageAt(op, mode, seeded(7))
			require.Equal(t, files(t, a), files(t, b), "%v after %s", mode, r.rec.Describe(op))
			c := r.rec.ImageAt(op, mode, seeded(8))
			different = different || fmt.Sprint(files(t, a)) != fmt.Sprint(files(t, c))
		}
	}
	require.True(t, different, "another seed must yield another image somewhere")
}

func files(t *testing.T, s *crashfs.Storage) map[string]string {
	t.Helper()
	all := map[string]string{}
	fds, err := s.List(storage.TypeAll)
	require.NoError(t, err)
	for _, fd := range fds {
		all[fd.String()] = content(t, s, fd)
	}
	return all
}
