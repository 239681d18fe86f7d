package replica

import (
	"slices"

	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// stageWinner stages the resolved value of a key (M8).
func stageWinner(b leveldb.BatchReplay, key []byte, resolved store.Version) {
	if resolved.Deleted {
		b.Delete(key)
	} else {
		b.Put(key, resolved.Value)
	}
}

// replace stages the new state of a key. New versions carry value and time; those
// that were held before need not.
func (t *Txn) replace(key []byte, old store.Siblings, k *stagedKey, now store.Siblings, local bool) error {
	if len(old) > 0 && slices.ContainsFunc(now, func(v store.Version) bool { return old.Has(v.Dot) }) {
		full, err := t.full(key, old, k)
		if err != nil {
			return err
		}
		for i := range now {
			if j := full.Find(now[i].Dot); j >= 0 {
				now[i] = full[j]
			}
		}
	}
	return t.stage(key, old, k, now, local)
}

// stage stages the whole new state of a key (W2, W3); all its versions carry value and time.
func (t *Txn) stage(key []byte, old store.Siblings, k *stagedKey, now store.Siblings, local bool) error {
	now.Sort()
	was := k != nil && k.conflict
	if k == nil && (len(old) > 1 || len(now) > 1 && t.R.mayHaveHints) {
		has, err := t.hasKey(store.KindConflict, key)
		if err != nil {
			return err
		}
		was = has
	}
	for i := range old {
		if !now.Has(old[i].Dot) {
			t.keyBuf = store.AppendLogKey(t.keyBuf[:0], t.R.Alias[old[i].Origin], old[i].Seq)
			t.Batch.Delete(t.keyBuf)
		}
	}
	next := stagedKey{key: key, state: now, full: true}
	c := Change{Key: key, Old: old, Local: local, WasConflict: was}
	switch {
	case len(now) == 0:
		t.Batch.Delete(key)
	case len(now) == 1:
		t.stageRaw(store.Write{Key: key, Value: now[0].Value, Deleted: now[0].Deleted})
	default:
		next.conflict = InConflict(now)
		var resolved store.Version
		resolved, c.Panicked = t.resolve(key, now)
		c.resolved = &resolved
		stageWinner(&t.Batch, key, resolved)
	}
	t.stageLog(key, now)
	t.stageHints(key, old, now, was, next.conflict, c.resolved)
	c.index = t.stageIndex(key, now)
	t.Count(old, -1)
	t.Count(now, +1)
	t.Conflicts += store.Btoi(next.conflict) - store.Btoi(was)
	c.Versions, c.Conflict = now, next.conflict
	t.Changes = append(t.Changes, c)
	if k != nil {
		*k = next
	} else {
		t.staged.add(next)
	}
	return nil
}

func (t *Txn) hasKey(kind byte, key []byte) (bool, error) {
	_, err := t.R.Store.Get(store.KindKey(kind, key), nil)
	if err == leveldb.ErrNotFound {
		return false, nil
	}
	return err == nil, err
}

// stageLog writes the log entries of all versions, also of those held before:
// a version beside others carries its value, a lone one has it at the raw key.
func (t *Txn) stageLog(key []byte, now store.Siblings) {
	counted := now.HasValue()
	for i := range now {
		e := store.Entry{Version: now[i], Key: key, Inline: len(now) > 1, InDigest: counted}
		t.buf = store.AppendEntry(t.buf[:0], &e, t.R)
		t.keyBuf = store.AppendLogKey(t.keyBuf[:0], uint32(t.R.Number(e.Origin)), e.Seq)
		t.Batch.Put(t.keyBuf, t.buf)
	}
}

// stageHints keeps the lists of tombstones and of conflicts. They are hints: a
// crash may leave one behind, never lose one that is due.
func (t *Txn) stageHints(key []byte, old, now store.Siblings, was, is bool, resolved *store.Version) {
	mark := func(kind byte, was, is bool, value []byte) {
		if !was && !is {
			return
		}
		t.keyBuf = store.AppendKey(t.keyBuf[:0], kind, key)
		if is {
			t.Batch.Put(t.keyBuf, value)
		} else {
			t.Batch.Delete(t.keyBuf)
		}
	}
	mark(store.KindTombstone, old.HasTombstone(), now.HasTombstone(), nil)
	var record []byte
	if is {
		record = store.FingerprintOf(resolved.Value, resolved.Deleted).Append(nil)
	}
	mark(store.KindConflict, was, is, record)
}

// stageIndex writes the log-index and returns its record.
func (t *Txn) stageIndex(key []byte, now store.Siblings) []byte {
	t.keyBuf = store.AppendKey(t.keyBuf[:0], store.KindIndex, key)
	if len(now) == 0 {
		t.Batch.Delete(t.keyBuf)
		return nil
	}
	t.buf = store.AppendIndex(t.buf[:0], now, t.R)
	t.Batch.Put(t.keyBuf, t.buf)
	return append(t.records.Take(len(t.buf)), t.buf...)
}

// replaceQuietly stages a state that differs from the old one in nothing that
// those who watch would call a change.
func (t *Txn) replaceQuietly(key []byte, old store.Siblings, k *stagedKey, now store.Siblings) error {
	n := len(t.Changes)
	err := t.replace(key, old, k, now, false)
	for i := range t.Changes[n:] {
		t.Changes[n+i].Quiet = true
	}
	return err
}
