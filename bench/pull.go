package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"sort"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"golang.org/x/perf/benchfmt"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
)

// pulling are the scenarios of two replicas of which one pulls what it lacks.
func pulling() (list []scenario) {
	list = append(list, fill("Fill", "An empty replica takes 200,000 keys, values of 100 bytes, over TCP", replicator.NoCompression))
	list = append(list, fill("FillCompressed", "The same, compressed", replicator.CompressAll), halfFull(), stall())
	list = append(list, suited.with(fill("Fill", "An empty replica takes 200,000 keys, values of 100 bytes, over TCP", replicator.NoCompression), halfFull(), stall())...)
	for _, n := range []int{200_000, 1_000_000, 2_000_000, 5_000_000} {
		list = append(list, join(n))
		list = append(list, suited.with(join(n))...)
	}
	for _, network := range networks {
		list = append(list, tails(network), idleSessions(network))
	}
	return list
}

// fixtures are databases that several scenarios and rounds read.
type fixtures struct {
	dir   string
	built map[string]bool
}

// get returns the directory of a fixture, which it builds the first time.
func (f *fixtures) get(name string, build func(dir string) error) (string, error) {
	dir := filepath.Join(f.dir, "fixture-"+name)
	if f.built[name] {
		return dir, nil
	}
	if err := build(dir); err != nil {
		return "", fmt.Errorf("fixture %s: %w", name, err)
	}
	if f.built == nil {
		f.built = map[string]bool{}
	}
	f.built[name] = true
	return dir, nil
}

// networks over which two replicas talk.
var networks = []string{"memory", "tcp", "tls"}

// over returns the options for two replicas that talk over a network, of which the second
// knows the address of the first.
func over(network string, o replicator.Options) (a, b replicator.Options, err error) {
	a, b = o, o
	switch network {
	case "tls":
		a.Secret = []byte("a secret of which nobody may know")
		b.Secret = a.Secret
	case "memory":
		net := replicatortest.NewNetwork(1)
		hosts := []*replicatortest.Host{net.Host("a"), net.Host("b")}
		for i, o := range []*replicator.Options{&a, &b} {
			if o.Listener, err = hosts[i].Listen("9000"); err != nil {
				return a, b, err
			}
			o.Dial, o.Insecure = hosts[i].Dial, true
		}
	}
	return a, b, nil
}

// pair opens two replicas, of which the second pulls from the first on request; neither does
// anything else.
func (e *env) pair(dirA, dirB, network string) (a, b *replicator.DB, err error) {
	oa, ob, err := over(network, alone())
	if err != nil {
		return nil, nil, err
	}
	if a, err = e.replicate(dirA, oa); err != nil {
		return nil, nil, err
	}
	ob.Peers = []string{a.Addr().String()}
	if b, err = e.replicate(dirB, ob); err != nil {
		return nil, nil, errors.Join(err, a.Close())
	}
	return a, b, nil
}

// agree has the second pull, and fails unless both hold the same afterwards.
func agree(ctx context.Context, a, b *replicator.DB) error {
	if err := b.Sync(ctx); err != nil {
		return err
	}
	if a.Digest() != b.Digest() {
		return errors.New("the replicas do not hold the same after a pull")
	}
	return nil
}

func bytesOf(db *replicator.DB) (in, out int64) {
	s := db.Status()
	return s.BytesIn, s.BytesOut
}

// source is a replica with n keys of its own.
func (e *env) source(n int) (string, error) {
	return e.shared.get(fmt.Sprint("source", n, e.store), func(dir string) error {
		db, err := e.replicate(dir, alone())
		if err != nil {
			return err
		}
		err = load(db, newKeys(n, 1), 100)
		if err == nil {
			_, err = e.compacted(dir)
		}
		return errors.Join(err, db.Close())
	})
}

// fill has an empty replica pull all of another. The raw handle does the least that the
// receiver must: write the keys in random batches of 1000.
func fill(name, title string, c replicator.Compression) scenario {
	s := scenario{name: name, systems: local, title: title}
	s.rows = []row{
		{name, "op/s", "keys a second; raw: random batches of 1000", atLeast(0.85)},
		{name, cpuUnit, "processor time for a key, of both replicas", aim{}},
		{name, "sec", "seconds", atMost(0.55)},
		{name, "B", "on the wire", atMost(30e6)},
		{name, "peak-B", "memory of both replicas at most", aim{}},
	}
	s.run = func(e *env) error {
		if e.system == raw {
			return e.rawLoads(name, 0)
		}
		source, err := e.source(e.fill)
		if err != nil {
			return err
		}
		return e.pulled(name, source, e.dir, e.fill, c)
	}
	return s
}

// join is a fill with many keys. The raw handle writes them in key order, as a copy would.
func join(n int) scenario {
	name := fmt.Sprintf("Join/keys=%d", n)
	s := scenario{name: name, systems: local, large: true, title: fmt.Sprintf("An empty replica takes %d keys, values of 100 bytes, over TCP", n)}
	s.rows = []row{
		{name, "op/s", "keys a second; raw: batches of 1000 in key order", atLeast(1. / 3)},
		{name, cpuUnit, "processor time for a key, of both replicas", aim{}},
		{name, "sec", "seconds", aim{}},
		{name, "B", "on the wire", aim{}},
		{name, "peak-B", "memory of both replicas at most", atMost(200 << 20)},
	}
	s.run = func(e *env) error {
		keys := n * e.fill / full.fill
		if e.system == raw {
			return e.rawCopies(name, keys)
		}
		source, err := e.source(keys)
		if err != nil {
			return err
		}
		return e.pulled(name, source, e.dir, keys, replicator.NoCompression)
	}
	return s
}

// rawCopies writes keys to a bare handle in their order.
func (e *env) rawCopies(name string, n int) error {
	db, err := leveldb.OpenFile(e.dir, e.storeOptions())
	if err != nil {
		return err
	}
	ks := newKeys(n, 1)
	sort.Sort(inKeyOrder(ks))
	began, used := time.Now(), cpu()
	err = load(db, ks, 100)
	e.emitPull(name, n, time.Since(began), cpu()-used)
	return errors.Join(err, db.Close())
}

// inKeyOrder sorts keys.
type inKeyOrder keys

func (ks inKeyOrder) Len() int { return keys(ks).len() }

func (ks inKeyOrder) Less(i, j int) bool {
	return bytes.Compare(keys(ks).at(uint32(i)), keys(ks).at(uint32(j))) < 0
}

func (ks inKeyOrder) Swap(i, j int) {
	var k [keySize]byte
	a, b := keys(ks).at(uint32(i)), keys(ks).at(uint32(j))
	copy(k[:], a)
	copy(a, b)
	copy(b, k[:])
}

// peak samples how much memory the process has, and returns a function that ends that and returns the most there was.
func peak() (most func() int64) {
	read := func() int64 {
		s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
		metrics.Read(s)
		return int64(s[0].Value.Uint64() - s[1].Value.Uint64())
	}
	debug.FreeOSMemory()
	done, at := make(chan struct{}), make(chan int64)
	go func() {
		n := read()
		for {
			select {
			case <-done:
				at <- n
				return
			case <-time.After(20 * time.Millisecond):
				n = max(n, read())
			}
		}
	}()
	return func() int64 { close(done); return <-at }
}

// rawLoads writes the keys of a fill to a bare handle that has the first of them.
func (e *env) rawLoads(name string, has int) error {
	db, err := leveldb.OpenFile(e.dir, e.storeOptions())
	if err != nil {
		return err
	}
	ks := newKeys(e.fill, 1)
	err = load(db, ks[:has*keySize], 100)
	began, used := time.Now(), cpu()
	if err == nil {
		err = load(db, ks[has*keySize:], 100)
	}
	e.emitPull(name, e.fill-has, time.Since(began), cpu()-used)
	return errors.Join(err, db.Close())
}

func (e *env) emitPull(name string, n int, took, used time.Duration, more ...benchfmt.Value) {
	vs := []benchfmt.Value{
		{Value: float64(n) / took.Seconds(), Unit: "op/s"}, {Value: used.Seconds() / float64(n), Unit: cpuUnit},
		{Value: took.Seconds(), Unit: "sec"},
	}
	e.emit(name, n, append(vs, more...)...)
}

// pulled has a replica pull what another has, n keys of which are new to it.
func (e *env) pulled(name, from, to string, n int, c replicator.Compression) error {
	o := alone()
	o.Compression = c
	oa, ob, err := over("tcp", o)
	if err != nil {
		return err
	}
	a, err := e.replicate(from, oa)
	if err != nil {
		return err
	}
	ob.Peers = []string{a.Addr().String()}
	memory := peak()
	began, used := time.Now(), cpu()
	b, err := e.replicate(to, ob)
	if err != nil {
		return errors.Join(err, a.Close())
	}
	err = agree(e.ctx, a, b)
	in, out := bytesOf(b)
	e.emitPull(name, n, time.Since(began), cpu()-used, benchfmt.Value{Value: float64(in + out), Unit: "B"}, benchfmt.Value{Value: float64(memory()), Unit: "peak-B"})
	return errors.Join(err, b.Close(), a.Close())
}

// halfFull has a replica with half of the keys pull the other half.
func halfFull() scenario {
	s := scenario{name: "HalfFull", systems: local, title: "A replica that holds 100,000 keys takes 100,000 more from one that holds both, over TCP"}
	s.rows = []row{
		{"HalfFull", "op/s", "keys a second; raw: random batches of 1000", atLeast(0.7)},
		{"HalfFull", cpuUnit, "processor time for a key, of both replicas", aim{}},
		{"HalfFull", "B", "on the wire", aim{}},
		{"HalfFull", "peak-B", "memory of both replicas at most", aim{}},
	}
	s.run = func(e *env) error {
		half := e.fill / 2
		if e.system == raw {
			return e.rawLoads("HalfFull", half)
		}
		first, second := filepath.Join(e.dir, "a"), filepath.Join(e.dir, "b")
		a, b, err := e.pair(first, second, "tcp")
		if err != nil {
			return err
		}
		ks := newKeys(e.fill, 1)
		err = load(a, ks[:half*keySize], 100)
		if err == nil {
			err = agree(e.ctx, a, b)
		}
		err = errors.Join(err, b.Close()) // or what follows is pushed to it
		if err == nil {
			err = load(a, ks[half*keySize:], 100)
		}
		if err == nil {
			_, err = e.compacted(e.dir)
		}
		if err = errors.Join(err, a.Close()); err != nil {
			return err
		}
		return e.pulled("HalfFull", first, second, e.fill-half, replicator.NoCompression)
	}
	return s
}

// stall watches a writer while its replica is filled: it puts once a millisecond.
func stall() scenario {
	s := scenario{name: "Stall", systems: local, title: "A writer puts every millisecond while its replica takes 200,000 keys (raw: while another goroutine writes them)"}
	s.rows = []row{
		{"Stall", "p50-sec", "half of the puts return within", aim{}},
		{"Stall", "p99-sec", "99 of 100 within", aim{}},
		{"Stall", "max-sec", "all within", atMost(0.050)},
	}
	s.run = func(e *env) error {
		var db handle
		var work func() error
		if e.system == raw {
			bare, err := leveldb.OpenFile(e.dir, e.storeOptions())
			if err != nil {
				return err
			}
			db, work = bare, func() error { return load(bare, newKeys(e.fill, 1), 100) }
		} else {
			source, err := e.source(e.fill)
			if err != nil {
				return err
			}
			// The source is a copy, since it pulls what is written meanwhile.
			from := filepath.Join(e.dir, "a")
			if err := os.CopyFS(from, os.DirFS(source)); err != nil {
				return err
			}
			a, err := e.replicate(from, alone())
			if err != nil {
				return err
			}
			defer a.Close()
			b, err := e.replicate(filepath.Join(e.dir, "b"), alone())
			if err != nil {
				return err
			}
			<-b.Ready() // the first write of a replica waits for its first attempt to replicate
			if err := b.AddPeer(a.Addr().String()); err != nil {
				return errors.Join(err, b.Close())
			}
			db, work = b, func() error { return b.Sync(e.ctx) }
		}
		return errors.Join(e.stalls(db, work), db.Close())
	}
	return s
}

func (e *env) stalls(db handle, work func() error) error {
	done := make(chan error, 1)
	go func() { done <- work() }()
	ks, v := newKeys(1<<16, 99), newValues(100, 99)
	var took []time.Duration
	for i := uint32(0); ; i++ {
		began := time.Now()
		if err := db.Put(ks.at(i%(1<<16)), v.next(), nil); err != nil {
			return errors.Join(err, <-done)
		}
		took = append(took, time.Since(began))
		select {
		case err := <-done:
			e.emit("Stall", len(took), quantile("p50-sec", took, 0.5), quantile("p99-sec", took, 0.99), quantile("max-sec", took, 1))
			return err
		case <-time.After(time.Millisecond):
		}
	}
}

// quantile returns one of the durations in seconds.
func quantile(unit string, took []time.Duration, q float64) benchfmt.Value {
	slices.Sort(took)
	i := min(int(q*float64(len(took))), len(took)-1)
	return benchfmt.Value{Value: took[i].Seconds(), Unit: unit}
}

// pairDirs are two replicas that hold the same big keys, and a bare handle with them.
func (e *env) pairDirs() (dirA, dirB, bare string, err error) {
	dir, err := e.shared.get(fmt.Sprint("pair", e.big, e.store), func(dir string) error {
		a, b, err := e.pair(filepath.Join(dir, "a"), filepath.Join(dir, "b"), "tcp")
		if err != nil {
			return err
		}
		r, err := leveldb.OpenFile(filepath.Join(dir, "raw"), e.storeOptions())
		if err != nil {
			return errors.Join(err, b.Close(), a.Close())
		}
		err = errors.Join(load(a, newKeys(e.big, 1), 100), load(r, newKeys(e.big, 1), 100))
		if err == nil {
			err = agree(e.ctx, a, b)
		}
		if err == nil {
			_, err = e.compacted(dir)
		}
		return errors.Join(err, r.Close(), b.Close(), a.Close())
	})
	return filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "raw"), err
}

// tails are pulls of a few changes among many keys. The raw handle writes the
// changes as one batch, or in batches of 1000.
func tails(network string) scenario {
	s := scenario{name: "Tail/net=" + network, systems: local, title: "A pull of changes among 500,000 keys, " + netTitle(network)}
	for _, n := range full.changes {
		for _, kind := range []string{"overwrites", "new"} {
			a, wire := aim{}, aim{}
			switch {
			case network == "memory" && n == 100 && kind == "new":
				a = atMost(0.0005)
				wire = atMost(30e3)
			case n == 100 && kind == "new":
				wire = atMost(30e3)
			}
			name := tailName(kind, n, network)
			s.rows = append(s.rows, row{name, "p50-sec", fmt.Sprintf("%d %s", n, keysTitle(kind, n)), a}, row{name, "B", "– bytes both ways", wire})
		}
	}
	s.run = func(e *env) error {
		dirA, dirB, bare, err := e.pairDirs()
		if err != nil {
			return err
		}
		if e.system == raw {
			db, err := leveldb.OpenFile(bare, e.storeOptions())
			if err != nil {
				return err
			}
			return errors.Join(e.tails(network, db, nil), db.Close())
		}
		a, b, err := e.pair(dirA, dirB, network)
		if err != nil {
			return err
		}
		err = agree(e.ctx, a, b)
		if err == nil {
			err = e.quiet()
		}
		if err == nil {
			err = e.tails(network, a, b)
		}
		if err == nil && a.Digest() != b.Digest() {
			err = errors.New("the replicas do not hold the same at the end")
		}
		return errors.Join(err, b.Close(), a.Close())
	}
	return s
}

func tailName(kind string, n int, network string) string {
	return fmt.Sprintf("Tail/keys=%s/changes=%d/net=%s", kind, n, network)
}

func keysTitle(kind string, n int) string {
	switch {
	case kind == "overwrites" && n == 1:
		return "overwrite"
	case kind == "new" && n == 1:
		return "new key"
	case kind == "new":
		return "new keys"
	}
	return kind
}

func netTitle(network string) string {
	switch network {
	case "memory":
		return "in process"
	case "tls":
		return "over loopback TCP with a Secret"
	}
	return "over loopback TCP"
}

// tails writes changes at a and has b pull them. Without b the writing is timed.
func (e *env) tails(network string, a handle, b *replicator.DB) error {
	old := newKeys(e.big, 1)
	for round, n := range e.changes {
		for k, kind := range []string{"overwrites", "new"} {
			times := max(3, min(100, 2000/n, e.big/n/10))
			seed := uint64(e.round)<<20 + uint64(round)<<10 + uint64(k)<<9 + uint64(len(network))
			ks, order := newKeys(n*times, seed), inOrder(n*times)
			if kind == "overwrites" {
				ks, order = old, uniform(e.big, n*times, seed)
			}
			if err := e.tail(tailName(kind, full.changes[round], network), a, b, ks, order, n); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *env) tail(name string, a handle, b *replicator.DB, ks keys, order []uint32, n int) error {
	var took []time.Duration
	var wire int64
	v := newValues(100, uint64(len(order)))
	if b != nil {
		in, out := bytesOf(b)
		wire = -in - out
	}
	for len(order) > 0 {
		began := time.Now()
		if err := writeBatches(a, ks, order[:n], v, 1000); err != nil {
			return err
		}
		if b != nil {
			began = time.Now()
			if err := b.Sync(e.ctx); err != nil {
				return err
			}
		}
		took, order = append(took, time.Since(began)), order[n:]
	}
	vs := []benchfmt.Value{quantile("p50-sec", took, 0.5)}
	if b != nil {
		in, out := bytesOf(b)
		vs = append(vs, benchfmt.Value{Value: float64(wire+in+out) / float64(len(took)), Unit: "B"})
	}
	e.emit(name, len(took), vs...)
	return nil
}

// idleSessions are sessions of two replicas that hold the same.
func idleSessions(network string) scenario {
	name := "Idle/net=" + network
	s := scenario{name: name, systems: []string{replicated}, title: "A session with nothing to do, " + netTitle(network)}
	a, bytes := aim{}, atMost(200)
	if network == "memory" {
		a = atMost(25e-6)
	}
	if network == "tls" {
		bytes = aim{}
	}
	s.rows = []row{{name, "p50-sec", "half end within", a}, {name, "p99-sec", "99 of 100 within", aim{}}, {name, "in-B", "bytes in", bytes}, {name, "out-B", "bytes out", bytes}}
	s.run = func(e *env) error {
		a, b, err := e.pair(filepath.Join(e.dir, "a"), filepath.Join(e.dir, "b"), network)
		if err != nil {
			return err
		}
		err = load(a, newKeys(1000, 1), 100)
		for range 3 { // the first ones bring something
			err = errors.Join(err, agree(e.ctx, a, b))
		}
		if err == nil {
			err = e.idleSessions(name, b)
		}
		return errors.Join(err, b.Close(), a.Close())
	}
	return s
}

func (e *env) idleSessions(name string, b *replicator.DB) error {
	in, out := bytesOf(b)
	took := make([]time.Duration, 0, e.sessions)
	for range e.sessions {
		began := time.Now()
		if err := b.Sync(e.ctx); err != nil {
			return err
		}
		took = append(took, time.Since(began))
	}
	in2, out2 := bytesOf(b)
	per := func(n int64, unit string) benchfmt.Value {
		return benchfmt.Value{Value: float64(n) / float64(e.sessions), Unit: unit}
	}
	e.emit(name, e.sessions, quantile("p50-sec", took, 0.5), quantile("p99-sec", took, 0.99), per(in2-in, "in-B"), per(out2-out, "out-B"))
	return nil
}
