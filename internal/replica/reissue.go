package replica

import (
	"maps"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
)

// Orphans reports whether there are writes of earlier incarnations that nobody turned out to
// cover. While a join is under way its server may be about to turn out to.
func (r *Replica) Orphans() bool {
	return !r.Joining && slices.ContainsFunc(r.Cloud, func(d causal.Dot) bool { return r.Own[d.Origin] && !r.Known.Covers(d) })
}

// Reissuing writes orphans under new dots, some in a transaction, so that they can be covered (O5): same content, clock
// and time, and the old dot seen. On one key a later dot of an origin must have seen the earlier ones, so they get an
// origin drawn for the purpose, and a further one for each further orphan of one key. A key has no orphans left once
// it was reissued, so all can have the same origins, unless a peer brings another.
type Reissuing struct {
	drawn []causal.Dot             // the origins, and the last dot of each
	upTo  map[causal.Origin]uint64 // the log of an own origin has no orphans up to here
	rev   uint64                   // of the orphans
}

// Next reissues at most so many, and reports whether there were any.
func (p *Reissuing) Next(h keeper, limit int) (more bool, err error) {
	h.With(func(r *Replica) { more = r.Orphans() })
	if !more {
		return false, nil
	}
	var next Reissuing
	err = h.Commit(func(t *Txn) error {
		next = Reissuing{drawn: slices.Clone(p.drawn), upTo: maps.Clone(p.upTo), rev: p.rev}
		return next.Stage(t, limit)
	})
	if err == nil {
		*p = next
	}
	return true, err
}

// Stage stages that. If it is not committed, the Reissuing is of no use any more.
func (p *Reissuing) Stage(t *Txn, limit int) error {
	if p.rev != t.R.orphanRev || p.upTo == nil {
		*p = Reissuing{upTo: map[causal.Origin]uint64{}, rev: t.R.orphanRev}
	}
	for _, l := range t.R.Cloud {
		if !t.R.Own[l.Origin] || t.R.Known.Covers(l) {
			continue
		}
		orphans, err := t.R.orphans(l, p.upTo[l.Origin], limit)
		if err != nil {
			return err
		}
		for _, o := range orphans {
			if o.key == nil {
				t.Batch.Delete(store.AppendLogKey(nil, t.R.Alias[l.Origin], o.seq))
			} else if p.drawn, err = t.reissueKey(o.key, p.drawn); err != nil {
				return err
			}
			p.upTo[l.Origin] = o.seq
			if t.Large() {
				return nil
			}
		}
		if limit -= len(orphans); limit <= 0 {
			break
		}
		t.gone = append(t.gone, l)
	}
	return nil
}

// noteOrphans notes that there may be orphans where there were none.
func (r *Replica) noteOrphans(t *Txn) {
	if slices.ContainsFunc(t.merged, func(d causal.Dot) bool { return r.Own[d.Origin] && !r.Known.Covers(d) }) {
		r.orphanRev++
	}
}

// orphan is a log entry of an own origin above the version vector.
type orphan struct {
	seq uint64
	key []byte // nil: the log-index of its key does not name it, so it is stale
}

// orphans reads the log of an own origin above the version vector, and above a seq: what was reissued below is deleted,
// and takes time to pass over.
func (r *Replica) orphans(l causal.Dot, above uint64, limit int) (list []orphan, err error) {
	from := max(r.Known.Seq(causal.Covered, l.Origin), above) + 1
	it := r.Store.NewIterator(store.LogRange(r.Alias[l.Origin], from, causal.MaxSeq), nil)
	defer it.Release()
	for it.Next() && len(list) < limit {
		e, err := store.DecodeEntry(it.Key(), it.Value(), r)
		if err != nil {
			return nil, err
		}
		s, err := r.Lookup(e.Key)
		if err != nil {
			return nil, err
		}
		o := orphan{seq: e.Seq}
		if s.Has(e.Dot) {
			o.key = slices.Clone(e.Key)
		}
		list = append(list, o)
	}
	return list, it.Error()
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
