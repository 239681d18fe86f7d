package replicator_test

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/testca"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// fleet is a cluster in memory whose replicas can be opened again with other secrets, as an operator
// does it.
type fleet struct {
	t      *testing.T
	net    *replicatortest.Network
	stores []storage.Storage
	dbs    []*replicator.DB
	puts   int
}

func newFleet(t *testing.T, n int, secret []byte, old ...[]byte) *fleet {
	f := &fleet{t: t, net: replicatortest.NewNetwork(1), dbs: make([]*replicator.DB, n)}
	for i := range n {
		f.stores = append(f.stores, storage.NewMemStorage())
		f.open(i, secret, old...)
	}
	t.Cleanup(func() {
		for _, db := range f.dbs {
			db.Close()
		}
	})
	return f
}

func (f *fleet) open(i int, secret []byte, old ...[]byte) {
	f.t.Helper()
	if f.dbs[i] != nil {
		require.NoError(f.t, f.dbs[i].Close())
	}
	raw, err := leveldb.Open(f.stores[i], nil)
	require.NoError(f.t, err)
	host := f.net.Host(fmt.Sprint("s", i))
	l, err := host.Listen("9000")
	require.NoError(f.t, err)
	o := &replicator.Options{Listener: l, Dial: host.Dial, Secret: secret, OldSecrets: old, Logger: slog.New(slog.DiscardHandler)}
	for j := range f.dbs {
		if j != i {
			o.Peers = append(o.Peers, fmt.Sprintf("s%d:9000", j))
		}
	}
	f.dbs[i], err = replicator.Replicate(raw, o)
	require.NoError(f.t, err)
}

// works requires that replica i and each other replica still bring each other their writes. Each pair is
// alone for a while, so that no third one carries them.
func (f *fleet) works(i int) {
	f.t.Helper()
	for j := range f.dbs {
		if j != i {
			f.net.Partition([]string{fmt.Sprint("s", i), fmt.Sprint("s", j)})
			for _, pair := range [][2]int{{i, j}, {j, i}} {
				f.puts++
				key := fmt.Appendf(nil, "k%d", f.puts)
				require.NoError(f.t, f.dbs[pair[0]].Put(key, key, nil))
				time.Sleep(15 * time.Second) // longer than any backoff
				v, err := f.dbs[pair[1]].Get(key, nil)
				require.NoError(f.t, err, "from s%d to s%d", pair[0], pair[1])
				require.Equal(f.t, key, v)
			}
			f.net.Heal()
		}
	}
}

func TestSecretIsRotatedOverThreeReplicasWithoutAPause(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while: every pair is left alone at every step")
	}
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		f := newFleet(t, 3, testca.SecretA)
		f.works(0)
		for pass, to := range [][][]byte{{testca.SecretA, testca.SecretB}, {testca.SecretB, testca.SecretA}, {testca.SecretB}} {
			for i := range f.dbs {
				f.open(i, to[0], to[1:]...)
				f.works(i)
			}
			t.Logf("pass %d is through", pass+1)
		}
		time.Sleep(15 * time.Second)
		require.Len(t, contents(t, f.dbs[0]), f.puts)
	})
}

func TestReplicaThatMissedTheRotationIsOutUntilItHasTheSecret(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		f := newFleet(t, 3, testca.SecretB)
		f.open(2, testca.SecretA)
		require.NoError(t, f.dbs[0].Put([]byte("k"), []byte("v"), nil))
		require.NoError(t, f.dbs[2].Put([]byte("old"), []byte("v"), nil))
		time.Sleep(5 * time.Minute)
		require.Equal(t, f.dbs[0].Digest(), f.dbs[1].Digest())
		require.Equal(t, map[string]string{"k": "v"}, contents(t, f.dbs[1]))
		require.Equal(t, map[string]string{"old": "v"}, contents(t, f.dbs[2]))
		for _, p := range f.dbs[2].Status().Peers {
			require.Contains(t, p.Error, "another secret")
		}
		f.open(2, testca.SecretB)
		time.Sleep(30 * time.Second)
		require.Len(t, contents(t, f.dbs[2]), 2)
		require.Len(t, contents(t, f.dbs[0]), 2, "what it wrote meanwhile is not lost")
	})
}
