package replicator

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/crashfs"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/sim"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// crashWrite is one write as the test remembers it. Content tells writes apart: no
// two have the same value, and no two deletions the same time.
type crashWrite struct {
	key, id string
	deleted bool
	dots    []causal.Dot // the first, and those it was issued again under
	saw     map[*crashWrite]bool
	batch   []*crashWrite
	acked   int // operations of the crashing replica's storage then; -1 for writes of its peer
	synced  bool
}

// crashWorld is a run of two replicas, one of which will crash at every moment of it.
type crashWorld struct {
	rng       *rand.Rand
	buffer    int // WriteBuffer
	page      int
	joinAbove int64 // writes that a replica must lack to join; 0: more than there are
	keys      int
	counts    map[session.FrameType]int // frames of joins
	clock     time.Time
	nth       int
	byID      map[string]*crashWrite
	writes    []*crashWrite
	forgets   bool            // the run deletes and restarts more than others
	swept     int             // openings that found stale entries
	late      bool            // what an opening leaves to the background is done between the frames of sessions
	purged    map[string]bool // keys of which something was forgotten
	a, b      *crashNode
	marks     []crashMark
}

// crashMark says how far the storage of b was when that of a was at an operation.
type crashMark struct{ a, b int }

// crashNode is a replica without a shell, on a storage that can crash.
type crashNode struct {
	w       *crashWorld
	stor    *crashfs.Storage
	db      *leveldb.DB
	r       *replica.Replica
	queue   *queue
	sync    bool
	seen    []replica.Change // of the last commit
	tidying replica.Tidying
}

func newCrashWorld(seed uint64, buffer, page int) *crashWorld {
	return &crashWorld{rng: rand.New(rand.NewPCG(seed, 7)), buffer: buffer, page: page,
		clock: time.UnixMilli(1700000000000), byID: map[string]*crashWrite{}, purged: map[string]bool{}, keys: 6, counts: map[session.FrameType]int{}}
}

func (w *crashWorld) now() time.Time { w.clock = w.clock.Add(time.Millisecond); return w.clock }

func (w *crashWorld) draw() (o causal.Origin) {
	binary.BigEndian.PutUint64(o[:], w.rng.Uint64())
	binary.BigEndian.PutUint64(o[8:], w.rng.Uint64())
	return o
}

func (w *crashWorld) open(s *crashfs.Storage, sync bool) (*crashNode, error) {
	db, err := leveldb.Open(s, &opt.Options{WriteBuffer: w.buffer, BlockCacheCapacity: -1})
	if err != nil {
		return nil, fmt.Errorf("goleveldb does not open: %w", err)
	}
	n := &crashNode{w: w, stor: s, db: db, sync: sync}
	n.r = replica.New(replica.Config{
		Store: store.Handle{DB: db}, Draw: w.draw, Now: w.now, Resolve: replica.HighestClock, MaxKey: 1 << 10, MaxValue: 1 << 20,
		MaxSkew: time.Minute, TombstoneTTL: -1, PeerTTL: time.Hour, CacheSize: 1 << 14, FilterSize: 1 << 12,
	})
	b, err := n.r.Open("")
	if err == nil {
		err = db.Write(b, &opt.WriteOptions{Sync: true})
	}
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("the replica does not open: %w", err)
	}
	n.queue = &queue{raw: db, replica: n.r, slot: make(chan struct{}, 1), over: make(chan struct{}),
		commits: n.committed, failed: func(error) {}}
	if !w.late {
		return n, sim.TidyUp(n, 100, sim.Never)
	}
	n.tidying.Step = 2
	return n, sim.ResolveAll(n, 100, sim.Never)
}

// tidyOn does a little of what the opening left to do.
func (n *crashNode) tidyOn() error {
	if !n.w.late || n.tidying.Done {
		return nil
	}
	_, counting := n.r.Counting()
	if err := sim.TidyOn(n, 1, &n.tidying); err != nil {
		return err
	}
	if _, still := n.r.Counting(); counting && !still && n.r.MayHaveStale {
		n.w.swept++
	}
	return nil
}

// tidied does the rest.
func (n *crashNode) tidied() error {
	for n.w.late && !n.tidying.Done {
		if err := n.tidyOn(); err != nil {
			return err
		}
	}
	return nil
}

func (n *crashNode) With(f func(r *replica.Replica)) { n.queue.with(f) }

func (n *crashNode) Addresses() []string { return nil }

func (n *crashNode) Learn([]string) {}

func (n *crashNode) EnterPull(causal.Origin, int64) session.SkipReason { return session.NotSkipped }

func (n *crashNode) LeavePull(causal.Origin) {}

func (n *crashNode) Commit(stage func(t *replica.Txn) error) error {
	return n.queue.do(&request{stage: stage, sync: n.sync, done: make(chan error, 1)})
}

func (n *crashNode) committed(t *replica.Txn) {
	n.seen = slices.Clone(t.Changes)
	for _, c := range t.Changes {
		for i := range c.Versions {
			// A write of an earlier opening may have been issued again.
			if g := n.w.ghost(&c.Versions[i]); g != nil && !slices.Contains(g.dots, c.Versions[i].Dot) {
				g.dots = append(g.dots, c.Versions[i].Dot)
			}
		}
	}
	if n == n.w.b {
		n.w.mark()
	}
}

func (w *crashWorld) mark() { w.marks = append(w.marks, crashMark{w.a.stor.Ops(), w.b.stor.Ops()}) }

func crashID(v *store.Version) string {
	if v.Deleted {
		return fmt.Sprint("deleted at ", uint64(v.Stamp))
	}
	return string(v.Value)
}

func (w *crashWorld) ghost(v *store.Version) *crashWrite { return w.byID[crashID(v)] }

// held are the writes that a replica holds of a key.
func (n *crashNode) held(key string) (ws []*crashWrite, err error) {
	s, err := store.ReadIndex(n.db, []byte(key), n.r)
	if err != nil {
		return nil, err
	}
	vs, err := store.ReadVersions(n.db, []byte(key), s, n.r)
	if err != nil {
		return nil, err
	}
	for i := range vs {
		g := n.w.ghost(&vs[i])
		if g == nil {
			return nil, fmt.Errorf("key %s: version %v was written by nobody: %.20q", key, vs[i].Dot, crashID(&vs[i]))
		}
		ws = append(ws, g)
	}
	return ws, nil
}

// write has a replica commit one batch, and notes it.
func (n *crashNode) write(sync bool, ops ...store.Write) error {
	w := n.w
	saw := map[string]map[*crashWrite]bool{}
	for _, o := range ops {
		old, err := n.held(string(o.Key))
		if err != nil {
			return err
		}
		s := map[*crashWrite]bool{}
		for _, g := range old {
			s[g] = true
			maps.Copy(s, g.saw)
		}
		saw[string(o.Key)] = s
	}
	req := &request{writes: ops, sync: sync || n.sync, done: make(chan error, 1)}
	// The commit hook must find them, so put them down before.
	for _, o := range ops {
		if !o.Deleted {
			w.byID[string(o.Value)] = &crashWrite{key: string(o.Key), id: string(o.Value)}
		}
	}
	n.seen = nil
	if err := n.queue.do(req); err != nil {
		return err
	}
	var batch []*crashWrite
	for _, c := range n.seen {
		v := &c.Versions[0]
		g := w.byID[crashID(v)]
		if g == nil {
			g = &crashWrite{key: string(c.Key), id: crashID(v), deleted: true}
			w.byID[g.id] = g
		}
		g.dots, g.saw, g.synced, g.acked = []causal.Dot{v.Dot}, saw[g.key], req.sync, -1
		if n == w.a {
			g.acked = n.stor.Ops()
		}
		batch = append(batch, g)
	}
	for _, g := range batch {
		g.batch = batch
	}
	w.writes = append(w.writes, batch...)
	return nil
}

// talk holds a session, driven frame by frame.
func (w *crashWorld) talk(a, b *crashNode) error {
	return w.talkWith(a, b, w.params())
}

func (w *crashWorld) params() session.Params {
	return session.Params{PageSize: w.page, BatchSize: 4 * w.page, MaxValue: 1 << 20, MaxKey: 1 << 10, JoinAbove: w.joinAbove}
}

func (w *crashWorld) talkWith(a, b *crashNode, p session.Params) error {
	if o := b.r.Self; a.r.Members[o] != nil {
		p.CachedPeer = o
	}
	sa, sb := session.New(a, true, p), session.New(b, false, p)
	sa.Start()
	for !sa.Done() || !sb.Done() {
		moved := false
		for _, x := range []struct{ from, to *session.Session }{{sa, sb}, {sb, sa}} {
			out, err := sim.Speak(x.from)
			if err != nil {
				return err
			}
			for _, f := range out {
				moved = true
				if err := errors.Join(x.to.Receive(f.Kind, f.Payload), a.tidyOn(), b.tidyOn()); err != nil {
					return err
				}
			}
		}
		if !moved {
			return fmt.Errorf("the session is stuck: %v, %v", sa.Step(), sb.Step())
		}
	}
	return nil
}

// flushed does what the shell does every second: move the checkpoint.
func (n *crashNode) flushed() error {
	count, err := store.MemtableFlushes(n.db)
	if err == nil {
		n.With(func(r *replica.Replica) { r.Flushed(count) })
	}
	return err
}

// tend does what the shell does every few seconds: move the checkpoint, write it.
func (n *crashNode) tend() error {
	if err := n.flushed(); err != nil {
		return err
	}
	return n.Commit(func(t *replica.Txn) error {
		t.StageCheckpoints()
		t.StageMembers()
		return nil
	})
}

func (n *crashNode) purge() error {
	return sim.LookOnce(crashPurge{n}, 1<<12)
}

// crashPurge notes the keys of which something is forgotten.
type crashPurge struct{ *crashNode }

func (n crashPurge) Commit(stage func(t *replica.Txn) error) error {
	return n.crashNode.Commit(func(t *replica.Txn) error {
		err := stage(t)
		for i := range t.Changes {
			n.w.purged[string(t.Changes[i].Key)] = true
		}
		return err
	})
}

func (n *crashNode) reissue() error {
	for p, i := new(replica.Reissuing), 0; i < 100; i++ {
		if more, err := sim.ReissueSome(n, p, 1+i); !more || err != nil {
			return err
		}
	}
	return fmt.Errorf("orphans without end: %v", n.r.Cloud)
}

func (n *crashNode) close() { n.db.Close() }

// forgotten reports whether a write may be gone because a deletion that saw it was
// forgotten.
func (w *crashWorld) forgotten(g *crashWrite) bool {
	return w.purged[g.key] && slices.ContainsFunc(w.writes, func(d *crashWrite) bool {
		return d.deleted && (d == g || d.saw[g])
	})
}

// surviving are the held writes of every key.
func (n *crashNode) surviving() (map[*crashWrite]bool, error) {
	held := map[*crashWrite]bool{}
	keys := map[string]bool{}
	for _, g := range n.w.writes {
		keys[g.key] = true
	}
	for key := range keys {
		ws, err := n.held(key)
		if err != nil {
			return nil, err
		}
		for _, g := range ws {
			held[g] = true
		}
	}
	return held, nil
}

// disputed reports whether a write was ever in conflict. Whoever adds a version beside it
// writes it again, with its value: a power failure can keep that and lose the batch that
// it was first in.
func (w *crashWorld) disputed(g *crashWrite) bool {
	return slices.ContainsFunc(w.writes, func(h *crashWrite) bool {
		return h != g && h.key == g.key && !h.saw[g] && !g.saw[h]
	})
}

func heldOrSeen(held map[*crashWrite]bool, g *crashWrite) bool {
	if held[g] {
		return true
	}
	for h := range held {
		if h.saw[g] {
			return true
		}
	}
	return false
}

// checkCrash judges a replica that was opened on an image: what it holds is whole,
// what it claims is true, and what was acknowledged with Sync is there.
// A batch that came back from a peer after an earlier crash may have come in several
// steps, so whole asks for whole batches only where that cannot be.
func (n *crashNode) checkCrash(op int, all, whole bool) error {
	if err := sim.CheckStore(n.db, n.r); err != nil {
		return err
	}
	held, err := n.surviving()
	if err != nil {
		return err
	}
	here := func(g *crashWrite) bool { return heldOrSeen(held, g) || n.w.forgotten(g) }
	for _, g := range n.w.writes {
		for _, d := range g.dots {
			if n.r.Known.Covers(d) && !here(g) {
				return fmt.Errorf("claims %v of key %s and holds nothing that saw it", d, g.key)
			}
		}
		if g.acked >= 0 && g.acked <= op && (g.synced || all) && !here(g) {
			return fmt.Errorf("lost %v of key %s, which was acknowledged at operation %d, synced: %v", g.dots, g.key, g.acked, g.synced)
		}
		for _, other := range g.batch {
			if whole && held[g] && !here(other) && !n.w.disputed(g) {
				return fmt.Errorf("tore a batch: holds %v of key %s, lacks %v of key %s", g.dots, g.key, other.dots, other.key)
			}
		}
	}
	for _, w := range n.r.Known.Rows {
		if w.Seqs[causal.Covered] != w.Seqs[causal.Durable] {
			return fmt.Errorf("claims %d of origin %v after the opening, %d is its checkpoint", w.Seqs[causal.Covered], w.Origin.Short(), w.Seqs[causal.Durable])
		}
	}
	return nil
}

// expectation is what a cluster must hold in the end: of all that one of its
// replicas holds or claims, what none of the rest saw.
func (w *crashWorld) expectation(nodes ...*crashNode) (map[*crashWrite]bool, error) {
	known := map[*crashWrite]bool{}
	for _, n := range nodes {
		held, err := n.surviving()
		if err != nil {
			return nil, err
		}
		maps.Copy(known, held)
		for _, g := range w.writes {
			if slices.ContainsFunc(g.dots, n.r.Known.Covers) {
				known[g] = true
			}
		}
	}
	live := maps.Clone(known)
	for g := range known {
		maps.DeleteFunc(live, func(o *crashWrite, _ bool) bool { return g.saw[o] })
	}
	return live, nil
}

// checkAgreement compares replicas byte by byte, and with what is expected.
func (w *crashWorld) checkAgreement(live map[*crashWrite]bool, nodes ...*crashNode) error {
	var first map[string]string
	for i, n := range nodes {
		if err := sim.CheckStore(n.db, n.r); err != nil {
			return fmt.Errorf("replica %d: %w", i, err)
		}
		held, err := n.surviving()
		if err != nil {
			return fmt.Errorf("replica %d: %w", i, err)
		}
		for g := range live {
			if !g.deleted && !held[g] {
				return fmt.Errorf("replica %d lacks %v of key %s", i, g.dots, g.key)
			}
		}
		for g := range held {
			if !live[g] {
				return fmt.Errorf("replica %d holds %v of key %s, which is superseded", i, g.dots, g.key)
			}
		}
		values := map[string]string{}
		it := n.db.NewIterator(&util.Range{Limit: store.ReservedStart}, nil)
		for it.Next() {
			values[string(it.Key())] = string(it.Value())
		}
		it.Release()
		if err := it.Error(); err != nil {
			return err
		}
		if i == 0 {
			first = values
		} else if !maps.Equal(first, values) {
			return fmt.Errorf("replica %d shows other values than replica 0", i)
		}
	}
	return nil
}
