package replicator

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"

	"github.com/level-replicator/replicator/internal/crashfs"
)

// crashWrite is one write as the test remembers it. Content tells writes apart: no
// two have the same value, and no two deletions the same time.
type crashWrite struct {
	key, id string
	deleted bool
	dots    []dot // the first, and those it was issued again under
	saw     map[*crashWrite]bool
	batch   []*crashWrite
	acked   int // operations of the crashing server's storage then; -1 for writes of its peer
	synced  bool
}

// crashWorld is a run of two servers, one of which will crash at every moment of it.
type crashWorld struct {
	rng     *rand.Rand
	buffer  int // WriteBuffer
	page    int
	clock   time.Time
	nth     int
	byID    map[string]*crashWrite
	writes  []*crashWrite
	forgets bool            // the run deletes and restarts more than others
	purged  map[string]bool // keys of which something was forgotten
	a, b    *crashNode
	marks   []crashMark
}

// crashMark says how far the storage of b was when that of a was at an operation.
type crashMark struct{ a, b int }

// crashNode is a server without a shell, on a storage that can crash.
type crashNode struct {
	w     *crashWorld
	stor  *crashfs.Storage
	db    *leveldb.DB
	r     *replica
	queue *queue
	sync  bool
	seen  []change // of the last commit
}

func newCrashWorld(seed uint64, buffer, page int) *crashWorld {
	return &crashWorld{rng: rand.New(rand.NewPCG(seed, 7)), buffer: buffer, page: page,
		clock: time.UnixMilli(1700000000000), byID: map[string]*crashWrite{}, purged: map[string]bool{}}
}

func (w *crashWorld) now() time.Time { w.clock = w.clock.Add(time.Millisecond); return w.clock }

func (w *crashWorld) draw() (o Origin) {
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
	n.r = newReplica(replicaConfig{
		store: handle{db}, draw: w.draw, now: w.now, resolve: highestClock, maxKey: 1 << 10, maxValue: 1 << 20,
		maxSkew: time.Minute, tombstoneTTL: -1, peerTTL: time.Hour, cacheSize: 1 << 14, filterSize: 1 << 12,
	})
	b, err := n.r.open("")
	if err == nil {
		err = db.Write(b, &opt.WriteOptions{Sync: true})
	}
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("the replica does not open: %w", err)
	}
	n.queue = &queue{raw: db, replica: n.r, slot: make(chan struct{}, 1), over: make(chan struct{}),
		commits: n.committed, failed: func(error) {}}
	return n, tidyUp(n, 100, never)
}

func (n *crashNode) at(f func(r *replica))           { n.queue.at(f) }
func (n *crashNode) addresses() []string             { return nil }
func (n *crashNode) learn([]string)                  {}
func (n *crashNode) enterPull(Origin, int64) leftOut { return pullNow }
func (n *crashNode) leavePull(Origin)                {}

func (n *crashNode) commit(stage func(t *txn) error) error {
	return n.queue.do(&request{stage: stage, sync: n.sync, done: make(chan error, 1)})
}

func (n *crashNode) committed(t *txn) {
	n.seen = slices.Clone(t.changes)
	for _, c := range t.changes {
		for i := range c.versions {
			// A write of an earlier opening may have been issued again.
			if g := n.w.ghost(&c.versions[i]); g != nil && !slices.Contains(g.dots, c.versions[i].dot) {
				g.dots = append(g.dots, c.versions[i].dot)
			}
		}
	}
	if n == n.w.b {
		n.w.mark()
	}
}

func (w *crashWorld) mark() { w.marks = append(w.marks, crashMark{w.a.stor.Ops(), w.b.stor.Ops()}) }

func crashID(v *version) string {
	if v.deleted {
		return fmt.Sprint("deleted at ", uint64(v.stamp))
	}
	return string(v.value)
}

func (w *crashWorld) ghost(v *version) *crashWrite { return w.byID[crashID(v)] }

// held are the writes that a server holds of a key.
func (n *crashNode) held(key string) (ws []*crashWrite, err error) {
	s, err := readIndex(n.db, []byte(key), n.r)
	if err != nil {
		return nil, err
	}
	vs, err := readVersions(n.db, []byte(key), s, n.r)
	if err != nil {
		return nil, err
	}
	for i := range vs {
		g := n.w.ghost(&vs[i])
		if g == nil {
			return nil, fmt.Errorf("key %s: version %v was written by nobody: %.20q", key, vs[i].dot, crashID(&vs[i]))
		}
		ws = append(ws, g)
	}
	return ws, nil
}

// write has a server commit one batch, and notes it.
func (n *crashNode) write(sync bool, ops ...write) error {
	w := n.w
	saw := map[string]map[*crashWrite]bool{}
	for _, o := range ops {
		old, err := n.held(string(o.key))
		if err != nil {
			return err
		}
		s := map[*crashWrite]bool{}
		for _, g := range old {
			s[g] = true
			maps.Copy(s, g.saw)
		}
		saw[string(o.key)] = s
	}
	req := &request{writes: ops, sync: sync || n.sync, done: make(chan error, 1)}
	// The commit hook must find them, so put them down before.
	for _, o := range ops {
		if !o.deleted {
			w.byID[string(o.value)] = &crashWrite{key: string(o.key), id: string(o.value)}
		}
	}
	n.seen = nil
	if err := n.queue.do(req); err != nil {
		return err
	}
	var batch []*crashWrite
	for _, c := range n.seen {
		v := &c.versions[0]
		g := w.byID[crashID(v)]
		if g == nil {
			g = &crashWrite{key: string(c.key), id: crashID(v), deleted: true}
			w.byID[g.id] = g
		}
		g.dots, g.saw, g.synced, g.acked = []dot{v.dot}, saw[g.key], req.sync, -1
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
	return w.talkWith(a, b, sessionParams{pageSize: w.page, batchSize: 4 * w.page, maxValue: 1 << 20, maxKey: 1 << 10})
}

func (w *crashWorld) talkWith(a, b *crashNode, p sessionParams) error {
	if o := b.r.self; a.r.members[o] != nil {
		p.remembered = o
	}
	sa, sb := newSession(a, true, p), newSession(b, false, p)
	sa.start()
	for !sa.done || !sb.done {
		moved := false
		for _, x := range []struct{ from, to *session }{{sa, sb}, {sb, sa}} {
			for x.from.more() && len(x.from.out) == 0 {
				if err := x.from.produce(); err != nil {
					return err
				}
			}
			for len(x.from.out) > 0 {
				f := x.from.out[0]
				x.from.out, moved = x.from.out[1:], true
				if err := x.to.receive(f.kind, f.payload); err != nil {
					return err
				}
			}
		}
		if !moved {
			return fmt.Errorf("the session is stuck: %v, %v", sa.expect, sb.expect)
		}
	}
	return nil
}

// flushed does what the shell does every second: move the checkpoint.
func (n *crashNode) flushed() error {
	count, err := memComp(n.db)
	if err == nil {
		n.at(func(r *replica) { r.flushed(count) })
	}
	return err
}

// tend does what the shell does every few seconds: move the checkpoint, write it.
func (n *crashNode) tend() error {
	if err := n.flushed(); err != nil {
		return err
	}
	return n.commit(func(t *txn) error {
		t.stageCheckpoints()
		t.stageMembers()
		return nil
	})
}

func (n *crashNode) purge() error {
	return lookOnce(crashPurge{n}, purgeStep)
}

// crashPurge notes the keys of which something is forgotten.
type crashPurge struct{ *crashNode }

func (n crashPurge) commit(stage func(t *txn) error) error {
	return n.crashNode.commit(func(t *txn) error {
		err := stage(t)
		for i := range t.staged.list {
			n.w.purged[string(t.staged.list[i].key)] = true
		}
		return err
	})
}

func (n *crashNode) reissue() error {
	for range 100 {
		if !n.r.orphans() {
			return nil
		}
		if err := n.commit(func(t *txn) error { return t.reissue(reissueStep) }); err != nil {
			return err
		}
	}
	return fmt.Errorf("orphans without end: %v", n.r.loose)
}

func (n *crashNode) close() { n.db.Close() }
