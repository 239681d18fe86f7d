package replicator_test

import (
	"fmt"
	"testing"

	"github.com/level-replicator/replicator/internal/testdb"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// TestEmptyReplicaJoins fills a replica with more keys than a pull is for. Whoever watches it is told of each key, with
// the time of its write, which does not come with the key.
func TestEmptyReplicaJoins(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		const keys = 20_000
		c := newCluster(t)
		a := c.start("a")
		b := new(leveldb.Batch)
		for i := range keys {
			b.Put(fmt.Appendf(nil, "key %06d", i), fmt.Appendf(nil, "value %d", i))
			if b.Len() == 1000 {
				require.NoError(t, a.Write(b, nil))
				b.Reset()
			}
		}
		d := c.start("d")
		changes := d.Watch(t.Context(), []byte("key 0001"))
		require.NoError(t, d.AddPeer("a:9000"))
		requireAgreement(t, a, d)
		require.Equal(t, testdb.Contents(t, a), testdb.Contents(t, d))
		require.EqualValues(t, keys, d.Status().Pulled)
		n := 0
		for ch, err := range changes {
			require.NoError(t, err)
			require.False(t, ch.Version.Time.IsZero())
			require.Equal(t, fmt.Sprintf("key %06d", 100+n), string(ch.Key), "the writes of one moment in their order")
			vs, err := a.Versions(ch.Key)
			require.NoError(t, err)
			require.Equal(t, vs[0].Time, ch.Version.Time)
			if n++; n == 100 {
				break
			}
		}
		r, err := d.Verify(t.Context())
		require.NoError(t, err)
		require.Empty(t, r.Faults)
	})
}
