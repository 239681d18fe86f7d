package replicator

import (
	"fmt"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
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

func (s shut) Snapshot() (store.Snapshot, error) { s.t.Error("snapshot"); return nil, nil }

func TestStatusReadsNothingFromTheStore(t *testing.T) {
	a := serve(t, Options{})
	b := serve(t, Options{Peers: []string{a.Addr().String()}})
	for i := range 100 {
		require.NoError(t, a.Put(fmt.Append(nil, i), []byte("v"), nil))
	}
	require.NoError(t, a.Delete([]byte("7"), nil))
	require.NoError(t, b.Sync(t.Context()))
	r := replica.NewReplica(replica.ReplicaConfig{})
	a.with(func(x *replica.Replica) { *r = *x })
	r.Store = shut{t}
	var s Status
	s.own(r)
	require.EqualValues(t, 99, s.Keys)
	require.EqualValues(t, 1, s.Tombstones)
}

func TestPeerThatClaimsTheSameAndHoldsSomethingElseDiffers(t *testing.T) {
	known := causal.Knowledge{}
	known.Raise(causal.Covered, causal.Dot{Origin: causal.Origin{1}, Seq: 7})
	ours, theirs := causal.Sum{1, 1}, causal.Sum{2, 2}
	for _, c := range []struct {
		name            string
		m               replica.Member
		agrees, differs bool
	}{
		{"the same", replica.Member{Known: known, VectorSum: known.VectorSum, Digest: ours}, true, false},
		{"something else", replica.Member{Known: known, VectorSum: known.VectorSum, Digest: theirs}, false, true},
		{"it had not pulled yet", replica.Member{Known: known, VectorSum: causal.Sum{9}, Digest: theirs}, false, false},
	} {
		var s PeerStatus
		s.compare(&c.m, &peer{}, &known, ours.Digest(), time.Now())
		require.Equal(t, c.agrees, s.Agrees, c.name)
		require.Equal(t, c.differs, s.Differs, c.name)
	}
}
