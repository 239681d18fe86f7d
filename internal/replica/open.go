package replica

import (
	"encoding/binary"
	"fmt"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/indexcache"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// Open reads a database and stages what must be committed, with Sync, before anything
// else (O1): the new origin, and that the database is no longer
// cleanly closed.
func (r *Replica) Open(cluster string) (*leveldb.Batch, error) {
	if err := r.readFormat(cluster); err != nil {
		return nil, err
	}
	if err := r.readOrigins(); err != nil {
		return nil, err
	}
	if err := r.readMembers(); err != nil {
		return nil, err
	}
	clean, err := r.readClean()
	if err != nil {
		return nil, err
	}
	if clean {
		if clean, err = r.checkFlushed(); err != nil {
			return nil, err
		}
	}
	if !clean {
		named, err := r.recount()
		if err != nil {
			return nil, err
		}
		logged, err := r.readLog()
		if err != nil {
			return nil, err
		}
		r.MayHaveStale = logged != named
		if r.rewound != nil {
			r.rewound.found = r.Counters
		}
	}
	b := new(leveldb.Batch)
	if r.rewound != nil { // what an unfinished pull brought may be among what is missing
		b.Delete(store.MetaResume)
	} else if err := r.readResume(); err != nil {
		return nil, err
	}
	b.Put(store.MetaFormat, append([]byte{store.FormatVersion}, cluster...))
	b.Delete(store.MetaClean)
	r.Self, r.Seq = r.Draw(), 0
	r.assign(r.Self)
	r.Own[r.Self] = true
	r.stageOrigins(b, clean)
	r.Durable = r.Known.Clone()
	r.Known.Rev = max(r.Known.Rev, 1) // 0 means: never told
	r.savedRev, r.opened, r.recorded = r.Known.Rev, true, len(r.aliases)
	return b, nil
}

func (r *Replica) readFormat(cluster string) error {
	v, err := r.Store.Get(store.MetaFormat, nil)
	switch {
	case err == leveldb.ErrNotFound:
		return nil
	case err != nil:
		return err
	case len(v) == 0 || v[0] != store.FormatVersion:
		return store.ErrVersion
	case string(v[1:]) != cluster:
		return fmt.Errorf("replicator: the database belongs to cluster %q, not %q", v[1:], cluster)
	}
	return nil
}

// StageClean writes that everything is on disk and what need not be counted at
// the next opening. It must be committed with Sync, after a flush.
func (r *Replica) StageClean(b leveldb.BatchReplay) error {
	for _, d := range r.Known.Vector(causal.Covered) {
		r.Known.Raise(causal.Durable, d)
	}
	r.stageOrigins(b, false)
	r.stageMembers(b)
	rec := store.AppendSum([]byte{store.FormatVersion}, r.Digest)
	rec = binary.BigEndian.AppendUint64(rec, uint64(r.clock.Last))
	for _, n := range []int64{r.Keys, r.Tombstones, r.Conflicts} {
		rec = binary.AppendUvarint(rec, uint64(n))
	}
	rec = append(rec, byte(store.Btoi(r.MayHaveStale)))
	rec = store.AppendVector(rec, r.Cloud, r)
	b.Put(store.MetaClean, rec)
	r.writeResume(b, r.resumePoint())
	return r.stageClosed(b)
}

func (r *Replica) readClean() (bool, error) {
	v, err := r.Store.Get(store.MetaClean, nil)
	if err == leveldb.ErrNotFound {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	d := store.Decoder{B: v}
	if err := d.Format(); err != nil {
		return false, err
	}
	r.Digest = d.Sum()
	r.clock.Last = causal.Stamp(d.Uint64())
	for _, n := range []*int64{&r.Keys, &r.Tombstones, &r.Conflicts} {
		*n = int64(d.UpTo(causal.MaxSeq))
	}
	r.MayHaveStale = d.Byte() != 0
	r.Cloud = d.Vector(r)
	if err := d.End(); err != nil {
		return false, fmt.Errorf("mark of the clean close: %w", err)
	}
	return true, nil
}

// recount reads the whole index: after a crash the counters in memory are gone. It
// returns the sum of all dots that the index names.
func (r *Replica) recount() (named causal.Sum, err error) {
	it := r.Store.NewIterator(store.KindRange(store.KindIndex), nil)
	defer it.Release()
	for it.Next() {
		s, err := store.DecodeIndex(it.Value(), r)
		if err != nil {
			return named, fmt.Errorf("log-index of key %q: %w", store.UserKey(it.Key()), err)
		}
		r.Count(s, +1)
		r.Filter.Add(store.UserKey(it.Key()))
		for i := range s {
			named = named.Add(s[i].Hash())
		}
	}
	if err := it.Error(); err != nil {
		return named, err
	}
	r.Filter.Whole = r.Filter.Limit >= indexcache.BlockBytes
	x := r.Store.NewIterator(store.KindRange(store.KindConflict), nil)
	defer x.Release()
	for x.Next() {
		r.Conflicts++
	}
	return named, x.Error()
}

// readLog reads the whole log after a crash. It finds the entries above the version vector
// and the latest stamp among them, and returns the sum of all dots.
func (r *Replica) readLog() (logged causal.Sum, err error) {
	it := r.Store.NewIterator(store.KindRange(store.KindLog), nil)
	defer it.Release()
	for it.Next() {
		d, err := store.LogDot(it.Key(), r)
		if err != nil {
			return logged, fmt.Errorf("log entry %x: %w", it.Key(), err)
		}
		logged = logged.Add(d.Hash())
		if r.Known.Covers(d) {
			continue
		}
		e, err := store.DecodeEntry(it.Key(), it.Value(), r)
		if err != nil {
			return logged, fmt.Errorf("log entry %x: %w", it.Key(), err)
		}
		r.clock.See(e.Stamp)
		r.Cloud = r.Cloud.Raise(d)
	}
	return logged, it.Error()
}
