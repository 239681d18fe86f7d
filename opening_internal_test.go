package replicator

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/level-replicator/replicator/internal/transport"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// gatedStore lets no count begin to read before its gate is open.
type gatedStore struct {
	store.Handle
	gate chan struct{}
}

func (s gatedStore) Snapshot() (store.Snapshot, error) {
	sn, err := s.Handle.Snapshot()
	return gatedSnapshot{sn, s.gate}, err
}

type gatedSnapshot struct {
	store.Snapshot
	gate chan struct{}
}

func (s gatedSnapshot) NewIterator(g *util.Range, ro *opt.ReadOptions) iterator.Iterator {
	if ro != nil && ro.DontFillCache && string(g.Start) == string(store.KindRange(store.KindIndex).Start) {
		<-s.gate
	}
	return s.Snapshot.NewIterator(g, ro)
}

const uncountedKeys = 5000 // more than are counted in one state

// uncounted opens a database as after a crash. It is not counted before the gate is open.
func uncounted(t *testing.T, st storage.Storage, o Options) (db *DB, gate chan struct{}) {
	quiet := slog.New(slog.DiscardHandler)
	raw, err := leveldb.Open(st, nil)
	require.NoError(t, err)
	db, err = Replicate(raw, &Options{Listen: "127.0.0.1:0", Logger: quiet})
	require.NoError(t, err)
	b := new(leveldb.Batch)
	for i := range uncountedKeys {
		b.Put(fmt.Appendf(nil, "k%04d", i), []byte("v"))
	}
	require.NoError(t, db.Write(b, nil))
	require.NoError(t, db.Close())

	raw, err = leveldb.Open(st, nil)
	require.NoError(t, err)
	require.NoError(t, raw.Delete(store.MetaClean, nil))
	o.Listen, o.Logger = "127.0.0.1:0", quiet
	opts, err := o.withDefaults()
	require.NoError(t, err)
	sec, err := transport.NewSecurity(opts.credentials())
	require.NoError(t, err)
	l, err := listen(&opts)
	require.NoError(t, err)
	c := opts.replicaConfig(raw)
	gate = make(chan struct{})
	c.Store = gatedStore{store.Handle{DB: raw}, gate}
	r := replica.New(c)
	batch, err := r.Open(opts.Cluster)
	require.NoError(t, err)
	require.NoError(t, raw.Write(batch, &opt.WriteOptions{Sync: true}))
	require.True(t, handles.enter(raw))
	db = newDB(raw, opts, r, l, sec)
	db.run(false, &opening{reported: time.Now().Add(time.Hour)}) // which reports nothing
	return db, gate
}

// design.md: O11
func TestReplicaServesAndReplicatesWhileItCounts(t *testing.T) {
	a, gate := uncounted(t, storage.NewMemStorage(), Options{})
	defer a.Close()
	b := serve(t, Options{Peers: []string{a.Addr().String()}})
	require.NoError(t, a.Put([]byte("meanwhile"), []byte("w"), nil))
	for _, k := range []string{"k0000", "meanwhile"} {
		_, err := a.Get([]byte(k), nil)
		require.NoError(t, err)
	}
	require.NoError(t, b.Sync(t.Context()))
	got, err := b.Get([]byte("meanwhile"), nil)
	require.NoError(t, err)
	require.Equal(t, "w", string(got))

	require.False(t, isClosed(a.Counted()))
	require.True(t, isClosed(b.Counted()))
	s := a.Status()
	require.True(t, s.Counting)
	require.Zero(t, s.Digest)
	require.Zero(t, a.Digest())
	require.Zero(t, s.Keys)
	p := b.Status().Peers[0]
	require.True(t, p.Counting)
	require.False(t, p.Agrees || p.Differs)
	require.Zero(t, b.Status().Mismatches)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = a.Compare(ctx, b.Addr().String())
	require.ErrorIs(t, err, context.Canceled, "it waits until it knows its own digest")
	_, err = b.Compare(t.Context(), a.Addr().String())
	require.ErrorContains(t, err, "still counting")
	report, err := a.Verify(t.Context())
	require.NoError(t, err)
	require.True(t, report.OK(), "%v", report.Faults)
	require.EqualValues(t, uncountedKeys+1, report.Keys)

	close(gate)
	<-a.Counted()
	s = a.Status()
	require.False(t, s.Counting)
	require.EqualValues(t, uncountedKeys+1, s.Keys)
	require.Equal(t, report.Digest, s.Digest)
	require.Equal(t, a.Digest(), b.Digest())
	require.NoError(t, b.Sync(t.Context()))
	require.True(t, b.Status().Peers[0].Agrees)
	c, err := b.Compare(t.Context(), a.Addr().String())
	require.NoError(t, err)
	require.True(t, c.OK())
}

// Close waits for no count, and leaves no mark that would vouch for one.
//
// design.md: O11
func TestCloseWhileItCounts(t *testing.T) {
	st := storage.NewMemStorage()
	db, gate := uncounted(t, st, Options{})
	require.NoError(t, db.Put([]byte("meanwhile"), []byte("w"), nil))
	closed := make(chan error)
	go func() { closed <- db.Close() }()
	<-db.ending
	close(gate) // it counts on to the end of a stretch
	require.NoError(t, <-closed)
	require.False(t, isClosed(db.Counted()))

	raw, err := leveldb.Open(st, nil)
	require.NoError(t, err)
	_, err = raw.Get(store.MetaClean, nil)
	require.ErrorIs(t, err, leveldb.ErrNotFound)
	db, err = Replicate(raw, &Options{Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer db.Close()
	<-db.Counted()
	require.EqualValues(t, uncountedKeys+1, db.Status().Keys)
	require.Zero(t, db.Status().NotDurable)
}

// Long work says how far it is.
func TestCountingReportsItsProgress(t *testing.T) {
	var reported []Progress
	db, gate := uncounted(t, storage.NewMemStorage(), Options{Events: &Events{Progress: func(p Progress) { reported = append(reported, p) }}})
	defer db.Close()
	o := &opening{began: time.Now().Add(-time.Minute)}
	require.NoError(t, o.report(db))
	require.Equal(t, []Progress{{Work: WorkCount}}, db.Status().Work)
	require.NoError(t, o.report(db))
	require.Len(t, reported, 1, "once a second")
	close(gate)
	<-db.Counted()
	require.NoError(t, o.report(db))
	require.Empty(t, db.Status().Work)
	require.Equal(t, []Progress{{Work: WorkCount}, {Work: WorkCount, Done: true}}, reported)
}

func TestCountedEstimatesByTheBytesOfTheStore(t *testing.T) {
	raw, err := leveldb.Open(storage.NewMemStorage(), &opt.Options{WriteBuffer: 64 << 10, CompactionTableSize: 8 << 10})
	require.NoError(t, err)
	defer raw.Close()
	for _, kind := range []byte{store.KindIndex, store.KindLog} {
		for i := range 5000 {
			require.NoError(t, raw.Put(store.KindKey(kind, fmt.Appendf(nil, "%06d", i)), fmt.Appendf(nil, "%0100d", i*i), nil))
		}
	}
	require.NoError(t, raw.CompactRange(util.Range{}))
	for key, want := range map[string]float64{"i": 0, "i002500": 0.25, "j": 0.5, "l": 0.5, "l002500": 0.75, "m": 1, "x": 1} {
		done, all, err := counted(raw, append([]byte{0xff, 0xff}, key...))
		require.NoError(t, err)
		require.InDelta(t, want, float64(done)/float64(all), 0.05, key)
	}
}
