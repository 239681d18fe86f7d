package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/level-replicator/replicator"
)

// handle is what a bare and a replicated database have in common.
type handle interface {
	Put(key, value []byte, wo *opt.WriteOptions) error
	Write(batch *leveldb.Batch, wo *opt.WriteOptions) error
	Get(key []byte, ro *opt.ReadOptions) ([]byte, error)
	NewIterator(slice *util.Range, ro *opt.ReadOptions) iterator.Iterator
	CompactRange(r util.Range) error
	Stats(s *leveldb.DBStats) error
	Close() error
}

// open opens a database of the system that is measured.
func (e *env) open(o replicator.Options) (handle, error) {
	return e.openWith(e.storeOptions(), o)
}

func (e *env) openWith(store *opt.Options, o replicator.Options) (handle, error) {
	switch e.system {
	case raw:
		return leveldb.OpenFile(e.dir, store)
	case blind:
		db, err := leveldb.OpenFile(e.dir, store)
		if err != nil {
			return nil, err
		}
		return newRecorder(db), nil
	}
	return replicateWith(e.dir, store, o)
}

// storeOptions are those that the scenario asks for.
func (e *env) storeOptions() *opt.Options {
	if e.store == suited {
		return replicator.StoreOptions()
	}
	return nil
}

// replicate opens a replicated database, on a free port of loopback unless the
// options say where to listen.
func (e *env) replicate(dir string, o replicator.Options) (*replicator.DB, error) {
	return replicateWith(dir, e.storeOptions(), o)
}

func replicateWith(dir string, store *opt.Options, o replicator.Options) (*replicator.DB, error) {
	db, err := leveldb.OpenFile(dir, store)
	if err != nil {
		return nil, err
	}
	if o.Listener == nil {
		o.Listen = "127.0.0.1:0"
	}
	o.Logger = slog.New(slog.DiscardHandler)
	r, err := replicator.Replicate(db, &o)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if len(o.Peers) == 0 {
		<-r.Ready()
	}
	return r, nil
}

// alone are options of a replica that holds no session unless Sync is called.
func alone() replicator.Options {
	return replicator.Options{MinInterval: time.Hour, MaxInterval: time.Hour}
}

const keySize = 16

// keys are n random keys of 16 bytes. The same seed yields the same keys.
type keys []byte

func newKeys(n int, seed uint64) keys {
	r := rand.New(rand.NewPCG(seed, 16))
	ks := make(keys, 0, n*keySize)
	for range n {
		ks = binary.BigEndian.AppendUint64(ks, r.Uint64()>>1) // below ff ff
		ks = binary.BigEndian.AppendUint64(ks, r.Uint64())
	}
	return ks
}

func (ks keys) len() int           { return len(ks) / keySize }
func (ks keys) at(i uint32) []byte { return ks[int(i)*keySize : (int(i)+1)*keySize] }

// neighbours returns as many keys that follow one another in the order of keys, in that order.
func (ks keys) neighbours(n int) (order []uint32) {
	least := binary.BigEndian.AppendUint64(nil, 1<<61) // of random ones a quarter is below
	for i := range uint32(ks.len()) {
		if bytes.Compare(ks.at(i), least) >= 0 {
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(a, b uint32) int { return bytes.Compare(ks.at(a), ks.at(b)) })
	return slices.Clone(order[:n])
}

// values are half random, so that they compress to about a half.
type values struct {
	r    *rand.Rand
	buf  []byte
	size int
}

func newValues(size int, seed uint64) *values {
	v := &values{r: rand.New(rand.NewPCG(seed, 100)), buf: make([]byte, size), size: size}
	for i := range v.buf {
		v.buf[i] = "a value of which half is text "[i%30]
	}
	return v
}

// next is another value, valid until the next.
func (v *values) next() []byte {
	for i := 0; i+8 <= v.size/2; i += 8 {
		binary.LittleEndian.PutUint64(v.buf[i:], v.r.Uint64())
	}
	return v.buf
}

// inOrder, uniform and zipf are orders in which n keys are used, ops times.
func inOrder(n int) []uint32 {
	order := make([]uint32, n)
	for i := range order {
		order[i] = uint32(i)
	}
	return order
}

func uniform(n, ops int, seed uint64) []uint32 {
	r := rand.New(rand.NewPCG(seed, 1))
	order := make([]uint32, ops)
	for i := range order {
		order[i] = r.Uint32N(uint32(n))
	}
	return order
}

func zipf(n, ops int, seed uint64) []uint32 {
	z := rand.NewZipf(rand.New(rand.NewPCG(seed, 2)), 1.1, 1, uint64(n-1))
	order := make([]uint32, ops)
	for i := range order {
		order[i] = uint32(z.Uint64())
	}
	return order
}

// load writes keys in batches of 1000, in the order of the slice, which is random
// to the database.
func load(db handle, ks keys, size int) error {
	v := newValues(size, 7)
	b := new(leveldb.Batch)
	for i := range uint32(ks.len()) {
		b.Put(ks.at(i), v.next())
		if b.Len() == 1000 || int(i) == ks.len()-1 {
			if err := db.Write(b, nil); err != nil {
				return err
			}
			b.Reset()
		}
	}
	return nil
}

// compacted waits until goleveldb has stopped compacting and removed what it replaced, which
// shows in the files, and returns their size. It waits two minutes at most.
func (e *env) compacted(dir string) (size int64, err error) {
	still := 0
	for began := time.Now(); time.Since(began) < 2*time.Minute; {
		now, err := diskSize(dir)
		if err != nil {
			return 0, err
		}
		if now == size {
			still++
		} else {
			size, still = now, 0
		}
		if still >= 10 {
			break
		}
		select {
		case <-e.ctx.Done():
			return 0, e.ctx.Err()
		case <-time.After(e.still / 10):
		}
	}
	return size, nil
}

// quiet waits until the process is nearly idle: background work after a database was opened
// is over.
func (e *env) quiet() error {
	still := 0
	for began := time.Now(); still < 3 && time.Since(began) < 20*time.Second; {
		used := cpu()
		select {
		case <-e.ctx.Done():
			return e.ctx.Err()
		case <-time.After(e.still / 5):
		}
		if still++; cpu()-used > e.still/5/20 {
			still = 0
		}
	}
	return nil
}

// diskSize returns the size of a database's files. Those that vanish meanwhile do not count.
func diskSize(dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return ignoreMissing(err)
		}
		info, err := d.Info()
		if err != nil {
			return ignoreMissing(err)
		}
		size += info.Size()
		return nil
	})
	return size, err
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// share has several writers each do a part of the work.
func share(writers, n int, work func(writer, from, to int) error) error {
	errs := make([]error, writers)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() { errs[w] = work(w, n*w/writers, n*(w+1)/writers) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
