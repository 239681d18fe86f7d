package replicator_test

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/level-replicator/replicator"
)

// replica starts a replica over an empty database in memory. Elsewhere that would be
// leveldb.OpenFile, and a fixed address.
func replica(o replicator.Options, peers ...string) *replicator.DB {
	raw, err := leveldb.Open(storage.NewMemStorage(), replicator.StoreOptions())
	check(err)
	o.Listen, o.Peers, o.Logger = "127.0.0.1:0", peers, slog.New(slog.DiscardHandler)
	db, err := replicator.Replicate(raw, &o)
	check(err)
	return db
}

func address(db *replicator.DB) string { return db.Addr().String() }

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func ExampleReplicate() {
	open := func(peers ...string) *replicator.DB {
		raw, err := leveldb.Open(storage.NewMemStorage(), replicator.StoreOptions()) // or leveldb.OpenFile
		check(err)
		db, err := replicator.Replicate(raw, &replicator.Options{
			Listen: "127.0.0.1:0",
			Peers:  peers, // one that is reachable is enough
			Logger: slog.New(slog.DiscardHandler),
		})
		check(err)
		return db
	}
	a := open()
	defer a.Close()
	b := open(a.Addr().String())
	defer b.Close()

	check(a.Put([]byte("greeting"), []byte("hello"), nil))
	check(b.Sync(context.Background())) // only so that the example need not wait
	v, err := b.Get([]byte("greeting"), nil)
	check(err)
	fmt.Println(string(v))
	// Output: hello
}

func ExampleDB_Write() {
	db := replica(replicator.Options{})
	defer db.Close()

	b := new(leveldb.Batch)
	b.Put([]byte("account/1"), []byte("70"))
	b.Put([]byte("account/2"), []byte("130"))
	b.Delete([]byte("transfer/17"))
	check(db.Write(b, &opt.WriteOptions{Sync: true}))

	it := db.NewIterator(util.BytesPrefix([]byte("account/")), nil)
	defer it.Release()
	for it.Next() {
		fmt.Printf("%s = %s\n", it.Key(), it.Value())
	}
	check(it.Error())
	// Output:
	// account/1 = 70
	// account/2 = 130
}

func ExampleDB_GetSnapshot() {
	db := replica(replicator.Options{})
	defer db.Close()
	check(db.Put([]byte("k"), []byte("before"), nil))
	s, err := db.GetSnapshot()
	check(err)
	defer s.Release()
	check(db.Put([]byte("k"), []byte("after"), nil))
	v, err := s.Get([]byte("k"), nil)
	check(err)
	fmt.Println(string(v))
	// Output: before
}

func ExampleDB_OpenTransaction() {
	db := replica(replicator.Options{})
	defer db.Close()
	check(db.Put([]byte("stock"), []byte("7"), nil))

	tr, err := db.OpenTransaction()
	check(err)
	defer tr.Discard() // does nothing after Commit
	check(tr.Put([]byte("stock"), []byte("6"), nil))
	check(tr.Put([]byte("order/1"), []byte("1 piece"), nil))
	outside, err := db.Get([]byte("stock"), nil)
	check(err)
	check(tr.Commit())
	after, err := db.Get([]byte("stock"), nil)
	check(err)
	fmt.Printf("outside %s, after Commit %s\n", outside, after)
	// Output: outside 7, after Commit 6
}

func ExampleDB_Conflicts() {
	// Two replicas that do not know each other yet write the same key.
	a, b := replica(replicator.Options{}), replica(replicator.Options{})
	defer a.Close()
	defer b.Close()
	check(a.Put([]byte("colour"), []byte("red"), nil))
	check(b.Put([]byte("colour"), []byte("green"), nil))
	check(b.AddPeer(address(a)))
	check(b.Sync(context.Background()))

	for c, err := range b.Conflicts(context.Background()) {
		check(err)
		var values []string
		for _, v := range c.Versions {
			values = append(values, string(v.Value))
		}
		slices.Sort(values)
		fmt.Printf("%s: %v\n", c.Key, values)
	}
	check(b.Put([]byte("colour"), []byte("blue"), nil)) // settles it, here and there
	check(b.Sync(context.Background()))
	v, err := a.Get([]byte("colour"), nil)
	check(err)
	fmt.Println(string(v), a.Status().Conflicts)
	// Output:
	// colour: [green red]
	// blue 0
}

func ExampleResolver() {
	// Sets are merged: what either side added is shown.
	union := func(key []byte, a, b replicator.Version) replicator.Version {
		if !strings.HasPrefix(string(key), "tags/") || a.Deleted || b.Deleted {
			return replicator.HighestClock(key, a, b)
		}
		tags := slices.Concat(strings.Fields(string(a.Value)), strings.Fields(string(b.Value)))
		slices.Sort(tags)
		return replicator.Version{Value: []byte(strings.Join(slices.Compact(tags), " "))}
	}
	a, b := replica(replicator.Options{Resolver: union}), replica(replicator.Options{Resolver: union})
	defer a.Close()
	defer b.Close()
	check(a.Put([]byte("tags/1"), []byte("new red"), nil))
	check(b.Put([]byte("tags/1"), []byte("big red"), nil))
	check(b.AddPeer(address(a)))
	check(b.Sync(context.Background()))
	for _, db := range []*replicator.DB{a, b} {
		v, err := db.Get([]byte("tags/1"), nil)
		check(err)
		fmt.Println(string(v))
	}
	// Output:
	// big new red
	// big new red
}

func ExampleDB_Versions() {
	db := replica(replicator.Options{Name: "a"})
	defer db.Close()
	for _, v := range []string{"one", "two", "three"} {
		check(db.Put([]byte("k"), []byte(v), nil))
	}
	versions, err := db.Versions([]byte("k"))
	check(err)
	for _, v := range versions {
		fmt.Printf("%s, clock %d, write %d, here: %t\n", v.Value, v.Clock, v.Seq, v.Origin == db.Status().Origin)
	}
	// Output: three, clock 2, write 3, here: true
}

func ExampleDB_Watch() {
	a := replica(replicator.Options{})
	defer a.Close()
	b := replica(replicator.Options{}, address(a))
	defer b.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	copied := map[string]string{}
	load := func() {
		it := b.NewIterator(util.BytesPrefix([]byte("config/")), nil)
		defer it.Release()
		for it.Next() {
			copied[string(it.Key())] = string(it.Value())
		}
	}
	changes := b.Watch(ctx, []byte("config/")) // first this, then the copy: nothing is lost between
	load()
	check(b.Put([]byte("config/mode"), []byte("fast"), nil))
	check(a.Put([]byte("other"), nil, nil))
	check(a.Put([]byte("config/size"), []byte("12"), nil))
	for c, err := range changes {
		switch {
		case err == replicator.ErrMissed: // we were too slow
			clear(copied)
			load()
		case c.Deleted:
			delete(copied, string(c.Key))
		default:
			copied[string(c.Key)] = string(c.Value)
		}
		fmt.Printf("%s = %s, local: %t\n", c.Key, c.Value, c.Local)
		if len(copied) == 2 {
			break
		}
	}
	// Output:
	// config/mode = fast, local: true
	// config/size = 12, local: false
}

func ExampleDB_WaitReplicated() {
	a := replica(replicator.Options{})
	defer a.Close()
	for range 2 {
		peer := replica(replicator.Options{}, address(a))
		defer peer.Close()
	}
	check(a.Put([]byte("order/1"), []byte("paid"), &opt.WriteOptions{Sync: true}))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	check(a.WaitReplicated(ctx, 2))
	fmt.Println("on three disks")
	// Output: on three disks
}

// orders answers 201 only when two other replicas have the order on disk. If they do
// not in time it answers 202: the order is kept here and on its way, but until then
// this one disk could take it along.
type orders struct {
	db    *replicator.DB
	peers int
	wait  time.Duration
}

func (o orders) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	if err := o.db.Put([]byte("orders"+r.URL.Path), body, &opt.WriteOptions{Sync: true}); err != nil {
		http.Error(w, "not stored", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("X-Token", o.db.WriteToken().String())
	ctx, cancel := context.WithTimeout(r.Context(), o.wait)
	defer cancel()
	switch err := o.db.WaitReplicated(ctx, o.peers); {
	case err == nil:
		w.WriteHeader(http.StatusCreated)
	case errors.Is(err, context.DeadlineExceeded):
		w.WriteHeader(http.StatusAccepted)
	default:
		http.Error(w, "not replicated", http.StatusServiceUnavailable)
	}
}

func ExampleDB_WaitReplicated_http() {
	a := replica(replicator.Options{})
	defer a.Close()
	post := func(order string, wait time.Duration) string {
		w := httptest.NewRecorder()
		orders{a, 2, wait}.ServeHTTP(w, httptest.NewRequest("POST", order, strings.NewReader("3 apples")))
		return w.Result().Status
	}
	fmt.Println("alone:", post("/1", 100*time.Millisecond))
	for range 2 {
		peer := replica(replicator.Options{}, address(a))
		defer peer.Close()
	}
	fmt.Println("with two peers:", post("/2", 30*time.Second))
	// Output:
	// alone: 202 Accepted
	// with two peers: 201 Created
}

func ExampleDB_WaitFor() {
	a := replica(replicator.Options{})
	defer a.Close()
	b := replica(replicator.Options{}, address(a))
	defer b.Close()

	// A client writes at one replica …
	check(a.Put([]byte("profile/7"), []byte("Ada"), nil))
	cookie := a.WriteToken().String()

	// … and reads at another, which waits until it is there.
	token, err := replicator.ParseToken(cookie)
	check(err)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	check(b.WaitFor(ctx, token))
	v, err := b.Get([]byte("profile/7"), nil)
	check(err)
	fmt.Println(string(v))
	// Output: Ada
}

func ExampleParseToken() {
	_, err := replicator.ParseToken("not of ours!")
	fmt.Println(err != nil)
	// Output: true
}

func ExampleDB_Adopt() {
	raw, err := leveldb.Open(storage.NewMemStorage(), nil)
	check(err)
	check(raw.Put([]byte("old"), []byte("was here before"), nil))
	db, err := replicator.Replicate(raw, &replicator.Options{Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
	check(err)
	defer db.Close()
	<-db.Ready() // what the handle held is logged now

	check(raw.Put([]byte("past"), []byte("written to the handle"), nil)) // better not
	check(db.Adopt(context.Background()))
	for _, key := range []string{"old", "past"} {
		versions, err := db.Versions([]byte(key))
		check(err)
		fmt.Println(key, "is logged:", len(versions) == 1)
	}
	// Output:
	// old is logged: true
	// past is logged: true
}

func ExampleOptions_local() {
	cache := util.BytesPrefix([]byte("cache/"))
	a := replica(replicator.Options{LocalRanges: []*util.Range{cache}})
	defer a.Close()
	b := replica(replicator.Options{LocalRanges: []*util.Range{cache}}, address(a))
	defer b.Close()
	check(a.Put([]byte("cache/page"), []byte("only here"), nil))
	check(a.Put([]byte("page"), []byte("everywhere"), nil))
	check(b.Sync(context.Background()))
	for _, key := range []string{"cache/page", "page"} {
		has, err := b.Has([]byte(key), nil)
		check(err)
		fmt.Println(key, has)
	}
	// Output:
	// cache/page false
	// page true
}

func ExampleOptions_follower() {
	a := replica(replicator.Options{})
	defer a.Close()
	f := replica(replicator.Options{Follower: true}, address(a))
	defer f.Close()
	check(a.Put([]byte("k"), []byte("v"), nil))
	check(f.Sync(context.Background()))
	v, err := f.Get([]byte("k"), nil)
	check(err)
	fmt.Printf("%s\n%v\n", v, f.Put([]byte("k"), nil, nil))
	// Output:
	// v
	// replicator: this replica is a follower and takes no writes
}

func ExampleDB_SetReadOnly() {
	a := replica(replicator.Options{})
	defer a.Close()
	check(a.Put([]byte("k"), []byte("v"), nil))
	check(a.SetReadOnly())
	fmt.Println(a.Put([]byte("k"), nil, nil))
	fmt.Println("in Status:", a.Status().ReadOnly)
	// Output:
	// leveldb: read-only mode
	// in Status: true
}

func ExampleDB_Status() {
	a := replica(replicator.Options{Name: "a"})
	defer a.Close()
	b := replica(replicator.Options{Name: "b"}, address(a))
	defer b.Close()
	check(b.Put([]byte("k"), []byte("v"), nil))
	check(b.Sync(context.Background()))
	s := b.Status()
	fmt.Println(s.Name, s.Ready, s.Keys)
	for _, p := range s.Peers {
		fmt.Println(p.Name, p.State, p.Source)
	}
	fmt.Println("the same:", a.Digest() == b.Digest())
	// Output:
	// b true 1
	// a ok list
	// the same: true
}

func ExampleEvents() {
	conflicts := make(chan string, 1)
	a := replica(replicator.Options{})
	defer a.Close()
	b := replica(replicator.Options{Events: &replicator.Events{
		Conflict: func(key []byte, versions []replicator.Version) {
			conflicts <- fmt.Sprintf("%s has %d versions", key, len(versions))
		},
	}})
	defer b.Close()
	check(a.Put([]byte("k"), []byte("1"), nil))
	check(b.Put([]byte("k"), []byte("2"), nil))
	check(b.AddPeer(address(a)))
	fmt.Println(<-conflicts)
	// Output: k has 2 versions
}

func ExampleGenerateSecret() {
	secret := replicator.GenerateSecret() // once; keep it where all replicas can read it
	a := replica(replicator.Options{Secret: secret})
	defer a.Close()
	b := replica(replicator.Options{Secret: secret}, address(a))
	defer b.Close()
	stranger := replica(replicator.Options{Secret: replicator.GenerateSecret()}, address(a))
	defer stranger.Close()
	fmt.Println(b.Sync(context.Background()), stranger.Sync(context.Background()) != nil)
	// Output: <nil> true
}

// registry is a source of peers of one's own: a list that something else keeps.
func ExampleDiscovererFunc() {
	a := replica(replicator.Options{})
	defer a.Close()
	list := replicator.DiscovererFunc(func(ctx context.Context, self replicator.Self, found func(addr string)) error {
		found(address(a))
		<-ctx.Done()
		return nil
	})
	b := replica(replicator.Options{Discover: []replicator.Discoverer{list}})
	defer b.Close()
	check(b.Put([]byte("k"), []byte("v"), nil)) // waits until the first session is over
	fmt.Println(b.Status().Peers[0].Source)
	// Output: discovered
}

// On one network segment replicas find each other.
func ExampleMulticast() {
	o := &replicator.Options{
		Listen:   ":9000",
		Secret:   replicator.GenerateSecret(), // the same on all of them, in truth
		Discover: []replicator.Discoverer{replicator.Multicast(nil)},
	}
	_ = o // replicator.Replicate(raw, o)
}

// A name that resolves to all replicas, as a headless service does.
func ExampleDNS() {
	o := &replicator.Options{
		Listen:   ":9000",
		Secret:   replicator.GenerateSecret(),
		Discover: []replicator.Discoverer{replicator.DNS("replicas.example:9000", nil)},
	}
	_ = o // replicator.Replicate(raw, o)
}

// Certificates are renewed while a replica runs: GetTLS returns another configuration
// once the files have changed. The same pointer means that nothing has.
func ExampleOptions_renewedCertificates() {
	authority, err := newExampleAuthority()
	if err != nil {
		panic(err)
	}
	var current atomic.Pointer[tls.Config]
	renew := func() { // from files, in earnest: when they change, or on SIGHUP
		certificate, err := authority.issue()
		if err != nil {
			panic(err)
		}
		current.Store(&tls.Config{Certificates: []tls.Certificate{certificate}, RootCAs: authority.pool, ClientCAs: authority.pool})
	}
	renew()
	open := func(peers ...string) *replicator.DB {
		raw, err := leveldb.Open(storage.NewMemStorage(), nil)
		if err != nil {
			panic(err)
		}
		db, err := replicator.Replicate(raw, &replicator.Options{
			Listen: "127.0.0.1:0", Peers: peers, Logger: slog.New(slog.DiscardHandler),
			GetTLS: func() (*tls.Config, error) { return current.Load(), nil },
		})
		if err != nil {
			panic(err)
		}
		return db
	}
	a := open()
	defer a.Close()
	b := open(a.Addr().String())
	defer b.Close()
	fmt.Println(b.Sync(context.Background()))
	renew()
	fmt.Println(b.Sync(context.Background()))
	// Output:
	// <nil>
	// <nil>
}

// exampleAuthority signs certificates, as an operator's own would.
type exampleAuthority struct {
	cert *x509.Certificate
	key  ed25519.PrivateKey
	pool *x509.CertPool
}

func newExampleAuthority() (*exampleAuthority, error) {
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(nil, template, template, public, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &exampleAuthority{cert, key, pool}, nil
}

func (a *exampleAuthority) issue() (tls.Certificate, error) {
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(nil, template, a.cert, public, a.key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
