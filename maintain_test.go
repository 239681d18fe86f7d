package replicator

import (
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/crashfs"
	"github.com/level-replicator/replicator/internal/indexcache"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
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

// heldFlush holds goleveldb's memtable flush back just before its end, once, and
// notes whether the handle was being closed then.
type heldFlush struct {
	*crashfs.Storage
	armed, held, over, closedEarly atomic.Bool
	under                          chan struct{} // closed when the flush is held
	gate                           chan struct{}
}

func (s *heldFlush) Log(text string) {
	switch {
	case strings.HasPrefix(text, "memdb@flush committed") && s.armed.Load() && s.held.CompareAndSwap(false, true):
		close(s.under)
		<-s.gate
		s.over.Store(true)
	case strings.HasPrefix(text, "db@close closing") && !s.over.Load():
		s.closedEarly.Store(true)
	}
}

// design.md: O3
func TestCloseWaitsUntilNothingIsFlushed(t *testing.T) {
	st := &heldFlush{Storage: crashfs.New(nil), under: make(chan struct{}), gate: make(chan struct{})}
	raw, err := leveldb.Open(st, &opt.Options{WriteBuffer: 32 << 10})
	require.NoError(t, err)
	db, err := Replicate(raw, &Options{Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	st.armed.Store(true)
	go func() { // a Put may wait for the flush, too, if it fills the next memtable
		<-st.under
		time.AfterFunc(100*time.Millisecond, func() { close(st.gate) })
	}()
	for i := 0; !st.held.Load(); i++ { // with Sync: Close need not flush
		require.NoError(t, db.Put(fmt.Append(nil, i%10), make([]byte, 500), &opt.WriteOptions{Sync: true}))
	}
	require.NoError(t, db.Close())
	require.False(t, st.closedEarly.Load(), "goleveldb may panic when it is closed while it flushes")
}

// TestKeysOfAnEarlierOpeningAreOverwrittenNotLoggedTwice opens a database again, after
// a clean close and as a crash would leave it: a key that the filter does not know
// would leave its old log entry behind.
func TestKeysOfAnEarlierOpeningAreOverwrittenNotLoggedTwice(t *testing.T) {
	for _, clean := range []bool{true, false} {
		stor := storage.NewMemStorage()
		const n = indexcache.FilterStep + 10 // more than one step
		for range 2 {
			raw, err := leveldb.Open(stor, nil)
			require.NoError(t, err)
			db, err := Replicate(raw, &Options{Listen: "127.0.0.1:0"})
			require.NoError(t, err)
			for i := range n {
				require.NoError(t, db.Put(fmt.Append(nil, "key", i), []byte("v"), nil))
			}
			r, err := db.Verify(t.Context())
			require.NoError(t, err)
			require.True(t, r.OK(), "%+v", r.Faults)
			require.EqualValues(t, n, db.Status().Keys)
			whole := false
			for !whole { // it is filled in the background
				db.with(func(r *replica.Replica) { whole = r.Filter.Whole })
			}
			db.with(func(r *replica.Replica) {
				for i := range n {
					require.False(t, r.Filter.Lacks(fmt.Append(nil, "key", i)))
				}
				unknown := 0
				for i := range 1000 {
					unknown += int(store.Btoi(r.Filter.Lacks(fmt.Append(nil, "another", i))))
				}
				require.Greater(t, unknown, 950)
			})
			if clean {
				require.NoError(t, db.Close())
				continue
			}
			require.NoError(t, db.Close())
			raw, err = leveldb.Open(stor, nil)
			require.NoError(t, err)
			require.NoError(t, raw.Delete(store.MetaClean, nil))
			require.NoError(t, raw.Close())
		}
	}
}
