package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"golang.org/x/perf/benchfmt"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
)

// origined are the scenarios of databases that were opened, and written to, very often: each
// opening that wrote is an origin in every version vector.
func origined() []scenario {
	list := []scenario{origins(10), origins(1000), origins(10_000), origins(90_000)}
	list[3].large = true
	return list
}

func origins(n int) scenario {
	name := fmt.Sprintf("Origins/n=%d", n)
	s := scenario{name: name, systems: []string{replicated}, title: "Two replicas that hold a write of each of so many origins", line: fmt.Sprintf("%d origins", n)}
	s.rows = []row{
		{name, "open-sec", "opening", aim{}},
		{name, "heap-B", "heap of a replica", aim{}},
		{name, "first-sec", "first session after both were opened", aim{}},
		{name, "first-B", "bytes both ways", aim{}},
		{name, "next-sec", "a later one, of one write", aim{}},
		{name, "next-B", "bytes both ways", aim{}},
		{name, "put-sec", "Put", aim{}},
		{name, "p50-sec", "from Put to visible at the other, 1,000 a second, p50", aim{}},
		{name, "cpu-sec/s", "processor time meanwhile", aim{}},
		{name, "token-B", "Token", aim{}},
	}
	s.run = func(e *env) error {
		o := &originBench{env: e, n: min(n, e.origins), dirs: []string{filepath.Join(e.dir, "0"), filepath.Join(e.dir, "1")}}
		if err := errors.Join(o.build(), o.sessions(), o.live()); err != nil {
			return err
		}
		e.emit(name, n, o.values...)
		return nil
	}
	return s
}

// originBench measures two replicas that are copies of one database.
type originBench struct {
	*env
	n      int
	dirs   []string
	values []benchfmt.Value
}

func (o *originBench) add(value float64, unit string) {
	o.values = append(o.values, benchfmt.Value{Value: value, Unit: unit})
}

func (o *originBench) build() error {
	if err := manyOrigins(o.dirs[0], o.n); err != nil {
		return err
	}
	db, err := o.replicate(o.dirs[0], alone()) // once, for the mark of a clean close
	if err == nil {
		err = db.Close()
	}
	return errors.Join(err, os.CopyFS(o.dirs[1], os.DirFS(o.dirs[0])))
}

// sessions measures an opening, sessions on request, and Puts of one of the two.
func (o *originBench) sessions() error {
	before, began := heap(), time.Now()
	a, err := o.replicate(o.dirs[0], alone())
	if err != nil {
		return err
	}
	defer a.Close()
	o.add(time.Since(began).Seconds(), "open-sec")
	options := alone()
	options.Peers, options.ReadyTimeout = []string{a.Addr().String()}, time.Millisecond
	b, err := o.replicate(o.dirs[1], options)
	if err != nil {
		return err
	}
	defer b.Close()
	for _, which := range []string{"first", "next"} {
		if err := a.Put([]byte(which), []byte("x"), nil); err != nil {
			return err
		}
		in, out := bytesOf(b)
		began := time.Now()
		if err := agree(o.ctx, a, b); err != nil {
			return err
		}
		o.add(time.Since(began).Seconds(), which+"-sec")
		in2, out2 := bytesOf(b)
		o.add(float64(in2-in+out2-out), which+"-B")
	}
	o.add(float64(heap()-before)/2, "heap-B")
	o.add(float64(len(a.Token().String())), "token-B")
	puts := 10 * o.samples
	began = time.Now()
	for i := range puts {
		if err := a.Put(fmt.Append(nil, "put", i), []byte("x"), nil); err != nil {
			return err
		}
	}
	o.add(time.Since(began).Seconds()/float64(puts), "put-sec")
	return nil
}

// live measures a steady load on both.
func (o *originBench) live() error {
	writes := max(int(1000*o.span.Seconds()), 2)
	seen := newSightings(2*writes, 2)
	c, err := newReplicas(o.env, 2, "tcp", seen.seen)
	if err != nil {
		return err
	}
	own := *o.env
	own.emit = func(_ string, _ int, values ...benchfmt.Value) {
		for _, v := range values {
			if v.Unit == "p50-sec" || v.Unit == "cpu-sec/s" {
				o.values = append(o.values, v)
			}
		}
	}
	l := &openLoop{e: &own, rate: 1000, writers: 1, warm: writes, seen: seen}
	return errors.Join(l.run(c), c.close())
}

// manyOrigins makes a database with one write of each of n origins, as openings that each
// wrote a key leave it.
func manyOrigins(dir string, n int) error {
	db, err := leveldb.OpenFile(dir, replicator.StoreOptions())
	if err != nil {
		return err
	}
	b := new(leveldb.Batch)
	b.Put(store.MetaFormat, []byte{store.FormatVersion})
	for i := range uint32(n) {
		o := causal.Origin(newKeys(1, uint64(i)))
		number := numbered{o, i}
		v := store.Version{Dot: causal.Dot{Origin: o, Seq: 1}, Stamp: causal.Stamp(time.Now().UnixMilli()) << 16, Value: []byte("value"), Count: 1}
		key := fmt.Appendf(nil, "key%08d", i)
		b.Put(key, v.Value)
		b.Put(store.AppendLogKey(nil, i, 1), store.AppendEntry(nil, &store.Entry{Version: v, Key: key, InDigest: true}, number))
		b.Put(store.KindKey(store.KindIndex, key), store.AppendIndex(nil, store.Siblings{v}, number))
		rec := append([]byte{store.FormatVersion, 0}, o[:]...)
		b.Put(store.KindKey(store.KindOrigin, binary.BigEndian.AppendUint32(nil, i)), append(rec, 1, 0, 0)) // all on disk, nothing pruned or purged
		if b.Len() > 1000 {
			if err := db.Write(b, nil); err != nil {
				return errors.Join(err, db.Close())
			}
			b.Reset()
		}
	}
	return errors.Join(db.Write(b, nil), db.Close())
}

// numbered numbers one origin.
type numbered struct {
	origin causal.Origin
	alias  uint32
}

func (n numbered) Number(causal.Origin) uint64 { return uint64(n.alias) }

func (n numbered) Origin(alias uint64) (causal.Origin, bool) {
	return n.origin, alias == uint64(n.alias)
}
