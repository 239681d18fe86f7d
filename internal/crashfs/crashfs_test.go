package crashfs_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/level-replicator/replicator/internal/crashfs"
)

const keysPerBatch = 5

// smallBuffer provokes what takes days with 4 MiB: a journal every 60 batches.
func smallBuffer() *opt.Options {
	return &opt.Options{WriteBuffer: 16 << 10, BlockCacheCapacity: -1}
}

// acked is what the caller knew of one batch when Write had returned.
type acked struct {
	ops     int // of the storage
	memComp int
	synced  bool
}

// run is a recorded workload of plain goleveldb.
type run struct {
	rec     *crashfs.Recording
	batches []acked
	flushes []flush
	end     int // operations when the last batch had been written
}

// flush says that MemComp was seen to have reached a value at an operation count.
type flush struct{ ops, memComp int }

// record writes n batches; synced says which of them with Sync.
func record(t *testing.T, o *crashfs.Options, n int, synced func(i int) bool) run {
	t.Helper()
	s := crashfs.New(o)
	db := open(t, s)
	r := run{rec: s.Record()}
	for i := range n {
		b := new(leveldb.Batch)
		for j := range keysPerBatch {
			b.Put(key(i, j), bytes.Repeat([]byte{byte(i)}, 40))
		}
		a := acked{synced: synced(i)}
		require.NoError(t, db.Write(b, &opt.WriteOptions{Sync: a.synced}))
		a.ops, a.memComp = s.Ops(), memComp(t, db)
		r.batches = append(r.batches, a)
		// MemComp first: what it counts was on disk before we looked at Ops.
		r.flushes = append(r.flushes, flush{memComp: memComp(t, db), ops: s.Ops()})
	}
	r.end = s.Ops()
	quiesce(t, db)
	require.NoError(t, db.Close())
	return r
}

// quiesce waits until no flush is under way. goleveldb's Close races with one
// that is just ending: it closes the channel that the flush gives its buffer to.
func quiesce(t *testing.T, db *leveldb.DB) {
	t.Helper()
	require.NoError(t, db.Put(reserved, nil, nil))
	require.NoError(t, db.CompactRange(util.Range{}))
}

func key(batch, i int) []byte { return fmt.Appendf(nil, "%06d-%d", batch, i) }

func open(t *testing.T, s storage.Storage) *leveldb.DB {
	t.Helper()
	db, err := leveldb.Open(s, smallBuffer())
	require.NoError(t, err)
	return db
}

func memComp(t *testing.T, db *leveldb.DB) int {
	t.Helper()
	text, err := db.GetProperty("leveldb.compcount")
	require.NoError(t, err)
	var n int
	_, err = fmt.Sscanf(text, "MemComp:%d ", &n)
	require.NoError(t, err, text)
	return n
}

// read returns the whole content of a database.
func read(t *testing.T, db *leveldb.DB) map[string]string {
	t.Helper()
	content := map[string]string{}
	it := db.NewIterator(nil, nil)
	defer it.Release()
	for it.Next() {
		content[string(it.Key())] = string(it.Value())
	}
	require.NoError(t, it.Error())
	return content
}

func boot(t *testing.T, s *crashfs.Storage) map[string]string {
	t.Helper()
	db := open(t, s)
	defer func() { require.NoError(t, db.Close()) }()
	return read(t, db)
}

// held says of each batch whether the image has it, and fails if it has a part.
func (r run) held(t *testing.T, content map[string]string, where string) []bool {
	t.Helper()
	held := make([]bool, len(r.batches))
	for i := range r.batches {
		n := 0
		for j := range keysPerBatch {
			if _, ok := content[string(key(i, j))]; ok {
				n++
			}
		}
		require.True(t, n == 0 || n == keysPerBatch, "%s: batch %d is torn: %d keys", where, i, n)
		held[i] = n > 0
	}
	return held
}

// tally is what a set of images showed.
type tally struct {
	images, lost, lostSynced, holes, holesBelowSynced int
	judgedByTwo, lostByTwo, lostByOne                 int
}

// crash opens images of the run at random positions, in order, and judges them.
func (r run) crash(t *testing.T, images int, mode crashfs.Mode, rng *rand.Rand) tally {
	t.Helper()
	var sum tally
	for i := range images {
		stride := float64(r.end-r.rec.First()) / float64(images)
		op := r.rec.First() + int(stride*(float64(i)+rng.Float64()))
		where := fmt.Sprintf("%v after %s", mode, r.rec.Describe(op))
		r.judge(r.held(t, boot(t, r.rec.ImageAt(op, mode, rng)), where), op, &sum)
	}
	return sum
}

func (r run) judge(held []bool, op int, sum *tally) {
	sum.images++
	seen := 0 // the MemComp known before the failure
	for _, f := range r.flushes {
		if f.ops <= op {
			seen = f.memComp
		}
	}
	lost, hole, below := false, false, false
	gap := false
	for i, a := range r.batches {
		known := a.ops <= op
		lost = lost || known && !held[i]
		if known && !held[i] && a.synced {
			sum.lostSynced++
		}
		hole = hole || gap && held[i]
		below = below || gap && held[i] && known && a.synced
		gap = gap || !held[i]
		if known && seen >= a.memComp+2 {
			sum.judgedByTwo++
			if !held[i] {
				sum.lostByTwo++
			}
		}
		if known && seen >= a.memComp+1 && !held[i] {
			sum.lostByOne++
		}
	}
	sum.lost += count(lost)
	sum.holes += count(hole)
	sum.holesBelowSynced += count(below)
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

func never(int) bool            { return false }
func always(int) bool           { return true }
func everyTwentieth(i int) bool { return i%20 == 19 }

func TestBatchesAreWholeAndUnsyncedOnesMayBeLost(t *testing.T) {
	r := record(t, nil, 400, never)
	for i, mode := range crashfs.Modes {
		sum := r.crash(t, 60, mode, seeded(uint64(i)))
		t.Logf("%v: %+v", mode, sum)
		require.Positive(t, sum.lost)
	}
	require.Zero(t, r.crash(t, 60, crashfs.Everything, seeded(9)).lost, "the death of the process loses nothing")
}

func TestSyncAlwaysLosesNothing(t *testing.T) {
	r := record(t, nil, 400, always)
	for i, mode := range crashfs.Modes {
		sum := r.crash(t, 60, mode, seeded(uint64(i)))
		t.Logf("%v: %+v", mode, sum)
		require.Zero(t, sum.lost)
		require.Zero(t, sum.holes)
	}
}

func TestSyncedBatchSurvivesWhileEarlierOnesAreLost(t *testing.T) {
	r := record(t, nil, 600, everyTwentieth)
	for i, mode := range crashfs.Modes {
		sum := r.crash(t, 80, mode, seeded(uint64(i)))
		t.Logf("%v: %+v", mode, sum)
		require.Zero(t, sum.lostSynced)
		require.Positive(t, sum.holes)
		require.Positive(t, sum.holesBelowSynced)
	}
}

func TestStrictDirectoryLosesSyncedBatches(t *testing.T) {
	r := record(t, &crashfs.Options{StrictDirectory: true}, 400, always)
	sum := r.crash(t, 80, crashfs.DropUnsynced, seeded(1))
	t.Logf("%+v", sum)
	require.Positive(t, sum.lostSynced, "a new journal's name needs a sync of the directory there")
}

func TestWriteIsDurableOnceTwoMemtablesWereFlushed(t *testing.T) {
	r := record(t, nil, 600, never)
	var all tally
	for i, mode := range crashfs.Modes {
		sum := r.crash(t, 80, mode, seeded(uint64(i)))
		t.Logf("%v: %+v", mode, sum)
		all.judgedByTwo += sum.judgedByTwo
		all.lostByTwo += sum.lostByTwo
		all.lostByOne += sum.lostByOne
	}
	require.Greater(t, all.judgedByTwo, 10_000)
	require.Zero(t, all.lostByTwo)
	require.Positive(t, all.lostByOne, "one flush is not enough; if it were, the rule could be laxer")
}

func TestEveryCrashPointOfASmallRunIsSound(t *testing.T) {
	s := crashfs.New(nil)
	rec := s.Record() // from before the database exists
	r := run{rec: rec}
	db := open(t, s)
	opened := s.Ops()
	for i := range 3 {
		b := new(leveldb.Batch)
		for j := range keysPerBatch {
			b.Put(key(i, j), []byte("v"))
		}
		require.NoError(t, db.Write(b, &opt.WriteOptions{Sync: i == 1}))
		r.batches = append(r.batches, acked{ops: s.Ops(), synced: i == 1})
	}
	require.NoError(t, db.CompactRange(util.Range{}))
	flushed := s.Ops()
	require.NoError(t, db.Close())
	unopened := 0
	for _, mode := range crashfs.Modes {
		for op := rec.First(); op <= rec.Last(); op++ {
			image, where := rec.ImageAt(op, mode, seeded(uint64(op))), fmt.Sprintf("%v after %s", mode, rec.Describe(op))
			db, err := leveldb.Open(image, smallBuffer())
			if err != nil {
				unopened++
				require.Less(t, op, opened, "%s: %v", where, err)
				continue
			}
			var sum tally
			held := r.held(t, read(t, db), where)
			r.judge(held, op, &sum)
			require.Zero(t, sum.lostSynced, where)
			require.True(t, op < flushed || sum.lost == 0, where)
			require.NoError(t, db.Close())
		}
	}
	t.Logf("%d operations, %d images of an unfinished creation did not open", rec.Last(), unopened)
}

// The failed record stays in the journal and its sequence number is used again,
// so on replay the acknowledged record looks out of order and is skipped.
func TestFailedSyncIsReplayedOverALaterAcknowledgedWrite(t *testing.T) {
	s := crashfs.New(nil)
	db := open(t, s)
	wo := &opt.WriteOptions{Sync: true}
	require.NoError(t, db.Put([]byte("k"), []byte("old"), wo))
	s.Fail(crashfs.Fault{Op: crashfs.OpSync, Type: storage.TypeJournal})
	require.ErrorIs(t, db.Put([]byte("k"), []byte("failed"), wo), syscall.EIO)
	v, err := db.Get([]byte("k"), nil)
	require.NoError(t, err)
	require.Equal(t, "old", string(v))
	require.NoError(t, db.Put([]byte("k"), []byte("acknowledged"), wo))
	v, err = db.Get([]byte("k"), nil)
	require.NoError(t, err)
	require.Equal(t, "acknowledged", string(v))
	require.NoError(t, db.Close())
	require.Equal(t, map[string]string{"k": "failed"}, boot(t, s))
}

func TestWhatIsReadAfterOpenIsDurable(t *testing.T) {
	r := record(t, nil, 300, everyTwentieth)
	rng := seeded(5)
	for i := range 90 {
		mode := append(crashfs.Modes, crashfs.Everything)[i%4]
		op := r.rec.First() + i*(r.end-r.rec.First())/90
		image := r.rec.ImageAt(op, mode, rng)
		db := open(t, image)
		again := image.Image(crashfs.DropUnsynced, nil)
		content := read(t, db)
		require.NoError(t, db.Close())
		require.Equal(t, content, boot(t, again), "%v after %s", mode, r.rec.Describe(op))
	}
}
