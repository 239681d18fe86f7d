package replicatortest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
)

// TestResolver tests whether a resolver keeps the contract of [replicator.Resolver]: it
// decides the same way each time, leaves the slices that it is given alone and keeps none
// of them, and can live with empty values, deletions, and values of any bytes. A resolver that
// does not decide the same way each time converges all the same, but replicas then show
// different values for one key.
//
// values are samples of what the application stores; without any, a few byte strings are
// used. The test also runs three replicas that write one key concurrently and checks that
// they come to the same resolved value.
func TestResolver(t *testing.T, resolve replicator.Resolver, values ...[]byte) {
	t.Helper()
	for _, err := range resolverFaults(resolve, values) {
		t.Error(err)
	}
	if t.Failed() {
		return
	}
	Bubble(t, 0, func(t *testing.T) { agree(t, resolve, samples(values)) })
}

func samples(values [][]byte) [][]byte {
	if len(values) == 0 {
		values = [][]byte{[]byte("a"), []byte("b"), []byte("longer than the others"), {0xff, 0x00, 0xfe}}
	}
	return values
}

// resolverFaults calls a resolver with every pair of samples, in every order.
func resolverFaults(resolve replicator.Resolver, values [][]byte) (faults []error) {
	var versions []replicator.Version
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	add := func(value []byte, deleted bool) {
		n := len(versions)
		versions = append(versions, replicator.Version{
			Value: value, Deleted: deleted, Clock: uint64(n % 3), Time: at.Add(time.Duration(n) * time.Millisecond),
			Origin: replicator.Origin{1: byte(n)}, Seq: uint64(n + 1),
		})
	}
	for _, v := range samples(values) {
		add(v, false)
	}
	add([]byte{}, false)
	add(nil, true)
	for i := range versions {
		for j := range versions {
			if i == j {
				continue
			}
			if err := resolverFault(resolve, versions[i], versions[j]); err != nil {
				faults = append(faults, fmt.Errorf("resolve(%s, %s): %w", describe(versions[i]), describe(versions[j]), err))
			}
		}
	}
	return faults
}

func describe(v replicator.Version) string {
	if v.Deleted {
		return "a deletion"
	}
	return fmt.Sprintf("%.20q", v.Value)
}

// resolverFault calls a resolver three times with equal arguments in memory of their own, and
// spoils that memory after each call.
func resolverFault(resolve replicator.Resolver, a, b replicator.Version) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("it panics: %v", r)
		}
	}()
	type outcome struct {
		deleted bool
		value   string
	}
	var first outcome
	for n := range 3 {
		key, x, y := []byte("key"), a, b
		x.Value, y.Value = slices.Clone(a.Value), slices.Clone(b.Value)
		v := resolve(key, x, y)
		switch {
		case string(key) != "key":
			return errors.New("it changes the key")
		case !bytes.Equal(x.Value, a.Value) || !bytes.Equal(y.Value, b.Value):
			return errors.New("it changes a value that it was given")
		}
		got := outcome{v.Deleted, string(v.Value)}
		if got.deleted {
			got.value = ""
		}
		switch {
		case n == 0:
			first = got
		case got != first:
			return fmt.Errorf("it returns %.20q (deleted: %v) and then %.20q (deleted: %v): it is not deterministic, or keeps what it was given",
				first.value, first.deleted, got.value, got.deleted)
		}
		for _, spoil := range [][]byte{key, x.Value, y.Value} {
			for i := range spoil {
				spoil[i] = 0xa5
			}
		}
	}
	return nil
}

// agree writes samples to one key at three replicas at once and waits until they agree.
func agree(t *testing.T, resolve replicator.Resolver, values [][]byte) {
	network := NewNetwork(1)
	names := []string{"a", "b", "c"}
	var dbs []*replicator.DB
	for _, name := range names {
		host := network.Host(name)
		listener, err := host.Listen("9000")
		if err != nil {
			t.Fatal(err)
		}
		db, err := replicator.Replicate(MemDB(t), &replicator.Options{
			Name: name, Listener: listener, Dial: host.Dial, Peers: []string{"a:9000", "b:9000", "c:9000"}, Insecure: true, Resolver: resolve,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		dbs = append(dbs, db)
	}
	for _, db := range dbs {
		<-db.Ready()
	}
	network.Partition([]string{"a"}, []string{"b"}, []string{"c"})
	for i, db := range dbs {
		if err := db.Put([]byte("key"), values[i%len(values)], nil); err != nil {
			t.Fatal(err)
		}
	}
	network.Heal()
	for range 3 { // along a line of three
		for _, db := range dbs {
			if err := db.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	want, wantErr := dbs[0].Get([]byte("key"), nil)
	for i, db := range dbs[1:] {
		if got, err := db.Get([]byte("key"), nil); !bytes.Equal(got, want) || !errors.Is(err, wantErr) {
			t.Errorf("replica a reads %.40q (%v), replica %s reads %.40q (%v)", want, wantErr, names[i+1], got, err)
		}
	}
}

// DiscovererTest says how to test a [replicator.Discoverer].
type DiscovererTest struct {
	// New makes the discoverer. It is called several times.
	New func() replicator.Discoverer

	// Self is the replica that looks for peers.
	Self replicator.Self

	// Want are addresses that it must find, "host:port".
	Want []string

	// Timeout is how long finding them may take. Default: 10 s.
	Timeout time.Duration
}

// TestDiscoverer tests whether a discoverer keeps the contract of [replicator.Discoverer]: it
// finds what it must, hands on nothing but addresses "host:port", returns within a second
// of the end of its context, whether or not it has found anything by then, and calls found
// no more after it has returned.
func TestDiscoverer(t *testing.T, test DiscovererTest) {
	t.Helper()
	if test.Timeout == 0 {
		test.Timeout = 10 * time.Second
	}
	if err := test.finds(t.Context()); err != nil {
		t.Error(err)
	}
	if err := test.endsAtOnce(t.Context()); err != nil {
		t.Error(err)
	}
}

// endTimeout is how long a discoverer may take to return once its context has ended.
const endTimeout = time.Second

// finds runs a discoverer until it has found what it must.
func (test *DiscovererTest) finds(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, test.Timeout)
	defer cancel()
	r := &discovering{missing: slices.Clone(test.Want), done: make(chan struct{}), ended: make(chan error, 1)}
	if len(r.missing) == 0 {
		close(r.done)
	}
	go func() {
		err := test.New().Discover(ctx, test.Self, r.found)
		r.over.Store(true)
		r.ended <- err
	}()
	select {
	case <-r.done:
	case err := <-r.ended:
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.missing) > 0 || err != nil {
			return fmt.Errorf("the call of Discover returned %v, with %q not found", err, r.missing)
		}
		return r.fault
	case <-ctx.Done():
		r.mu.Lock()
		defer r.mu.Unlock()
		return fmt.Errorf("%q not found within %v", r.missing, test.Timeout)
	}
	cancel()
	if err := r.end(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fault
}

// endsAtOnce runs a discoverer whose context has ended already.
func (test *DiscovererTest) endsAtOnce(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	r := &discovering{done: make(chan struct{}), ended: make(chan error, 1)}
	go func() { r.ended <- test.New().Discover(ctx, test.Self, func(string) {}) }()
	return r.end()
}

// discovering is one call of Discover.
type discovering struct {
	mu      sync.Mutex
	missing []string
	fault   error
	done    chan struct{}
	ended   chan error
	over    atomic.Bool
}

func (r *discovering) found(addr string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, port, err := net.SplitHostPort(addr)
	if n, e := strconv.ParseUint(port, 10, 16); err != nil || e != nil || n == 0 {
		r.fault = fmt.Errorf("found was called with %q, want \"host:port\" with a port of 1 to 65535", addr)
	}
	if r.over.Load() {
		r.fault = errors.New("found was called after Discover had returned")
	}
	if i := slices.Index(r.missing, addr); i >= 0 {
		if r.missing = slices.Delete(r.missing, i, i+1); len(r.missing) == 0 {
			close(r.done)
		}
	}
}

func (r *discovering) end() error {
	timeout := time.NewTimer(endTimeout)
	defer timeout.Stop()
	select {
	case <-r.ended:
		return nil
	case <-timeout.C:
		return fmt.Errorf("the call of Discover had not returned %v after its context ended", endTimeout)
	}
}
