package sim

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/feed"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
)

// simNode is one replica: the real replica on a simulated disk.
type simNode struct {
	w        *simWorld
	id       int
	r        *replica.Replica // nil while down
	hub      *feed.Hub        // of this opening
	disk     simDisk
	skew     time.Duration // of its wall clock
	paused   bool
	old      bool // it is of before values were asked for
	maxValue int
	retired, failed, crashed,
	syncWrites, syncPulls bool
	holds     map[string]*held      // what the ghost says it holds
	met       map[int]causal.Origin // who was last met at the address of a node
	joined    *replica.Replica      // where it last joined
	backups   []simImage            // of its disk
	poison    []simPair             // a batch of which the disk said that it failed, and kept it
	alone     bool                  // the next transaction is not joined by others
	purging   bool                  // … and it is a purge
	stale     map[string]bool       // log keys that a crash left behind
	stamp     causal.Stamp          // of the last write of this opening
	tidying   replica.Tidying       // what its opening left to do
	reissuing replica.Reissuing
	resolver  func() simResolve // for the next opening
	resolves  simResolve
}

var (
	errSimWrite  = errors.New("simulated: the disk failed to write")
	errSimFailed = errors.New("simulated: the disk failed to write before")
)

func (n *simNode) now() time.Time { return n.w.now.Add(n.skew) }

// open starts the node on what its disk holds.
func (n *simNode) open() error {
	c := &n.w.conf
	n.disk = newSimDisk(n.disk.now) // goleveldb writes all that it recovers to tables first
	resolves := n.resolver()
	r := replica.New(replica.Config{
		Store: &simStore{&n.disk, n.w.readFault()}, Draw: n.w.draw, Now: n.now, Resolve: resolves.f,
		MaxKey: 64, MaxValue: 1 << 16, MaxSkew: c.maxSkew, TombstoneTTL: c.tombstoneTTL, PeerTTL: c.peerTTL,
		CacheSize: c.cache, FilterSize: c.cache,
	})
	b, err := r.Open("")
	if err != nil {
		n.w.logf("n%d does not open: %v", n.id, err)
		return err
	}
	n.disk.write(simPairs(b), true)
	n.r, n.failed, n.resolves, n.stamp = r, false, resolves, 0
	n.hub = new(feed.Hub)
	limits := rand.New(rand.NewPCG(n.w.seed, 100+uint64(n.w.stats.openings)))
	n.hub.Limit(pick(limits, 500, 3000, 1<<20), pick(limits, 200, 1<<20))
	n.w.stats.openings++
	n.w.logf("n%d opens as %s", n.id, r.Self.Short())
	if err := n.findOut(); err != nil {
		return err
	}
	n.alone = true
	defer func() { n.alone = false }()
	// The sweep comes some time later, and so may the count.
	step := 1 + n.w.rand.IntN(4)
	n.tidying, n.reissuing = replica.Tidying{Step: step}, replica.Reissuing{}
	err = n.resolve(step)
	if err == nil && !c.late {
		err = n.countAll()
	}
	if err != nil {
		n.w.ignore(err)
		n.kill()
		return err
	}
	return n.check()
}

// resolve has keys in conflict resolved again.
func (n *simNode) resolve(step int) error {
	for p := (&replica.Resolving{Step: step}); !p.Done; {
		if err := p.Next(n.keeper(step), n.r.Resolve, func() bool { return step == 1 }); err != nil {
			return err
		}
	}
	return nil
}

func (n *simNode) keeper(step int) testKeeper {
	return testKeeper{testHost: unsyncedNode{n}, step: (step + 1) / 2}
}

func (n *simNode) counting() bool {
	_, counting := n.r.Counting()
	return counting
}

// countAll counts what its disk holds, to the end.
func (n *simNode) countAll() error {
	for n.counting() {
		if err := n.tidying.Next(n.keeper(n.tidying.Step)); err != nil {
			return err
		}
	}
	return nil
}

// tidyOn does some more of what an opening leaves to the background.
func (n *simNode) tidyOn() error {
	for range 1 + n.w.background.IntN(3) {
		if n.tidying.Done {
			return nil
		}
		n.w.stats.tidied++
		n.tidying.Step = 1 + n.w.background.IntN(4)
		if err := n.tidying.Next(meddler{n.keeper(n.tidying.Step), n}); err != nil {
			return err
		}
	}
	return nil
}

// meddler is a keeper whose replica goes on in the midst of a step.
type meddler struct {
	testKeeper
	n *simNode
}

func (m meddler) With(f func(r *replica.Replica)) {
	m.testKeeper.With(f)
	w := m.n.w
	for w.err == nil && w.background.IntN(3) == 0 {
		if w.background.IntN(2) == 0 {
			w.clientWrite(m.n)
		} else {
			w.traffic()
		}
	}
}

// findOut makes the ghost look at what a disk holds after an opening, and checks
// that all that is covered is there.
func (n *simNode) findOut() error {
	n.holds = map[string]*held{}
	g := n.w.ghost
	for _, p := range n.disk.now {
		if !strings.HasPrefix(p.key, "\xff\xffi") {
			continue
		}
		s, err := store.DecodeIndex(p.value, n.r)
		if err != nil {
			return err
		}
		key := p.key[3:]
		var live []*ghostWrite
		for i := range s {
			w := g.writes[s[i].Dot]
			if w == nil {
				return fmt.Errorf("n%d opened with version %v of key %s, which nobody wrote", n.id, s[i].Dot, key)
			}
			live = append(live, w)
		}
		n.holds[key] = g.key(key).hold(live)
	}
	for _, k := range g.keys {
		for _, w := range k.writes {
			if n.r.Known.Covers(w.Dot) {
				if err := n.covered(w); err != nil {
					return err
				}
			}
		}
	}
	n.stale = nil // the full check finds it
	return nil
}

// covered checks that a covered write is held here, seen by something held, or
// rightly forgotten.
func (n *simNode) covered(w *ghostWrite) error {
	if h := n.holds[w.key.name]; h != nil && h.seen.has(w.nth) || w.key.forgotten.has(w.nth) || w.key.hurt {
		return nil
	}
	return fmt.Errorf("n%d covers %v of key %s but holds nothing that saw it", n.id, w.Dot, w.key.name)
}

func (n *simNode) With(f func(r *replica.Replica)) { f(n.r) }

// Commit is the queue of a real replica: it may put writes of callers into the same
// batch.
func (n *simNode) Commit(stage func(t *replica.Txn) error) error {
	return n.commitWith(stage, n.syncPulls)
}

func (n *simNode) commitWith(stage func(t *replica.Txn) error, sync bool) error {
	if n.failed {
		return errSimFailed
	}
	t := n.r.Begin()
	if n.w.conf.joinWrites && !n.alone && n.w.chance(0.05) {
		inner := stage
		before := n.w.chance(0.5)
		ws := n.w.someWrites(n)
		stage = func(t *replica.Txn) error {
			if before {
				if err := t.Put(ws); err != nil {
					return err
				}
			}
			if err := inner(t); err != nil || before || t.Alone {
				return err
			}
			return t.Put(ws)
		}
	}
	if err := stage(t); err != nil {
		return err
	}
	if t.Empty() {
		return nil
	}
	t.Sync = t.Sync || sync
	b := t.Finish()
	next, err := n.record(t)
	if err != nil {
		n.w.fail(err)
		return err
	}
	if n.w.conf.writeFaults && n.w.chance(0.001) {
		n.failed = true
		n.w.logf("n%d: its disk fails to write", n.id)
		if n.poison = nil; n.w.chance(0.5) {
			n.poison = simPairs(b)
		}
		return errSimWrite
	}
	if b.Len() > 0 {
		n.disk.write(simPairs(b), t.Sync)
	}
	rows := slices.Clone(t.Rows)
	for i := range rows { // from where they rose
		rows[i].Seqs[causal.Durable] = n.r.Known.Seq(causal.Covered, rows[i].Origin)
	}
	n.r.Apply(t, t.Sync)
	n.hub.Publish(t, t.Changes)
	maps.Copy(n.holds, next)
	n.w.stats.commits++
	if err := n.coveredIsHeld(rows); err != nil {
		n.w.fail(err)
		return err
	}
	return nil
}

// record has the ghost look at a transaction before it is committed: what is new
// is a write, and what is gone must be superseded or purged.
func (n *simNode) record(t *replica.Txn) (map[string]*held, error) {
	next := map[string]*held{}
	for _, c := range t.Changes {
		key := string(c.Key)
		k := n.w.ghost.key(key)
		prev := next[key]
		if prev == nil {
			prev = n.holds[key]
		}
		if prev == nil {
			prev = &held{key: k}
		}
		var live []*ghostWrite
		for i := range c.Versions {
			v := &c.Versions[i]
			w := n.w.ghost.writes[v.Dot]
			var err error
			if w == nil {
				w, err = n.newWrite(t, k, prev, c.Versions, v)
			} else {
				err = w.same(key, v, !c.Ahead)
			}
			if err != nil {
				return nil, fmt.Errorf("n%d: %w", n.id, err)
			}
			live = append(live, w)
		}
		h := k.hold(live)
		if n.purging {
			if slices.ContainsFunc(prev.live, func(w *ghostWrite) bool { return !w.Deleted }) {
				return nil, fmt.Errorf("n%d purges something of key %s, which holds a value: %v after %v", n.id, key, h, prev)
			}
			if err := n.mayForget(prev, h); err != nil {
				return nil, err
			}
			for _, w := range prev.live {
				if !slices.Contains(h.live, w) {
					k.forgotten = k.forgotten.or(w.past).set(w.nth)
				}
			}
		}
		if i := prev.seen.without(h.seen, k.forgotten); i >= 0 && !k.hurt {
			return nil, fmt.Errorf("n%d drops %v of key %s, superseded by nothing it holds: %v after %v", n.id, k.writes[i].Dot, key, h, prev)
		}
		next[key] = h
		if n.w.verbose {
			n.w.logf("   n%d %s: %v -> %v", n.id, key, prev, h)
		}
	}
	return next, nil
}

func (h *held) String() string {
	var b strings.Builder
	for _, w := range h.live {
		kind := "="
		if w.Deleted {
			kind = "†"
		}
		fmt.Fprintf(&b, "%v%s%.8q%v ", w.Dot, kind, w.Value, w.Context)
	}
	return "[" + strings.TrimSpace(b.String()) + "]"
}

// newWrite records a write that the transaction makes: of a caller, or an orphan
// under a new name.
func (n *simNode) newWrite(t *replica.Txn, k *ghostKey, prev *held, now []store.Version, v *store.Version) (*ghostWrite, error) {
	switch {
	case v.Origin == n.r.Self:
		clock := uint64(0)
		for _, w := range prev.live {
			clock = max(clock, w.Clock+1)
		}
		if v.Clock != clock {
			return nil, fmt.Errorf("write %v of key %s has clock %d, want %d", v.Dot, k.name, v.Clock, clock)
		}
		if v.Stamp <= n.stamp {
			return nil, fmt.Errorf("write %v of key %s is stamped %v, not later than one before it, %v", v.Dot, k.name, v.Stamp, n.stamp)
		}
		n.stamp = v.Stamp
		if err := n.mayLeaveOut(t, prev, v); err != nil {
			return nil, err
		}
		return n.w.ghost.wrote(*v, k, prev.seen, t.Covers)
	case !n.r.Own[v.Origin]:
		return nil, fmt.Errorf("version %v of key %s, which nobody wrote", v.Dot, k.name)
	}
	for _, w := range prev.live {
		if w.Stamp == v.Stamp && w.Clock == v.Clock && v.HasSeen(w.Dot) && !store.Siblings(now).Has(w.Dot) {
			n.w.stats.reissued++
			return n.w.ghost.wrote(*v, k, slices.Clone(w.past).set(w.nth), func(causal.Dot) bool { return false })
		}
	}
	return nil, fmt.Errorf("version %v of key %s was issued again, but what was it?", v.Dot, k.name)
}

// mayLeaveOut checks that a power failure cannot bring back here what a write replaces and its
// context leaves out: by this replica all others learn that it was superseded (design.md: G3).
func (n *simNode) mayLeaveOut(t *replica.Txn, prev *held, v *store.Version) error {
	if t.Sync || prev.key.hurt {
		return nil
	}
	named := func(d causal.Dot) bool {
		return slices.ContainsFunc(prev.live, func(w *ghostWrite) bool { return w.Dot == d || w.Context.Contains(d) })
	}
	for _, s := range n.disk.mayBecome(string(store.KindKey(store.KindIndex, []byte(prev.key.name)))) {
		back, err := store.DecodeIndex(s, n.r)
		if err != nil {
			return err
		}
		for i := range back {
			if d := back[i].Dot; named(d) && !v.HasSeen(d) {
				return fmt.Errorf("write %v of key %s leaves out %v, which a power failure can bring back", v.Dot, prev.key.name, d)
			}
		}
	}
	return nil
}

// mayForget checks a purge against all other replicas: of those that count as
// members, none may hold a write of its own that is news here and had not seen what
// goes. What it took from others is theirs to hold back: they may be no members.
func (n *simNode) mayForget(prev, now *held) error {
	if n.w.conf.tombstoneTTL >= 0 || prev.key.hurt {
		return nil // by age anything goes
	}
	for _, q := range n.w.nodes {
		if q == n || q.r == nil {
			continue
		}
		m := n.r.Members[q.r.Self]
		if m == nil || n.now().Sub(m.Seen) > n.r.PeerTTL {
			continue
		}
		h := q.holds[prev.key.name]
		if h == nil {
			continue
		}
		for _, w := range h.live {
			for _, gone := range prev.live {
				if w.Origin == q.r.Self && !slices.Contains(now.live, gone) && !w.past.has(gone.nth) && !prev.seen.has(w.nth) && !w.key.forgotten.has(w.nth) {
					return fmt.Errorf("n%d purges %v of key %s too early: n%d, a member, holds %v", n.id, gone.Dot, prev.key.name, q.id, w.Dot)
				}
			}
		}
	}
	return nil
}

// coveredIsHeld checks what rose of the version vector; rows have the old one as durable.
func (n *simNode) coveredIsHeld(rows []causal.Row) error {
	for _, row := range rows {
		for seq := row.Seqs[causal.Durable] + 1; seq <= row.Seqs[causal.Covered]; seq++ {
			w := n.w.ghost.writes[causal.Dot{Origin: row.Origin, Seq: seq}]
			if w == nil {
				return fmt.Errorf("n%d covers %v, which nobody wrote", n.id, causal.Dot{Origin: row.Origin, Seq: seq})
			}
			if err := n.covered(w); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *simNode) Addresses() []string { return []string{fmt.Sprintf("n%d:9000", n.id)} }

func (n *simNode) Learn([]string) {}

func (n *simNode) EnterPull(causal.Origin, int64) session.SkipReason {
	if n.w.healed || !n.w.conf.skips || n.w.chance(0.9) {
		return session.NotSkipped
	}
	return session.SkippedBusy
}

func (n *simNode) LeavePull(causal.Origin) {}

// down ends the process without a clean close.
func (n *simNode) down() {
	if n.r != nil && n.poison != nil {
		n.disk.write(n.poison, false)
	}
	n.poison = nil
	n.r, n.crashed = nil, true
	n.w.hangUp(n)
}

// kill ends the process; the operating system goes on and loses nothing.
func (n *simNode) kill() {
	n.w.logf("n%d is killed", n.id)
	n.down()
	n.w.stats.kills++
}

// losePower ends the process and takes what was not on disk.
func (n *simNode) losePower() {
	survive := []float64{0, 0.3, 0.7, 0.95}[n.w.rand.IntN(4)]
	before := len(n.disk.journal)
	n.down()
	n.disk = newSimDisk(n.disk.afterPowerFailure(n.w.rand, survive))
	n.w.logf("n%d loses power with %d batches in doubt", n.id, before)
	n.w.stats.powerFailures++
}

// close ends the process cleanly, unless its disk fails.
func (n *simNode) close() error {
	if n.failed {
		n.kill()
		return nil
	}
	n.w.hangUp(n)
	n.disk.flushAll()
	n.disk.flush()
	n.alone = true
	err := n.commitWith(func(t *replica.Txn) error {
		return n.r.StageClean(&t.Batch)
	}, true)
	n.alone = false
	if err != nil {
		n.kill()
		return nil
	}
	n.w.logf("n%d closes", n.id)
	n.r = nil
	n.w.stats.closes++
	return nil
}

// flushMemtable is goleveldb writing out its memtable; the server hears of it soon.
func (n *simNode) flushMemtable() {
	n.disk.flush()
	n.r.Flushed(n.disk.flushes)
}

// upkeep is what a replica does now and then.
func (n *simNode) upkeep() error {
	return n.commitWith(func(t *replica.Txn) error {
		t.StageCheckpoints()
		t.StageMembers()
		if len(n.w.consumers) > 0 {
			t.StageNames()
		}
		return nil
	}, n.w.chance(0.2))
}

// secure brings to disk what is covered, as for a peer that waits for that.
func (n *simNode) secure() error {
	err := n.commitWith((*replica.Txn).SecureAll, true)
	if errors.Is(err, replica.ErrMuchInDoubt) || errors.Is(err, store.ErrCorrupted) {
		return nil
	}
	if n.r != nil && err == nil && !n.r.OnDisk(n.r.FlushMark()) {
		n.w.fail(fmt.Errorf("n%d: something is in doubt after all was written again", n.id))
	}
	return err
}

func (n *simNode) purge() error {
	n.purging, n.alone = true, true
	defer func() { n.purging, n.alone = false, false }()
	if n.counting() {
		return LookOnce(unsyncedNode{n}, 1+n.w.background.IntN(4))
	}
	due, before := n.r.PurgeDue(), n.r.Tombstones
	if err := LookOnce(unsyncedNode{n}, 1+n.w.rand.IntN(4)); err != nil {
		return err
	}
	if n.r.Tombstones != before && !due && n.w.conf.tombstoneTTL < 0 {
		n.w.fail(fmt.Errorf("n%d: a look at the tombstones was not due, and of %d it left %d", n.id, before, n.r.Tombstones))
	}
	return nil
}

// unsyncedNode commits without Sync what need not be on disk.
type unsyncedNode struct{ *simNode }

func (n unsyncedNode) Commit(stage func(t *replica.Txn) error) error {
	return n.commitWith(stage, false)
}

func (n *simNode) sweep() error {
	step := 1 + n.w.rand.IntN(20)
	for p := (&replica.Tidying{Step: step}); !p.Done; {
		if err := p.Next(n.keeper(step)); err != nil {
			return err
		}
	}
	n.tidying.Done = true
	if err := n.resolve(step); err != nil {
		return err
	}
	for more := true; more; {
		var err error
		if more, err = replica.SweepBroken(unsyncedNode{n}); err != nil {
			return err
		}
	}
	rs, err := n.records()
	if err != nil {
		return err
	}
	for key, es := range rs.entries {
		for _, e := range es {
			if !rs.index[key].Has(e.Dot) && !n.r.StagedAhead(e.Dot) {
				n.w.fail(fmt.Errorf("n%d swept its log and left %v of key %s", n.id, e.Dot, key))
			}
		}
	}
	return nil
}

func (n *simNode) reissue() error {
	for n.r != nil && n.r.Orphans() {
		before := n.r.Cloud.Clone()
		if !n.w.conf.late { // as in seeds of before
			n.reissuing = replica.Reissuing{}
		}
		if _, err := ReissueSome(unsyncedNode{n}, &n.reissuing, 1+n.w.rand.IntN(4)); err != nil {
			return err
		}
		if slices.Equal(before, n.r.Cloud) && n.w.chance(0.3) && !n.w.healed {
			return nil
		}
	}
	return nil
}
