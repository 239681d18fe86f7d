package sim

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"

	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// simImage is one state of a store: its pairs in key order. It is never changed,
// so that a snapshot, a backup and a copied disk are all the same slice.
type simImage []simPair

type simPair struct {
	key   string
	value []byte
}

func (im simImage) search(key string) (int, bool) {
	i := sort.Search(len(im), func(i int) bool { return im[i].key >= key })
	return i, i < len(im) && im[i].key == key
}

// with returns the image that a batch makes of this one. The pairs of a batch are
// sorted, each key once; one without a value is a deletion.
func (im simImage) with(batch []simPair) simImage {
	next := make(simImage, 0, len(im)+len(batch))
	i := 0
	for _, p := range batch {
		for i < len(im) && im[i].key < p.key {
			next = append(next, im[i])
			i++
		}
		if i < len(im) && im[i].key == p.key {
			i++
		}
		if p.value != nil {
			next = append(next, p)
		}
	}
	return append(next, im[i:]...)
}

// simRecorder collects what a leveldb.Batch does.
type simRecorder struct{ pairs []simPair }

func (r *simRecorder) Put(key, value []byte) {
	r.pairs = append(r.pairs, simPair{string(key), append([]byte{}, value...)})
}

func (r *simRecorder) Delete(key []byte) { r.pairs = append(r.pairs, simPair{string(key), nil}) }

func simPairs(b *leveldb.Batch) []simPair {
	r := simRecorder{make([]simPair, 0, b.Len())}
	if err := b.Replay(&r); err != nil {
		panic(err)
	}
	slices.SortStableFunc(r.pairs, func(a, b simPair) int { return strings.Compare(a.key, b.key) })
	last := r.pairs[:0]
	for i, p := range r.pairs {
		if i+1 == len(r.pairs) || r.pairs[i+1].key != p.key {
			last = append(last, p)
		}
	}
	return last
}

// simDisk is goleveldb on a disk that may lose power. Batches are whole or not
// there at all; one written with Sync is never lost; any other may be, while later
// ones survive, until the memtable was flushed twice since it was acknowledged.
type simDisk struct {
	now     simImage // what a running process reads
	safe    simImage // what no power failure can take away, but for synced batches
	journal []simBatch
	flushes uint64 // as leveldb.compcount has it
}

type simBatch struct {
	pairs   []simPair
	synced  bool
	flushes uint64 // before it was acknowledged
}

func newSimDisk(im simImage) simDisk { return simDisk{now: im, safe: im} }

func (d *simDisk) write(pairs []simPair, sync bool) {
	d.now = d.now.with(pairs)
	d.journal = append(d.journal, simBatch{pairs, sync, d.flushes})
}

// flush writes the memtable out.
func (d *simDisk) flush() {
	d.flushes++
	n := 0
	for n < len(d.journal) && d.journal[n].flushes+2 <= d.flushes {
		d.safe = d.safe.with(d.journal[n].pairs)
		n++
	}
	d.journal = d.journal[n:]
}

// flushAll is what CompactRange before a clean close does.
func (d *simDisk) flushAll() {
	d.flush()
	d.flush()
}

// afterPowerFailure is what a power failure now may leave. Each unsynced batch
// survives with the chance given.
func (d *simDisk) afterPowerFailure(r *rand.Rand, survive float64) simImage {
	im := d.safe
	for _, b := range d.journal {
		if b.synced || r.Float64() < survive {
			im = im.with(b.pairs)
		}
	}
	return im
}

// mayBecome returns what a power failure now may leave of one key.
func (d *simDisk) mayBecome(key string) (values [][]byte) {
	if i, ok := d.safe.search(key); ok {
		values = append(values, d.safe[i].value)
	}
	for _, b := range d.journal {
		i, ok := simImage(b.pairs).search(key)
		if !ok {
			continue
		}
		if b.synced {
			values = values[:0]
		}
		if v := b.pairs[i].value; v != nil {
			values = append(values, v)
		}
	}
	return values
}

var errSimRead = errors.New("simulated: the disk cannot read this block")

// simReader reads an image. Like goleveldb it hands out iterators whose key and
// value are overwritten by the next step, and like a corrupted table some of them
// end early, with nothing but Error to tell it.
type simReader struct {
	image simImage
	fault func() bool // nil: no read fails
}

func (s *simReader) Release() {}

func (s *simReader) Get(key []byte, _ *opt.ReadOptions) ([]byte, error) {
	if s.fault != nil && s.fault() {
		return nil, errSimRead
	}
	if i, ok := s.image.search(string(key)); ok {
		return slices.Clone(s.image[i].value), nil
	}
	return nil, leveldb.ErrNotFound
}

func (s *simReader) NewIterator(g *util.Range, _ *opt.ReadOptions) iterator.Iterator {
	im := s.image
	if g != nil {
		from, to := 0, len(im)
		if g.Start != nil {
			from, _ = im.search(string(g.Start))
		}
		if g.Limit != nil {
			to, _ = im.search(string(g.Limit))
		}
		im = im[from:max(from, to)]
	}
	it := &simIterator{image: im, at: -1, bad: -1}
	if len(im) > 0 && s.fault != nil && s.fault() {
		it.bad = int(store.Checksum([]byte(im[0].key)) % uint32(len(im)))
	}
	return it
}

type simIterator struct {
	util.BasicReleaser
	image      simImage
	at, bad    int // bad is where the table is corrupted, if anywhere
	key, value []byte
	err        error
}

func (it *simIterator) move(to int) bool {
	for _, b := range [][]byte{it.key, it.value} {
		for i := range b {
			b[i] = 0xdb // who kept a slice of it is in for a surprise
		}
	}
	if it.at = max(-1, min(to, len(it.image))); it.at == it.bad && it.bad >= 0 {
		it.err = errSimRead
	}
	if !it.Valid() {
		return false
	}
	it.key = append(it.key[:0], it.image[it.at].key...)
	it.value = append(it.value[:0], it.image[it.at].value...)
	return true
}

func (it *simIterator) First() bool { return it.move(0) }

func (it *simIterator) Last() bool { return it.move(len(it.image) - 1) }

func (it *simIterator) Next() bool { return it.move(it.at + 1) }

func (it *simIterator) Prev() bool { return it.move(it.at - 1) }

func (it *simIterator) Valid() bool { return it.err == nil && it.at >= 0 && it.at < len(it.image) }

func (it *simIterator) Seek(key []byte) bool {
	i, _ := it.image.search(string(key))
	return it.move(i)
}

func (it *simIterator) Key() []byte { return it.key }

func (it *simIterator) Value() []byte { return it.value }

func (it *simIterator) Error() error { return it.err }

// simStore is the store of a running node: its disk as it is now.
type simStore struct {
	disk  *simDisk
	fault func() bool
}

func (s *simStore) read() *simReader { return &simReader{s.disk.now, s.fault} }

func (s *simStore) Get(key []byte, o *opt.ReadOptions) ([]byte, error) { return s.read().Get(key, o) }

func (s *simStore) NewIterator(g *util.Range, o *opt.ReadOptions) iterator.Iterator {
	return s.read().NewIterator(g, o)
}

func (s *simStore) Snapshot() (store.Snapshot, error) {
	if s.fault != nil && s.fault() {
		return nil, errSimRead
	}
	return s.read(), nil
}
