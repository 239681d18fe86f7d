package main

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
	"golang.org/x/perf/benchfmt"

	"github.com/level-replicator/replicator"
)

// besides are the scenarios of one writer while its replica does background work: how long
// Puts take. One is due each millisecond, whether the one before has returned or not, so a
// long one counts for all that it kept waiting.
func besides() (list []scenario) {
	works := []struct {
		name, title string
		run         func(e *env, name string) error
	}{
		{"nothing", "nothing else", (*env).besideNothing},
		{"held", "deletions that a member holds back", (*env).besideHeld},
		{"forgetting", "deletions are forgotten", (*env).besideForgetting},
		{"verifying", "Verify", (*env).besideVerifying},
		{"adopting", "Adopt of as many keys", (*env).besideAdopting},
		{"resolving", "conflicts are resolved again", (*env).besideResolving},
		{"sweeping", "what a crash left in the log is swept", (*env).besideSweeping},
		{"joining", "the replica joins", (*env).besideJoining},
		{"serving", "another replica joins from it", (*env).besideServing},
	}
	for _, w := range works {
		name := "Beside/work=" + w.name
		list = append(list, scenario{name: name, systems: []string{replicated}, title: "Put once a millisecond beside background work: " + w.title,
			rows: []row{{name, "p50-sec", "p50", aim{}}, {name, "p99-sec", "p99", atMost(0.020)}, {name, "max-sec", "the longest", aim{}}},
			run:  func(e *env) error { return w.run(e, name) }})
	}
	return list
}

const (
	putEvery  = time.Millisecond
	workLimit = 5 * time.Minute
)

// beside puts while work is done.
func (e *env) beside(name string, db *replicator.DB, work func() error) error {
	done := make(chan error, 1)
	go func() { done <- work() }()
	ks, v := newKeys(1000, uint64(e.round)+1<<40), newValues(100, 3)
	var took []time.Duration
	for due, i := time.Now(), uint32(0); ; i++ {
		if now := time.Now(); now.Before(due) {
			time.Sleep(due.Sub(now))
			due = time.Now() // that a timer is late is not the store's fault
		}
		if err := db.Put(ks.at(i%1000), v.next(), nil); err != nil {
			return errors.Join(err, <-done)
		}
		took = append(took, time.Since(due))
		due = due.Add(putEvery)
		select {
		case err := <-done:
			e.emit(name, len(took), quantile("p50-sec", took, 0.5), quantile("p99-sec", took, 0.99), benchfmt.Value{Value: slices.Max(took).Seconds(), Unit: "max-sec"})
			return err
		default:
		}
	}
}

// until waits for a condition.
func (e *env) until(what string, is func() (bool, error)) error {
	for began := time.Now(); ; {
		ok, err := is()
		if ok || err != nil {
			return err
		}
		if time.Since(began) > workLimit {
			return fmt.Errorf("%s is not over after %v", what, workLimit)
		}
		select {
		case <-e.ctx.Done():
			return e.ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// loaded opens a database and loads it.
func (e *env) loaded(name string, n int, o replicator.Options) (*replicator.DB, error) {
	store := e.storeOptions()
	if e.buffer > 0 {
		store = &opt.Options{WriteBuffer: e.buffer}
	}
	db, err := replicateWith(filepath.Join(e.dir, name), store, o)
	if err != nil {
		return nil, err
	}
	if err := load(db, newKeys(n, uint64(e.round)), 100); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	_, err = e.compacted(filepath.Join(e.dir, name))
	return db, err
}

func (e *env) besideNothing(name string) error {
	db, err := e.loaded("a", e.far, replicator.Options{})
	if err != nil {
		return err
	}
	return errors.Join(e.beside(name, db, func() error { time.Sleep(e.window / 2); return nil }), db.Close())
}

func (e *env) besideVerifying(name string) error {
	db, err := e.loaded("a", e.far, replicator.Options{})
	if err != nil {
		return err
	}
	return errors.Join(e.beside(name, db, func() error { _, err := db.Verify(e.ctx); return err }), db.Close())
}

// awayWith has a replica delete all keys that another, which is stopped, holds, too.
func (e *env) awayWith(work func(a *replicator.DB, back func() (*replicator.DB, error)) error) error {
	a, err := e.loaded("a", e.far, replicator.Options{})
	if err != nil {
		return err
	}
	defer a.Close()
	o := replicator.Options{Peers: []string{a.Addr().String()}}
	b, err := e.replicate(filepath.Join(e.dir, "b"), o)
	if err == nil {
		err = agree(e.ctx, a, b)
	}
	if err == nil {
		err = errors.Join(a.WaitReplicated(e.ctx, 1), b.Close())
	}
	if err != nil {
		return err
	}
	ks, batch := newKeys(e.far, uint64(e.round)), new(leveldb.Batch)
	for i := range uint32(ks.len()) {
		if batch.Delete(ks.at(i)); batch.Len() == 1000 || int(i) == ks.len()-1 {
			if err := a.Write(batch, nil); err != nil {
				return err
			}
			batch.Reset()
		}
	}
	if _, err := e.compacted(filepath.Join(e.dir, "a")); err != nil {
		return err
	}
	return work(a, func() (*replicator.DB, error) { return e.replicate(filepath.Join(e.dir, "b"), o) })
}

func (e *env) besideHeld(name string) error {
	return e.awayWith(func(a *replicator.DB, _ func() (*replicator.DB, error)) error {
		return e.beside(name, a, func() error { time.Sleep(e.window * 3 / 2); return nil })
	})
}

func (e *env) besideForgetting(name string) error {
	return e.awayWith(func(a *replicator.DB, back func() (*replicator.DB, error)) error {
		b, err := back()
		if err != nil {
			return err
		}
		return errors.Join(e.beside(name, a, func() error {
			for _, db := range []*replicator.DB{a, b} { // both have it on disk, and know that of each other
				if err := db.WaitReplicated(e.ctx, 1); err != nil {
					return err
				}
			}
			return e.until("forgetting", func() (bool, error) { return a.Status().Tombstones == 0, nil })
		}), b.Close())
	})
}

func (e *env) besideAdopting(name string) error {
	dir := filepath.Join(e.dir, "a")
	past, err := leveldb.OpenFile(dir, nil)
	if err != nil {
		return err
	}
	o := alone()
	o.Listen = "127.0.0.1:0"
	db, err := replicator.Replicate(past, &o)
	if err != nil {
		return errors.Join(err, past.Close())
	}
	<-db.Ready()
	if err := load(past, newKeys(e.far, uint64(e.round)), 100); err != nil {
		return errors.Join(err, db.Close())
	}
	if _, err := e.compacted(dir); err != nil {
		return errors.Join(err, db.Close())
	}
	return errors.Join(e.beside(name, db, func() error { return db.Adopt(e.ctx) }), db.Close())
}

// besideResolving has a resolver that picks the other of two values.
func (e *env) besideResolving(name string) error {
	n := e.keys / 5
	a, err := e.loaded("a", n, replicator.Options{})
	if err != nil {
		return err
	}
	b, err := e.loaded("b", n, replicator.Options{})
	if err != nil {
		return errors.Join(err, a.Close())
	}
	ks := newKeys(n, uint64(e.round))
	last := ks.at(0)
	for i := range uint32(n) {
		if bytes.Compare(ks.at(i), last) > 0 {
			last = ks.at(i)
		}
	}
	if err := b.Put(last, []byte("another value"), nil); err != nil {
		return err
	}
	for _, i := range inOrder(n) { // else all have the same content
		if err := b.Put(ks.at(i), fmt.Append(nil, i), nil); err != nil {
			return err
		}
	}
	err = errors.Join(a.AddPeer(b.Addr().String()), agree(e.ctx, b, a), a.Close(), b.Close())
	if err != nil {
		return err
	}
	other := func(key []byte, x, y replicator.Version) replicator.Version {
		if replicator.HighestClock(key, x, y).Seq == x.Seq {
			return y
		}
		return x
	}
	raw, err := leveldb.OpenFile(filepath.Join(e.dir, "a"), nil)
	if err != nil {
		return err
	}
	before, err := raw.Get(last, nil)
	if err = errors.Join(err, raw.Close()); err != nil {
		return err
	}
	if a, err = e.replicate(filepath.Join(e.dir, "a"), replicator.Options{Resolver: other}); err != nil {
		return err
	}
	return errors.Join(e.beside(name, a, func() error {
		return e.until("resolving", func() (bool, error) {
			now, err := a.Get(last, nil)
			return !bytes.Equal(now, before), err
		})
	}), a.Close())
}

// besideSweeping leaves stale log entries, as a power failure can.
func (e *env) besideSweeping(name string) error {
	dir, n := filepath.Join(e.dir, "a"), e.far/5
	db, err := e.loaded("a", n, alone())
	if err != nil {
		return err
	}
	if err := db.Close(); err != nil {
		return err
	}
	store, err := leveldb.OpenFile(dir, nil)
	if err != nil {
		return err
	}
	left, last := new(leveldb.Batch), []byte(nil)
	it := store.NewIterator(&util.Range{Start: []byte("\xff\xffl"), Limit: []byte("\xff\xffm")}, nil)
	for it.Next() {
		left.Put(it.Key(), it.Value())
		last = bytes.Clone(it.Key())
	}
	it.Release()
	if err := errors.Join(it.Error(), store.Close()); err != nil {
		return err
	}
	if db, err = e.loaded("a", n, alone()); err != nil { // once more: all is overwritten
		return err
	}
	if err := db.Close(); err != nil {
		return err
	}
	if store, err = leveldb.OpenFile(dir, nil); err != nil {
		return err
	}
	left.Delete([]byte("\xff\xffmclean"))
	if err := errors.Join(store.Write(left, nil), store.Close()); err != nil {
		return err
	}
	if store, err = leveldb.OpenFile(dir, nil); err != nil {
		return err
	}
	o := alone()
	o.Listen = "127.0.0.1:0"
	if db, err = replicator.Replicate(store, &o); err != nil {
		return errors.Join(err, store.Close())
	}
	<-db.Ready()
	return errors.Join(e.beside(name, db, func() error {
		return e.until("the sweep", func() (bool, error) {
			has, err := store.Has(last, nil)
			return !has, err
		})
	}), db.Close())
}

func (e *env) besideJoining(name string) error {
	return e.join(func(a, b *replicator.DB) error {
		return e.beside(name, b, func() error {
			return e.until("joining", func() (bool, error) { return b.Status().Keys >= int64(e.far), nil })
		})
	})
}

func (e *env) besideServing(name string) error {
	return e.join(func(a, b *replicator.DB) error {
		return e.beside(name, a, func() error {
			return e.until("joining", func() (bool, error) { return b.Status().Keys >= int64(e.far), nil })
		})
	})
}

// join has an empty replica join a full one.
func (e *env) join(work func(a, b *replicator.DB) error) error {
	a, err := e.loaded("a", e.far, replicator.Options{})
	if err != nil {
		return err
	}
	b, err := e.replicate(filepath.Join(e.dir, "b"), replicator.Options{Peers: []string{a.Addr().String()}, ReadyTimeout: time.Millisecond})
	if err != nil {
		return errors.Join(err, a.Close())
	}
	return errors.Join(work(a, b), b.Close(), a.Close())
}
