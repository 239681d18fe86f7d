package replicator_test

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"

	"github.com/level-replicator/replicator"
)

func TestStoreOptionsAreFresh(t *testing.T) {
	o := replicator.StoreOptions()
	o.WriteBuffer, o.Filter = 1, nil
	require.NotEqual(t, o.WriteBuffer, replicator.StoreOptions().WriteBuffer)
	require.NotNil(t, replicator.StoreOptions().Filter)
}

// TestStoreOptionsComeAndGo opens a database with the options and without them in turn, and
// small ones besides, so that there are tables of each kind.
func TestStoreOptionsComeAndGo(t *testing.T) {
	stor := storage.NewMemStorage()
	key := func(i int) []byte { return fmt.Append(nil, "key", i) }
	small := replicator.StoreOptions()
	small.WriteBuffer, small.CompactionTableSize, small.CompactionTotalSize = 8<<10, 4<<10, 16<<10
	written := 0
	for _, o := range []*opt.Options{nil, replicator.StoreOptions(), nil, small, replicator.StoreOptions(), {WriteBuffer: 8 << 10}, small} {
		raw, err := leveldb.Open(stor, o)
		require.NoError(t, err)
		db, err := replicator.Replicate(raw, &replicator.Options{Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
		require.NoError(t, err)
		for range 500 {
			require.NoError(t, db.Put(key(written), key(written), nil))
			written++
		}
		for i := range written {
			value, err := db.Get(key(i), nil)
			require.NoError(t, err, "%d", i)
			require.Equal(t, key(i), value)
			_, err = db.Get(key(i+1_000_000), nil)
			require.ErrorIs(t, err, leveldb.ErrNotFound)
		}
		require.NoError(t, db.Close())
	}
}
