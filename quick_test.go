package replicator_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"

	"github.com/level-replicator/replicator"
)

func open(t testing.TB, o *replicator.Options) *replicator.DB {
	raw, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(t, err)
	o.Listen = "127.0.0.1:0"
	db, err := replicator.Replicate(raw, o)
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	return db
}

func TestQuick(t *testing.T) {
	a := open(t, &replicator.Options{Name: "a"})
	b := open(t, &replicator.Options{Name: "b", Peers: []string{a.Addr().String()}})
	c := open(t, &replicator.Options{Name: "c", Peers: []string{b.Addr().String()}})
	require.NoError(t, a.Put([]byte("k"), []byte("v"), nil))
	start := time.Now()
	for range 2000 {
		if v, err := c.Get([]byte("k"), nil); err == nil {
			require.Equal(t, "v", string(v))
			break
		}
		time.Sleep(time.Millisecond)
	}
	t.Log(time.Since(start))
	for i := range 100 {
		require.NoError(t, b.Put([]byte(fmt.Sprint(i)), []byte("v"), nil))
	}
	require.NoError(t, a.Sync(context.Background()))
	require.NoError(t, c.Sync(context.Background()))
	require.NoError(t, a.Sync(context.Background()))
	require.Equal(t, a.Digest(), c.Digest())
	s := a.Status()
	for _, p := range s.Peers {
		t.Logf("%+v", p)
	}
	var lat []time.Duration
	for i := range 100 {
		k := []byte(fmt.Sprint("lat", i))
		start := time.Now()
		a.Put(k, k, nil)
		for {
			if _, err := b.Get(k, nil); err == nil {
				break
			}
			time.Sleep(20 * time.Microsecond)
		}
		lat = append(lat, time.Since(start))
		time.Sleep(10 * time.Millisecond)
	}
	t.Log(lat)
	start = time.Now()
	require.NoError(t, a.Close())
	t.Log("close", time.Since(start))
}
