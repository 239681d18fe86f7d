package replicator_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
)

func TestTransactionIsOneBatchAtOtherServers(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b", "a:9000")
		changes := b.Watch(t.Context(), nil)
		tr, err := a.OpenTransaction()
		require.NoError(t, err)
		for i := range 500 {
			require.NoError(t, tr.Put(fmt.Appendf(nil, "k%03d", i), []byte("v"), nil))
		}
		require.NoError(t, tr.Commit())
		for range changes {
			break
		}
		require.Len(t, contents(t, b), 500)
	})
}

func TestTransactionRefusesABatchWithOneReservedKey(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		a := newCluster(t).start("a")
		tr, err := a.OpenTransaction()
		require.NoError(t, err)
		batch := new(leveldb.Batch)
		batch.Put([]byte("k"), []byte("v"))
		batch.Put([]byte{0xff, 0xff, 'i'}, nil)
		require.ErrorIs(t, tr.Write(batch, nil), replicator.ErrReservedKey)
		_, err = tr.Get([]byte("k"), nil)
		require.Equal(t, leveldb.ErrNotFound, err)
		_, err = tr.Get([]byte("\xff\xffm"+"format"), nil)
		require.Equal(t, leveldb.ErrNotFound, err)
		it := tr.NewIterator(nil, nil)
		require.False(t, it.Next())
		it.Release()
		require.NoError(t, tr.Commit())

		require.ErrorIs(t, a.Write(batch, nil), replicator.ErrReservedKey)
		require.Empty(t, contents(t, a))
		s, err := a.GetSnapshot()
		require.NoError(t, err)
		defer s.Release()
		_, err = s.Get([]byte("\xff\xffm"+"format"), nil)
		require.Equal(t, leveldb.ErrNotFound, err)
		ok, err := s.Has([]byte("\xff\xffm"+"format"), nil)
		require.NoError(t, err)
		require.False(t, ok)
	})
}

// Iterators taken between writes freeze what was staged; that must not grow
// without bound, and each sees its own state.
func TestManyIteratorsOfOneTransaction(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		a := newCluster(t).start("a")
		put(t, a, "k5", "old")
		tr, err := a.OpenTransaction()
		require.NoError(t, err)
		for i := range 50 {
			require.NoError(t, tr.Put(fmt.Appendf(nil, "k%d", i%10), fmt.Append(nil, i), nil))
			if i%7 == 0 {
				require.NoError(t, tr.Delete([]byte("k3"), nil))
			}
			it := tr.NewIterator(nil, nil)
			require.NoError(t, tr.Put([]byte("a"), nil, nil))
			require.NoError(t, tr.Delete([]byte("a"), nil))
			n := 0
			for it.Next() {
				require.NotEqual(t, "a", string(it.Key()))
				n++
			}
			require.NoError(t, it.Error())
			require.LessOrEqual(t, n, 10)
			it.Release()
		}
		require.NoError(t, tr.Commit())
		require.Equal(t, "45", value(t, a, "k5"))
		require.Len(t, contents(t, a), 9)
	})
}
