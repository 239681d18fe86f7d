package replica

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/indexcache"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// Put stages the writes of one caller, which are one batch of the log. Of several
// writes of one key the last counts. It keeps no reference to keys and values
// beyond the transaction.
func (t *Txn) Put(writes []store.Write) error {
	if len(writes) > 1 {
		writes = t.lastWrites(writes)
	}
	if store.InOrder(writes) {
		t.Batch.BeginOrder(store.SizeOf(writes))
		writes = store.InKeyOrder(writes)
	}
	logged := writes
	if slices.ContainsFunc(writes, func(w store.Write) bool { return w.Deleted || t.R.Local != nil }) {
		logged = make([]store.Write, 0, len(writes))
		for _, w := range writes {
			if t.R.Local != nil && t.R.Local(w.Key) {
				t.stageRaw(w)
				t.Beside = append(t.Beside, w.Key)
				continue
			}
			if w.Deleted {
				if absent, err := t.absent(w.Key); err != nil {
					return err
				} else if absent {
					continue
				}
			}
			logged = append(logged, w)
		}
	}
	t.Changes = slices.Grow(t.Changes, len(logged))
	t.staged.list = slices.Grow(t.staged.list, len(logged))
	for i := range logged {
		if err := t.putOne(&logged[i], uint64(i), uint64(len(logged))); err != nil {
			return err
		}
	}
	return nil
}

// absent reports whether there is nothing to delete: no version but a tombstone, nor
// a value that was written past us. A bare deletion of the raw key will not do: a
// power failure could keep it and lose the batch before it, and a version would be
// left without its value.
func (t *Txn) absent(key []byte) (bool, error) {
	s, k, err := t.Lookup(key)
	if err != nil || len(s) > 1 || len(s) == 1 && !s[0].Deleted {
		return false, err
	}
	if k != nil {
		return true, nil
	}
	_, err = t.R.Store.Get(key, nil)
	if err == leveldb.ErrNotFound {
		return true, nil
	}
	return false, err
}

func (t *Txn) stageRaw(w store.Write) {
	if w.Deleted {
		t.Batch.Delete(w.Key)
	} else {
		t.Batch.Put(w.Key, w.Value)
	}
}

// lastWrites leaves out those that are followed by another write of the same key.
func (t *Txn) lastWrites(writes []store.Write) []store.Write {
	is := func(key []byte) func(at uint32) bool {
		return func(at uint32) bool { return bytes.Equal(writes[at].Key, key) }
	}
	t.last.Reset()
	for i := range writes {
		t.last.Set(indexcache.HashKey(writes[i].Key), uint32(i), is(writes[i].Key))
	}
	if t.last.Used == len(writes) {
		return writes
	}
	kept := make([]store.Write, 0, t.last.Used)
	for i, w := range writes {
		if at, _ := t.last.Find(indexcache.HashKey(w.Key), is(w.Key)); int(at) == i {
			kept = append(kept, w)
		}
	}
	return kept
}

func (t *Txn) putOne(w *store.Write, offset, count uint64) error {
	old, k, err := t.Lookup(w.Key)
	if err != nil {
		return err
	}
	t.seq++ // W1: a new dot, which has seen all siblings
	seen := 0
	for i := range old {
		seen += len(old[i].Context) + 1
	}
	v := store.Version{Dot: causal.Dot{Origin: t.R.Self, Seq: t.seq}, Deleted: w.Deleted, Value: w.Value, Offset: offset, Count: count}
	if seen > 0 {
		v.Context = t.dots.Take(seen)
	}
	for i := range old {
		v.Context = v.Context.Join(old[i].Context).Raise(old[i].Dot)
		v.Clock = min(max(v.Clock, old[i].Clock+1), store.MaxClock) // a hostile peer may have used it up
	}
	if len(v.Context) > PruneAbove {
		t.prune(&v, old)
	}
	v.Stamp = t.R.clock.Next(t.R.Now())
	t.Cover(v.Dot)
	return t.replace(w.Key, old, k, append(t.versions.Take(1), v), true)
}

// PruneAbove is how many entries a context may have before shortening it is worth a raised
// watermark, and PruneWithSync how many it must lose to be worth a batch that is synced (G3).
const (
	PruneAbove    = 4
	PruneWithSync = 16
)

// prune leaves out of the context of a version that replaces others what every member is known to
// have on disk (G3): from now on it is enough that this replica does not hold it. So what replaced it
// here must be on disk, too. Else a power failure could bring it back, and nobody would know any more
// that it was superseded.
func (t *Txn) prune(v *store.Version, old store.Siblings) {
	stable := t.R.stableVector()
	replaced := causal.Vector(t.dots.Take(len(v.Context))) // by what is on disk
	for i := range old {
		if old[i].Seq <= t.R.Known.Seq(causal.Durable, old[i].Origin) {
			replaced = replaced.Join(old[i].Context)
		}
	}
	inDoubt := 0
	for _, d := range v.Context {
		if stable.Contains(d) && !replaced.Contains(d) {
			inDoubt++
		}
	}
	synced := inDoubt >= PruneWithSync
	t.Sync = t.Sync || synced
	v.Context = slices.DeleteFunc(v.Context, func(d causal.Dot) bool {
		n := stable.Seq(d.Origin)
		if d.Seq > n || !replaced.Contains(d) && !synced {
			return false
		}
		if !t.R.isDurable(causal.Pruned, d) {
			// As it costs a sync, the watermark is raised as far as it goes, and serves the
			// next keys too.
			t.RequireDurable(causal.Pruned, causal.Dot{Origin: d.Origin, Seq: n})
		}
		return true
	})
}

// CheckUser refuses what a caller may not write.
func (r *Replica) CheckUser(key, value []byte) error {
	switch {
	case store.Reserved(key):
		return fmt.Errorf("%w: %.40q", store.ErrReservedKey, key)
	case len(key) > r.MaxKey:
		return fmt.Errorf("%w: key of %d bytes, MaxKey is %d", store.ErrTooLarge, len(key), r.MaxKey)
	case len(value) > r.MaxValue:
		return fmt.Errorf("%w: value of %d bytes, MaxValue is %d", store.ErrTooLarge, len(value), r.MaxValue)
	}
	return nil
}
