package sim

import (
	"fmt"
	"slices"
	"time"

	"github.com/level-replicator/replicator/internal/store"
)

const maxSimNodes = 9

// step lets one thing happen.
func (w *simWorld) step() {
	w.stats.steps++
	w.now = w.now.Add(time.Duration(w.rand.IntN(2000)) * time.Millisecond)
	n := w.nodes[w.rand.IntN(len(w.nodes))]
	running := n.r != nil && !n.paused
	if w.conf.late && running && w.background.IntN(8) == 0 {
		w.ignore(n.tidyOn())
		running = n.r != nil
	}
	switch x, y := w.rand.IntN(100), w.rand.IntN(100); {
	case x < w.conf.mishaps || n.r == nil && y < 10:
		w.mishap(n)
	case !running:
	case x < w.conf.mishaps+w.conf.writes:
		if !w.clientThinks(n) {
			w.clientWrite(n)
		}
	case y < 60:
		w.traffic()
	case y < 73:
		w.visit(n, true)
	case y < 88:
		if len(w.conns) < 10 {
			w.visit(n, false)
		}
	case y < 94:
		n.flushMemtable()
	default:
		w.housekeeping(n)
	}
	w.restart(w.stopping)
	w.stopping = nil
	if every := *simEvery; every > 0 && w.stats.steps%every == 0 && n.r != nil && w.err == nil {
		w.fail(n.check())
	}
}

// traffic moves some frames of one connection.
func (w *simWorld) traffic() {
	if len(w.conns) == 0 {
		return
	}
	c := w.conns[w.rand.IntN(len(w.conns))]
	if c.stalled > w.stats.steps || c.ends[0].n.paused || c.ends[1].n.paused || w.apart(c.ends[0].n, c.ends[1].n) {
		return
	}
	for range 1 + w.rand.IntN(8) {
		if w.conf.stays && w.err == nil {
			w.live(c, w.rand.IntN(2))
		}
		if w.err == nil {
			w.move(c, w.rand.IntN(2))
		}
	}
	w.agree(c)
	switch x := w.rand.IntN(60); {
	case !w.conf.cuts:
	case w.conf.torn > 0 && w.tears.Float64() < w.conf.torn && c.midPull():
		w.tear(c)
	case x < 4:
		w.cut(c)
	case x < 6:
		c.stalled = w.stats.steps + w.rand.IntN(400)
	}
	w.conns = slices.DeleteFunc(w.conns, (*simConn).over)
}

func (w *simWorld) apart(a, b *simNode) bool {
	return w.blocked[[2]int{min(a.id, b.id), max(a.id, b.id)}]
}

// visit has a node dial another, for a whole conversation or the beginning of one.
func (w *simWorld) visit(n *simNode, whole bool) {
	m := w.nodes[w.rand.IntN(len(w.nodes))]
	if m == n || m.r == nil || m.paused || w.apart(n, m) {
		return
	}
	if c := w.dial(n, m); whole {
		w.run(c)
	}
}

func (w *simWorld) housekeeping(n *simNode) {
	switch w.rand.IntN(5) {
	case 0:
		if w.ignore(n.upkeep()); n.r != nil && w.chance(0.5) {
			w.ignore(n.secure())
		}
	case 4:
		w.ignore(n.sweep())
	case 1:
		if w.conf.reissue > 0 && !n.failed {
			w.ignore(n.reissue())
		}
	default:
		if w.conf.purges {
			w.stats.purged++
			w.ignore(n.purge())
		}
	}
}

// mishap is what goes wrong, and what mends it.
func (w *simWorld) mishap(n *simNode) {
	switch x := w.rand.IntN(20); {
	case n.r == nil:
		if !n.retired {
			w.try(n.open())
		}
	case x < 6:
		if w.conf.crashes || n.failed {
			w.stop(n)
		}
	case x < 9:
		if w.conf.copies {
			w.copyDisk(n)
		}
	case x < 12:
		if w.conf.partitions {
			w.partition()
		}
	case x < 14:
		n.paused = w.conf.partitions && !n.paused
	case x < 16:
		if w.conf.skews || w.chance(0.1) {
			n.skew = w.someSkew()
		}
	case x < 18:
		w.now = w.now.Add(time.Duration(w.rand.Int64N(int64(pick(w.rand, time.Minute, time.Hour, 5*time.Hour)))))
	}
}

func (w *simWorld) stop(n *simNode) {
	rs, err := n.records()
	switch w.rand.IntN(4) {
	case 0:
		n.kill()
	case 1:
		w.ignore(n.close())
	default:
		n.losePower()
	}
	if err == nil && w.conf.corruption && n.r == nil && w.chance(0.5) {
		w.hurt(n, rs)
	}
	if w.chance(0.8) {
		w.try(n.open())
	}
}

// hurt has a disk lose all of one key, silently.
func (w *simWorld) hurt(n *simNode, rs *simRecords) {
	key := fmt.Sprint("k", w.rand.IntN(w.conf.keys))
	gone := map[string]bool{
		string(store.MetaClean): true, // what a clean close noted would be believed, until somebody calls Verify
		key:                     true,
		string(store.KindKey(store.KindIndex, []byte(key))):     true,
		string(store.KindKey(store.KindTombstone, []byte(key))): true,
		string(store.KindKey(store.KindConflict, []byte(key))):  true,
	}
	for _, e := range rs.entries[key] {
		gone[rs.logKeys[e.Dot]] = true
	}
	w.ghost.key(key).hurt = true
	w.stats.corrupted++
	w.logf("n%d: its disk loses key %s", n.id, key)
	n.disk = newSimDisk(slices.DeleteFunc(slices.Clone(n.disk.now), func(p simPair) bool { return gone[p.key] }))
}

// partition cuts the network into two parts, or heals it.
func (w *simWorld) partition() {
	clear(w.blocked)
	if w.chance(0.4) {
		return
	}
	side := w.rand.Uint64()
	for i := range w.nodes {
		for j := range i {
			if side>>i&1 != side>>j&1 {
				w.blocked[[2]int{j, i}] = true
			}
		}
	}
}

// copyDisk keeps an image of a disk, or starts a further replica on one, or goes
// back to an earlier one.
func (w *simWorld) copyDisk(n *simNode) {
	image := n.disk.now
	if w.chance(0.3) {
		image = n.disk.afterPowerFailure(w.rand, 0.7)
	}
	switch w.rand.IntN(3) {
	case 0:
		w.logf("n%d: backup", n.id)
		n.backups = append(n.backups, image)
	case 1:
		if len(w.nodes) < maxSimNodes {
			w.logf("n%d: its disk is copied for n%d", n.id, len(w.nodes))
			w.countCopied(n)
			w.stats.clones++
			w.addNode(image)
		}
	default:
		if len(n.backups) > 0 {
			w.logf("n%d is restored", n.id)
			w.countCopied(n)
			w.stats.restores++
			n.down()
			n.disk = newSimDisk(n.backups[w.rand.IntN(len(n.backups))])
			w.try(n.open())
		}
	}
}

// heal ends all faults, lets the nodes talk until all is quiet, and looks at what
// came out.
func (w *simWorld) heal() {
	w.logf("-- healing")
	w.healed = true
	w.conf.writeFaults, w.conf.joinWrites = false, false
	clear(w.blocked)
	w.now = w.now.Add(4 * time.Hour) // what was stamped by a clock that was ahead is in the past
	for _, c := range slices.Clone(w.conns) {
		if c.over() || w.err != nil {
			continue
		}
		if w.conf.stays && w.chance(0.7) {
			w.settle(c)
		}
		if w.chance(0.5) {
			w.cut(c)
		}
		w.run(c)
	}
	for _, n := range w.nodes {
		n.paused, n.skew, n.maxValue = false, 0, 1<<16
		if n.failed {
			n.kill()
		}
		if n.r == nil && !n.retired {
			w.try(n.open())
		}
	}
	before := map[*ghostWrite]bool{}
	for _, v := range w.ghost.writes {
		if w.counts(v) {
			before[v] = true
		}
	}
	for _, n := range w.up() { // else they have always something to say
		w.fail(n.countAll())
	}
	w.quiesce(before)
	for _, n := range w.up() { // all is on disk, and everybody hears of that
		n.disk.flushAll()
		n.r.NoteOnDisk(n.r.FlushMark())
		w.ignore(n.upkeep())
	}
	w.quiesce(before)
	if !w.conf.purges {
		return
	}
	for _, n := range w.up() { // some forget sooner than others
		if w.chance(0.6) {
			w.ignore(n.purge())
		}
	}
	w.quiesce(before)
	for _, n := range w.up() {
		w.ignore(n.purge())
	}
	w.quiesce(before)
}

// quiesce gossips until nobody has anything to say.
func (w *simWorld) quiesce(before map[*ghostWrite]bool) {
	const enough = 12
	for round := 1; w.err == nil; round++ {
		w.stats.rounds++
		quiet, reissued := true, w.stats.reissued
		for _, a := range w.up() {
			for _, b := range w.up() {
				if a.id >= b.id || w.err != nil {
					continue
				}
				ab := pick(w.rand, [2]*simNode{a, b}, [2]*simNode{b, a})
				c := w.dial(ab[0], ab[1])
				w.run(c)
				quiet = quiet && c.ends[0].s.Result().Idle && c.ends[1].s.Result().Idle
			}
		}
		for _, n := range w.up() {
			if n.r.Orphans() {
				quiet = false
				w.ignore(n.reissue())
			}
		}
		if quiet && w.stats.reissued == reissued {
			break
		}
		if round > enough && w.err == nil {
			w.dump()
			w.fail(fmt.Errorf("after %d rounds the nodes still have something to say", round))
		}
	}
	for _, n := range w.up() {
		if w.err == nil {
			w.fail(n.check())
		}
	}
	if w.err == nil {
		w.fail(w.checkOutcome(before))
	}
}

// dump prints what all nodes know and hold.
func (w *simWorld) dump() {
	for _, n := range w.up() {
		w.logf("n%d %s vector %x digest %x", n.id, n.r.Self.Short(), n.r.Known.VectorSum[0], n.r.Digest[0])
		for _, r := range n.r.Known.Rows {
			w.logf("    %s %v", r.Origin.Short(), r.Seqs)
		}
		for k, h := range n.holds {
			w.logf("    %s %v", k, h)
		}
		w.logf("    loose %v", n.r.Cloud)
	}
}
