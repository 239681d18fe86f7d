package replicator_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
)

func TestVerifyNamesWhatDoesNotFitTogether(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		raw := replicatortest.MemDB(t)
		a, b := c.open("a", raw, &replicator.Options{}), c.start("b", "a:9000")
		requireAgreement(t, a, b)
		c.net.Partition([]string{"a"}, []string{"b"})
		for i := range 100 {
			put(t, a, fmt.Sprintf("k%02d", i), "v")
		}
		put(t, b, "k07", "conflict")
		require.NoError(t, a.Delete([]byte("k10"), nil))
		c.net.Heal()
		requireAgreement(t, a, b)
		r, err := a.Verify(context.Background())
		require.NoError(t, err)
		require.Empty(t, r.Faults)
		require.True(t, r.OK())
		require.EqualValues(t, 100, r.Keys)
		require.EqualValues(t, 101, r.Versions)
		require.Equal(t, a.Digest(), r.Digest)

		require.NoError(t, raw.Put([]byte("k01"), []byte("past the wrapper"), nil))
		require.NoError(t, raw.Put([]byte("k10"), []byte("alive again"), nil))
		require.NoError(t, raw.Put([]byte("stranger"), nil, nil))
		require.NoError(t, raw.Delete([]byte("k02"), nil))
		require.NoError(t, raw.Put([]byte("k07"), []byte("not what the resolver says"), nil))
		it := raw.NewIterator(util.BytesPrefix([]byte("\xff\xffl")), nil)
		require.True(t, it.First()) // the log entry of k00
		require.NoError(t, raw.Delete(it.Key(), nil))
		it.Release()
		r, err = a.Verify(context.Background())
		require.NoError(t, err)
		var keys []string
		for _, f := range r.Faults {
			keys = append(keys, string(f.Key))
		}
		require.ElementsMatch(t, []string{"k00", "k01", "k02", "k07", "k10", "stranger"}, keys)

		ended, cancel := context.WithCancel(context.Background())
		cancel()
		_, err = a.Verify(ended)
		require.ErrorIs(t, err, context.Canceled)
	})
}
