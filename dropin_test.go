package replicator_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
)

// What callers of goleveldb hold, by their methods.
type (
	kvReader interface {
		Get(key []byte, ro *opt.ReadOptions) ([]byte, error)
		Has(key []byte, ro *opt.ReadOptions) (bool, error)
		NewIterator(slice *util.Range, ro *opt.ReadOptions) iterator.Iterator
	}
	kvWriter interface {
		kvReader
		Put(key, value []byte, wo *opt.WriteOptions) error
		Delete(key []byte, wo *opt.WriteOptions) error
		Write(b *leveldb.Batch, wo *opt.WriteOptions) error
	}
	kvSnapshot interface {
		kvReader
		Release()
		String() string
	}
	kvTransaction interface {
		kvWriter
		Commit() error
		Discard()
	}
	kv interface {
		kvWriter
		CompactRange(r util.Range) error
		SizeOf(ranges []util.Range) (leveldb.Sizes, error)
		GetProperty(name string) (string, error)
		Stats(s *leveldb.DBStats) error
		SetReadOnly() error
		Close() error
	}
)

var (
	_ kv            = (*leveldb.DB)(nil)
	_ kv            = (*replicator.DB)(nil)
	_ kvSnapshot    = (*leveldb.Snapshot)(nil)
	_ kvSnapshot    = (*replicator.Snapshot)(nil)
	_ kvTransaction = (*leveldb.Transaction)(nil)
	_ kvTransaction = (*replicator.Transaction)(nil)
)

// writeBuffer is small, so that there are tables, and batches larger than it.
const writeBuffer = 32 << 10

// twins are a raw handle and a wrapped one that the same is done to.
type twins struct {
	t     *testing.T
	rng   *rand.Rand
	log   []string
	disks [2]storage.Storage
	raw   *leveldb.DB
	db    *replicator.DB

	snaps    [][2]kvSnapshot
	iters    [][2]iterator.Iterator
	trans    [2]kvTransaction // nil if none is open
	over     [2]kvTransaction // the last that was
	before   int              // how many iterators there were when it was opened
	written  int              // bytes since then
	readOnly bool
	closed   bool
}

func (w *twins) open() {
	var raws [2]*leveldb.DB
	for i := range raws {
		raw, err := leveldb.Open(w.disks[i], &opt.Options{WriteBuffer: writeBuffer})
		require.NoError(w.t, err)
		raws[i] = raw
	}
	w.raw = raws[0]
	w.db = newCluster(w.t).open("a", raws[1], &replicator.Options{})
	w.readOnly, w.closed = false, false
}

// same compares what both answered; errors by identity, if goleveldb exports them.
func (w *twins) same(op string, a, b any, errA, errB error) {
	w.log = append(w.log, fmt.Sprint(op, " ", errA))
	if len(w.log) > 40 {
		w.log = w.log[1:]
	}
	exported := []error{leveldb.ErrClosed, leveldb.ErrNotFound, leveldb.ErrReadOnly, leveldb.ErrSnapshotReleased, leveldb.ErrIterReleased}
	switch {
	case errA != nil && errB != nil && !slices.Contains(exported, errA):
		require.Equal(w.t, errA.Error(), errB.Error(), "%v", w.log)
	default:
		require.True(w.t, errA == errB, "%v: %v, not %v\n%v", op, errB, errA, w.log)
	}
	if x, ok := a.([]byte); ok {
		require.True(w.t, bytes.Equal(x, b.([]byte)), "%v: %q, not %q\n%v", op, b, a, w.log)
		return
	}
	require.Equal(w.t, a, b, "%v\n%v", op, w.log)
}

func (w *twins) key() []byte {
	keys := [][]byte{nil, {}, {0}, {0, 0}, []byte("a"), []byte("a\x00"), []byte("b"), {0xff}, {0xff, 0xfe, 0xff, 0xff}, bytes.Repeat([]byte("k"), 300)}
	if w.rng.IntN(2) == 0 {
		return keys[w.rng.IntN(len(keys))]
	}
	return fmt.Appendf(nil, "k%02d", w.rng.IntN(30))
}

func (w *twins) value() []byte {
	switch w.rng.IntN(12) {
	case 0:
		return nil
	case 1:
		return []byte{}
	case 2:
		return bytes.Repeat([]byte{byte(w.rng.Uint32())}, w.rng.IntN(20<<10))
	}
	return fmt.Appendf(nil, "v%d", w.rng.Uint32())
}

func (w *twins) slice() *util.Range {
	if w.rng.IntN(3) == 0 {
		return nil
	}
	r := &util.Range{Start: w.key(), Limit: w.key()}
	if w.rng.IntN(4) == 0 {
		return util.BytesPrefix(r.Start)
	}
	if bytes.Compare(r.Start, r.Limit) > 0 && r.Limit != nil {
		r.Start, r.Limit = r.Limit, r.Start
	}
	return r
}

func (w *twins) batch() *leveldb.Batch {
	if w.rng.IntN(10) == 0 {
		return nil
	}
	b := new(leveldb.Batch)
	n := w.rng.IntN(8)
	if w.rng.IntN(20) == 0 {
		n = 200 // may be larger than the write buffer, and then goleveldb takes another path
	}
	for range n {
		if w.rng.IntN(3) == 0 {
			b.Delete(w.key())
		} else {
			b.Put(w.key(), w.value())
		}
	}
	return b
}

func (w *twins) write(a, b kvWriter) {
	wo := &opt.WriteOptions{Sync: w.rng.IntN(5) == 0}
	if w.rng.IntN(3) == 0 {
		wo = nil
	}
	switch w.rng.IntN(3) {
	case 0:
		k, v := w.key(), w.value()
		w.written += len(k) + len(v) + 100
		w.same(fmt.Sprintf("Put %.20q", k), nil, nil, a.Put(k, v, wo), b.Put(k, v, wo))
	case 1:
		k := w.key()
		w.same(fmt.Sprintf("Delete %.20q", k), nil, nil, a.Delete(k, wo), b.Delete(k, wo))
	case 2:
		batch := w.batch()
		if batch != nil {
			w.written += len(batch.Dump()) + 100*batch.Len()
		}
		w.same("Write", nil, nil, a.Write(batch, wo), b.Write(batch, wo))
	}
}

func (w *twins) read(a, b kvReader) {
	k := w.key()
	switch w.rng.IntN(3) {
	case 0:
		x, errA := a.Get(k, nil)
		y, errB := b.Get(k, nil)
		w.same(fmt.Sprintf("Get %.20q", k), x, y, errA, errB)
	case 1:
		x, errA := a.Has(k, nil)
		y, errB := b.Has(k, nil)
		w.same(fmt.Sprintf("Has %.20q", k), x, y, errA, errB)
	case 2:
		s := w.slice()
		w.iters = append(w.iters, [2]iterator.Iterator{a.NewIterator(s, nil), b.NewIterator(s, nil)})
	}
}

func (w *twins) iterate() {
	if len(w.iters) == 0 {
		return
	}
	i := w.rng.IntN(len(w.iters))
	if w.rng.IntN(2) == 0 {
		i = len(w.iters) - 1
	}
	a, b := w.iters[i][0], w.iters[i][1]
	for range w.rng.IntN(12) {
		var x, y bool
		op := []string{"First", "Last", "Seek", "Next", "Prev", "Next", "Prev"}[w.rng.IntN(7)]
		switch op {
		case "First":
			x, y = a.First(), b.First()
		case "Last":
			x, y = a.Last(), b.Last()
		case "Seek":
			k := w.key()
			x, y = a.Seek(k), b.Seek(k)
		case "Next":
			x, y = a.Next(), b.Next()
		case "Prev":
			x, y = a.Prev(), b.Prev()
		}
		w.same(op, x, y, a.Error(), b.Error())
		w.same("Valid", a.Valid(), b.Valid(), nil, nil)
		w.same("Key", a.Key(), b.Key(), nil, nil)
		w.same("Value", a.Value(), b.Value(), nil, nil)
	}
	if w.rng.IntN(3) == 0 {
		a.Release()
		b.Release()
		w.same("Next after Release", a.Next(), b.Next(), a.Error(), b.Error())
		w.iters = slices.Delete(w.iters, i, i+1)
		if i < w.before {
			w.before--
		}
	}
}

func (w *twins) snapshot() {
	if len(w.snaps) == 0 || w.rng.IntN(3) == 0 {
		a, errA := w.raw.GetSnapshot()
		b, errB := w.db.GetSnapshot()
		w.same("GetSnapshot", a == nil, b == nil, errA, errB)
		if errA == nil {
			w.snaps = append(w.snaps, [2]kvSnapshot{a, b})
		}
		return
	}
	i := w.rng.IntN(len(w.snaps))
	s := w.snaps[i]
	w.read(s[0], s[1])
	if w.rng.IntN(4) == 0 {
		s[0].Release()
		s[1].Release()
		w.read(s[0], s[1])
		w.snaps = slices.Delete(w.snaps, i, i+1)
	}
}

func (w *twins) transaction() {
	a, b := w.trans[0], w.trans[1]
	if a == nil {
		x, errA := w.raw.OpenTransaction()
		y, errB := w.db.OpenTransaction()
		w.same("OpenTransaction", x == nil, y == nil, errA, errB)
		if errA == nil {
			w.trans, w.before, w.written = [2]kvTransaction{x, y}, len(w.iters), 0
		}
		return
	}
	for range w.rng.IntN(6) {
		w.write(a, b)
	}
	what := w.rng.IntN(8)
	if what == 1 && w.written > writeBuffer/2 {
		// After goleveldb has discarded a transaction that had come to tables, the
		// next that is committed can be invisible. Ours keeps to memory.
		what = 0
	}
	switch what {
	case 0:
		w.same("Commit", nil, nil, a.Commit(), b.Commit())
		w.over, w.trans = w.trans, [2]kvTransaction{}
	case 1:
		a.Discard()
		b.Discard()
		// In goleveldb an iterator of a discarded transaction shows what is written
		// later, as the sequence numbers are given out again. Ours does not.
		for _, it := range w.iters[w.before:] {
			it[0].Release()
			it[1].Release()
		}
		w.iters = w.iters[:w.before]
		w.over, w.trans = w.trans, [2]kvTransaction{}
	case 2, 3:
		w.read(a, b)
	default:
		s := w.slice()
		w.iters = append(w.iters, [2]iterator.Iterator{a.NewIterator(s, nil), b.NewIterator(s, nil)})
		w.iterate()
	}
}

func (w *twins) look() {
	names := []string{"leveldb.stats", "leveldb.num-files-at-level0", "leveldb.num-files-at-levelx", "nothing", "leveldb.nothing"}
	name := names[w.rng.IntN(len(names))]
	_, errA := w.raw.GetProperty(name)
	_, errB := w.db.GetProperty(name)
	w.same("GetProperty", nil, nil, errA, errB)
	w.same("Stats", nil, nil, w.raw.Stats(&leveldb.DBStats{}), w.db.Stats(&leveldb.DBStats{}))
	ranges := []util.Range{{Start: w.key(), Limit: w.key()}, {}}
	x, errA := w.raw.SizeOf(ranges)
	y, errB := w.db.SizeOf(ranges)
	w.same("SizeOf", len(x), len(y), errA, errB)
}

// finish closes both, goes on for a while, and opens them again.
func (w *twins) finish() {
	for _, it := range w.iters {
		it[0].Release()
		it[1].Release()
	}
	w.iters = nil
	w.same("Close", nil, nil, w.raw.Close(), w.db.Close())
	w.closed = true
	for range 10 {
		w.step()
	}
	if w.trans[0] != nil {
		w.same("Commit after Close", nil, nil, w.trans[0].Commit(), w.trans[1].Commit())
		w.read(w.trans[0], w.trans[1])
		w.trans = [2]kvTransaction{}
	}
	w.iters, w.snaps, w.over = nil, nil, [2]kvTransaction{}
	w.open()
}

func (w *twins) step() {
	free := w.trans[0] == nil // else goleveldb's writers wait
	switch n := w.rng.IntN(100); {
	case n < 30 && (free || w.closed):
		w.write(w.raw, w.db)
	case n < 55:
		w.read(w.raw, w.db)
	case n < 70:
		w.iterate()
	case n < 80:
		w.snapshot()
	case n < 92 && !w.closed:
		w.transaction()
	case n < 94:
		w.look()
	case n < 95 && (free || w.closed):
		r := util.Range{Start: w.key(), Limit: w.key()}
		w.same("CompactRange", nil, nil, w.raw.CompactRange(r), w.db.CompactRange(r))
	case n < 96 && w.over[0] != nil:
		w.write(w.over[0], w.over[1])
		w.read(w.over[0], w.over[1])
		w.same("Commit again", nil, nil, w.over[0].Commit(), w.over[1].Commit())
	case n == 98 && free && w.rng.IntN(5) == 0 || w.closed && n == 98:
		w.same("SetReadOnly", nil, nil, w.raw.SetReadOnly(), w.db.SetReadOnly())
		w.readOnly = true
	case n == 99 && !w.closed:
		w.finish()
	}
}

func dump(t *testing.T, r kvReader) (m []string) {
	it := r.NewIterator(nil, nil)
	defer it.Release()
	for it.Next() {
		m = append(m, fmt.Sprintf("%q=%x", it.Key(), it.Value()))
	}
	require.NoError(t, it.Error())
	return m
}

// TestWrapperAnswersAsTheRawHandle does one random history to a raw handle and to
// a wrapped one, and compares every answer and every error.
func TestWrapperAnswersAsTheRawHandle(t *testing.T) {
	seeds := 40
	if testing.Short() {
		seeds = 8
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			replicatortest.Bubble(t, 0, func(t *testing.T) {
				w := &twins{t: t, rng: rand.New(rand.NewPCG(uint64(seed), 7))}
				w.disks = [2]storage.Storage{storage.NewMemStorage(), storage.NewMemStorage()}
				w.open()
				for range 600 {
					w.step()
				}
				if w.trans[0] != nil {
					w.same("Commit", nil, nil, w.trans[0].Commit(), w.trans[1].Commit())
					w.trans = [2]kvTransaction{}
				}
				require.Equal(t, dump(t, w.raw), dump(t, w.db))
				w.finish()
				require.Equal(t, dump(t, w.raw), dump(t, w.db))
				for _, s := range w.snaps {
					s[0].Release()
					s[1].Release()
				}
				require.NoError(t, w.db.Close())
				// A plain program reads the same, and ours only at ff ff and above.
				plain, err := leveldb.Open(w.disks[1], nil)
				require.NoError(t, err)
				it := plain.NewIterator(&util.Range{Limit: []byte{0xff, 0xff}}, nil)
				var got []string
				for it.Next() {
					got = append(got, fmt.Sprintf("%q=%x", it.Key(), it.Value()))
				}
				it.Release()
				require.Equal(t, dump(t, w.raw), got)
				require.NoError(t, plain.Close())
				require.NoError(t, w.raw.Close())
			})
		})
	}
}
