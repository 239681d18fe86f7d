package replica

import (
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
)

// Orphans reports whether there are writes of earlier incarnations that nobody turned out to
// cover.
func (r *Replica) Orphans() bool {
	return slices.ContainsFunc(r.Cloud, func(d causal.Dot) bool { return r.Own[d.Origin] && !r.Known.Covers(d) })
}

// Reissue writes at most limit orphans under a new dot, so that they can be covered (O5):
// same content, clock and time, and the old dot seen. On one key a later dot of
// an origin must have seen the earlier ones, so they get an origin drawn for the
// purpose, and a further one for each further orphan of one key.
func (t *Txn) Reissue(limit int) error {
	var drawn []causal.Dot
	n := 0
	for _, l := range t.R.Cloud {
		if !t.R.Own[l.Origin] || t.R.Known.Covers(l) {
			continue
		}
		keys, stale, err := t.R.orphanKeys(l, limit-n)
		if err != nil {
			return err
		}
		for _, d := range stale {
			t.Batch.Delete(store.AppendLogKey(nil, t.R.Alias[d.Origin], d.Seq))
		}
		for _, key := range keys {
			if drawn, err = t.reissueKey(key, drawn); err != nil || t.Large() {
				return err
			}
		}
		if n += len(keys) + len(stale); n >= limit {
			break
		}
		t.gone = append(t.gone, l)
	}
	return nil
}

// orphanKeys reads the log of an own origin above the version vector. An entry that its key's
// log-index does not name is stale.
func (r *Replica) orphanKeys(l causal.Dot, limit int) (keys [][]byte, stale []causal.Dot, err error) {
	it := r.Store.NewIterator(store.LogRange(r.Alias[l.Origin], r.Known.Seq(causal.Covered, l.Origin)+1, causal.MaxSeq), nil)
	defer it.Release()
	for it.Next() && len(keys)+len(stale) < limit {
		e, err := store.DecodeEntry(it.Key(), it.Value(), r)
		if err != nil {
			return nil, nil, err
		}
		s, err := r.Lookup(e.Key)
		if err != nil {
			return nil, nil, err
		}
		if s.Has(e.Dot) {
			keys = append(keys, slices.Clone(e.Key))
		} else {
			stale = append(stale, e.Dot)
		}
	}
	return keys, stale, it.Error()
}

func (t *Txn) reissueKey(key []byte, drawn []causal.Dot) ([]causal.Dot, error) {
	old, k, err := t.Lookup(key)
	if err != nil || k != nil { // two orphans of one key: done with the first
		return drawn, err
	}
	vs, err := t.full(key, old, k)
	if err != nil {
		return drawn, err
	}
	orphan := func(v store.Version) bool { return t.R.Own[v.Origin] && !t.Covers(v.Dot) }
	// An orphan has seen the earlier versions of its origin, whatever was left out of its
	// context, and under its new name it says so.
	now := slices.DeleteFunc(slices.Clone(vs), func(y store.Version) bool {
		return slices.ContainsFunc(vs, func(x store.Version) bool { return orphan(x) && x.Origin == y.Origin && x.Seq > y.Seq })
	})
	nth := 0
	for i := range now {
		v := &now[i]
		if !orphan(*v) {
			continue
		}
		if nth == len(drawn) {
			o := t.R.Draw()
			t.R.assign(o)
			t.R.Own[o] = true
			drawn = append(drawn, causal.Dot{Origin: o, Seq: 0})
		}
		d := &drawn[nth]
		d.Seq++
		nth++
		v.Context = v.Context.Clone().Raise(v.Dot)
		v.Dot, v.Offset, v.Count = *d, 0, 1
		t.Cover(v.Dot)
	}
	if len(now) < len(vs) {
		return drawn, t.replace(key, old, k, now, false)
	}
	return drawn, t.replaceQuietly(key, old, k, now)
}
