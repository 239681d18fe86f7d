package replicator_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"

	"github.com/level-replicator/replicator/replicatortest"
)

func TestNothingHangsAfterClose(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		put(t, a, "k", "v")
		digest := a.Digest()
		token := a.Token()
		require.NoError(t, a.Close())

		require.Equal(t, digest, a.Digest(), "what is in memory still answers")
		require.Equal(t, token, a.Token())
		require.EqualValues(t, 1, a.Status().Keys)
		require.Equal(t, leveldb.ErrClosed, a.SetReadOnly())
		require.Equal(t, leveldb.ErrClosed, a.WaitFor(context.Background(), token))
		require.Equal(t, leveldb.ErrClosed, a.WaitReplicated(context.Background(), 1))
		require.Equal(t, leveldb.ErrClosed, a.Adopt(context.Background()))
		_, err := a.Versions([]byte("k"))
		require.Equal(t, leveldb.ErrClosed, err)
		for range a.Conflicts() {
			t.Fatal("a closed database lists no conflicts")
		}
		for range a.Watch(context.Background(), nil) {
			t.Fatal("a closed database has no changes")
		}
		a.AddPeer("b:9000")
		a.RemovePeer("b:9000")
	})
}
