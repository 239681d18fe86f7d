package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/syndtr/goleveldb/leveldb"

	"github.com/level-replicator/replicator"
)

// lifeKey is a key of 16 bytes. Keys are in no order, and need no memory.
func lifeKey(buf []byte, i int) []byte {
	r := rand.NewPCG(uint64(i), 20)
	buf = binary.BigEndian.AppendUint64(buf[:0], r.Uint64()>>1) // below ff ff
	return binary.BigEndian.AppendUint64(buf, r.Uint64())
}

// lifeVariable holds, in the environment of a process that loads a database, what it is to load.
const lifeVariable = "REPLICATOR_BENCH_LIFE"

// loaded is what the process says when it has.
type loaded struct {
	Usage spent
	Addr  string // where the replica listens
}

// loadAndKill has a process of its own load the database, has a replica join it, and kills it while it
// goes on writing.
func (l *lifetime) loadAndKill() error {
	p, err := l.startProcess(fmt.Sprintf("%s=%s %d %d %s", lifeVariable, l.system, l.n, l.still, l.a))
	if err != nil {
		return err
	}
	var there loaded
	err = p.says(&there)
	if err == nil {
		err = l.report("load", l.n, there.Usage)
	}
	if err == nil && l.system != raw {
		err = l.join(p, there.Addr)
	}
	if err == nil {
		_, err = fmt.Fprintln(p.in, "write on")
	}
	return errors.Join(err, p.kill(l.still))
}

// join has an empty replica take everything from the process, which ends when that is told to go on.
func (l *lifetime) join(p *process, addr string) error {
	o := alone()
	o.Peers = []string{addr}
	var b *replicator.DB
	u, err := l.used(func() (err error) {
		if b, err = replicateWith(l.b, replicator.StoreOptions(), o); err == nil {
			err = b.Sync(l.ctx)
		}
		return err
	})
	if err != nil {
		return err
	}
	var theirs spent
	_, err = fmt.Fprintln(p.in, "joined")
	if err = errors.Join(err, p.says(&theirs)); err == nil {
		u.CPU, u.Peak = u.CPU+theirs.CPU, u.Peak+theirs.Peak
		err = l.report("join", l.n, u)
	}
	if held := b.Status().Keys; err == nil && held != int64(l.n) {
		err = fmt.Errorf("the replica that joined holds %d keys of %d", held, l.n)
	}
	return errors.Join(err, b.Close())
}

// liveUntilKilled is the process. It reports whether that is what this process is for.
func liveUntilKilled() bool {
	what := strings.SplitN(os.Getenv(lifeVariable), " ", 4)
	if len(what) != 4 {
		return false
	}
	err := func() error {
		n, err := strconv.Atoi(what[1])
		if err != nil {
			return err
		}
		still, err := strconv.ParseInt(what[2], 10, 64)
		if err != nil {
			return err
		}
		e := &env{system: what[0], dir: what[3], ctx: context.Background()}
		e.still = time.Duration(still)
		return (&lifetime{env: e, n: n, a: e.dir}).live()
	}()
	fmt.Fprintln(os.Stderr, "bench: loading:", err)
	return true
}

func (l *lifetime) live() error {
	db, err := l.openWith(replicator.StoreOptions(), alone())
	if err != nil {
		return err
	}
	say, heard := json.NewEncoder(os.Stdout), bufio.NewScanner(os.Stdin)
	v := newValues(100, 7)
	var said loaded
	said.Usage, err = l.used(func() error {
		return l.batches(db, l.n, 1, func(b *leveldb.Batch, key []byte) { b.Put(key, v.next()) })
	})
	if err != nil {
		return err
	}
	if r, ok := db.(*replicator.DB); ok {
		said.Addr = r.Addr().String()
	}
	end := measure()
	if err := say.Encode(said); err != nil {
		return err
	}
	for heard.Scan() && heard.Text() == "joined" {
		if err := say.Encode(end()); err != nil {
			return err
		}
	}
	for i := 0; ; i++ {
		if i%100 == 0 {
			continue // it will be deleted, and the deletion of an orphan is not purged
		}
		if err := db.Put(lifeKey(nil, i%l.n), v.next(), nil); err != nil {
			return err
		}
	}
}

// batches writes something about each of so many keys, the first and then every so many.
func (l *lifetime) batches(db handle, n, every int, write func(b *leveldb.Batch, key []byte)) error {
	b, key := new(leveldb.Batch), make([]byte, 0, keySize)
	for i := 0; i < n; i += every {
		key = lifeKey(key, i)
		write(b, key)
		if b.Len() < 1000 && i+every < n {
			continue
		}
		if err := errors.Join(db.Write(b, nil), l.ctx.Err()); err != nil {
			return err
		}
		b.Reset()
	}
	return nil
}

// bare goes through the steps with the raw handle.
func (l *lifetime) bare() error {
	end := measure()
	db, err := leveldb.OpenFile(l.a, replicator.StoreOptions())
	if err != nil {
		return err
	}
	err = l.report("open", l.n, end())
	end = measure()
	err = errors.Join(err, db.Put(lifeKey(nil, 1), newValues(100, 1).next(), nil), l.report("first", 1, end()))
	if err == nil {
		_, err = l.compacted(l.a)
	}
	for _, s := range []struct {
		name string
		ops  int
		work func() error
	}{
		{"verify", l.n, func() error { return scan(db, l.n) }},
		{"join", l.n, func() error { return l.copied(db) }},
		{"delete", l.n / 100, func() error { return l.deletions(db) }},
	} {
		if err == nil {
			err = l.step(s.name, s.ops, s.work)
		}
	}
	if err == nil {
		err = l.latencies(db)
	}
	return errors.Join(err, db.Close())
}

// copied copies a database in key order.
func (l *lifetime) copied(from *leveldb.DB) error {
	to, err := leveldb.OpenFile(l.b, replicator.StoreOptions())
	if err != nil {
		return err
	}
	it, b := from.NewIterator(nil, nil), new(leveldb.Batch)
	defer it.Release()
	for it.Next() && err == nil {
		b.Put(it.Key(), it.Value())
		if b.Len() == 1000 {
			err = errors.Join(to.Write(b, nil), l.ctx.Err())
			b.Reset()
		}
	}
	if err == nil {
		err = errors.Join(it.Error(), to.Write(b, nil))
	}
	if err == nil {
		_, err = l.compacted(l.b)
	}
	return errors.Join(err, to.Close())
}

// replicated goes through the steps after the kill with two replicas.
func (l *lifetime) replicated() error {
	a, err := l.reopened()
	if err != nil {
		return err
	}
	o := alone()
	o.Peers = []string{a.Addr().String()}
	b, err := replicateWith(l.b, replicator.StoreOptions(), o)
	if err != nil {
		return errors.Join(err, a.Close())
	}
	err = l.settled(a, b)
	for _, s := range []struct {
		name string
		ops  int
		work func() error
	}{
		{"verify", l.n, func() error { return l.verified(a) }},
		{"compare", l.n, func() error { return l.compare(b, a.Addr().String()) }},
		{"delete", l.n / 100, func() error { return l.deletions(a) }},
		{"pull", l.n / 100, func() error { return agree(l.ctx, a, b) }},
	} {
		if err == nil {
			err = l.step(s.name, s.ops, s.work)
		}
	}
	if err = errors.Join(err, b.Close(), a.Close()); err != nil {
		return err
	}
	err = l.step("purge", l.n/100, func() (err error) {
		a, err = l.purged()
		return err
	})
	if err != nil {
		return err
	}
	return errors.Join(l.latencies(a), a.Close())
}

// reopened opens the database after the kill, writes to it, and waits until it is counted.
func (l *lifetime) reopened() (*replicator.DB, error) {
	before, end := heap(), measure()
	db, err := leveldb.OpenFile(l.a, replicator.StoreOptions())
	if err != nil {
		return nil, err
	}
	err = l.report("open", l.n, end())
	o := alone()
	o.Listen, o.Logger = "127.0.0.1:0", slog.New(slog.DiscardHandler)
	end = measure()
	r, openErr := replicator.Replicate(db, &o)
	if openErr != nil {
		return nil, errors.Join(err, openErr, db.Close())
	}
	u := end()
	counted := measure()
	began := time.Now()
	err = errors.Join(err, r.Put(lifeKey(nil, 1), newValues(100, 1).next(), nil))
	first := spent{Seconds: time.Since(began).Seconds()}
	select {
	case <-r.Counted():
	case <-l.ctx.Done():
		err = errors.Join(err, l.ctx.Err())
	}
	err = errors.Join(err, l.report("replicate", l.n, u), l.report("first", 1, first), l.report("counted", l.n, counted()))
	if err == nil {
		_, err = l.compacted(l.a)
	}
	l.emitStep("rest", l.n, map[string]float64{"peak-B": float64(heap() - before)})
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// lifePatience is how long to wait for what should come of itself.
const lifePatience = 15 * time.Minute

// settled has two replicas exchange what was written before the kill, and what is reissued after it.
func (l *lifetime) settled(a, b *replicator.DB) error {
	for began := time.Now(); ; {
		err := agree(l.ctx, a, b)
		if err == nil {
			_, err = l.compacted(l.dir)
			return err
		}
		if time.Since(began) > lifePatience {
			return err
		}
		select {
		case <-time.After(l.still):
		case <-l.ctx.Done():
			return err
		}
	}
}

func (l *lifetime) verified(db *replicator.DB) error {
	r, err := db.Verify(l.ctx)
	if err == nil && !r.OK() {
		err = fmt.Errorf("%d faults: %s", int64(len(r.Faults))+r.Omitted, r.Faults[0].Problem)
	}
	return err
}

func (l *lifetime) compare(db *replicator.DB, addr string) error {
	c, err := db.Compare(l.ctx, addr)
	if err == nil && !c.OK() {
		err = fmt.Errorf("%d keys differ", int64(len(c.Differences))+c.Omitted)
	}
	return err
}

// deletions deletes every hundredth key.
func (l *lifetime) deletions(db handle) error {
	return l.batches(db, l.n, 100, func(b *leveldb.Batch, key []byte) { b.Delete(key) })
}

// purged opens the database with tombstones that are old at once, and waits until they are gone.
func (l *lifetime) purged() (*replicator.DB, error) {
	o := alone()
	o.TombstoneTTL = time.Nanosecond
	db, err := replicateWith(l.a, replicator.StoreOptions(), o)
	for began := time.Now(); err == nil && db.Status().Tombstones > 0; {
		if time.Since(began) > lifePatience {
			return nil, errors.Join(fmt.Errorf("%d tombstones are not purged", db.Status().Tombstones), db.Close())
		}
		select {
		case <-time.After(l.still / 20):
		case <-l.ctx.Done():
			return nil, errors.Join(l.ctx.Err(), db.Close())
		}
	}
	return db, err
}

// latencies puts and gets keys that were not deleted.
func (l *lifetime) latencies(db handle) error {
	ops := min(l.n, max(l.samples*200, l.n/50), 200_000)
	v, key := newValues(100, 3), make([]byte, 0, keySize)
	for i, s := range []struct {
		name string
		work func(key []byte) error
	}{
		{"put", func(key []byte) error { return db.Put(key, v.next(), nil) }},
		{"get", func(key []byte) error { _, err := db.Get(key, nil); return err }},
	} {
		r, took := rand.New(rand.NewPCG(uint64(l.round), uint64(i))), make([]time.Duration, 0, ops)
		err := l.step(s.name, ops, func() error {
			for range ops {
				key = lifeKey(key, r.IntN(l.n/100)*100+1+r.IntN(99))
				began := time.Now()
				if err := s.work(key); err != nil {
					return err
				}
				took = append(took, time.Since(began))
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, q := range []float64{0.5, 0.99} {
			l.emitStep(fmt.Sprintf("%s-p%.0f", s.name, 100*q), ops, map[string]float64{"sec/op": quantile("", took, q).Value})
		}
	}
	return nil
}
