package replica

import (
	"cmp"
	"errors"
	"slices"

	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// resolveConflicts stages the resolved value of a key in conflict, if it has changed, with all
// its state, as ever.
func (t *Txn) resolveConflicts(key []byte) error {
	s, k, err := t.Lookup(key)
	if err != nil || k != nil { // just written: resolved
		return err
	}
	vs, err := t.full(key, s, k)
	if err != nil {
		return err
	}
	if len(vs) < 2 || !InConflict(vs) {
		has, err := t.hasKey(store.KindConflict, key)
		if has { // left behind by a crash
			t.Batch.Delete(store.KindKey(store.KindConflict, key))
			t.Conflicts--
			t.unhinted = append(t.unhinted, slices.Clone(key))
		}
		return err
	}
	odd, err := outdated(t.R.Store, key, vs, func(key []byte, vs []store.Version) store.Version {
		resolved, _ := t.resolve(key, vs)
		return resolved
	})
	if err != nil || !odd {
		return err
	}
	return t.replace(key, s, nil, vs, false)
}

// Resolving has keys in conflict resolved again, as the resolver may be another one than last time (M8), and drops
// the hints of conflicts that a crash left. It reads with the queue free, and goes on where it was.
type Resolving struct {
	Done bool
	Step int    // keys in conflict that are read in one state; 0: as many as is usual
	from []byte // where to go on
}

const resolveStep = 256

// Next goes on with some more keys. It ends early, but not without having done something, when
// enough says so.
func (p *Resolving) Next(h keeper, resolve ResolveFunc, enough func() bool) error {
	v, err := TakeView(h.With, nil)
	if err != nil {
		return err
	}
	keys, next, err := v.unresolved(p.from, cmp.Or(p.Step, resolveStep), resolve, enough)
	v.Release()
	if err == nil && len(keys) > 0 {
		err = h.Each(keys, OneByOne((*Txn).resolveConflicts))
	}
	if err != nil {
		return err
	}
	if p.from = next; next == nil {
		p.Done = true
		h.With(func(r *Replica) { r.mayHaveHints = false })
	}
	return nil
}

// unresolved returns keys in conflict, from one on, whose resolved value is outdated (M8), and
// those of which only the hint is left; and where to go on, or nil at the end.
func (v *View) unresolved(from []byte, limit int, resolve ResolveFunc, enough func() bool) (keys [][]byte, next []byte, err error) {
	it := v.NewIterator(store.KindRangeFrom(store.KindConflict, from), nil)
	defer it.Release()
	for n := 0; it.Next(); n++ {
		key := slices.Clone(store.UserKey(it.Key()))
		if n >= limit || n > 0 && enough() {
			return keys, key, it.Error()
		}
		s, readable, err := v.indexOf(key)
		if err != nil {
			return nil, nil, err
		}
		if !readable {
			continue
		}
		vs, err := store.ReadVersions(v, key, s, v)
		if errors.Is(err, store.ErrCorrupted) {
			continue
		} else if err != nil {
			return nil, nil, err
		}
		odd, err := outdated(v, key, vs, func(key []byte, vs []store.Version) store.Version {
			resolved, _ := Resolve(resolve, key, vs)
			return resolved
		})
		if err != nil {
			return nil, nil, err
		}
		if odd || !InConflict(vs) {
			keys = append(keys, key)
		}
	}
	return keys, nil, it.Error()
}

// outdated reports whether the resolved value of a key in conflict is something else than what
// resolve makes of it now. What was written past the wrapper is for Adopt, and is left alone.
func outdated(rd store.Reader, key []byte, vs []store.Version, resolve func(key []byte, vs []store.Version) store.Version) (bool, error) {
	if len(vs) < 2 || !InConflict(vs) {
		return false, nil
	}
	raw, err := rd.Get(key, nil)
	if err != nil && err != leveldb.ErrNotFound {
		return false, err
	}
	now := store.FingerprintOf(raw, err == leveldb.ErrNotFound)
	kept, known, err := store.ReadResolved(rd, key)
	if err != nil || known && kept != now {
		return false, err
	}
	resolved := resolve(key, vs)
	return store.FingerprintOf(resolved.Value, resolved.Deleted) != now, nil
}
