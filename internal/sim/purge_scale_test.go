package sim

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// onFiles opens a node in a directory. The function closes it and tells how large
// the directory is once goleveldb has compacted everything.
func onFiles(t testing.TB) (n *node, size func() int64) {
	dir := t.TempDir()
	st, err := storage.OpenFile(dir, false)
	require.NoError(t, err)
	n = openNode(t, st, replica.HighestClock)
	return n, func() (bytes int64) {
		require.NoError(t, n.db.CompactRange(util.Range{}))
		require.NoError(t, n.db.Close())
		again, err := leveldb.Open(st, nil) // which removes the files that were replaced
		require.NoError(t, err)
		require.NoError(t, again.Close())
		require.NoError(t, st.Close())
		require.NoError(t, filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				info, err := d.Info()
				require.NoError(t, err)
				bytes += info.Size()
			}
			return err
		}))
		return bytes
	}
}

// all writes or deletes many keys, in batches of a thousand.
func (n *node) all(keys int, deleted bool) {
	value := make([]byte, rowValue)
	for from := 0; from < keys; from += 1000 {
		require.NoError(n.t, n.Commit(func(t *replica.Txn) error {
			ws := make([]store.Write, 0, 1000)
			for i := from; i < min(from+1000, keys); i++ {
				ws = append(ws, store.Write{Key: fmt.Appendf(nil, "key%09d", i), Value: value, Deleted: deleted})
			}
			return t.Put(ws)
		}))
	}
}

// requireGone is a check that nothing of the keys is left, dead or alive.
func requireGone(t testing.TB, n *node) {
	t.Helper()
	require.Zero(t, n.r.Keys)
	require.Zero(t, n.r.Tombstones)
	require.Equal(t, causal.Sum{}, n.r.Digest)
	for _, kind := range []byte{store.KindLog, store.KindIndex, store.KindTombstone, store.KindConflict} {
		it := n.db.NewIterator(store.KindRange(kind), nil)
		require.False(t, it.Next(), "%c %q", kind, it.Key())
		require.NoError(t, it.Error())
		it.Release()
	}
	require.Empty(t, userData(t, n.db))
}

// design.md: G1, R1
func TestPurge_LeavesNothingOfKeysDeletedEverywhere(t *testing.T) {
	keys := 20_000
	if *scale {
		keys = 1_000_000
	}
	var nodes [4]*node
	var sizes [4]func() int64
	now := time.Now()
	for i := range nodes {
		nodes[i], sizes[i] = onFiles(t)
		nodes[i].r.Now = func() time.Time { return now }
		nodes[i].r.TombstoneTTL = -1
	}
	a, b, c, away := nodes[0], nodes[1], nodes[2], nodes[3]
	a.all(keys, false)
	for _, n := range []*node{b, c, away} {
		measured(t, n, a)
		require.EqualValues(t, keys, n.r.Keys)
	}
	now = now.Add(2 * time.Hour) // longer than PeerTTL: the one that is away holds nothing back
	a.all(keys, true)
	three := []*node{a, b, c}
	for range 3 { // all have it on disk, and all know that of each other
		for _, n := range three {
			n.saved()
			for _, m := range three {
				if m != n {
					measured(t, n, m)
				}
			}
		}
	}
	for _, n := range three {
		require.NoError(t, LookOnce(n, 1<<12))
		requireGone(t, n)
	}

	away.put("written while away", "v")
	took := measured(t, away, a)
	t.Logf("%d keys: the one that was away: %+v", keys, took)
	measured(t, b, away)
	measured(t, c, away)
	want := map[string]string{"written while away": "v"}
	for i, n := range nodes {
		require.Equal(t, want, userData(t, n.db))
		require.Equal(t, a.r.Digest, n.r.Digest)
		require.EqualValues(t, 1, n.r.Keys)
		bytes := sizes[i]()
		t.Logf("size of node %d: %d bytes", i, bytes)
		require.Less(t, bytes, int64(256<<10)) // of which goleveldb's own files are the most
	}
}
