package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
	"golang.org/x/perf/benchfmt"

	"github.com/level-replicator/replicator"
)

var local = []string{raw, replicated}

// writing are the scenarios of one replica.
func writing() (list []scenario) {
	for _, size := range []int{100, 1024} {
		for _, writers := range []int{1, 8} {
			list = append(list, puts(size, writers))
		}
	}
	for _, size := range []int{100, 1024} {
		list = append(list, batches(size))
	}
	for _, size := range []int{100, 1550} {
		list = append(list, large(size))
	}
	for _, writers := range []int{1, 8} {
		list = append(list, syncedPuts(writers))
	}
	list = append(list, conditional(), farPuts(), unpooled(), memory())
	return append(list, suited.with(puts(100, 1), puts(1024, 1), batches(100), batches(1024), farPuts(), memory())...)
}

// count is how many keys are written with values of a size.
func (e *env) count(size int) int {
	if size > 100 {
		return e.keys / 5
	}
	return e.keys
}

// timed does n operations and reports how many there were in a second, and how much
// processor time each took.
func (e *env) timed(name string, n int, work func() error) error {
	began, used := time.Now(), cpu()
	if err := work(); err != nil {
		return err
	}
	took, used := time.Since(began), cpu()-used
	e.emit(name, n, benchfmt.Value{Value: float64(n) / took.Seconds(), Unit: "op/s"}, benchfmt.Value{Value: used.Seconds() / float64(n), Unit: cpuUnit})
	return nil
}

const cpuUnit = "cpu-sec/op"

// putAll puts keys in an order, shared by several writers.
func putAll(db handle, ks keys, order []uint32, size, writers int, seed uint64) error {
	return share(writers, len(order), func(w, from, to int) error {
		v := newValues(size, seed+uint64(w))
		for _, i := range order[from:to] {
			if err := db.Put(ks.at(i), v.next(), nil); err != nil {
				return err
			}
		}
		return nil
	})
}

// puts are single puts of keys whose index entries fit into the cache, then reading
// them; the smallest is the one whose disk is looked at, too.
func puts(size, writers int) scenario {
	where := fmt.Sprintf("value=%d/writers=%d", size, writers)
	s := scenario{name: "Put/" + where, systems: local, title: fmt.Sprintf("Put, values of %d bytes, %s", size, plural(writers, "writer"))}
	newAim, overAim := aim{}, aim{}
	if size == 100 && writers == 1 {
		newAim, overAim = atLeast(0.55), atLeast(0.50)
	}
	s.rows = []row{
		{"Put/keys=new/" + where, "op/s", "new keys", newAim},
		{"Put/keys=uniform/" + where, "op/s", "overwrites, uniform", overAim},
		{"Put/keys=zipf/" + where, "op/s", "overwrites, Zipf", aim{}},
	}
	if writers == 1 {
		s.rows = append(s.rows,
			row{"Get/value=" + fmt.Sprint(size), "op/s", "Get, uniform", atLeast(0.95)},
			row{"Scan/value=" + fmt.Sprint(size), "op/s", "full scan", atLeast(0.95)},
			row{"Space/value=" + fmt.Sprint(size), "B", "on disk after load, overwrites and compaction", atMostTimes(1.9)},
			row{"Space/value=" + fmt.Sprint(size), "written/put", "bytes written to files per byte put", aim{}})
	}
	s.run = func(e *env) error {
		db, err := e.open(replicator.Options{})
		if err != nil {
			return err
		}
		return errors.Join(e.puts(db, s.rows, size, writers), db.Close())
	}
	return s
}

func (e *env) puts(db handle, rows []row, size, writers int) error {
	n, seed := e.count(size), uint64(e.round)
	ks := newKeys(n, seed)
	orders := [][]uint32{inOrder(n), uniform(n, n, seed), zipf(n, n, seed)}
	for i, order := range orders {
		err := e.timed(rows[i].name, n, func() error { return putAll(db, ks, order, size, writers, uint64(i)<<8) })
		if err != nil {
			return err
		}
	}
	if writers > 1 {
		return nil
	}
	if err := e.space(db, rows[5].name, int64(len(orders)*n*(size+keySize))); err != nil {
		return err
	}
	order := uniform(n, n, seed+1)
	err := e.timed(rows[3].name, n, func() error { return getAll(db, ks, order) })
	if err != nil {
		return err
	}
	const times = 5
	return e.timed(rows[4].name, times*n, func() error {
		for range times {
			if err := scan(db, n); err != nil {
				return err
			}
		}
		return nil
	})
}

// getAll looks keys up in an order.
func getAll(db handle, ks keys, order []uint32) error {
	for _, i := range order {
		if _, err := db.Get(ks.at(i), nil); err != nil {
			return err
		}
	}
	return nil
}

func scan(db handle, want int) error {
	it := db.NewIterator(nil, nil)
	defer it.Release()
	n := 0
	for it.Next() {
		n++
	}
	if n != want {
		return errors.Join(it.Error(), fmt.Errorf("a scan found %d keys of %d", n, want))
	}
	return it.Error()
}

// space compacts everything, waits until what was replaced is gone, and reports how much is
// left and how much was written on the way.
func (e *env) space(db handle, name string, put int64) error {
	if _, err := e.compacted(e.dir); err != nil {
		return err
	}
	var stats leveldb.DBStats
	if err := db.Stats(&stats); err != nil {
		return err
	}
	written := stats.IOWrite
	if err := db.CompactRange(util.Range{}); err != nil {
		return err
	}
	disk, err := e.compacted(e.dir)
	if err != nil {
		return err
	}
	e.emit(name, 1, benchfmt.Value{Value: float64(disk), Unit: "B"}, benchfmt.Value{Value: float64(written) / float64(put), Unit: "written/put"})
	return nil
}

// batches are batches of 100 keys.
func batches(size int) scenario {
	where := fmt.Sprintf("value=%d", size)
	s := scenario{name: "Batch/" + where, systems: local, title: fmt.Sprintf("Batches of 100, values of %d bytes, 1 writer", size)}
	s.rows = []row{
		{"Batch/keys=new/" + where, "op/s", "new keys", aim{}},
		{"Batch/keys=uniform/" + where, "op/s", "overwrites, uniform", aim{}},
	}
	s.run = func(e *env) error {
		db, err := e.open(replicator.Options{})
		if err != nil {
			return err
		}
		n, seed := e.count(size), uint64(e.round)
		ks := newKeys(n, seed)
		for i, order := range [][]uint32{inOrder(n), uniform(n, n, seed)} {
			v := newValues(size, seed+uint64(i)<<8)
			work := func() error { return writeBatches(db, ks, order, v, 100) }
			if err := e.timed(s.rows[i].name, n, work); err != nil {
				return errors.Join(err, db.Close())
			}
		}
		return db.Close()
	}
	return s
}

func writeBatches(db handle, ks keys, order []uint32, v *values, most int) error {
	b := new(leveldb.Batch)
	for len(order) > 0 {
		b.Reset()
		n := min(most, len(order))
		for _, i := range order[:n] {
			b.Put(ks.at(i), v.next())
		}
		if err := db.Write(b, nil); err != nil {
			return err
		}
		order = order[n:]
	}
	return nil
}

// large are batches far larger than goleveldb's write buffer, of two sizes, so that quadratic
// costs show, and a Put beside the larger one.
func large(size int) scenario {
	where := fmt.Sprintf("/value=%d", size)
	s := scenario{name: "Large" + where, systems: local, title: fmt.Sprintf("One batch of many new keys, values of %d bytes", size)}
	limit := atMostTimes(3)
	if size == 100 {
		limit = aim{}
	}
	s.rows = []row{
		{"Large/part=fifth" + where, "sec", "Write, 40,000 keys", limit},
		{"Large/part=all" + where, "sec", "Write, 200,000 keys", limit},
		{"Large/part=beside" + where, "sec", "the longest of the Puts beside it", aim{}},
		{"Large/part=commit" + where, "sec", "OpenTransaction, Put of each, Commit, 200,000 keys", limit},
	}
	s.run = func(e *env) error {
		base := e.dir
		for i, n := range []int{e.fill / 5, e.fill, e.fill} {
			e.dir = filepath.Join(base, fmt.Sprint(i))
			db, err := e.open(replicator.Options{})
			if err != nil {
				return err
			}
			work := e.largeWrite
			if i == 2 {
				work = e.largeCommit
			}
			if err := errors.Join(work(db, s.rows, i, n, size), db.Close()); err != nil {
				return err
			}
		}
		return nil
	}
	return s
}

func (e *env) largeWrite(db handle, rows []row, nth, n, size int) error {
	ks, v := newKeys(n, uint64(e.round)), newValues(size, uint64(e.round))
	b := leveldb.MakeBatch(n * (size + keySize + 8))
	for i := range uint32(n) {
		b.Put(ks.at(i), v.next())
	}
	done := make(chan error, 1)
	began := time.Now()
	go func() {
		err := db.Write(b, nil)
		e.emit(rows[nth].name, n, benchfmt.Value{Value: time.Since(began).Seconds(), Unit: "sec"})
		done <- err
	}()
	if nth == 0 {
		return <-done
	}
	var longest time.Duration
	for {
		putting := time.Now()
		if err := db.Put([]byte("beside"), []byte("small"), nil); err != nil {
			return errors.Join(err, <-done)
		}
		longest = max(longest, time.Since(putting))
		select {
		case err := <-done:
			e.emit(rows[2].name, 1, benchfmt.Value{Value: longest.Seconds(), Unit: "sec"})
			return err
		case <-time.After(time.Millisecond):
		}
	}
}

func (e *env) largeCommit(db handle, rows []row, _, n, size int) error {
	ks, v := newKeys(n, uint64(e.round)), newValues(size, uint64(e.round))
	began := time.Now()
	tr, err := openTransaction(db)
	if err != nil {
		return err
	}
	for i := range uint32(n) {
		if err := tr.Put(ks.at(i), v.next(), nil); err != nil {
			return err
		}
	}
	if err := tr.Commit(); err != nil {
		return err
	}
	e.emit(rows[3].name, n, benchfmt.Value{Value: time.Since(began).Seconds(), Unit: "sec"})
	return nil
}

// transaction is what bare and replicated transactions have in common.
type transaction interface {
	Put(key, value []byte, wo *opt.WriteOptions) error
	Commit() error
}

func openTransaction(db handle) (transaction, error) {
	if bare, ok := db.(*leveldb.DB); ok {
		return bare.OpenTransaction()
	}
	return db.(*replicator.DB).OpenTransaction()
}

// syncedPuts are puts of new keys with Sync, for some time.
func syncedPuts(writers int) scenario {
	s := scenario{name: fmt.Sprintf("Sync/writers=%d", writers), systems: local, title: "Put with Sync, new keys, values of 100 bytes"}
	a := aim{}
	if writers == 8 {
		a = atLeast(0.95)
	}
	s.rows = []row{{s.name, "op/s", plural(writers, "writer"), a}}
	s.run = func(e *env) error {
		db, err := e.open(replicator.Options{})
		if err != nil {
			return err
		}
		var done atomic.Int64
		began, used := time.Now(), cpu()
		err = share(writers, writers, func(w, _, _ int) error {
			v := newValues(100, uint64(w))
			ks := newKeys(1<<16, uint64(e.round)<<8+uint64(w))
			for i := uint32(0); time.Since(began) < e.synced; i++ {
				if err := db.Put(ks.at(i%(1<<16)), v.next(), &opt.WriteOptions{Sync: true}); err != nil {
					return err
				}
				done.Add(1)
			}
			return nil
		})
		took, used := time.Since(began), cpu()-used
		n := done.Load()
		e.emit(s.name, int(n), benchfmt.Value{Value: float64(n) / took.Seconds(), Unit: "op/s"}, benchfmt.Value{Value: used.Seconds() / float64(n), Unit: cpuUnit})
		return errors.Join(err, db.Close())
	}
	return s
}

// farPuts are puts among many more keys than the index cache holds.
func farPuts() scenario {
	s := scenario{name: "Far", systems: local, title: "Put among many times more keys than the index cache holds, values of 100 bytes, 1 writer"}
	s.rows = []row{
		{"Far/keys=uniform", "op/s", "overwrites, uniform", atLeast(0.25)},
		{"Far/keys=zipf", "op/s", "overwrites, Zipf", aim{}},
		{"Far/keys=new", "op/s", "new keys", aim{}},
		{"Far/get", "op/s", "Get, uniform", atLeast(0.95)},
	}
	s.run = func(e *env) error {
		db, err := e.open(replicator.Options{CacheSize: e.farCache})
		if err != nil {
			return err
		}
		return errors.Join(e.farPuts(db, s.rows), db.Close())
	}
	return s
}

func (e *env) farPuts(db handle, rows []row) error {
	n, ops, seed := e.far, e.farOps, uint64(e.round)
	ks, more := newKeys(n, seed), newKeys(ops, seed+1<<32)
	if err := load(db, ks, 100); err != nil {
		return err
	}
	if _, err := e.compacted(e.dir); err != nil {
		return err
	}
	for i, w := range []struct {
		ks    keys
		order []uint32
	}{{ks, uniform(n, ops, seed)}, {ks, zipf(n, ops, seed)}, {more, inOrder(ops)}} {
		err := e.timed(rows[i].name, ops, func() error { return putAll(db, w.ks, w.order, 100, 1, uint64(i)<<8) })
		if err != nil {
			return err
		}
	}
	if _, err := e.compacted(e.dir); err != nil {
		return err
	}
	order := uniform(n, ops, seed+1)
	return e.timed(rows[3].name, ops, func() error { return getAll(db, ks, order) })
}

// unpooled are lookups without goleveldb's pool of buffers. With it an index block may be
// read into a buffer of 2 MiB that a compaction left there, and be counted in the block
// cache as that much.
func unpooled() scenario {
	s := scenario{name: "Unpooled", systems: local, title: "Get with goleveldb's option DisableBufferPool, values of 100 bytes"}
	s.rows = []row{
		{"Unpooled/get", "op/s", "Get, uniform, after load and compaction", atLeast(0.95)},
		{"Unpooled/far", "op/s", "the same among more keys", atLeast(0.95)},
	}
	s.run = func(e *env) error {
		base := e.dir
		for i, n := range []int{e.keys, e.far} {
			e.dir = filepath.Join(base, fmt.Sprint(i))
			db, err := e.openWith(&opt.Options{DisableBufferPool: true}, replicator.Options{})
			if err != nil {
				return err
			}
			if err := errors.Join(e.lookups(db, s.rows[i].name, n), db.Close()); err != nil {
				return err
			}
		}
		return nil
	}
	return s
}

func (e *env) lookups(db handle, name string, n int) error {
	ks := newKeys(n, uint64(e.round))
	if err := load(db, ks, 100); err != nil {
		return err
	}
	if err := db.CompactRange(util.Range{}); err != nil {
		return err
	}
	if _, err := e.compacted(e.dir); err != nil {
		return err
	}
	order := uniform(n, e.keys, uint64(e.round)+1)
	return e.timed(name, len(order), func() error { return getAll(db, ks, order) })
}

// memory is the heap per key of an open database.
func memory() scenario {
	s := scenario{name: "Memory", systems: local, title: "Memory"}
	s.rows = []row{
		{"Memory/cache=default", "B/key", "heap per key after the load, index cache, write buffers and block cache included", aim{}},
		{"Memory/cache=none", "B/key", "the same without an index cache", aim{}},
	}
	s.run = func(e *env) error {
		base := e.dir
		for i, size := range []int{0, -1} {
			e.dir = filepath.Join(base, fmt.Sprint(i))
			db, err := e.open(replicator.Options{CacheSize: size})
			if err != nil {
				return err
			}
			ks := newKeys(e.keys, uint64(e.round))
			before := heap()
			err = load(db, ks, 100)
			if err == nil {
				_, err = e.compacted(e.dir)
			}
			e.emit(s.rows[i].name, ks.len(), benchfmt.Value{Value: float64(heap()-before) / float64(ks.len()), Unit: "B/key"})
			runtime.KeepAlive(ks)
			if err := errors.Join(err, db.Close()); err != nil {
				return err
			}
		}
		return nil
	}
	return s
}

// heap returns how much of the heap is in use.
func heap() int64 {
	runtime.GC()
	runtime.GC() // the second frees what pools held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
