package replicator

import (
	"iter"
	"slices"

	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// Versions gives what the server holds of a key: one version, a tombstone perhaps,
// or several if their writers did not know of each other, in canonical order. It
// is empty for a key that was never written or whose deletion is forgotten. The
// caller owns the values.
func (db *DB) Versions(key []byte) ([]Version, error) {
	if db.isClosing() {
		return nil, leveldb.ErrClosed
	}
	st, err := db.look()
	if err != nil {
		return nil, err
	}
	defer st.Release()
	s, err := store.ReadIndex(st, key, st)
	if err != nil {
		return nil, err
	}
	vs, err := store.ReadVersions(st, key, s, st)
	if err != nil {
		return nil, err
	}
	return copyVersions(publicVersions(replica.Canonical(vs))), nil
}

// look takes a state of the database to read in.
func (db *DB) look() (st *replica.View, err error) {
	return replica.TakeView(db.with, nil)
}

// Conflicts goes through the keys in conflict, in key order, with all versions of
// each in canonical order: those that their writers wrote without knowing of each
// other, and whose content differs. Any write of the key settles the conflict.
//
// It reads the database as it was when the loop began. The caller owns what it gets.
// An error ends the loop early; [DB.Verify] would name it.
func (db *DB) Conflicts() iter.Seq2[[]byte, []Version] {
	return func(yield func([]byte, []Version) bool) {
		if db.isClosing() {
			return
		}
		st, err := db.look()
		if err != nil {
			return
		}
		defer st.Release()
		if err := eachConflict(st, yield); err != nil {
			db.opts.Logger.Error("replicator: cannot list conflicts", "error", err)
		}
	}
}

func eachConflict(v *replica.View, yield func([]byte, []Version) bool) error {
	it := v.NewIterator(store.KindRange(store.KindConflict), nil)
	defer it.Release()
	for it.Next() {
		key := slices.Clone(store.UserKey(it.Key()))
		s, err := store.ReadIndex(v, key, v)
		if err != nil {
			return err
		}
		vs, err := store.ReadVersions(v, key, s, v)
		if err != nil {
			return err
		}
		if len(vs) < 2 || !replica.InConflict(vs) {
			continue // left behind by a crash
		}
		if !yield(key, copyVersions(publicVersions(replica.Canonical(vs)))) {
			return it.Error()
		}
	}
	return it.Error()
}
