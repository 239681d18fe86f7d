package replicator

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/syndtr/goleveldb/leveldb"
)

// maxMends bounds the passes of one Repair, each of which mends up to maxFaults keys.
const maxMends = 1000

// Repair does what [DB.Verify] does and mends what it finds: what log, log-index and
// value together still tell is put right here, the rest is fetched from the peers,
// one after another, until one has it. A value that was changed past the wrapper is
// put back as it was logged: run [DB.Adopt] first if such values are to stay. Values
// that were never logged are left alone; they, too, are for Adopt.
//
// The report is of the database as it is then: what nobody could mend, and how many
// faults were mended. Nothing is dropped that no peer had a replacement for. If the
// store itself cannot be read, because a file of it is damaged, Repair cannot help;
// docs/operations.md says what to do.
func (db *DB) Repair(ctx context.Context) (Report, error) {
	if err := errors.Join(db.admit(nil), db.queue.broken()); err != nil {
		return Report{}, err
	}
	mended := int64(0)
	faults := func(v *verification) int64 { return int64(len(v.report.Faults)) + v.report.More }
	v, err := db.verify(ctx)
	for range maxMends {
		if err != nil || faults(v) == 0 {
			break
		}
		if err = db.mend(ctx, v); err != nil {
			break
		}
		before := faults(v)
		if v, err = db.verify(ctx); faults(v) >= before {
			break
		}
		mended += before - faults(v)
	}
	v.report.Mended = mended
	return v.report, err
}

// mend puts right what a verification found.
func (db *DB) mend(ctx context.Context, v *verification) error {
	if err := db.commit(func(t *txn) error { t.recounted(v.counting, v.counted, v.kept); return nil }); err != nil {
		return err
	}
	var wanted [][]byte // that cannot be mended with what is here
	for _, key := range slices.Sorted(maps.Keys(v.damaged)) {
		whole := false
		err := db.commit(func(t *txn) (err error) {
			whole, err = t.mend([]byte(key), v.damaged[key])
			return err
		})
		if err != nil {
			return err
		}
		if !whole {
			wanted = append(wanted, []byte(key))
		}
	}
	for _, addr := range db.peers.all() {
		if len(wanted) == 0 {
			break
		}
		if _, err := db.syncOne(ctx, addr, purpose{mend: wanted}); ctx.Err() != nil {
			return ctx.Err()
		} else if err != nil {
			continue // it is in Status, and another may have them
		}
		var err error
		if wanted, err = db.stillDamaged(ctx, wanted); err != nil {
			return err
		}
	}
	if v.counting && v.counted.digest != v.kept.digest {
		db.Sync(ctx) // whole keys are missing here: the digest tells now. Peers that fail are in Status
	}
	return ctx.Err()
}

// recounted puts the figures right that a verification counted anew. What changed
// since it began is in both.
func (t *txn) recounted(whole bool, counted, kept figures) {
	t.r.cache = cache{limit: t.r.cache.limit} // it may have kept what the store lost
	if !whole {
		return
	}
	t.digest = t.digest.add(counted.digest).sub(kept.digest)
	t.keys += counted.keys - kept.keys
	t.tombstones += counted.tombstones - kept.tombstones
}

func (db *DB) stillDamaged(ctx context.Context, keys [][]byte) (left [][]byte, err error) {
	damaged := map[string]bool{}
	err = db.inSlices(ctx, keys, oneByOne(func(t *txn, key []byte) error {
		s, k, err := t.lookup(key)
		if err != nil {
			return err
		}
		_, lost, err := t.intact(key, s, k)
		damaged[string(key)] = len(lost) > 0
		return err
	}))
	return slices.DeleteFunc(slices.Clone(keys), func(key []byte) bool { return !damaged[string(key)] }), err
}

// intact gives the versions of a key that can be read as they were logged, with
// values and times, and those that cannot.
func (t *txn) intact(key []byte, s state, k *stagedKey) (full, lost state, err error) {
	if k != nil && k.full {
		return s, nil, nil
	}
	for i := range s {
		vs, err := readVersions(t.r.store, key, s[i:i+1], t.r)
		switch {
		case errors.Is(err, ErrDamaged):
			lost = append(lost, s[i])
		case err != nil:
			return nil, nil, err
		default:
			full = append(full, vs[0])
		}
	}
	return full, lost, nil
}

// mend puts a key right with what is here of it; litter are log entries that its
// log-index does not name. It tells whether that was enough.
func (t *txn) mend(key []byte, litter []dot) (whole bool, err error) {
	rec, err := t.r.store.Get(kindKey(kindIndex, key), nil)
	if err != nil && !errors.Is(err, leveldb.ErrNotFound) {
		return false, err
	}
	s, unreadable := decodeIndex(rec, t.r)
	if rec == nil {
		unreadable = nil
	}
	full, lost, err := t.intact(key, s, nil)
	if err != nil || len(lost) > 0 {
		return false, err
	}
	if len(s) == 0 {
		if full, err = t.unindexed(key, litter); err != nil {
			return false, err
		}
	}
	for _, d := range litter {
		if a, ok := t.r.aliasOf(d.origin); ok && !full.has(d) {
			t.batch.Delete(appendLogKey(nil, a, d.seq))
		}
	}
	if len(full) > 0 {
		return true, t.stage(key, s, nil, full, false)
	}
	if unreadable != nil {
		t.batch.Delete(kindKey(kindIndex, key))
	}
	return unreadable == nil, nil
}

// unindexed gives the versions of a key without a log-index that the log still has:
// those that no other saw, if their values are there. What a proof covers is garbage
// that a crash left.
func (t *txn) unindexed(key []byte, litter []dot) (vs state, err error) {
	for _, d := range litter {
		if a, ok := t.r.aliasOf(d.origin); ok && d.seq > max(t.at(pruned, d.origin), t.at(purged, d.origin)) {
			logKey := appendLogKey(nil, a, d.seq)
			rec, err := t.r.store.Get(logKey, nil)
			if errors.Is(err, leveldb.ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, err
			}
			e, err := decodeEntry(logKey, rec, t.r)
			if err != nil {
				continue
			}
			if err := e.readValue(t.r.store); err == nil {
				vs = append(vs, e.version)
			} else if !errors.Is(err, ErrDamaged) {
				return nil, err
			}
		}
	}
	all := slices.Clone(vs)
	return slices.DeleteFunc(vs, func(y version) bool {
		return slices.ContainsFunc(all, func(z version) bool { return z.dot != y.dot && z.saw(y.dot) })
	}), nil
}
