package replicator_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/testdb"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/comparer"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"
)

func TestPlainProgramReadsTheUserKeysAfterClose(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		stor := storage.NewMemStorage()
		raw, err := leveldb.Open(stor, nil)
		require.NoError(t, err)
		a, b := c.open("a", raw, &replicator.Options{}), c.start("b", "a:9000")
		for i := range 200 {
			put(t, a, fmt.Sprint("a/", i), "from a")
			put(t, b, fmt.Sprint("b/", i), "from b")
			put(t, b, fmt.Sprint("both/", i), "from b")
			put(t, a, fmt.Sprint("both/", i), "from a")
		}
		require.NoError(t, a.Delete([]byte("b/1"), nil))
		put(t, a, "", "empty key")
		put(t, a, "\xff\xfe\xff", "last free key")
		requireAgreement(t, a, b)
		want := testdb.Contents(t, a)
		require.NoError(t, a.Close())

		plain, err := leveldb.Open(stor, nil)
		require.NoError(t, err)
		got := map[string]string{}
		it := plain.NewIterator(&util.Range{Limit: []byte{0xff, 0xff}}, nil)
		for it.Next() {
			got[string(it.Key())] = string(it.Value())
		}
		it.Release()
		require.NoError(t, it.Error())
		require.Equal(t, want, got)
		require.NoError(t, plain.Close())
	})
}

// backwards sorts the other way round.
type backwards struct{ comparer.Comparer }

func (backwards) Compare(a, b []byte) int { return bytes.Compare(b, a) }
func (backwards) Name() string            { return "test.backwards" }
func (backwards) Separator(dst, a, b []byte) []byte {
	return nil
}
func (backwards) Successor(dst, b []byte) []byte { return nil }

func TestForeignComparerIsRefusedWithTheReason(t *testing.T) {
	raw, err := leveldb.Open(storage.NewMemStorage(), &opt.Options{Comparer: backwards{comparer.DefaultComparer}})
	require.NoError(t, err)
	defer raw.Close()
	_, err = replicator.Replicate(raw, &replicator.Options{Listen: "127.0.0.1:0"})
	require.ErrorContains(t, err, "comparer")
	it := raw.NewIterator(nil, nil)
	defer it.Release()
	require.False(t, it.Next(), "nothing of ours is left in it")
}

// torn reports whether a snapshot shows a batch in part: all keys of a batch have the
// same value.
func torn(t testing.TB, db *replicator.DB, keys int) bool {
	s, err := db.GetSnapshot()
	require.NoError(t, err)
	defer s.Release()
	seen := map[string]bool{}
	it := s.NewIterator(util.BytesPrefix([]byte("batch/")), nil)
	defer it.Release()
	n := 0
	for it.Next() {
		v, _, _ := bytes.Cut(it.Value(), []byte(" "))
		seen[string(v)] = true
		n++
	}
	require.NoError(t, it.Error())
	return len(seen) > 1 || n != 0 && n != keys
}

func batchOf(keys, round, size int) *leveldb.Batch {
	b := new(leveldb.Batch)
	for i := range keys {
		b.Put(fmt.Appendf(nil, "batch/%04d", i), append(fmt.Appendf(nil, "%d ", round), make([]byte, size)...))
	}
	return b
}

func TestSnapshotElsewhereNeverShowsHalfABatch(t *testing.T) {
	c := newCluster(t) // in real time, so that pulls, writes and readers do meet
	a := c.start("a")
	b := c.start("b", "a:9000")
	d := c.start("d", "b:9000")
	const keys = 50
	ctx, stop := context.WithCancel(context.Background())
	writer, noise := make(chan error, 1), make(chan error, 1)
	go func() {
		for i := 0; ctx.Err() == nil; i++ {
			if err := a.Write(batchOf(keys, i, 100), nil); err != nil {
				writer <- err
				return
			}
		}
		writer <- nil
	}()
	go func() {
		for i := 0; ctx.Err() == nil; i++ {
			if err := d.Put(fmt.Appendf(nil, "noise/%d", i%1000), nil, nil); err != nil {
				noise <- err
				return
			}
		}
		noise <- nil
	}()
	changed, last := 0, ""
	for begun := time.Now(); time.Since(begun) < 20*time.Second && changed < 12; {
		for _, db := range []*replicator.DB{b, d} {
			require.False(t, torn(t, db, keys), "%s shows a batch in part", db.Status().Name)
		}
		if v := value(t, d, "batch/0000"); v != last {
			last = v
			changed++
		}
	}
	stop()
	require.NoError(t, <-writer)
	require.NoError(t, <-noise)
	require.Greater(t, changed, 3, "the reader saw too few batches to tell")
}

// Beyond the bound a batch comes in several commits: its parts may be seen one by
// one, none is lost, and WaitFor waits for the last.
func TestBatchBeyondTheBoundMayComeInParts(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b", "a:9000")
		requireAgreement(t, a, b)
		const keys = 3000 // of 1 KiB each: 3 MiB
		changed := 0
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		changes := b.Watch(ctx, []byte("batch/"))
		require.NoError(t, a.Write(batchOf(keys, 1, 1<<10), nil))
		parts := 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			for _, err := range changes {
				if err != nil {
					t.Error(err)
					return
				}
				// Each commit wakes the reader, which looks at what is there now and then.
				if changed%100 == 0 && torn(t, b, keys) {
					parts++
				}
				if changed++; changed == keys {
					return
				}
			}
		}()
		require.NoError(t, b.WaitFor(context.Background(), a.Token()))
		require.False(t, torn(t, b, keys), "all of it is there when WaitFor returns")
		<-done
		require.Positive(t, parts, "if a batch of this size came whole the documented bound would be wrong")
		requireAgreement(t, a, b)
	})
}

func TestNothingHangsAfterClose(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		put(t, a, "k", "v")
		digest := a.Digest()
		token := a.Token()
		require.NoError(t, a.Close())

		require.Equal(t, digest, a.Digest(), "what is in memory still answers")
		require.Equal(t, token, a.Token())
		require.EqualValues(t, 1, a.Status().Keys)
		require.Equal(t, leveldb.ErrClosed, a.SetReadOnly())
		require.Equal(t, leveldb.ErrClosed, a.WaitFor(context.Background(), token))
		require.Equal(t, leveldb.ErrClosed, a.WaitReplicated(context.Background(), 1))
		require.Equal(t, leveldb.ErrClosed, a.Adopt(context.Background()))
		_, err := a.Versions([]byte("k"))
		require.Equal(t, leveldb.ErrClosed, err)
		listed := 0
		for c, err := range a.Conflicts(context.Background()) {
			listed++
			require.Equal(t, leveldb.ErrClosed, err)
			require.Zero(t, c, "a closed database lists no conflicts")
		}
		require.Equal(t, 1, listed)
		for range a.Watch(context.Background(), nil) {
			t.Fatal("a closed database has no changes")
		}
		require.Equal(t, leveldb.ErrClosed, a.AddPeer("b:9000"))
		require.Equal(t, leveldb.ErrClosed, a.RemovePeer("b:9000"))
	})
}

func TestTransactionIsOneBatchAtOtherReplicas(t *testing.T) {
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
		require.Len(t, testdb.Contents(t, b), 500)
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
		require.Empty(t, testdb.Contents(t, a))
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
		require.Len(t, testdb.Contents(t, a), 9)
	})
}
