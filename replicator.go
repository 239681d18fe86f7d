package replicator

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/netaddr"
	"github.com/level-replicator/replicator/internal/printable"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/schedule"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/level-replicator/replicator/internal/transport"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// DB is a goleveldb database that is one of many masters. It has the methods of
// *leveldb.DB, with the same parameters, results and errors, and replicates in
// the background. All methods are safe for concurrent use.
type DB struct {
	raw   *leveldb.DB
	opts  Options
	self  causal.Origin
	queue *queue

	listener     net.Listener
	security     *transport.Security
	admission    *transport.Admission
	rates        transport.Rates
	inflight     *transport.Budget
	small        *transport.Budget // room for small frames
	large        chan struct{}     // capacity 1: of the session that holds a large value
	refusals     refusals
	peers        *peers
	pulls        pulls
	talking      atomic.Int64  // sessions under way
	localChange  chan struct{} // capacity 1: start a round
	remoteChange chan struct{} // capacity 1: a peer told news
	maintenance  chan struct{} // capacity 1: look after the store

	syncRequests chan struct{} // capacity 1: hold sessions for those who wait
	flushing     chan struct{} // capacity 1: who brings the store to disk
	staging      chan struct{} // capacity 1: who has a transaction open
	durableAsked atomic.Int64  // when a peer last asked for a report of what is on disk, in Unix nanoseconds

	quick     bool          // the resolver is one of this package
	resolving chan struct{} // capacity 1: who calls the resolver
	tidied    chan struct{} // closed when what an opening has to do is done

	ready     chan struct{}
	readyOnce sync.Once
	adopted   chan struct{} // closed when the data found at the opening is logged

	mu       sync.Mutex // guards what follows; never held over I/O or a callback
	velocity schedule.Velocity
	recent   schedule.Recent
	total    totals
	cause    error // of the write that failed
	starved  error // of the last write that failed for want of a file handle, until one succeeds
	work     map[string]Progress
	watchers map[*watcher]struct{}
	waiters  map[*waiter]struct{}
	calls    uint64       // of WaitFor and WaitReplicated that had to wait
	trans    *Transaction // the one that is open

	cancel       context.CancelFunc
	tasks        sync.WaitGroup
	closing      atomic.Bool   // Close was called
	closed       chan struct{} // closed when Close is through
	ending       chan struct{} // closed when Close begins
	closeTimeout time.Duration // of Close
}

type totals struct {
	sessions, pulled, served, in, out, mismatches int64
}

// Replicate turns an open database into one of many masters. It takes the handle
// over: write only through the DB it returns, and close only that. A handle that is
// replicated already is refused.
//
// Everything of its own it keeps under keys that start with ff ff, which are
// hidden; a handle that holds other data there, or whose comparer does not sort
// bytewise, is refused. Data that the handle already holds is logged as if it were
// written now, in the background, before the first write is let through; with
// Options.Follower such a handle is refused.
//
// Writes wait until the first attempt to replicate is over, at most
// Options.ReadyTimeout; reads do not. A nil o means all defaults.
func Replicate(db *leveldb.DB, o *Options) (*DB, error) {
	opts, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	sec, err := transport.NewSecurity(opts.credentials())
	if err != nil {
		return nil, err
	}
	if db == nil {
		return nil, errors.New("replicator: Replicate needs an open database, got nil")
	}
	if !handles.enter(db) {
		return nil, errors.New("replicator: the handle is replicated already; close the DB that Replicate returned for it, and open the directory anew")
	}
	d, err := replicate(db, opts, sec)
	if err != nil {
		handles.leave(db)
	}
	return d, err
}

func replicate(db *leveldb.DB, opts Options, sec *transport.Security) (*DB, error) {
	fresh, err := checkHandle(db, &opts)
	if err != nil {
		return nil, err
	}
	l, err := listen(&opts)
	if err != nil {
		return nil, err
	}
	r := replica.New(opts.replicaConfig(db))
	batch, err := r.Open(opts.Cluster)
	if err == nil {
		if fresh {
			batch.Put(store.MetaAdopt, []byte{store.FormatVersion})
		}
		batch.Put(store.MetaLocal, store.AppendRanges(nil, opts.LocalRanges))
		err = db.Write(batch, &opt.WriteOptions{Sync: true})
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("replicator: cannot open the database: %w", err)
	}
	if r.Rewound != nil {
		opts.Logger.Error("replicator: " + r.Rewound.String() + "; nothing is claimed that may be missing, and peers bring back what they have")
	}
	d := newDB(db, opts, r, l, sec)
	began := time.Now()
	tidying := new(replica.Tidying)
	for !tidying.Done && time.Since(began) < tidyTime {
		if err := tidying.Next(background{d, context.Background()}, d.resolve, func() bool { return time.Since(began) >= tidyTime }); err != nil {
			l.Close()
			return nil, fmt.Errorf("replicator: cannot open the database: %w", err)
		}
	}
	d.run(fresh, tidying)
	return d, nil
}

// handles are those that are replicated in this process. Two replicas over one would
// give out the same aliases for different origins.
var handles registry

type registry struct {
	mu  sync.Mutex
	all map[*leveldb.DB]struct{}
}

// enter reports whether a handle was not there, and puts it there.
func (g *registry) enter(db *leveldb.DB) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.all[db]; ok {
		return false
	}
	if g.all == nil {
		g.all = map[*leveldb.DB]struct{}{}
	}
	g.all[db] = struct{}{}
	return true
}

func (g *registry) leave(db *leveldb.DB) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.all, db)
}

func listen(o *Options) (net.Listener, error) {
	l := o.Listener
	if l == nil {
		var err error
		if l, err = net.Listen("tcp", o.Listen); err != nil {
			return nil, fmt.Errorf("replicator: cannot listen: %w", err)
		}
	}
	if err := transport.CheckListen(l.Addr(), o.Secret != nil || o.TLS != nil || o.GetSecrets != nil || o.GetTLS != nil || o.Insecure); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func (o *Options) replicaConfig(db *leveldb.DB) replica.Config {
	c := replica.Config{
		Store: store.Handle{DB: db}, Draw: drawOrigin, Now: o.Now, Resolve: o.Resolver.internal(),
		MaxKey: o.Limits.MaxKey, MaxValue: o.Limits.MaxValue, MaxSkew: o.MaxClockSkew, TombstoneTTL: o.TombstoneTTL, PeerTTL: o.PeerTTL,
		CacheSize: o.CacheSize, FilterSize: o.CacheSize / 4,
	}
	if len(o.LocalRanges) > 0 {
		c.Local = func(key []byte) bool { return store.InRanges(o.LocalRanges, key) }
	}
	return c
}

func drawOrigin() (o causal.Origin) {
	rand.Read(o[:]) // never fails: see crypto/rand
	return o
}

func newDB(raw *leveldb.DB, o Options, r *replica.Replica, l net.Listener, sec *transport.Security) *DB {
	d := &DB{
		raw: raw, opts: o, self: r.Self, listener: l, security: sec,
		admission: transport.NewAdmission(o.Limits.MaxPending, o.Limits.MaxConns), rates: transport.NewRates(o.Limits.ReadRate, o.Limits.WriteRate), inflight: transport.NewBudget(o.Limits.MaxInFlight - transport.SmallRoom(o.Limits.MaxInFlight)), small: transport.NewBudget(transport.SmallRoom(o.Limits.MaxInFlight)), large: make(chan struct{}, 1),
		peers:       newPeers(max(o.MinInterval, 100*time.Millisecond), max(o.MaxInterval, time.Second), 4*o.MaxInterval),
		localChange: make(chan struct{}, 1), remoteChange: make(chan struct{}, 1), maintenance: make(chan struct{}, 1),
		syncRequests: make(chan struct{}, 1), flushing: make(chan struct{}, 1), staging: make(chan struct{}, 1),
		quick: o.Resolver.quick(), resolving: make(chan struct{}, 1), tidied: make(chan struct{}),
		ready: make(chan struct{}), adopted: make(chan struct{}),
		closed: make(chan struct{}), ending: make(chan struct{}), closeTimeout: closeTimeout,
		work: map[string]Progress{}, watchers: map[*watcher]struct{}{}, waiters: map[*waiter]struct{}{},
	}
	r.Config.Resolve = d.resolve
	if d.opts.Name == "" {
		d.opts.Name = nameAt(l.Addr())
	}
	d.queue = &queue{raw: raw, replica: r, slot: make(chan struct{}, 1), over: make(chan struct{}), commits: d.committed, failed: d.storeFailed, starved: d.storeStarved}
	for _, p := range o.Peers {
		d.peers.add(p, fromList, time.Now())
	}
	return d
}

// nameAt is what a server is called that was given no name. One that listens on any
// address says the same there as its peers on other hosts, so it goes by its host's name.
func nameAt(listener net.Addr) string {
	host, port, err := net.SplitHostPort(listener.String())
	if ip, e := netip.ParseAddr(host); err != nil || e != nil || !ip.IsUnspecified() {
		return listener.String()
	}
	if host, err = os.Hostname(); err != nil || host == "" {
		return listener.String()
	}
	return net.JoinHostPort(printable.Printable(host), port)
}

// run starts everything that goes on in the background.
func (db *DB) run(fresh bool, tidying *replica.Tidying) {
	ctx, cancel := context.WithCancel(context.Background())
	db.cancel = cancel
	db.spawn(func() { db.accept(ctx) })
	db.spawn(func() { db.rounds(ctx) })
	db.spawn(func() { db.maintain(ctx) })
	if tidying.Done {
		close(db.tidied)
	} else {
		db.spawn(func() { db.tidy(ctx, tidying) })
	}
	for _, d := range db.opts.Discover {
		db.spawn(func() { db.discover(ctx, d) })
	}
	db.spawn(func() {
		if err := throughShortage(ctx, func() error { return db.fillFilter(ctx) }); err != nil && ctx.Err() == nil {
			db.opts.Logger.Error("replicator: the keys that there are could not be read; new ones cost a read until the next opening", "error", err)
		}
	})
	db.spawn(func() {
		if fresh {
			if err := throughShortage(ctx, func() error { return db.adoptFirst(ctx) }); err != nil && ctx.Err() == nil {
				db.opts.Logger.Error("replicator: the data found at the opening could not be logged", "error", err)
			}
		}
		close(db.adopted)
		timeout := time.NewTimer(db.opts.ReadyTimeout)
		defer timeout.Stop()
		db.checkReady()
		select {
		case <-ctx.Done():
		case <-db.ready:
		case <-timeout.C:
			db.setReady()
		}
	})
}

// spawn starts a goroutine that Close waits for.
func (db *DB) spawn(f func()) { db.tasks.Go(f) }

// checkReady lets writes through once the first attempt to replicate is over: a
// session has ended with each peer that is known so far.
func (db *DB) checkReady() {
	select {
	case <-db.adopted:
	default:
		return
	}
	if all, n := db.peers.tried(); all && (n > 0 || len(db.opts.Discover) == 0) {
		db.setReady()
	}
}

func (db *DB) setReady() {
	db.readyOnce.Do(func() {
		close(db.ready)
		db.requestMaintenance()
		db.requestSync()
	})
}

// Ready is closed when the first attempt to replicate is over and writes no
// longer wait: a session has ended, well or not, with each peer known by then, or
// Options.ReadyTimeout has passed; and what the handle held is logged.
func (db *DB) Ready() <-chan struct{} { return db.ready }

// Addr is the address that the server listens on for peers.
func (db *DB) Addr() net.Addr { return db.listener.Addr() }

// advertised is where peers should dial, as far as this server can tell.
func (db *DB) advertised() string {
	if db.opts.Advertise != "" {
		return db.opts.Advertise
	}
	return db.listener.Addr().String()
}

// AddPeer adds the address of another server, "host:port", to those configured. One
// that is known already, and rests after a failure, is tried at once.
// One that is no address is logged and otherwise ignored.
func (db *DB) AddPeer(addr string) {
	if err := netaddr.CheckAddr(addr); err != nil {
		db.opts.Logger.Warn("replicator: AddPeer", "error", err)
		return
	}
	db.peers.add(addr, fromList, time.Now())
	db.peers.awaken(addr)
}

// RemovePeer forgets an address. It may come back if another source names it.
func (db *DB) RemovePeer(addr string) { db.peers.remove(addr) }

// Sync holds a session with every known peer, in which each pulls from the other,
// and returns when the last has ended. Use it in tests and before a planned stop;
// replication needs no call. What is on its way in another session already is
// waited for.
//
// A peer that fails does not stop the others: the error joins one [*PeerError]
// for each. It is one, too, if this replica or the peer lacks something and takes
// nothing, because its store failed or is read-only; and it is an error if all
// addresses lead to this replica itself. If ctx ends first, Sync returns its error, and
// what was applied stays.
func (db *DB) Sync(ctx context.Context) error {
	if db.isClosing() {
		return leveldb.ErrClosed
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-db.ending:
			cancel()
		case <-ctx.Done():
		}
	}()
	addrs := db.peers.all()
	errs := make([]error, len(addrs))
	var wg sync.WaitGroup
	places := make(chan struct{}, maxDialing)
	for i, addr := range addrs {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			res, err := db.syncOne(ctx, addr, session.Goal{})
			if err == nil {
				err = tookNothing(&res, addr, db.queue.broken())
			}
			errs[i] = err
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if len(errs) > 0 && !slices.ContainsFunc(errs, func(err error) bool { return !isSelf(err) }) {
		return fmt.Errorf("replicator: nothing was replicated: every address that is known (%s) leads to this server itself", strings.Join(addrs[:min(len(addrs), 8)], ", "))
	}
	return errors.Join(slices.DeleteFunc(errs, isSelf)...)
}

// syncOne holds a session that begins after now, and further ones while a pull is
// left out because another brings the same. It returns how the last went, or a zero Result
// if there was none.
func (db *DB) syncOne(ctx context.Context, addr string, why session.Goal) (session.Result, error) {
	for pause := time.Millisecond; ; {
		var again <-chan time.Time
		p, wait := db.peers.take(addr)
		if p == nil && wait == nil {
			return session.Result{}, nil // removed meanwhile
		}
		if p != nil {
			res, err := db.call(ctx, p, why)
			if res.Whole() || err != nil {
				return res, err
			}
			again, pause = time.After(pause), min(2*pause, 100*time.Millisecond)
		}
		select {
		case <-ctx.Done():
			return session.Result{}, ctx.Err()
		case <-wait:
		case <-db.pulls.next(): // the one here, perhaps; one at the peer has to be asked for
		case <-again:
		}
	}
}

// With and commit serve a session's host, see caller.
func (db *DB) with(f func(r *replica.Replica)) { db.queue.with(f) }

func (db *DB) commit(stage func(t *replica.Txn) error) error {
	req := &request{stage: stage, sync: db.wantsSync(), done: make(chan error, 1)}
	if !db.quick {
		req.decisions = new(replica.Decisions)
	}
	err := db.queue.do(req)
	for err == replica.ErrUndecided {
		if err := db.decide(req.decisions); err != nil {
			return err
		}
		req.answered = false
		err = db.queue.do(req)
	}
	if req.answered {
		db.emitEvents(req.notable)
	}
	return err
}

// committed is called with the replica in hand after each commit.
func (db *DB) committed(t *replica.Txn) {
	db.publish(t.Changes)
	n := 0
	for i := range t.Changes {
		n += int(store.Btoi(!t.Changes[i].Same))
	}
	if n > 0 {
		if slices.ContainsFunc(t.Changes, func(c replica.Change) bool { return c.Local }) {
			db.noteLocalChanges(n)
		} else {
			db.noteRemoteChanges(n)
		}
		db.requestMaintenance()
	}
	db.wake(t.R, false)
}

// emitEvents calls the events for what a commit did.
func (db *DB) emitEvents(changes []replica.Change) {
	ev := db.opts.Events
	for i := range changes {
		c := &changes[i]
		if c.Panicked != nil {
			db.opts.Logger.Error("replicator: a resolver panicked; the default decided", "panic", c.Panicked)
			if ev.ResolverPanic != nil {
				ev.ResolverPanic(slices.Clone(c.Key), c.Panicked)
			}
		}
		if c.Conflict && ev.Conflict != nil {
			ev.Conflict(slices.Clone(c.Key), copyVersions(publicVersions(replica.Canonical(c.Versions))))
		}
		if c.WasConflict && !c.Conflict && ev.Resolved != nil {
			ev.Resolved(slices.Clone(c.Key))
		}
	}
}

func copyVersions(vs []Version) []Version {
	for i := range vs {
		vs[i].Value = slices.Clone(vs[i].Value)
	}
	return vs
}

// storeFailed is called once, when the store failed to write.
func (db *DB) storeFailed(cause error) {
	db.mu.Lock()
	db.cause = cause
	db.mu.Unlock()
	db.spawn(func() { db.with(func(r *replica.Replica) { db.barWaits(r, db.queue.broken()) }) })
	db.opts.Logger.Error("replicator: the store failed to write; writes are refused until it is opened again", "error", cause)
	if f := db.opts.Events.Failed; f != nil {
		db.spawn(func() { f(cause) })
	}
}

func (db *DB) isClosing() bool {
	select {
	case <-db.ending:
		return true
	default:
		return false
	}
}

// closeTimeout is how long Close waits for the store.
const closeTimeout = 30 * time.Second

// Close ends replication and closes the handle. It waits for sessions under way
// to be cut and for writes under way to be committed, and brings to disk what is
// not yet there, so that the next opening need not ask peers for it. A second
// Close waits for the first and returns leveldb.ErrClosed, as goleveldb does.
//
// On a failing disk goleveldb can hang for ever. After 30 s Close says so and
// returns; end the process then, the lock on the directory is not released.
func (db *DB) Close() error {
	if !db.closing.CompareAndSwap(false, true) {
		<-db.closed
		return leveldb.ErrClosed
	}
	close(db.ending)
	db.cancel()
	db.listener.Close()
	done := make(chan error, 1)
	go func() {
		db.discardOpen()
		db.tasks.Wait()
		left := db.markClean()
		store.Quiesce(db.raw)
		err := errors.Join(left, db.raw.Close())
		handles.leave(db.raw)
		done <- err
	}()
	timeout := time.NewTimer(db.closeTimeout)
	defer timeout.Stop()
	var err error
	select {
	case err = <-done:
	case <-timeout.C:
		err = fmt.Errorf("replicator: Close gave up after %v: the store does not answer; end the process before the database is opened again", db.closeTimeout)
		if cause := db.queue.broken(); cause != nil {
			err = fmt.Errorf("%w (%w)", err, cause)
		}
	}
	close(db.queue.over)
	db.closeWatchers()
	close(db.closed)
	return err
}

// markClean marks the database as cleanly closed. The mark counts only if all that it
// vouches for is on disk before it.
func (db *DB) markClean() (err error) {
	db.with(func(r *replica.Replica) {
		if db.queue.broken() != nil {
			return
		}
		db.queue.close(leveldb.ErrClosed) // nothing is committed any more
		err = ignoreReadOnly(replica.MarkClean(db.raw, r))
	})
	return err
}

func ignoreReadOnly(err error) error {
	if errors.Is(err, leveldb.ErrReadOnly) || errors.Is(err, leveldb.ErrClosed) {
		return nil
	}
	return err
}

// checkHandle refuses a handle that could not be replicated, and reports whether
// what it holds is still to be logged.
func checkHandle(db *leveldb.DB, o *Options) (fresh bool, err error) {
	if _, err = db.Get(store.MetaFormat, nil); err == nil {
		if err := checkLocal(db, o.LocalRanges); err != nil {
			return false, err
		}
		fresh, err = db.Has(store.MetaAdopt, nil)
	} else if err == leveldb.ErrNotFound {
		fresh, err = checkFresh(db)
	}
	if err == nil && fresh && o.Follower {
		err = checkFollower(db, o.LocalRanges)
	}
	return fresh, err
}

// checkFollower refuses a follower over data that was never logged: to log it would
// be to write it, and every other replica would show it.
func checkFollower(db *leveldb.DB, local []*util.Range) error {
	it := db.NewIterator(store.Visible(nil), nil)
	defer it.Release()
	for it.Next() {
		if !store.InRanges(local, it.Key()) {
			return errors.New("replicator: Options.Follower: the handle holds data that was never logged, and a follower writes nothing: start it with an empty directory, or open this one without Follower until it is ready, which makes the data writes of now")
		}
	}
	return it.Error()
}

// checkFresh refuses a handle that was never replicated and could not be, and
// reports that what it holds is to be logged.
func checkFresh(db *leveldb.DB) (bool, error) {
	if err := checkOrder(db); err != nil {
		return false, err
	}
	it := db.NewIterator(&util.Range{Start: store.ReservedStart}, nil)
	defer it.Release()
	for it.Next() {
		if bytes.HasPrefix(it.Key(), store.MetaOrder) {
			continue // of a check that a crash cut short
		}
		return false, fmt.Errorf("%w: the database holds the key %.40q, and that range is needed for the log", store.ErrReservedKey, it.Key())
	}
	return true, it.Error()
}

// checkOrder finds out whether the comparer of a database sorts bytewise. The
// handle does not tell, so it is tried on a few keys of the reserved range.
func checkOrder(db *leveldb.DB) error {
	suffixes := []string{"", "\x00", "\x00\x00", "\x01", "\x01\x00", "10", "9", "A", "B", "a", "a\x00", "aa", "b", "\x7f", "\x80", "\xff", "\xff\xff"}
	put, del := new(leveldb.Batch), new(leveldb.Batch)
	for _, s := range suffixes {
		put.Put(append(slices.Clone(store.MetaOrder), s...), nil)
		del.Delete(append(slices.Clone(store.MetaOrder), s...))
	}
	if err := db.Write(put, nil); err != nil {
		return err
	}
	var got []string
	it := db.NewIterator(&util.Range{Start: store.MetaOrder}, nil)
	for it.Next() {
		if s, ok := strings.CutPrefix(string(it.Key()), string(store.MetaOrder)); ok {
			got = append(got, s)
		}
	}
	it.Release()
	if err := errors.Join(it.Error(), db.Write(del, nil)); err != nil {
		return err
	}
	if !slices.Equal(got, suffixes) {
		return errors.New("replicator: the database has a comparer that does not sort bytewise; only the default comparer can be replicated")
	}
	return nil
}
