package replicator

import (
	"fmt"
	"testing"
	"time"

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
	r := newReplica(replicaConfig{})
	a.at(func(x *replica) { *r = *x })
	r.store = shut{t}
	var s Status
	s.own(r)
	require.EqualValues(t, 99, s.Keys)
	require.EqualValues(t, 1, s.Tombstones)
}

func TestPeerThatClaimsTheSameAndHoldsSomethingElseDiffers(t *testing.T) {
	known := knowledge{}
	known.raise(claimed, dot{Origin{1}, 7})
	ours, theirs := sum{1, 1}, sum{2, 2}
	for _, c := range []struct {
		name            string
		m               member
		agrees, differs bool
	}{
		{"the same", member{known: known, claims: known.claims, digest: ours}, true, false},
		{"something else", member{known: known, claims: known.claims, digest: theirs}, false, true},
		{"it had not pulled yet", member{known: known, claims: sum{9}, digest: theirs}, false, false},
	} {
		var s PeerStatus
		s.compare(&c.m, &peer{}, &known, ours.digest(), time.Now())
		require.Equal(t, c.agrees, s.Agrees, c.name)
		require.Equal(t, c.differs, s.Differs, c.name)
	}
}
