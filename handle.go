package replicator

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// handles are those that are replicated in this process. Two replicas over one would
// give out the same aliases for different origins.
var handles registry

type registry struct {
	mu  sync.Mutex
	all map[*leveldb.DB]struct{}
}

// enter reports whether a handle was not there, and puts it there.
func (g *registry) enter(db *leveldb.DB) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.all[db]; ok {
		return false
	}
	if g.all == nil {
		g.all = map[*leveldb.DB]struct{}{}
	}
	g.all[db] = struct{}{}
	return true
}

func (g *registry) leave(db *leveldb.DB) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.all, db)
}

// checkHandle refuses a handle that could not be replicated, and reports whether
// what it holds is still to be logged.
func checkHandle(db *leveldb.DB, o *Options) (fresh bool, err error) {
	if _, err = db.Get(store.MetaFormat, nil); err == nil {
		if err := checkLocal(db, o.LocalRanges); err != nil {
			return false, err
		}
		fresh, err = db.Has(store.MetaAdopt, nil)
	} else if err == leveldb.ErrNotFound {
		fresh, err = checkFresh(db)
	}
	if err == nil && fresh && o.Follower {
		err = checkFollower(db, o.LocalRanges)
	}
	return fresh, err
}

// checkFollower refuses a follower over data that was never logged: to log it would
// be to write it, and every other replica would show it.
func checkFollower(db *leveldb.DB, local []*util.Range) error {
	it := db.NewIterator(store.Visible(nil), nil)
	defer it.Release()
	for it.Next() {
		if !store.InRanges(local, it.Key()) {
			return errors.New("replicator: Options.Follower: the handle holds data that was never logged, and a follower writes nothing: start it with an empty directory, or open this one without Follower until it is ready, which makes the data writes of now")
		}
	}
	return it.Error()
}

// checkFresh refuses a handle that was never replicated and could not be, and
// reports that what it holds is to be logged.
func checkFresh(db *leveldb.DB) (bool, error) {
	if err := checkOrder(db); err != nil {
		return false, err
	}
	it := db.NewIterator(&util.Range{Start: store.ReservedStart}, nil)
	defer it.Release()
	for it.Next() {
		if bytes.HasPrefix(it.Key(), store.MetaOrder) {
			continue // of a check that a crash cut short
		}
		return false, fmt.Errorf("%w: the database holds the key %.40q, and that range is needed for the log", store.ErrReservedKey, it.Key())
	}
	return true, it.Error()
}

// checkOrder finds out whether the comparer of a database sorts bytewise. The
// handle does not tell, so it is tried on a few keys of the reserved range.
func checkOrder(db *leveldb.DB) error {
	suffixes := []string{"", "\x00", "\x00\x00", "\x01", "\x01\x00", "10", "9", "A", "B", "a", "a\x00", "aa", "b", "\x7f", "\x80", "\xff", "\xff\xff"}
	put, del := new(leveldb.Batch), new(leveldb.Batch)
	for _, s := range suffixes {
		put.Put(append(slices.Clone(store.MetaOrder), s...), nil)
		del.Delete(append(slices.Clone(store.MetaOrder), s...))
	}
	if err := db.Write(put, nil); err != nil {
		return err
	}
	var got []string
	it := db.NewIterator(&util.Range{Start: store.MetaOrder}, nil)
	for it.Next() {
		if s, ok := strings.CutPrefix(string(it.Key()), string(store.MetaOrder)); ok {
			got = append(got, s)
		}
	}
	it.Release()
	if err := errors.Join(it.Error(), db.Write(del, nil)); err != nil {
		return err
	}
	if !slices.Equal(got, suffixes) {
		return errors.New("replicator: the database has a comparer that does not sort bytewise; only the default comparer can be replicated")
	}
	return nil
}

// checkLocal refuses other local ranges than those of the last opening. A database of
// a release that did not keep them takes what it is given.
func checkLocal(db *leveldb.DB, given []*util.Range) error {
	rec, err := db.Get(store.MetaLocal, nil)
	if err == leveldb.ErrNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	kept, err := store.DecodeRanges(rec)
	if err != nil {
		return fmt.Errorf("replicator: record of the local ranges: %w", err)
	}
	same := func(a, b *util.Range) bool { return bytes.Equal(a.Start, b.Start) && bytes.Equal(a.Limit, b.Limit) }
	if !slices.EqualFunc(kept, given, same) {
		return fmt.Errorf("replicator: Options.LocalRanges: %s, want %s, as when the database was first opened: keys of a range that changes would be logged in part; to change them, begin with new directories, see docs/operations.md", describeRanges(given), describeRanges(kept))
	}
	return nil
}

// describeRanges is for the errors of whoever chose the ranges.
func describeRanges(ranges []*util.Range) string {
	if len(ranges) == 0 {
		return "no ranges"
	}
	var all []string
	for _, g := range ranges {
		all = append(all, fmt.Sprintf("%.40q to %.40q", g.Start, g.Limit))
	}
	return strings.Join(all, ", ")
}
