package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/syndtr/goleveldb/leveldb/util"
	"golang.org/x/perf/benchfmt"

	"github.com/level-replicator/replicator"
)

// feeds are consumers of changes.
func feeds() []scenario {
	return []scenario{catchUp(false), catchUp(true), following(1, 200), following(100, 5000)}
}

// catchUp is a consumer that comes back after a few of many keys have changed, beside a scan of as many
// records of a bare handle.
func catchUp(large bool) scenario {
	size := func(e *env) (keys, changed int) {
		if large && e.keys == full.keys {
			return 5_000_000, 100_000
		}
		return e.big, e.big / 50
	}
	name := "Changes/catchup"
	title := "A consumer catches up: one key in fifty of 500,000 has changed"
	if large {
		name, title = "Changes/catchup=large", "A consumer catches up: 100,000 of 5 million keys have changed"
	}
	s := scenario{name: name, title: title, systems: local, large: large}
	s.rows = []row{
		{name, "op/s", "changes, beside a scan of as many records", atLeast(0.5)},
		{name + "/lookups", "op/s", "the same, beside lookups of the keys that have changed", aim{}},
		{name + "/keys", "op/s", "without values, beside a scan", atLeast(0.5)},
		{name + "/neighbours", "op/s", "neighbouring keys, changed in key order, beside a scan of them", atLeast(0.5)},
		{name + "/neighbours/keys", "op/s", "the same without values", atLeast(0.5)},
		{name + "/neighbours/shuffled", "op/s", "neighbouring keys, changed in random order, beside a scan of them", aim{}},
		{name, "B", "heap above what there was before", aim{}},
	}
	s.run = func(e *env) error {
		n, changed := size(e)
		db, err := e.open(alone())
		if err != nil {
			return err
		}
		err = e.catchUp(db, s.rows, newKeys(n, uint64(e.round)), changed)
		return errors.Join(err, db.Close())
	}
	return s
}

func (e *env) catchUp(db handle, rows []row, ks keys, changed int) error {
	if err := load(db, ks, 100); err != nil {
		return err
	}
	if _, err := e.compacted(e.dir); err != nil {
		return err
	}
	most, err := e.catchUpWith(db, ks, uniform(ks.len(), changed, 7), rows[0].name, rows[1].name, rows[2].name)
	if err != nil {
		return err
	}
	near := ks.neighbours(changed)
	if _, err := e.catchUpWith(db, ks, near, rows[3].name, "", rows[4].name); err != nil {
		return err
	}
	rand.New(rand.NewPCG(7, 2)).Shuffle(len(near), func(i, j int) { near[i], near[j] = near[j], near[i] })
	if _, err := e.catchUpWith(db, ks, near, rows[5].name, "", ""); err != nil {
		return err
	}
	e.emit(rows[6].name, changed, benchfmt.Value{Value: float64(most), Unit: "B"})
	return nil
}

// catchUpWith overwrites keys and has a consumer catch up with them, once with values and once without, and returns what
// of the heap that took. A bare handle looks them up, if that has a name, and is scanned: where they are neighbours
// exactly them, and else from its first key on.
func (e *env) catchUpWith(db handle, ks keys, order []uint32, scanned, lookups, keysOnly string) (most int64, err error) {
	r, ok := db.(*replicator.DB)
	var since replicator.Cursor
	if ok {
		since = r.Cursor()
	}
	if err := putAll(db, ks, order, 100, 1, 9); err != nil {
		return 0, err
	}
	before := heap()
	if !ok {
		var of *util.Range
		if lookups != "" {
			if err := e.timed(lookups, len(order), func() error { return getAll(db, ks, order) }); err != nil {
				return 0, err
			}
		} else {
			least := slices.MinFunc(order, func(a, b uint32) int { return bytes.Compare(ks.at(a), ks.at(b)) })
			of = &util.Range{Start: ks.at(least)}
		}
		for _, name := range []string{scanned, keysOnly} {
			if name == "" {
				continue
			}
			err := e.timed(name, len(order), func() error {
				it := db.NewIterator(of, nil)
				defer it.Release()
				for n := 0; n < len(order) && it.Next(); n++ {
				}
				return it.Error()
			})
			if err != nil {
				return 0, err
			}
		}
		return max(heap()-before, 0), nil
	}
	for _, name := range []string{scanned, keysOnly} {
		if name == "" {
			continue
		}
		n, began, last := 0, time.Now(), time.Time{} // the loop ends when the last cursor is on disk, which is another matter
		for c, err := range r.Changes(e.ctx, since, &replicator.ChangesOptions{Once: true, KeysOnly: name == keysOnly}) {
			if err != nil {
				return 0, err
			}
			if c.Key != nil {
				n, last = n+1, time.Now()
			}
			if n == len(order)/2 && c.Key != nil && name == keysOnly {
				most = heap()
			}
		}
		if n < len(order)/2 {
			return 0, fmt.Errorf("a consumer was delivered %d changes", n)
		}
		rate := benchfmt.Value{Value: float64(n) / last.Sub(began).Seconds(), Unit: "op/s"}
		e.emit(name, n, rate)
		if name == scanned && lookups != "" {
			e.emit(lookups, n, rate)
		}
	}
	return max(most-before, 0), nil
}

// following are consumers that are live while one writer writes at a rate, and the same without them.
func following(consumers, rate int) scenario {
	name := fmt.Sprintf("Changes/consumers=%d/rate=%d", consumers, rate)
	s := scenario{name: name, title: fmt.Sprintf("%s of changes, %d writes a second of 100 bytes", plural(consumers, "consumer"), rate), systems: []string{replicated}}
	s.rows = []row{
		{name, "p50-sec", "Put returned to delivered at the first consumer, p50", aim{}},
		{name, "p99-sec", "the same, p99", aim{}},
		{name, "rate", "writes a second, of those without consumers", aim{}},
		{name, "put", "time of a Put, p50, of that without consumers", aim{}},
	}
	if consumers == 1 {
		s.rows[0].aim = atMost(100e-6)
	}
	s.run = func(e *env) error {
		r, err := e.replicate(e.dir, alone())
		if err != nil {
			return err
		}
		return errors.Join(e.following(r, name, consumers, rate), r.Close())
	}
	return s
}

func (e *env) following(db *replicator.DB, name string, consumers, rate int) error {
	writes := max(int(e.span.Seconds()*float64(rate)), 20)
	if _, err := atRate(db, writes, 1<<30); err != nil { // all later ones overwrite
		return err
	}
	alone, err := atRate(db, writes, rate)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	delivered := make([]time.Time, writes)
	var live, done sync.WaitGroup
	errs := make([]error, consumers)
	for i := range consumers {
		live.Add(1)
		done.Go(func() {
			ready := sync.OnceFunc(live.Done)
			defer ready()
			for c, err := range db.Changes(ctx, replicator.Cursor{}, nil) {
				if err != nil {
					errs[i] = err
					return
				}
				switch key := string(c.Key); {
				case key == "ready":
					ready()
				case key == "end":
					return
				case i == 0 && len(key) == keySize:
					delivered[binary.BigEndian.Uint64(c.Key[8:])] = time.Now() // once before, and once when it is written anew
				}
			}
		})
	}
	if err := db.Put([]byte("ready"), nil, nil); err != nil {
		return err
	}
	live.Wait()
	time.Sleep(50 * time.Millisecond) // all are idle
	watched, err := atRate(db, writes, rate)
	if err != nil {
		return err
	}
	if err := db.Put([]byte("end"), nil, nil); err != nil {
		return err
	}
	done.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	var took []float64
	for i, at := range delivered {
		if !at.IsZero() {
			took = append(took, max(at.Sub(watched.returned[i]).Seconds(), 0))
		}
	}
	slices.Sort(took)
	if len(took) < writes {
		return fmt.Errorf("of %d changes %d were delivered", writes, len(took))
	}
	e.emit(name, writes, benchfmt.Value{Value: took[len(took)/2], Unit: "p50-sec"}, benchfmt.Value{Value: took[len(took)*99/100], Unit: "p99-sec"},
		benchfmt.Value{Value: watched.rate / alone.rate, Unit: "rate"}, benchfmt.Value{Value: watched.put / alone.put, Unit: "put"})
	return nil
}

// paced is how a writer fared.
type paced struct {
	returned []time.Time
	rate     float64 // writes a second
	put      float64 // seconds, p50
}

// atRate writes at a rate, or as fast as it can if that is less.
func atRate(db *replicator.DB, writes, rate int) (p paced, err error) {
	v := newValues(100, 3)
	took := make([]float64, 0, writes)
	began := time.Now()
	for i := range writes {
		time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(rate))))
		at := time.Now()
		if err := db.Put(orderedKey(i), v.next(), nil); err != nil {
			return p, err
		}
		now := time.Now()
		p.returned = append(p.returned, now)
		took = append(took, now.Sub(at).Seconds())
	}
	p.rate = float64(writes) / time.Since(began).Seconds()
	slices.Sort(took)
	p.put = took[len(took)/2]
	return p, nil
}
