package replicator

import (
	"bytes"
	"cmp"
	"context"
	"iter"
	"slices"

	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// Versions returns the siblings of a key in canonical order: one version, perhaps a
// tombstone, or several if they are concurrent. It returns none for a key that was never
// written, or whose deletion was purged. The caller owns the values.
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

// Conflict is a key in conflict: its siblings differ in content.
type Conflict struct {
	Key []byte
	// Versions are the siblings, in canonical order: by Clock, Time, Origin and Seq, the
	// least first.
	Versions []Version
	// Winner is the index in Versions of the sibling that reads return, or -1 if they return
	// a value that the resolver merged. Of siblings with equal content it is the last.
	Winner int
	// Value is the resolved value, which reads return. It is nil, and never empty, if the
	// key resolves to a deletion.
	Value []byte
}

// Conflicts returns an iterator over the keys in conflict, in key order. Any write of a key
// resolves its conflict; [DB.PutIf] with the [Version.ID] of all Versions does so only if they are
// still the same.
//
// The iterator reads the database as it was when the loop began. The caller owns what it
// yields. An error ends the loop: ctx's, leveldb.ErrClosed, or one of the store, which
// [DB.Verify] explains.
func (db *DB) Conflicts(ctx context.Context) iter.Seq2[Conflict, error] {
	return func(yield func(Conflict, error) bool) {
		if db.isClosing() {
			yield(Conflict{}, leveldb.ErrClosed)
			return
		}
		st, err := db.look()
		if err != nil {
			yield(Conflict{}, err)
			return
		}
		defer st.Release()
		it := st.NewIterator(store.KindRange(store.KindConflict), nil)
		defer it.Release()
		for it.Next() {
			c, ok, err := readConflict(st, slices.Clone(store.UserKey(it.Key())))
			if err = cmp.Or(ctx.Err(), err); err != nil {
				yield(Conflict{}, err)
				return
			}
			if ok && !yield(c, nil) {
				return
			}
		}
		if err := it.Error(); err != nil {
			yield(Conflict{}, err)
		}
	}
}

// readConflict reads a key that is listed as in conflict, and reports whether it is: a crash
// can leave one on the list.
func readConflict(v *replica.View, key []byte) (c Conflict, ok bool, err error) {
	s, err := store.ReadIndex(v, key, v)
	if err != nil {
		return c, false, err
	}
	vs, err := store.ReadVersions(v, key, s, v)
	if err != nil || len(vs) < 2 || !replica.InConflict(vs) {
		return c, false, err
	}
	value, err := v.Get(key, nil)
	deleted := err == leveldb.ErrNotFound
	if err != nil && !deleted {
		return c, false, err
	}
	c = Conflict{Key: key, Versions: copyVersions(publicVersions(replica.Canonical(vs))), Winner: -1}
	if !deleted {
		c.Value = append([]byte{}, value...)
	}
	for i, x := range c.Versions {
		if x.Deleted == deleted && bytes.Equal(x.Value, c.Value) {
			c.Winner = i
		}
	}
	return c, true, nil
}
