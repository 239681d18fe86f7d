package replicator

import (
	"bytes"
	"syscall"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/crashfs"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"
)

const smallBuffer = 64 << 10

// starvedQueue is a queue over a store of which no further file can be opened.
func starvedQueue(t *testing.T, before func(raw *leveldb.DB), ops ...crashfs.Fault) (*queue, *crashfs.Storage) {
	t.Helper()
	fs := crashfs.New(nil)
	raw, err := leveldb.Open(fs, &opt.Options{WriteBuffer: smallBuffer, BlockCacher: opt.NoCacher})
	require.NoError(t, err)
	before(raw)
	for _, f := range ops {
		f.Err, f.Sticky = syscall.EMFILE, true
		fs.Fail(f)
	}
	return &queue{raw: raw, starved: func(error) {}, failed: func(err error) { t.Errorf("failed: %v", err) }}, fs
}

// filling is a batch that takes the whole of a write buffer.
func filling(key string) *leveldb.Batch {
	b := new(leveldb.Batch)
	b.Put([]byte(key), make([]byte, smallBuffer-len(key)-8)) // with 8 bytes for goleveldb's sequence number
	return b
}

var newJournal = crashfs.Fault{Op: crashfs.OpCreate, Type: storage.TypeJournal}

func TestWriteAfterWhichNoFileCouldBeOpenedIsWritten(t *testing.T) {
	q, _ := starvedQueue(t, func(*leveldb.DB) {}, newJournal)
	batch := filling("k")
	require.ErrorIs(t, q.raw.Write(batch, nil), syscall.EMFILE, "goleveldb says that it failed")
	require.True(t, has1(t, q.raw, "k"), "and it did not")

	q, _ = starvedQueue(t, func(*leveldb.DB) {}, newJournal)
	require.NoError(t, q.store(batch, nil))
	require.True(t, has1(t, q.raw, "k"))
}

func has1(t *testing.T, raw *leveldb.DB, key string) bool {
	t.Helper()
	ok, err := raw.Has([]byte(key), nil)
	require.NoError(t, err)
	return ok
}

func TestNothingIsWrittenWhileItIsInDoubtWhatWas(t *testing.T) {
	q, fs := starvedQueue(t, func(raw *leveldb.DB) {
		for _, k := range []string{"a", "z"} { // a table that any key may be in
			require.NoError(t, raw.Put([]byte(k), nil, nil))
		}
		require.NoError(t, raw.CompactRange(util.Range{}))
		require.NoError(t, raw.Put([]byte("m"), nil, nil))
	}, newJournal, crashfs.Fault{Op: crashfs.OpOpen, Type: storage.TypeTable})
	require.ErrorIs(t, q.store(filling("k"), nil), syscall.EMFILE)
	require.NotNil(t, q.shortage.doubt)
	small := new(leveldb.Batch)
	small.Put([]byte("small"), nil)
	require.ErrorIs(t, q.store(small, nil), syscall.EMFILE, "there is room for it, but not yet")
	fs.ClearFaults()
	require.NoError(t, q.store(small, nil))
	require.Nil(t, q.shortage.doubt)
	require.False(t, has1(t, q.raw, "k"))
	require.False(t, q.shortage.since.IsZero(), "a small write says nothing of a large one")
	require.NoError(t, q.store(filling("k"), nil))
	require.True(t, q.shortage.since.IsZero())
}

func TestStoreThatHangsAfterAShortageFails(t *testing.T) {
	q, _ := starvedQueue(t, func(raw *leveldb.DB) { require.NoError(t, raw.Put([]byte("m"), nil, nil)) }, newJournal)
	q.shortage.patience = 100 * time.Millisecond
	var failed error
	q.failed = func(err error) { failed = err }
	large := filling("k")
	large.Put([]byte("l"), bytes.Repeat([]byte("l"), 100)) // goleveldb makes a transaction of it
	require.ErrorIs(t, q.store(large, nil), syscall.EMFILE)
	require.NoError(t, failed)
	require.ErrorIs(t, q.store(large, nil), ErrFailed, "the lock was never given back")
	require.ErrorContains(t, failed, "has not answered for 100ms")
}

func TestBatchInDoubtIsNotWrittenOver(t *testing.T) {
	var r *replica.Replica
	q, _ := starvedQueue(t, func(raw *leveldb.DB) {
		w := newCrashWorld(1, 0, 0)
		r = replica.NewReplica(replica.ReplicaConfig{Store: store.Handle{DB: raw}, Draw: w.draw, Now: w.now, Resolve: replica.HighestClock, MaxKey: 64 << 10, MaxValue: 4 << 20})
		b, err := r.Open("")
		require.NoError(t, err)
		require.NoError(t, raw.Write(b, nil))
		for _, k := range []string{"a", "\xff\xff\xff"} { // a table that any key may be in
			require.NoError(t, raw.Put([]byte(k), nil, nil))
		}
		require.NoError(t, raw.CompactRange(util.Range{}))
		require.NoError(t, raw.Put([]byte("m"), make([]byte, 10_000), nil))
		r.Filter.Whole = true // what it has not written is not there
	}, newJournal, crashfs.Fault{Op: crashfs.OpOpen, Type: storage.TypeTable})
	q.replica = r
	tx := r.Begin()
	require.NoError(t, tx.Put([]store.Write{{Key: []byte("k"), Value: make([]byte, 64000)}}))
	require.ErrorIs(t, q.write(tx), syscall.EMFILE)
	require.NotNil(t, q.shortage.doubt)
	before := bytes.Clone(q.shortage.doubt.Dump())
	require.NoError(t, r.Begin().Put([]store.Write{{Key: []byte("other"), Value: make([]byte, 1000)}}))
	require.Equal(t, before, q.shortage.doubt.Dump())
}
