package replica

import (
	"errors"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// Recount corrects the counters by what a verification counted. What changed
// since it began is in both. A census that is not at its end needs no correction.
func (t *Txn) Recount(whole bool, counted, kept store.Counters) {
	t.R.forgetCached() // it may have kept what the store lost
	if !whole || t.R.census != nil {
		return
	}
	t.Digest = t.Digest.Add(counted.Digest).Sub(kept.Digest)
	t.Keys += counted.Keys - kept.Keys
	t.Tombstones += counted.Tombstones - kept.Tombstones
}

// Intact returns the versions of a key that can be read as they were logged, with values and
// times, and those that are corrupted (R4).
func (t *Txn) Intact(key []byte, s store.Siblings, k *stagedKey) (full, lost store.Siblings, err error) {
	if k != nil && k.full {
		return s, nil, nil
	}
	for i := range s {
		vs, err := store.ReadVersions(t.R.Store, key, s[i:i+1], t.R)
		switch {
		case errors.Is(err, store.ErrCorrupted):
			lost = append(lost, s[i])
		case err != nil:
			return nil, nil, err
		default:
			full = append(full, vs[0])
		}
	}
	return full, lost, nil
}

// RepairLocal repairs a key with what is here of it; stale are log entries that its
// log-index does not name. It reports whether that was enough.
func (t *Txn) RepairLocal(key []byte, stale []causal.Dot) (whole bool, err error) {
	rec, err := t.R.Store.Get(store.KindKey(store.KindIndex, key), nil)
	if err != nil && !errors.Is(err, leveldb.ErrNotFound) {
		return false, err
	}
	s, unreadable := store.DecodeIndex(rec, t.R)
	if rec == nil {
		unreadable = nil
	}
	full, lost, err := t.Intact(key, s, nil)
	if err != nil || len(lost) > 0 {
		return false, err
	}
	if len(s) == 0 {
		if full, err = t.unindexed(key, stale); err != nil {
			return false, err
		}
	}
	for _, d := range stale {
		if a, ok := t.R.AliasOf(d.Origin); ok && !full.Has(d) && !t.R.ahead.has(d) {
			t.Batch.Delete(store.AppendLogKey(nil, a, d.Seq))
		}
	}
	for i := range full { // it may be an orphan
		if !t.Covers(full[i].Dot) {
			t.merged = t.merged.Raise(full[i].Dot)
		}
	}
	if len(full) > 0 {
		return true, t.stage(key, s, nil, full, false)
	}
	if unreadable != nil {
		t.Batch.Delete(store.KindKey(store.KindIndex, key))
	}
	return unreadable == nil, nil
}

// unindexed returns the versions of a key without a log-index that the log still has:
// those that no other saw, if their values are there. What a watermark covers is an entry
// that a crash left.
func (t *Txn) unindexed(key []byte, stale []causal.Dot) (vs store.Siblings, err error) {
	for _, d := range stale {
		if a, ok := t.R.AliasOf(d.Origin); ok && !t.superseded(d) {
			logKey := store.AppendLogKey(nil, a, d.Seq)
			rec, err := t.R.Store.Get(logKey, nil)
			if errors.Is(err, leveldb.ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, err
			}
			e, err := store.DecodeEntry(logKey, rec, t.R)
			if err != nil {
				continue
			}
			if err := e.ReadValue(t.R.Store); err == nil {
				vs = append(vs, e.Version)
			} else if !errors.Is(err, store.ErrCorrupted) {
				return nil, err
			}
		}
	}
	return vs.Live(), nil
}
