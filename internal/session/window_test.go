package session

import (
	"fmt"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// reader is a Host that is only read from.
type reader struct {
	Host
	r *replica.Replica
}

func (h reader) With(f func(r *replica.Replica)) { f(h.r) }

func TestPull_ReadsValuesTogetherUpToABound(t *testing.T) {
	db, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(t, err)
	defer db.Close()
	r := replica.New(replica.Config{Store: store.Handle{DB: db}, Draw: func() causal.Origin { return causal.Origin{1} }, Now: time.Now, Resolve: replica.HighestClock, MaxKey: 1 << 16, MaxValue: 1 << 26, MaxSkew: time.Minute, TombstoneTTL: time.Hour, PeerTTL: time.Hour, CacheSize: 1 << 20, FilterSize: 1 << 18})
	b, err := r.Open("")
	require.NoError(t, err)
	require.NoError(t, db.Write(b, nil))
	for i := range 200 {
		tx := r.Begin()
		require.NoError(t, tx.Put([]store.Write{{Key: fmt.Appendf(nil, "%03d", i*77%200), Value: fmt.Append(nil, "value", i)}}))
		require.NoError(t, db.Write(tx.Finish(), nil))
		r.Apply(tx, tx.Sync)
	}
	s := New(reader{r: r}, false, Params{})
	for _, most := range []int{1 << 20, 100} {
		st, err := s.view(nil)
		require.NoError(t, err)
		v := &serving{}
		entries, all, err := v.readLog(&st, causal.Region{Origin: r.Self, Alias: r.Alias[r.Self], From: 1, To: 200}, 1<<20)
		require.NoError(t, err)
		require.True(t, all)
		require.Len(t, entries, 200)
		readValues(&st, entries, most)
		read := 0
		for i := range entries {
			read += int(store.Btoi(entries[i].Read))
			require.NoError(t, readValue(&st, &entries[i]))
			want, err := db.Get(entries[i].Key, nil)
			require.NoError(t, err)
			require.Equal(t, string(want), string(entries[i].Value))
		}
		if most == 100 {
			require.Less(t, read, 20)
		} else {
			require.Equal(t, 200, read)
		}
		st.Release()
	}
}
