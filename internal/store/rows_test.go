package store_test

import (
	"testing"

	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
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
