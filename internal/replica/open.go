package replica

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/indexcache"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// Open reads a database and stages what must be committed, with Sync, before anything
// else (O1): the new origin, and that the database is no longer
// cleanly closed.
func (r *Replica) Open(cluster string) (*leveldb.Batch, error) {
	fresh, err := r.readFormat(cluster)
	if err != nil {
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
	switch {
	case fresh:
		r.Filter.Whole = r.Filter.Limit >= indexcache.BlockBytes
	case !clean:
		if err := r.readTops(); err != nil {
			return nil, err
		}
		r.beginCensus()
	}
	r.mayHaveHints = !fresh
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
	r.savedRev, r.recorded = r.Known.Rev, len(r.aliases)
	return b, nil
}

// readFormat checks whose the database is, and reports whether it was never opened before.
func (r *Replica) readFormat(cluster string) (fresh bool, err error) {
	v, err := r.Store.Get(store.MetaFormat, nil)
	switch {
	case err == leveldb.ErrNotFound:
		return true, nil
	case err != nil:
		return false, err
	case len(v) == 0 || v[0] != store.FormatVersion:
		return false, store.ErrVersion
	case string(v[1:]) != cluster:
		return false, fmt.Errorf("replicator: the database belongs to cluster %q, not %q", v[1:], cluster)
	}
	return false, nil
}

// StageClean writes that everything is on disk and what need not be counted at
// the next opening. It must be committed with Sync, after a flush. While that is still being counted nothing
// vouches for it: there is no mark then, and the next opening counts (O11).
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
	rec = append(rec, byte(store.Btoi(r.Stale())))
	rec = store.AppendVector(rec, r.Cloud, r)
	if _, counting := r.Counting(); !counting {
		b.Put(store.MetaClean, rec)
	}
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

// readTops finds what the log has above the version vector: of each origin the last entry. The latest stamp
// is among those of the last ones: later writes of an incarnation have later stamps, and those of a reissued one are
// of before. It takes a few reads for each origin, however long the log is (O9).
func (r *Replica) readTops() error {
	it := r.Store.NewIterator(store.KindRange(store.KindLog), nil)
	defer it.Release()
	for ok := it.First(); ok; {
		d, err := store.LogDot(it.Key(), r)
		if err != nil {
			return fmt.Errorf("log entry %x: %w", it.Key(), err)
		}
		alias := r.Alias[d.Origin]
		if n := r.Known.Seq(causal.Covered, d.Origin); d.Seq <= n {
			ok = store.SeekNear(it, store.AppendLogKey(nil, alias, n+1))
			continue
		}
		beyond := store.AppendLogKey(nil, alias+1, 0)
		if ok = store.SeekNear(it, beyond); ok {
			ok = it.Prev()
		} else {
			ok = it.Last()
		}
		if !ok {
			break
		}
		e, err := store.DecodeEntry(it.Key(), it.Value(), r)
		if err != nil {
			return fmt.Errorf("log entry %x: %w", it.Key(), err)
		}
		r.clock.See(e.Stamp)
		r.Cloud = append(r.Cloud, e.Dot)
		ok = it.Next()
	}
	slices.SortFunc(r.Cloud, causal.Dot.Compare)
	return it.Error()
}
