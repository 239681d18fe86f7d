package store_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"
)

func TestRowsJoinValuesAndLogIndex(t *testing.T) {
	db, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(t, err)
	defer db.Close()
	for _, k := range []string{"a", "b", "d", "f"} {
		require.NoError(t, db.Put([]byte(k), []byte("value "+k), nil))
	}
	for _, k := range []string{"b", "c", "f", "g"} {
		require.NoError(t, db.Put(store.KindKey(store.KindIndex, []byte(k)), []byte("index "+k), nil))
	}
	require.NoError(t, db.Put(store.KindKey(store.KindLog, []byte("z")), nil, nil))
	read := func(from []byte) (got []string) {
		for r, err := range store.Rows(db, from) {
			require.NoError(t, err)
			require.Equal(t, r.HasValue, len(r.Value) > 0)
			require.Equal(t, r.Indexed, len(r.Index) > 0)
			got = append(got, string(r.Key)+": "+string(r.Value)+", "+string(r.Index))
		}
		return got
	}
	all := []string{"a: value a, ", "b: value b, index b", "c: , index c", "d: value d, ", "f: value f, index f", "g: , index g"}
	require.Equal(t, all, read(nil))
	require.Equal(t, all[4:], read([]byte("e")))
	require.Empty(t, read([]byte("h")))

	for range store.Rows(db, nil) { // one that is left early holds nothing
		break
	}
	require.NoError(t, db.Close())
	var errs []error
	for r, err := range store.Rows(db, nil) {
		require.Empty(t, r)
		errs = append(errs, err)
	}
	require.Len(t, errs, 1)
	require.ErrorIs(t, errs[0], leveldb.ErrClosed)
}

// failing reads a store of which a part of the log-index cannot be read: an iterator ends there.
type failing struct{ *leveldb.DB }

func (f failing) NewIterator(g *util.Range, ro *opt.ReadOptions) iterator.Iterator {
	it := f.DB.NewIterator(g, ro)
	if g != nil && len(g.Start) > 2 && g.Start[2] == store.KindIndex {
		return &failingIterator{Iterator: it}
	}
	return it
}

type failingIterator struct {
	iterator.Iterator
	steps int
}

var errBlock = errors.New("the block cannot be read")

func (it *failingIterator) Next() bool {
	it.steps++
	return it.steps < 3 && it.Iterator.Next()
}

func (it *failingIterator) Error() error {
	if it.steps >= 3 {
		return errBlock
	}
	return nil
}

func TestRowsOfAnIndexThatCannotBeReadAreNotTakenForUnlogged(t *testing.T) {
	db, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(t, err)
	defer db.Close()
	for _, k := range []string{"a", "b", "c", "d"} {
		require.NoError(t, db.Put([]byte(k), []byte("value"), nil))
		require.NoError(t, db.Put(store.KindKey(store.KindIndex, []byte(k)), []byte("index"), nil))
	}
	rows := 0
	for r, err := range store.Rows(failing{db}, nil) {
		if err != nil {
			require.ErrorIs(t, err, errBlock)
			break
		}
		rows++
		require.True(t, r.HasValue && r.Indexed, "%s", r.Key)
	}
	require.Equal(t, 2, rows)
}

// A finder finds what Get does, however the keys lie.
func TestFinderFindsWhatGetFinds(t *testing.T) {
	db, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(t, err)
	defer db.Close()
	const n = 20_000
	for i := range n {
		require.NoError(t, db.Put(fmt.Appendf(nil, "%06d", 2*i), fmt.Append(nil, i), nil))
	}
	slice := &util.Range{Limit: []byte("a")}
	for name, step := range map[string]func(i int) int{
		"neighbours": func(int) int { return 1 },
		"near":       func(i int) int { return 1 + i*7%60 },
		"far":        func(int) int { return 177 },
		"mixed":      func(i int) int { return 1 + i%50/49*900 },
	} {
		counted := &counting{Reader: db}
		f := store.NewFinder(counted, slice)
		asked := 0
		for at, i := -3, 0; at < 2*n+10; at, i = at+step(i), i+1 {
			key := fmt.Appendf(nil, "%06d", max(at, 0))
			want, err := db.Get(key, nil)
			got, ok, found := f.Find(key, slices.Clone[[]byte])
			require.NoError(t, found)
			require.Equal(t, err == nil, ok, "%s", key)
			require.Equal(t, want, got)
			asked++
		}
		f.Release()
		switch name {
		case "neighbours", "near":
			require.Zero(t, counted.gets, name)
		case "far":
			require.Greater(t, counted.gets, asked*8/10, name)
		case "mixed":
			require.Less(t, counted.gets, asked/20, name)
		}
	}
}

// counting counts lookups.
type counting struct {
	store.Reader
	gets int
}

func (c *counting) Get(key []byte, ro *opt.ReadOptions) ([]byte, error) {
	c.gets++
	return c.Reader.Get(key, ro)
}
