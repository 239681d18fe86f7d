package store_test

import (
	"fmt"
	"testing"

	"github.com/level-replicator/replicator/internal/crashfs"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

// design.md: C1
func TestFlushBringsEverythingToDiskWhateverTheWriteBuffer(t *testing.T) {
	for _, buffer := range []int{1 << 10, 6 << 10, 16 << 10, 64 << 10, 4 << 20} {
		for writes := range 6 {
			fs := crashfs.New(nil)
			db, err := leveldb.Open(fs, &opt.Options{WriteBuffer: buffer})
			require.NoError(t, err)
			for i := range writes {
				require.NoError(t, db.Put(fmt.Append(nil, i), make([]byte, 331*i), nil))
			}
			require.NoError(t, store.Flush(db))
			image := fs.Image(crashfs.DropUnsynced, nil)
			require.NoError(t, db.Close())
			left, err := leveldb.Open(image, nil)
			require.NoError(t, err)
			for i := range writes {
				has, err := left.Has(fmt.Append(nil, i), nil)
				require.NoError(t, err)
				require.True(t, has, "write %d of %d, with a buffer of %d bytes", i, writes, buffer)
			}
			require.NoError(t, left.Close())
		}
	}
}
