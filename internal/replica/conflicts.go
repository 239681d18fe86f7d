package replica

import (
	"errors"
	"slices"

	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// resolveConflicts stages what a key in conflict shows, if that is something else, with all
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
		}
		return err
	}
	odd, err := showsOther(t.R.Store, key, vs, func(key []byte, vs []store.Version) store.Version {
		shown, _ := t.resolve(key, vs)
		return shown
	})
	if err != nil || !odd {
		return err
	}
	return t.replace(key, s, nil, vs, false)
}

// unresolved returns keys in conflict, from one on, that do not show what the resolver makes
// of them (M8), and those of which only the mark is left; and where to go on, or nil at
// the end.
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
		odd, err := showsOther(v, key, vs, func(key []byte, vs []store.Version) store.Version {
			shown, _ := Resolve(resolve, key, vs)
			return shown
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

// showsOther reports whether a key in conflict shows something else than what resolve
// makes of it. What was written past the wrapper is for Adopt, and is left alone.
func showsOther(rd store.Reader, key []byte, vs []store.Version, resolve func(key []byte, vs []store.Version) store.Version) (bool, error) {
	if len(vs) < 2 || !InConflict(vs) {
		return false, nil
	}
	raw, err := rd.Get(key, nil)
	if err != nil && err != leveldb.ErrNotFound {
		return false, err
	}
	now := store.ShownOf(raw, err == leveldb.ErrNotFound)
	kept, known, err := store.ReadShown(rd, key)
	if err != nil || known && kept != now {
		return false, err
	}
	shown := resolve(key, vs)
	return store.ShownOf(shown.Value, shown.Deleted) != now, nil
}
