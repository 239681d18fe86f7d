package replica

import (
	"cmp"
	"slices"

	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

const sweepStep = 4096

// sweep looks for stale entries in the next part of the log and deletes them.
func (p *Tidying) sweep(h keeper) error {
	v, err := TakeView(h.With, nil)
	if err != nil {
		return err
	}
	limit := cmp.Or(p.Step, sweepStep)
	stale, next, err := v.stale(p.from, limit)
	v.Release()
	if err == nil && len(stale) > 0 {
		err = h.Each(stale, OneByOne((*Txn).sweep))
	}
	if err == nil && next == nil {
		err = h.Commit(func(t *Txn) error { t.swept = true; return nil })
	}
	if err == nil {
		p.from = next
		p.Swept += int64(limit)
	}
	return err
}

// sweep deletes a log entry, if still no log-index names it, and it is not one that a join staged: its value may
// be on its way (J3).
func (t *Txn) sweep(logKey []byte) error {
	if t.R.ahead != nil {
		if d, err := store.LogDot(logKey, t.R); err != nil || t.R.ahead.has(d) {
			return err
		}
	}
	return t.sweepEntry(logKey)
}

// sweepEntry deletes a log entry, if still no log-index names it.
func (t *Txn) sweepEntry(logKey []byte) error {
	rec, err := t.R.Store.Get(logKey, nil)
	if err == leveldb.ErrNotFound {
		return nil
	} else if err != nil {
		return err
	}
	e, err := store.DecodeEntry(logKey, rec, t.R)
	if err != nil {
		return err
	}
	s, _, err := t.Lookup(e.Key)
	if err == nil && !s.Has(e.Dot) {
		t.Batch.Delete(logKey)
	}
	return err
}

// stale returns the log keys of entries that no log-index names (O4), of those from a log
// key on, and where to go on, or nil at the end.
func (v *View) stale(from []byte, limit int) (keys [][]byte, next []byte, err error) {
	rg := store.KindRange(store.KindLog)
	if from != nil {
		rg.Start = from
	}
	it := v.NewIterator(rg, nil)
	defer it.Release()
	for n := 0; it.Next(); n++ {
		if n >= limit {
			return keys, slices.Clone(it.Key()), it.Error()
		}
		e, err := store.DecodeEntry(it.Key(), it.Value(), v)
		if err != nil {
			continue // Verify names it
		}
		s, readable, err := v.indexOf(e.Key)
		if err != nil {
			return nil, nil, err
		}
		if readable && !s.Has(e.Dot) {
			keys = append(keys, slices.Clone(it.Key()))
		}
	}
	return keys, nil, it.Error()
}
