package replicator_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
)

func TestServerThatWasOpenForAMomentRemembersItsMembers(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		stay := storage.NewMemStorage()
		reopen := func(peers ...string) *replicator.DB {
			raw, err := leveldb.Open(stay, nil)
			require.NoError(t, err)
			return c.open("b", raw, &replicator.Options{Peers: peers})
		}
		put(t, a, "k", "v")
		b := reopen()
		time.Sleep(time.Second) // what is written soon after the opening was written
		b.AddPeer("a:9000")
		require.NoError(t, b.Sync(t.Context()))
		require.NoError(t, b.Close()) // sooner than it is written again

		c.net.Block("a", "b")
		b = reopen()
		require.NoError(t, b.Delete([]byte("k"), nil))
		require.NoError(t, b.Close()) // it is on disk now, and would be forgotten if nobody held it back
		b = reopen()
		time.Sleep(time.Minute)
		require.EqualValues(t, 1, b.Status().Tombstones, "a has not heard of the deletion")
		require.NoError(t, b.Close())

		put(t, a, "k", "written without knowing of the deletion")
		c.net.Heal()
		b = reopen("a:9000")
		require.NoError(t, b.Sync(t.Context()))
		require.EqualValues(t, 1, b.Status().Conflicts)
		requireAgreement(t, a, b)
	})
}
