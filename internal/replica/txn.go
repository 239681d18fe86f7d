package replica

import (
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/indexcache"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// BatchLimit is what the replica's own transactions stop at. What is left to
// groupSize is for small writes of callers that were staged before in the same
// batch, and for the records of origins.
const BatchLimit = store.GroupSize - 2*GroupSlack

// GroupSlack is how large a batch may be to be joined by the replica's own
// transactions, whose size is not known beforehand, or to follow them.
const GroupSlack = 128 << 10

// Txn stages changes of a replica into one batch. The replica takes them in with
// apply once the batch is committed; a transaction that was not committed leaves
// no trace. Everything that the batch says of a key (value, log entries, log-index,
// marks) is the key's whole state: a power failure may lose any batch and keep a
// later one, and what is left must still fit together.
type Txn struct {
	R         *Replica
	Batch     store.Batch
	Sync      bool       // must be committed with Sync
	Decisions *Decisions // of the request that is being staged; nil: its resolver is asked at once

	staged  stagedKeys
	Changes []Change

	store.Counters // by how much they change
	progress
	bookkeeping
	joined
	scratch
}

// progress is what the replica knows more once the transaction is committed.
type progress struct {
	Rows     []causal.Row  // the columns that rise, sorted by origin
	seq      uint64        // of the last local write
	merged   causal.Vector // dots that were merged
	gone     []causal.Dot  // dots of the cloud of which nothing is left
	swept    bool          // no stale entry is left in the log
	unhinted [][]byte      // keys of which such a hint goes
	Beside   [][]byte      // local keys that it writes, which are nowhere logged
	ahead    bool          // it writes log entries ahead of what names them, which are in no key's state
}

// bookkeeping is what the batch has along of origins, checkpoint and resume point.
type bookkeeping struct {
	aliases   int             // that were recorded before
	saved     uint64          // revision up to which checkpoints were staged, or 0
	savedFrom uint64          // revision from which they were
	resumed   uint64          // revision of the resume point that was staged, or 0
	undurable []causal.Origin // whose watermarks are along because versions may rest on them
	ownSafe   bool            // it is synced, and all own writes are on disk with it
	secures   bool            // all that was in doubt is written again
}

// scratch is memory that the next transaction uses again.
type scratch struct {
	buf, keyBuf []byte
	versions    store.Slab[store.Version] // of states
	dots        store.Slab[causal.Dot]    // of contexts
	records     store.Slab[byte]          // of log-indexes
	last        indexcache.Table          // of lastWrites
}

// Large reports whether a transaction of the replica's own should end.
func (t *Txn) Large() bool { return t.Size() > BatchLimit }

// Size returns how many bytes are staged.
func (t *Txn) Size() int { return t.Batch.Size() }

// Begin starts a transaction. There is one at a time, and its batch and what it
// collected are valid until the next begins or it is cleared.
func (r *Replica) Begin() *Txn {
	t := &r.Txn
	t.Clear()
	t.R, t.Sync, t.Decisions, t.Counters = r, false, nil, store.Counters{}
	t.progress = progress{Rows: t.Rows[:0], seq: r.Seq, Beside: t.Beside}
	t.bookkeeping = bookkeeping{aliases: r.recorded}
	t.joined = joined{staged: t.joined.staged[:0], rows: t.joined.rows[:0]}
	return t
}

// Clear empties what a transaction has collected of keys. It keeps the memory for the next, if
// it is not much.
func (t *Txn) Clear() {
	t.Batch.Reset()
	t.staged.reset()
	t.Changes = store.Emptied(t.Changes)
	t.Beside = store.Emptied(t.Beside)
	t.versions.Reset()
	t.dots.Reset()
	t.records.Reset()
}

// Empty reports whether there is nothing to commit.
func (t *Txn) Empty() bool {
	return t.Batch.Len() == 0 && len(t.Rows) == 0 && len(t.gone) == 0 && !t.swept && !t.secures && len(t.joined.rows) == 0 && t.Counters == (store.Counters{}) && len(t.R.aliases) == t.aliases
}

// column is one column of what will be known once this is committed.
func (t *Txn) column(c causal.Column, o causal.Origin) uint64 {
	n := t.R.Known.Seq(c, o)
	if i, ok := causal.FindRow(t.Rows, o); ok {
		n = max(n, t.Rows[i].Seqs[c])
	}
	return n
}

// raise lifts one column.
func (t *Txn) raise(c causal.Column, d causal.Dot) {
	i, ok := causal.FindRow(t.Rows, d.Origin)
	if !ok {
		t.Rows = slices.Insert(t.Rows, i, causal.Row{Origin: d.Origin})
	}
	t.Rows[i].Seqs[c] = max(t.Rows[i].Seqs[c], d.Seq)
}

// Covers reports whether d will be covered once this is committed.
func (t *Txn) Covers(d causal.Dot) bool { return d.Seq <= t.column(causal.Covered, d.Origin) }

// has reports whether a write is held, superseded or purged here (M1).
func (t *Txn) has(d causal.Dot) bool { return t.Covers(d) || t.R.Above.Has(d) }

// raiseWatermark raises a watermark: the purged one never above the version vector (M7).
func (t *Txn) raiseWatermark(c causal.Column, d causal.Dot) {
	if d.Seq == 0 {
		return
	}
	if c == causal.Purged {
		d.Seq = min(d.Seq, t.column(causal.Covered, d.Origin))
	}
	if d.Seq > t.R.Known.Seq(c, d.Origin) {
		t.raise(c, d)
	}
}

// superseded reports whether a version that is not held beside others of its key is known
// to be superseded, once this is committed.
func (t *Txn) superseded(d causal.Dot) bool {
	return d.Seq <= min(t.column(causal.Covered, d.Origin), max(t.column(causal.Pruned, d.Origin), t.column(causal.Purged, d.Origin)))
}

// Cover raises the version vector.
func (t *Txn) Cover(d causal.Dot) {
	if d.Seq > t.R.Known.Seq(causal.Covered, d.Origin) {
		t.raise(causal.Covered, d)
	}
}

// Lookup returns a key's state as this transaction has it so far.
func (t *Txn) Lookup(key []byte) (store.Siblings, *stagedKey, error) {
	if k := t.staged.find(key); k != nil {
		return k.state, k, nil
	}
	rec, err := t.R.indexRecord(key)
	if len(rec) == 0 || err != nil {
		return nil, nil, err
	}
	s, err := t.R.decodeState(key, rec, &t.versions, &t.dots)
	return s, nil, err
}

// full returns a key's versions with values and times.
func (t *Txn) full(key []byte, s store.Siblings, k *stagedKey) (store.Siblings, error) {
	if k != nil && k.full || len(s) == 0 {
		return s, nil
	}
	vs, err := store.ReadVersions(t.R.Store, key, s, t.R)
	return vs, err
}

// Finish stages what the transaction learnt of origins and returns the batch.
func (t *Txn) Finish() *leveldb.Batch {
	if t.ownSafe = t.Sync && t.seq > t.R.Seq && t.R.safe >= t.R.ownDirty; t.ownSafe {
		// O6: all own writes are on disk with this batch: a crash takes no name from them.
		t.raise(causal.Durable, causal.Dot{Origin: t.R.Self, Seq: t.seq})
	}
	for i := range t.Rows {
		w := &t.Rows[i]
		a, had := t.R.Alias[w.Origin]
		if !had {
			a = uint32(t.R.Number(w.Origin))
		}
		if had && int(a) < t.aliases && w.Seqs[causal.Durable]|w.Seqs[causal.Pruned]|w.Seqs[causal.Purged] == 0 {
			continue // only the version vector rose, which is not stored
		}
		t.R.stageOrigin(&t.Batch, w.Origin, t.mergedRow(*w))
	}
	if len(t.Changes) > 0 {
		t.undurable = t.R.undurableOrigins() // C3
		for _, o := range t.undurable {
			t.R.stageOrigin(&t.Batch, o, t.mergedRow(causal.Row{Origin: o}))
		}
	}
	for a := t.aliases; a < len(t.R.aliases); a++ {
		// W4: a later batch may survive a power failure that loses this one, and
		// would make no sense without the alias.
		t.Sync = true
		o := t.R.aliases[a]
		t.R.stageOrigin(&t.Batch, o, t.mergedRow(causal.Row{Origin: o}))
		if m := t.R.Members[o]; m != nil && m.saved.IsZero() {
			// G6: whoever holds something of a member waits for it before anything is purged, after a power failure as well.
			m.stage(&t.Batch)
		}
	}
	return t.Batch.Whole()
}

// mergedRow is a row as it will be once this is committed.
func (t *Txn) mergedRow(w causal.Row) causal.Row {
	for c := range causal.Columns {
		w.Seqs[c] = t.column(c, w.Origin)
	}
	return w
}

// Apply takes in a transaction whose batch was committed.
func (r *Replica) Apply(t *Txn, synced bool) {
	if !synced && t.seq > r.Seq {
		r.ownDirty = r.commits + 1
	}
	if t.ownSafe {
		r.StableCache = nil
		r.moved++
	}
	r.Seq, r.recorded = t.seq, len(r.aliases)
	r.Known.Take(t.Rows)
	if synced { // before the checkpoint rises below: that was not written
		r.noteDurable(t)
	}
	if r.census != nil {
		r.census.count(r, t)
	} else {
		r.Counters.Add(t.Counters)
	}
	r.fitCache()
	for i := range t.Changes { // in order, so that the same writes leave the same cache
		c := &t.Changes[i]
		if len(c.Old) == 0 {
			r.Filter.Add(c.Key)
		}
		r.remember(c)
		r.buried(c)
		r.noteOverwritten(c)
		for o := range r.observers {
			o.Note(c)
		}
	}
	r.applyJoined(t)
	r.savedRev = max(r.savedRev, t.saved)
	r.Resume.saved = max(r.Resume.saved, t.resumed)
	r.MayHaveStale = r.MayHaveStale && !t.swept
	r.noteOrphans(t)
	r.Cloud = r.Cloud.Join(t.merged)
	if len(r.Cloud) > 0 {
		r.Cloud = slices.DeleteFunc(r.Cloud, func(d causal.Dot) bool { return r.Known.Covers(d) || slices.Contains(t.gone, d) })
	}
	if r.commits++; !synced {
		r.dirty, r.unsynced = r.commits, true
		r.inDoubt.note(t)
		r.noteDropped(t)
	} else if t.secures {
		r.checkpoint(nil)
	}
	if !r.unsynced {
		for _, w := range t.Rows {
			r.Known.Raise(causal.Durable, causal.Dot{Origin: w.Origin, Seq: w.Seqs[causal.Covered]})
		}
		r.StableCache = nil
		r.moved++
	}
}
