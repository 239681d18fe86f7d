package replica

import (
	"errors"
	"maps"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// durability is what of the replica's state survives a power failure.
type durability struct {
	Durable causal.Knowledge // checkpoint and watermarks, as far as they are on disk
	undurable

	commits  uint64 // transactions since the opening
	dirty    uint64 // the last of them that was committed without Sync
	ownDirty uint64 // the last of them that had own writes and was committed without Sync
	safe     uint64 // those up to here are known to be on disk
	unsynced bool   // dirty is above safe: the checkpoint may be below the version vector

	flushMarks  []FlushMark   // version vectors that are durable once goleveldb has flushed often enough
	inDoubt     inDoubt       // keys written since all was known to be on disk
	savedRev    uint64        // checkpoints up to this revision are stored
	StableCache causal.Vector // see stableVector; nil: to be worked out again
}

// inDoubt are the keys that were written without Sync since all was known to be on disk,
// and how many bytes they would take in a batch.
type inDoubt struct {
	keys map[string]int
	size int
	much bool // they are too many to be kept, or more than keys was written
}

const (
	maxInDoubt     = BatchLimit / 2 // bytes of the batch that writes again what is in doubt,
	maxKeysInDoubt = 512            // and keys, each of which is read for it while others wait
)

// ErrMuchInDoubt says that SecureAll would write too much.
var ErrMuchInDoubt = errors.New("replicator: too much is in doubt to be written again")

// undurable are the origins of which a watermark, as far as the checkpoint goes, or what contexts
// leave out, however far, may not be on disk (C3). What a version rests on may have come in any earlier batch, and a power
// failure can lose that one and keep the version; so the batch of each version has these
// watermarks along, until they are known to be on disk.
type undurable struct {
	origins []causal.Origin
	asOf    [2]uint64 // changes of watermarks, and of checkpoint and disk, when they were worked out
	moved   uint64    // changes of checkpoint and disk
}

// FlushMark is a moment: what a replica had committed then. Once all of that is on disk, the
// checkpoint may rise to it.
type FlushMark struct {
	count   uint64 // how often goleveldb had flushed its memtable, as far as that matters
	vector  causal.Vector
	commits uint64
	resume  resumePoint
}

// FlushMark marks what is committed now.
func (r *Replica) FlushMark() FlushMark {
	return FlushMark{vector: r.Known.Vector(causal.Covered), commits: r.commits, resume: r.resumePoint()}
}

// Commits returns how many transactions were committed since the opening.
func (r *Replica) Commits() uint64 { return r.commits }

// OnDisk reports whether all that a mark stands for is known to be on disk.
func (r *Replica) OnDisk(m FlushMark) bool { return !r.unsynced || r.safe >= m.commits }

// RequireDurable raises a watermark and has it written with Sync (W4), unless it is on disk already.
// What is no longer held, or no longer named in a context, and all later versions of the
// key rely on it, so a power failure must not take it and leave them. That it is
// known here is not enough: it may have come with a pull that was not synced.
func (t *Txn) RequireDurable(c causal.Column, d causal.Dot) {
	t.raiseWatermark(c, d)
	if t.R.isDurable(c, d) {
		return
	}
	if n := t.column(c, d.Origin); n > 0 {
		t.raise(c, causal.Dot{Origin: d.Origin, Seq: n}) // so that the origin is written
	}
	t.stageCheckpoint(causal.Vector{d})
	t.Sync = true
}

// stageCheckpoint has the checkpoint of some origins written along with a watermark that relies
// on it (C2): after a crash the watermark counts no further than the version vector,
// which restarts from there.
func (t *Txn) stageCheckpoint(v causal.Vector) {
	for _, d := range v {
		if n := t.R.Known.Seq(causal.Durable, d.Origin); n > 0 {
			t.raise(causal.Durable, causal.Dot{Origin: d.Origin, Seq: n})
		}
	}
}

// isDurable reports whether a watermark survives a power failure: it is on disk, and so is a
// checkpoint that goes as far.
func (r *Replica) isDurable(c causal.Column, d causal.Dot) bool {
	return d.Seq <= min(r.Durable.Seq(c, d.Origin), r.Durable.Seq(causal.Durable, d.Origin))
}

// noteDurable notes the watermarks and checkpoints that a synced transaction wrote.
func (r *Replica) noteDurable(t *Txn) {
	wrote := func(o causal.Origin) {
		for c := causal.Durable; c < causal.Columns; c++ {
			r.Durable.Raise(c, causal.Dot{Origin: o, Seq: r.Known.Seq(c, o)})
		}
	}
	for _, w := range t.Rows {
		if w.Seqs[causal.Durable]|w.Seqs[causal.Pruned]|w.Seqs[causal.Purged] != 0 { // else it was not written
			wrote(w.Origin)
		}
	}
	for _, o := range t.undurable {
		wrote(o)
	}
	if t.saved > 0 {
		for _, w := range r.Known.Rows {
			if w.Rev > t.savedFrom && w.Rev <= t.saved {
				wrote(w.Origin)
			}
		}
	}
	r.moved++
}

// undurableOrigins returns the origins whose watermarks a batch with versions must carry (C3).
func (r *Replica) undurableOrigins() []causal.Origin {
	now := [2]uint64{r.Known.WatermarkRev, r.moved}
	if r.undurable.asOf == now {
		return r.undurable.origins
	}
	r.undurable.asOf, r.undurable.origins = now, nil
	for i := range r.Known.Rows {
		w := &r.Known.Rows[i]
		for c := causal.Pruned; c < causal.Columns; c++ {
			n := min(w.Seqs[c], w.Seqs[causal.Durable])
			if n > 0 && !r.isDurable(c, causal.Dot{Origin: w.Origin, Seq: n}) || c == causal.Pruned && w.Seqs[c] > r.Durable.Seq(c, w.Origin) {
				r.undurable.origins = append(r.undurable.origins, w.Origin)
				break
			}
		}
	}
	return r.undurable.origins
}

// checkpoint raises the checkpoint to a vector that is known to be on disk, or to the whole
// version vector if v is nil.
func (r *Replica) checkpoint(v causal.Vector) {
	if v == nil {
		v = r.Known.Vector(causal.Covered)
		r.flushMarks = r.flushMarks[:0]
		r.safe, r.unsynced = r.commits, false
		r.inDoubt = inDoubt{}
		r.forgetDropped()
	}
	for _, d := range v {
		r.Known.Raise(causal.Durable, d)
	}
	r.StableCache = nil
	r.moved++
}

// StageCheckpoints writes the checkpoint where it rose since it was last written.
func (t *Txn) StageCheckpoints() {
	for _, w := range t.R.Known.Since(t.R.savedRev) {
		t.R.stageOrigin(&t.Batch, w.Origin, w)
	}
	t.savedFrom, t.saved = t.R.savedRev, t.R.Known.Rev
	t.stageResume()
}

// StageNames writes the checkpoint, with Sync, of all origins of which it is not known to be on disk: what it
// covers then keeps its name, whatever a crash takes.
func (t *Txn) StageNames() {
	for _, w := range t.R.Known.Rows {
		if d := (causal.Dot{Origin: w.Origin, Seq: w.Seqs[causal.Durable]}); d.Seq > t.R.Durable.Seq(causal.Durable, d.Origin) {
			t.raise(causal.Durable, d)
			t.Sync = true
		}
	}
}

// StageUpkeep writes what is written every few seconds: checkpoint and members. If all is
// on disk but this, it must not be the one write for which a flush has to be waited for; and
// watermarks that are not known to be on disk go with every write until they are (C3).
func (t *Txn) StageUpkeep() {
	t.Sync = t.Sync || !t.R.unsynced || len(t.R.undurableOrigins()) > 0
	t.StageCheckpoints()
	t.StageMembers()
}

// NeedsUpkeep reports whether anything waits to be known to be on disk, to be purged or to be
// reissued.
func (r *Replica) NeedsUpkeep() bool {
	return r.unsynced || r.Known.Rev != r.savedRev || r.Tombstones > 0 || len(r.Cloud) > 0 || len(r.broken) > 0
}

// Flushed takes note of how often goleveldb has flushed its memtable so far (C1).
// It has one frozen memtable at most, so once it has flushed twice since a batch
// was acknowledged, that batch and all before it are on disk.
func (r *Replica) Flushed(count uint64) {
	for len(r.flushMarks) > 0 && count >= r.flushMarks[0].count+2 {
		m := r.flushMarks[0]
		r.flushMarks = r.flushMarks[1:]
		r.NoteOnDisk(m)
	}
	if !r.unsynced {
		return
	}
	m := r.FlushMark()
	m.count = count
	if n := len(r.flushMarks); n > 0 && r.flushMarks[n-1].count == count {
		r.flushMarks[n-1] = m // a later version vector, due no later
	} else {
		r.flushMarks = append(r.flushMarks, m)
	}
}

// NoteOnDisk raises the checkpoint to a mark, all of which is on disk. If nothing was
// committed without Sync since it was taken, that is the whole version vector.
func (r *Replica) NoteOnDisk(m FlushMark) {
	if r.safe = max(r.safe, m.commits); r.safe >= r.dirty {
		r.checkpoint(nil)
		r.resumable(r.resumePoint())
		return
	}
	r.checkpoint(m.vector)
	r.resumable(m.resume)
	r.forgetDropped()
}

// stableVector is what every member is known to have on disk, and we too.
func (r *Replica) stableVector() causal.Vector {
	if r.StableCache == nil {
		v := r.Known.Vector(causal.Durable)
		for _, m := range r.ActiveMembers() {
			v = slices.DeleteFunc(v, func(d causal.Dot) bool { return m.Known.Seq(causal.Durable, d.Origin) == 0 })
			for i := range v {
				v[i].Seq = min(v[i].Seq, m.Known.Seq(causal.Durable, v[i].Origin))
			}
		}
		r.StableCache = v
	}
	return r.StableCache
}

// note takes in a transaction that was committed without Sync.
func (d *inDoubt) note(t *Txn) {
	for i := range t.Changes {
		if d.much = d.much || len(t.Beside) > 0 || t.progress.ahead; d.much {
			break
		}
		c := &t.Changes[i]
		k := RemoteKey{Key: c.Key, Versions: c.Versions}
		n := k.Size() + store.WriteOverhead
		if d.keys == nil {
			d.keys = map[string]int{}
		}
		d.size += n - d.keys[string(c.Key)]
		d.keys[string(c.Key)] = n
		d.much = d.size > maxInDoubt || len(d.keys) > maxKeysInDoubt
	}
	if d.much = d.much || len(t.Beside) > 0 || t.progress.ahead; d.much {
		d.keys = nil
	}
}

// SecureAll writes everything that is in doubt once more, with Sync, and the checkpoint
// along: every batch has the whole state of its keys, so nothing depends any more on the
// batches that a power failure could take. What log entries these had deleted may come
// back, and is swept as ever. It costs one sync, where a flush costs five or so. If it is
// too much, or a key does not fit together, the error says so and a flush must do.
func (t *Txn) SecureAll() error {
	d := &t.R.inDoubt
	if d.much || len(t.R.Known.Rows) > OriginStep {
		return ErrMuchInDoubt
	}
	for _, key := range slices.Sorted(maps.Keys(d.keys)) {
		if err := t.rewrite([]byte(key)); err != nil {
			return err
		}
	}
	for _, rows := range [][]causal.Row{t.R.Known.Rows, slices.Clone(t.Rows)} {
		for _, w := range rows {
			n := t.column(causal.Covered, w.Origin)
			for c := causal.Durable; c < causal.Columns && n > 0; c++ {
				if n > t.R.Durable.Seq(causal.Durable, w.Origin) || t.column(c, w.Origin) > t.R.Durable.Seq(c, w.Origin) {
					t.raise(causal.Durable, causal.Dot{Origin: w.Origin, Seq: n}) // so that the origin is written
				}
			}
		}
	}
	t.Sync, t.secures = true, true
	return nil
}

// rewrite stages a key as it is, unless that is done already.
func (t *Txn) rewrite(key []byte) error {
	s, k, err := t.Lookup(key)
	if err != nil || k != nil {
		return err
	}
	if len(s) == 0 {
		t.Batch.Delete(key)
		for _, kind := range []byte{store.KindIndex, store.KindTombstone, store.KindConflict} {
			t.Batch.Delete(store.KindKey(kind, key))
		}
		return nil
	}
	raw, err := t.R.Store.Get(key, nil)
	if err != nil && err != leveldb.ErrNotFound {
		return err
	}
	odd, err := Unlogged(t.R.Store, t.R, t.R.Resolve, key, s, store.FingerprintOf(raw, err == leveldb.ErrNotFound))
	if err != nil {
		return err
	}
	if odd { // written past the wrapper: not to be taken back here
		return store.Corrupted(key, "its value is not the one that was logged")
	}
	vs, err := t.full(key, s, k)
	if err != nil {
		return err
	}
	// The batch that took a hint away may be among those that are in doubt.
	if !InConflict(vs) {
		t.Batch.Delete(store.KindKey(store.KindConflict, key))
	}
	if !s.HasTombstone() {
		t.Batch.Delete(store.KindKey(store.KindTombstone, key))
	}
	n := len(t.Changes)
	err = t.replaceQuietly(key, s, k, vs)
	for i := range t.Changes[n:] {
		t.Changes[n+i].Same = true
	}
	return err
}
