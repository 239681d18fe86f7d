package replicator

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/indexcache"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/level-replicator/replicator/internal/testdb"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// wound deletes records of a key: of 'v'alue, 'i'ndex and 'l'og those named.
func wound(t testing.TB, db *DB, key, what string) {
	t.Helper()
	var s store.Siblings
	var alias uint32
	db.with(func(r *replica.Replica) {
		var err error
		s, err = store.ReadIndex(r.Store, []byte(key), r)
		require.NoError(t, err)
		require.NotEmpty(t, s)
		alias = r.Alias[s[0].Origin]
	})
	for _, c := range what {
		var k []byte
		switch c {
		case 'v':
			k = []byte(key)
		case 'i':
			k = store.KindKey(store.KindIndex, []byte(key))
		case 'l':
			k = store.AppendLogKey(nil, alias, s[0].Seq)
		}
		require.NoError(t, db.raw.Delete(k, nil))
	}
}

// pair are two replicas that hold the same, and replicate only when told to.
func pair(t testing.TB) (a, b *DB) {
	a = serve(t, Options{MaxInterval: time.Hour})
	b = serve(t, Options{MaxInterval: time.Hour, Peers: []string{a.Addr().String()}})
	for i := range 40 {
		require.NoError(t, a.Put(fmt.Appendf(nil, "a%02d", i), []byte("by a"), nil))
		require.NoError(t, b.Put(fmt.Appendf(nil, "b%02d", i), []byte("by b"), nil))
	}
	require.NoError(t, a.Delete([]byte("a39"), nil))
	require.NoError(t, b.Sync(t.Context()))
	return a, b
}

func requireWhole(t testing.TB, db *DB) {
	t.Helper()
	r, err := db.Verify(t.Context())
	require.NoError(t, err)
	require.Empty(t, r.Faults)
}

// design.md: R2, R3
func TestRepairMendsWhatIsLostHereAndHeldThere(t *testing.T) {
	for _, what := range []string{"v", "l", "i", "vi", "vl", "il", "vil"} {
		t.Run("without "+what, func(t *testing.T) {
			a, b := pair(t)
			want := testdb.Contents(t, a)
			wound(t, b, "a07", what)
			wound(t, b, "b07", what)
			r, err := b.Verify(t.Context())
			require.NoError(t, err)
			require.False(t, r.OK())

			r, err = b.Repair(t.Context())
			require.NoError(t, err)
			require.Empty(t, r.Faults)
			require.Positive(t, r.Mended)
			require.NoError(t, b.Sync(t.Context())) // a key of which nothing is left has only the digest to tell
			require.Equal(t, want, testdb.Contents(t, b))
			require.Equal(t, want, testdb.Contents(t, a))
			require.Equal(t, a.Digest(), b.Digest())
			requireWhole(t, b)
			requireWhole(t, a)
			c, err := b.Compare(t.Context(), a.Addr().String())
			require.NoError(t, err)
			require.Empty(t, c.Differences)
		})
	}
}

func TestRepairPutsBackWhatWasChangedPastTheWrapper(t *testing.T) {
	a, b := pair(t)
	want := testdb.Contents(t, a)
	require.NoError(t, b.raw.Put([]byte("a07"), []byte("changed"), nil))
	require.NoError(t, b.raw.Put([]byte("a39"), []byte("alive again"), nil))
	require.NoError(t, b.raw.Put([]byte("stranger"), []byte("never logged"), nil))
	r, err := b.Repair(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 2, r.Mended)
	require.Len(t, r.Faults, 1)
	require.Equal(t, "stranger", string(r.Faults[0].Key))
	require.Contains(t, r.Faults[0].Problem, "Adopt")
	want["stranger"] = "never logged"
	require.Equal(t, want, testdb.Contents(t, b))
}

// design.md: R4
func TestRepairDropsNothingThatNobodyElseHas(t *testing.T) {
	b := serve(t, Options{})
	require.NoError(t, b.Put([]byte("k"), []byte("v"), nil))
	require.NoError(t, b.Put([]byte("whole"), []byte("v"), nil))
	wound(t, b, "k", "l")
	r, err := b.Repair(t.Context())
	require.NoError(t, err)
	require.Len(t, r.Faults, 1)
	require.Equal(t, "k", string(r.Faults[0].Key))
	require.Zero(t, r.Mended)
	v, err := b.Get([]byte("k"), nil)
	require.NoError(t, err)
	require.Equal(t, "v", string(v))
	_, err = b.Versions([]byte("k"))
	require.ErrorIs(t, err, store.ErrCorrupted)
	require.NoError(t, b.Put([]byte("k"), []byte("w"), nil), "writing it again mends it")
	requireWhole(t, b)
}

func TestRepairRebuildsALogIndexFromTheLog(t *testing.T) {
	b := serve(t, Options{}) // no peer could help
	require.NoError(t, b.Put([]byte("k"), []byte("v"), nil))
	require.NoError(t, b.Put([]byte("k"), []byte("w"), nil))
	digest := b.Digest()
	wound(t, b, "k", "i")
	r, err := b.Repair(t.Context())
	require.NoError(t, err)
	require.Empty(t, r.Faults)
	require.Positive(t, r.Mended)
	require.Equal(t, digest, b.Digest())
	vs, err := b.Versions([]byte("k"))
	require.NoError(t, err)
	require.Len(t, vs, 1)
	require.EqualValues(t, 1, vs[0].Clock)
}

// design.md: R4
func TestDamagedValueIsNotServedAsIfItWereWhole(t *testing.T) {
	for _, others := range []int{0, 200} { // values of many are read in another way
		for _, missing := range []bool{false, true} {
			a, b := serve(t, Options{}), serve(t, Options{MaxInterval: time.Hour})
			require.NoError(t, b.Put([]byte("k"), []byte("logged"), nil))
			for i := range others {
				require.NoError(t, b.Put(fmt.Append(nil, i), nil, nil))
			}
			if missing {
				require.NoError(t, b.raw.Delete([]byte("k"), nil))
			} else {
				require.NoError(t, b.raw.Put([]byte("k"), []byte("changed"), nil))
			}
			require.NoError(t, b.AddPeer(a.Addr().String()))
			require.ErrorIs(t, b.Sync(t.Context()), store.ErrCorrupted)
			require.Empty(t, testdb.Contents(t, a))
			require.Contains(t, b.Status().Peers[0].Error, `"k"`)
			require.NoError(t, b.Adopt(t.Context()))
			require.NoError(t, b.Sync(t.Context()))
			require.Equal(t, testdb.Contents(t, b), testdb.Contents(t, a))
		}
	}
}

func TestCompareNamesTheKeysThatDifferAndChangesNothing(t *testing.T) {
	a, b := pair(t)
	addr := a.Addr().String()
	c, err := b.Compare(t.Context(), addr)
	require.NoError(t, err)
	require.True(t, c.OK())
	require.Equal(t, c.Digest, c.Theirs)

	// A version that one side lost so that its digest does not tell: a pull brings
	// nothing, and what differs stays until somebody looks.
	wound(t, a, "a05", "vil")
	wound(t, b, "b05", "vil")
	for _, db := range []*DB{a, b} {
		db.with(func(r *replica.Replica) { r.Cache = indexcache.Cache{Limit: 1 << 20} })
	}
	for range 2 {
		c, err = b.Compare(t.Context(), addr)
		require.NoError(t, err)
		require.Len(t, c.Differences, 2)
		for _, d := range c.Differences {
			switch string(d.Key) {
			case "a05":
				require.Len(t, d.Here, 1)
				require.Empty(t, d.There)
				require.Equal(t, Origin(a.self), d.Here[0].Origin)
				require.Nil(t, d.Here[0].Value)
			case "b05":
				require.Empty(t, d.Here)
				require.Len(t, d.There, 1)
			default:
				t.Fatalf("%q does not differ", d.Key)
			}
		}
	}

	_, err = b.Compare(t.Context(), "nonsense")
	require.Error(t, err)
	_, err = b.Compare(t.Context(), "127.0.0.1:1")
	var step *PeerError
	require.ErrorAs(t, err, &step)
	require.NotContains(t, b.peers.all(), "127.0.0.1:1")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = b.Compare(ended, addr)
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, b.Close())
	_, err = b.Compare(t.Context(), addr)
	require.ErrorIs(t, err, leveldb.ErrClosed)
	_, err = b.Repair(t.Context())
	require.ErrorIs(t, err, leveldb.ErrClosed)
}

// design.md: O4
func TestGarbageOfACrashIsNotTakenForAKey(t *testing.T) {
	b := serve(t, Options{})
	require.NoError(t, b.Put([]byte("k"), []byte("v"), nil))
	wound(t, b, "k", "i")
	require.NoError(t, b.commit(func(tx *replica.Txn) error { // its deletion was forgotten, says the proof
		var peer causal.Knowledge
		peer.Raise(causal.Purged, causal.Dot{Origin: b.self, Seq: 1})
		tx.JoinWatermarks(&peer)
		return nil
	}))
	_, err := b.Repair(t.Context())
	require.NoError(t, err)
	_, err = b.raw.Get(store.KindKey(store.KindIndex, []byte("k")), nil)
	require.ErrorIs(t, err, leveldb.ErrNotFound)
}
