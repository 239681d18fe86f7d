package replica

import (
	"bytes"
	"maps"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// joins is what the replica knows of joins: pulls that are answered in sections, see docs/design.md.
type joins struct {
	Joining bool     // a session has asked for sections, or takes them in: one at a time (J7)
	ahead   *ahead   // of the join under way; nil while it has staged nothing
	broken  []*ahead // of joins that broke off, until they are swept

	dropped map[causal.Dot]uint64 // versions above the version vector that were held, by the commit that dropped them, until it is on disk
}

// joined is what a transaction does to the entries that a join staged.
type joined struct {
	staged []aheadEntry
	rows   []causal.Dot // that came, or whose entry is gone
	Alone  bool         // nothing else may be in the same batch from now on
}

type aheadEntry struct {
	causal.Dot
	sum   uint32
	died  causal.Stamp // 0 unless it is a tombstone
	known bool         // it was not staged: it is held, or its row does not matter
}

// Row is a key of which a peer holds one version whose log entry has come ahead of it.
type Row struct {
	Key     []byte
	Version store.Version // without its time and its place in its writer's batch, which only the entry has
}

// Stale reports whether the log may have entries that no log-index names: those that a crash left, and
// those that a join staged (J3).
func (r *Replica) Stale() bool {
	return r.MayHaveStale || r.ahead != nil || len(r.broken) > 0
}

// StagedAhead reports whether a log entry is one that a join staged, no row of which has come.
func (r *Replica) StagedAhead(d causal.Dot) bool {
	waits := func(a *ahead) bool { _, ok := a.sum(d); return ok }
	return waits(r.ahead) || slices.ContainsFunc(r.broken, waits)
}

// BeginSections begins to stage log entries ahead of their values.
func (r *Replica) BeginSections() {
	r.BreakSections()
	r.ahead = &ahead{}
}

// BreakSections ends that. What was staged and has no row is left to be swept.
func (r *Replica) BreakSections() {
	if r.ahead != nil && r.ahead.left > 0 {
		r.broken = append(r.broken, r.ahead)
	}
	r.ahead = nil
}

// Follows reports whether an entry comes after those that are staged of its origin.
func (r *Replica) Follows(d causal.Dot) bool { return r.ahead != nil && r.ahead.above(d) }

// StageAhead stages log entries, ahead of their values (J2), with Sync: what is named later
// must not be lost by a power failure that keeps what names it. Those of one origin follow each other, in order.
func (t *Txn) StageAhead(entries []store.Entry, peer *causal.Knowledge) error {
	t.JoinWatermarks(peer)
	t.Sync, t.progress.ahead, t.Alone = true, true, true
	for len(entries) > 0 {
		n := 1
		for n < len(entries) && entries[n].Origin == entries[0].Origin {
			n++
		}
		if err := t.stageRun(entries[:n]); err != nil {
			return err
		}
		entries = entries[n:]
	}
	return nil
}

// stageRun stages entries of one origin, but for those of versions that are held or superseded. Nor of one that was
// held until lately: a power failure could bring back the log-index that named it beside others, and what it says of
// the log must be what the log says (W3).
func (t *Txn) stageRun(run []store.Entry) error {
	alias := uint32(t.R.Number(run[0].Origin))
	it := t.R.Store.NewIterator(store.LogRange(alias, run[0].Seq, run[len(run)-1].Seq), nil)
	defer it.Release()
	there := it.Next()
	for i := range run {
		e := &run[i]
		t.keyBuf = store.AppendLogKey(t.keyBuf[:0], alias, e.Seq)
		for there && bytes.Compare(it.Key(), t.keyBuf) < 0 {
			there = it.Next()
		}
		known := t.has(e.Dot) || t.R.mayReturn(e.Dot)
		if !known && (len(t.Changes) > 0 || there && bytes.Equal(it.Key(), t.keyBuf)) {
			s, _, err := t.Lookup(e.Key)
			if err != nil {
				return err
			}
			known = s.Has(e.Dot)
		}
		staged := aheadEntry{Dot: e.Dot, known: known}
		if !known {
			e.InDigest = !e.Deleted
			t.buf = store.AppendLogged(t.buf[:0], e, t.R)
			t.Batch.Put(t.keyBuf, t.buf)
			staged.sum, t.buf = sumOf(t.buf, e.Key, &e.Version, e.Check)
			if e.Deleted {
				staged.died = e.Stamp
			}
		}
		t.joined.staged = append(t.joined.staged, staged)
		t.R.clock.See(e.Stamp)
	}
	return it.Error()
}

// mayReturn reports whether a version above the version vector was held, and is not, and a power failure may bring
// back the log-index that names it.
func (r *Replica) mayReturn(d causal.Dot) bool { _, ok := r.dropped[d]; return ok }

// noteDropped notes versions above the version vector that a transaction dropped without Sync.
func (r *Replica) noteDropped(t *Txn) {
	for i := range t.Changes {
		c := &t.Changes[i]
		for j := range c.Old {
			if d := c.Old[j].Dot; !c.Versions.Has(d) && !r.Known.Covers(d) {
				if r.dropped == nil {
					r.dropped = map[causal.Dot]uint64{}
				}
				r.dropped[d] = r.commits
			}
		}
	}
}

// forgetDropped forgets those of transactions that are on disk.
func (r *Replica) forgetDropped() {
	maps.DeleteFunc(r.dropped, func(_ causal.Dot, commit uint64) bool { return !r.unsynced || commit <= r.safe })
}

// TakeRows merges rows, in the order of their keys. Of a key of which nothing is held nothing need be read (J5):
// an iterator beside the rows tells. peer has the watermarks in the state that they are from.
func (t *Txn) TakeRows(rows []Row, peer *causal.Knowledge) (fresh int, err error) {
	if len(rows) == 0 {
		return 0, nil
	}
	t.JoinWatermarks(peer)
	t.Alone = true
	it := t.R.Store.NewIterator(&util.Range{
		Start: store.KindKey(store.KindIndex, rows[0].Key),
		Limit: append(store.KindKey(store.KindIndex, rows[len(rows)-1].Key), 0),
	}, nil)
	defer it.Release()
	there := it.Next()
	for i := range rows {
		row := &rows[i]
		if there && bytes.Compare(store.UserKey(it.Key()), row.Key) < 0 {
			there = store.SeekNear(it, store.KindKey(store.KindIndex, row.Key))
		}
		held := there && bytes.Equal(store.UserKey(it.Key()), row.Key)
		n, err := t.takeRow(row, held || t.staged.find(row.Key) != nil, peer)
		if err != nil {
			return fresh, err
		}
		fresh += n
	}
	return fresh, it.Error()
}

func (t *Txn) takeRow(row *Row, held bool, peer *causal.Knowledge) (fresh int, err error) {
	x := &row.Version
	check := uint32(0)
	if !x.Deleted {
		check = store.Checksum(x.Value)
	}
	came, waits := t.R.ahead.sum(x.Dot)
	if waits {
		var sum uint32
		if sum, t.buf = sumOf(t.buf, row.Key, x, check); sum != came {
			return 0, store.Corrupted(row.Key, "what the peer sent of it is not what was logged there; if it was written past the wrapper, run Adopt there")
		}
		if !held && !t.has(x.Dot) {
			t.takeNew(row)
			return 1, nil
		}
	}
	old, _, err := t.Lookup(row.Key)
	if err != nil {
		return 0, err
	}
	if t.has(x.Dot) || old.Covers(x.Dot) { // M1, M2: its content does not matter, and may be gone
		return t.TakeKey(row.Key, []store.Version{*x}, peer)
	}
	e, err := store.ReadEntry(t.R.Store, row.Key, x, t.R)
	switch {
	case err != nil && t.R.ahead.has(x.Dot): // it was dropped since it came
		return 0, err
	case err != nil:
		return 0, ProtocolErrorf("key %.40q: a row without its log entry: %v", row.Key, err)
	case e.Check != check:
		return 0, store.Corrupted(row.Key, "what the peer sent of it is not what was logged there; if it was written past the wrapper, run Adopt there")
	}
	e.Value = x.Value
	return t.TakeKey(row.Key, []store.Version{e.Version}, peer)
}

// takeNew stages a row of a key of which nothing is held.
func (t *Txn) takeNew(row *Row) {
	if row.Version.Deleted { // when, only the log says: not before this, which is all that G5 asks for
		row.Version.Stamp = t.R.ahead.buried
	}
	now := append(store.Siblings(t.versions.Take(1)), row.Version)
	stageWinner(&t.Batch, row.Key, row.Version)
	t.stageHints(row.Key, nil, now, false, false, nil)
	c := Change{Key: row.Key, Versions: now, Ahead: true, index: t.stageIndex(row.Key, now)}
	t.Count(now, +1)
	t.Changes = append(t.Changes, c)
	t.staged.add(stagedKey{key: row.Key, state: now})
	t.merged = t.merged.Raise(row.Version.Dot)
	t.joined.rows = append(t.joined.rows, row.Version.Dot)
}

// TakeKey merges a key that came whole, and deletes what was staged of it and is not held.
func (t *Txn) TakeKey(key []byte, theirs []store.Version, peer *causal.Knowledge) (fresh int, err error) {
	if fresh, err = t.Merge(key, theirs, peer); err != nil {
		return fresh, err
	}
	now, _, err := t.Lookup(key)
	if err != nil {
		return fresh, err
	}
	for i := range theirs {
		d := theirs[i].Dot
		if _, waits := t.R.ahead.sum(d); !waits {
			continue
		}
		if !now.Has(d) {
			t.Batch.Delete(store.AppendLogKey(nil, t.R.Alias[d.Origin], d.Seq))
		}
		t.joined.rows = append(t.joined.rows, d)
	}
	return fresh, nil
}

// applyJoined takes in what a transaction did to entries that were staged.
func (r *Replica) applyJoined(t *Txn) {
	if r.ahead == nil {
		return
	}
	for i := range t.Changes { // an entry that another session merged, and that is superseded by now
		c := &t.Changes[i]
		for j := range c.Old {
			if d := c.Old[j].Dot; !c.Versions.Has(d) {
				r.ahead.settle(d)
			}
		}
	}
	for _, e := range t.joined.staged {
		r.ahead.add(e.Dot, e.sum)
		if e.known {
			r.ahead.settle(e.Dot)
			continue
		}
		for _, b := range r.broken { // what an earlier join had staged is of use again
			b.settle(e.Dot)
		}
		if e.died > 0 && (r.ahead.buried == 0 || e.died < r.ahead.buried) {
			r.ahead.buried = e.died
		}
	}
	for _, d := range t.joined.rows {
		r.ahead.settle(d)
	}
}

// sweepBatch is how many entries are swept in one transaction.
const sweepBatch = 128

// EndSections sweeps the entries that were staged and have no row: they were superseded at the peer since.
func EndSections(h Committer) error {
	for {
		var dots []causal.Dot
		h.With(func(r *Replica) {
			if r.ahead != nil {
				dots = r.ahead.rest(sweepBatch)
			}
		})
		if len(dots) == 0 {
			break
		}
		if err := h.Commit(func(t *Txn) error { return t.sweepAhead(dots) }); err != nil {
			return err
		}
	}
	h.With((*Replica).BreakSections)
	return nil
}

// Committer is what sweeping needs of whoever owns the replica.
type Committer interface {
	With(f func(r *Replica))
	Commit(stage func(t *Txn) error) error
}

// SweepBroken sweeps some of what a join that broke off has staged, and reports whether more is left.
// While a join is under way, or one may go on where it broke off, it leaves that: the entries may be needed.
func SweepBroken(h Committer) (more bool, err error) {
	var dots []causal.Dot
	var of *ahead
	h.With(func(r *Replica) {
		for len(r.broken) > 0 && !r.Joining && r.Join == nil {
			of = r.broken[0]
			if dots = of.rest(sweepBatch); len(dots) > 0 {
				more = true
				return
			}
			r.broken = r.broken[1:]
		}
	})
	if len(dots) == 0 {
		return false, nil
	}
	err = h.Commit(func(t *Txn) error {
		return t.sweepAhead(slices.DeleteFunc(slices.Clone(dots), t.R.ahead.has)) // a join may have begun meanwhile
	})
	if err == nil {
		h.With(func(*Replica) {
			for _, d := range dots {
				of.settle(d)
			}
		})
	}
	return more, err
}

// Complete reads from the log what the changes of a join leave out, for somebody who asks.
func (t *Txn) Complete() error {
	for i := range t.Changes {
		c := &t.Changes[i]
		if !c.Ahead {
			continue
		}
		v := &c.Versions[0]
		e, err := store.ReadEntry(t.R.Store, c.Key, v, t.R)
		if err != nil {
			return err
		}
		v.Stamp, v.Offset, v.Count = e.Stamp, e.Offset, e.Count
		c.Ahead = false
	}
	return nil
}

// sweepAhead deletes entries that were staged, if still no log-index names them.
func (t *Txn) sweepAhead(dots []causal.Dot) error {
	for _, d := range dots {
		if err := t.sweepEntry(store.AppendLogKey(nil, t.R.Alias[d.Origin], d.Seq)); err != nil {
			return err
		}
		t.joined.rows = append(t.joined.rows, d)
	}
	return nil
}
