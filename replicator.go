package replicator

import (
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
)

// DB is a goleveldb database that is one of many masters. It has the methods of
// *leveldb.DB, with the same parameters, results and errors, and replicates in
// the background. All methods are safe for concurrent use.
type DB struct {
	// Fixed once Replicate returns.
	raw  *leveldb.DB
	opts Options
	self causal.Origin

	// The store. The queue's slot guards the replica; the others guard themselves.
	queue        *queue
	decider      decider
	durability   durability
	health       health
	transactions transactions
	updates      updates
	maintenance  signal         // the store has something to do
	backlog      *store.Backlog // of what it has to compact

	// Peers. All of these guard themselves.
	network network
	peers   *peers
	gossip  gossip
	links   links

	// Callers and what they see. All of these guard themselves, but for delays.
	waiters  waiters
	watchers watchers
	feeds    feeds
	activity activity
	delays   delays // the queue's slot guards it

	lifecycle
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
		return nil, errors.New("replicator: the handle is replicated already; close the DB that Replicate returned for it, and open the directory again")
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
	if how := r.Rewound(); how != "" {
		opts.Logger.Error("replicator: " + how + "; nothing is claimed that may be missing, and peers bring back what they have")
	}
	d := newDB(db, opts, r, l, sec)
	o := new(opening)
	o.begin(d)
	d.run(fresh, o)
	return d, nil
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
		CacheSize: o.CacheSize, FilterSize: o.FilterSize,
	}
	if o.CacheSize == 0 {
		c.CacheSize, c.MostCache = 32<<20, 256<<20
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
		raw: raw, opts: o, self: r.Self,
		decider:      newDecider(o.Resolver),
		durability:   durability{flushing: make(chan struct{}, 1)},
		transactions: transactions{turn: make(chan struct{}, 1)},
		maintenance:  newSignal(),
		backlog:      store.NewBacklog(raw),
		network:      newNetwork(&o, l, sec),
		peers:        newPeers(max(o.MinInterval, 100*time.Millisecond), max(o.MaxInterval, time.Second), 4*o.MaxInterval),
		gossip:       newGossip(),
		delays:       newDelays(o.Now()),
		feeds:        feeds{news: newSignal()},
		lifecycle:    newLifecycle(),
	}
	r.Config.Resolve = d.decider.resolve
	sec.OnRenewal(d.links.leave)
	if d.opts.Name == "" {
		d.opts.Name = nameAt(l.Addr())
	}
	d.queue = &queue{raw: raw, replica: r, slot: make(chan struct{}, 1), over: make(chan struct{}), commits: d.committed, failed: d.storeFailed, starved: d.storeStarved}
	for _, p := range o.Peers {
		d.peers.add(p, fromList, time.Now())
	}
	return d
}

// nameAt returns the name of a replica that was given none. One that listens on any
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

// Addr returns the address that the replica listens on for peers.
func (db *DB) Addr() net.Addr { return db.network.listener.Addr() }

// advertised returns the address that peers should dial, as far as is known here.
func (db *DB) advertised() string {
	if db.opts.Advertise != "" {
		return db.opts.Advertise
	}
	return db.network.listener.Addr().String()
}

// AddPeer adds the address of another replica, "host:port", to those configured. One that is
// already known, and rests after a failure, is tried at once. AddPeer returns an error if addr is
// no address, and leveldb.ErrClosed after Close.
func (db *DB) AddPeer(addr string) error {
	if db.isClosing() {
		return leveldb.ErrClosed
	}
	if err := netaddr.CheckAddr(addr); err != nil {
		return fmt.Errorf("replicator: AddPeer: %w", err)
	}
	db.peers.add(addr, fromList, time.Now())
	db.peers.awaken(addr)
	return nil
}

// RemovePeer forgets an address. It may come back if another source names it. RemovePeer
// returns an error if the address is not known, and leveldb.ErrClosed after Close.
func (db *DB) RemovePeer(addr string) error {
	if db.isClosing() {
		return leveldb.ErrClosed
	}
	if !db.peers.remove(addr) {
		return fmt.Errorf("replicator: RemovePeer: %q is not the address of a peer", addr)
	}
	return nil
}

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
	places := make(chan struct{}, schedule.MaxDialing)
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
		return fmt.Errorf("replicator: nothing was replicated: every address that is known (%s) leads to this replica itself", strings.Join(addrs[:min(len(addrs), 8)], ", "))
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
		case <-db.gossip.pulls.next(): // the one here, perhaps; one at the peer has to be asked for
		case <-again:
		}
	}
}

// With and commit serve a session's host, see caller.
func (db *DB) with(f func(r *replica.Replica)) { db.queue.with(f) }

func (db *DB) commit(stage func(t *replica.Txn) error) error {
	req := &request{stage: stage, sync: db.opts.Sync || db.durability.askedLately(), done: make(chan error, 1)}
	if !db.decider.quick {
		req.decisions = new(replica.Decisions)
	}
	err := db.queue.do(req)
	for err == errUndecided {
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

// committed is called with the queue's slot held after each commit.
func (db *DB) committed(t *replica.Txn) {
	told := t.Changes
	if db.feeds.hub.Active() || db.watchers.any() {
		if err := t.Complete(); err != nil {
			db.opts.Logger.Error("replicator: what a join brought cannot be read", "error", err)
		}
		if slices.ContainsFunc(told, func(c replica.Change) bool { return !c.Local }) {
			told = inTime(told)
		}
	}
	db.watchers.publish(told)
	db.feeds.publish(t, told)
	n, local, remote := 0, false, false
	for i := range t.Changes {
		c := &t.Changes[i]
		n += int(store.Btoi(!c.Same))
		local, remote = local || c.Local, remote || !c.Local
	}
	if remote {
		db.delays.note(t.Changes, t.R.Own, db.opts.Now())
	}
	if n > 0 {
		db.links.changed(local)
		if local {
			db.noteLocalChanges(n)
		} else {
			db.noteRemoteChanges(n)
		}
		db.requestMaintenance()
	}
	db.waiters.wake(t.R, false)
}

// storeFailed is called once, when the store failed to write.
func (db *DB) storeFailed(cause error) {
	db.health.fail(cause)
	db.links.leave() // what peers push would be refused
	db.spawn(func() { db.with(func(r *replica.Replica) { db.waiters.bar(r, db.queue.broken()) }) })
	db.opts.Logger.Error("replicator: the store failed to write; writes are refused until it is opened again", "error", cause)
	if f := db.opts.Events.Failed; f != nil {
		db.spawn(func() { f(cause) })
	}
}
