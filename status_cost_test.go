package replicator

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// shut is a store that nobody may read.
type shut struct{ t *testing.T }

func (s shut) Get([]byte, *opt.ReadOptions) ([]byte, error) { s.t.Error("Get"); return nil, nil }
func (s shut) NewIterator(*util.Range, *opt.ReadOptions) iterator.Iterator {
	s.t.Error("NewIterator")
	return iterator.NewEmptyIterator(nil)
}
func (s shut) snapshot() (snapshot, error) { s.t.Error("snapshot"); return nil, nil }

func TestStatusReadsNothingFromTheStore(t *testing.T) {
	a := serve(t, Options{})
	b := serve(t, Options{Peers: []string{a.Addr().String()}})
	for i := range 100 {
		require.NoError(t, a.Put(fmt.Append(nil, i), []byte("v"), nil))
	}
	require.NoError(t, a.Delete([]byte("7"), nil))
	require.NoError(t, b.Sync(t.Context()))
	r := newReplica(nil, &a.opts)
	a.at(func(x *replica) { *r = *x })
	r.store = shut{t}
	var s Status
	r.ownStatus(&s)
	require.EqualValues(t, 99, s.Keys)
	require.EqualValues(t, 1, s.Tombstones)
}
