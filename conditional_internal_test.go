package replicator

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/overlay"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// on is a request to put a key if it is as was seen.
func on(key, value string, seen ...causal.Dot) *request {
	conds := []replica.Cond{{Key: []byte(key), Seen: seen}}
	return &request{writes: []store.Write{{Key: []byte(key), Value: []byte(value)}}, done: make(chan error, 1), check: func(t *replica.Txn) error {
		i, err := t.Unmet(conds)
		if err == nil && i >= 0 {
			err = changed(conds[i].Key)
		}
		return err
	}}
}

// Those that wait are committed as one batch, and each sees what those before it have done.
//
// design.md: W6
func TestConditions_SeeWhatStandsBeforeThemInTheBatch(t *testing.T) {
	a := newSizedNode(t, newCrashWorld(1, 0, 0))
	a.put(t, store.Write{Key: []byte("k"), Value: []byte("0")})
	before := causal.Dot{Origin: a.r.Self, Seq: 1}
	first, second, third := on("k", "1", before), on("k", "2", before), on("other", "1")
	fourth := &request{writes: []store.Write{{Key: []byte("other"), Deleted: true}}, done: make(chan error, 1)}
	fifth, sixth := on("other", "2"), on("other", "3")
	a.sizes = nil
	a.queue.waiting = []*request{first, second, third, fourth, fifth, sixth}
	a.queue.lead()
	require.NoError(t, <-first.done)
	require.ErrorIs(t, <-second.done, ErrChanged)
	require.NoError(t, <-third.done)
	require.NoError(t, <-fourth.done)
	require.NoError(t, <-fifth.done, "it was deleted in the same batch")
	require.ErrorIs(t, <-sixth.done, ErrChanged)
	require.Len(t, a.sizes, 1, "in one batch")
	for key, want := range map[string]string{"k": "1", "other": "2"} {
		v, err := a.db.Get([]byte(key), nil)
		require.NoError(t, err)
		require.Equal(t, want, string(v))
	}
}

// Two that have both seen the same wait for the queue: that nothing has changed before they waited counts for
// nothing.
//
// design.md: W6
func TestConditions_AreCheckedInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newSizedNode(t, newCrashWorld(1, 0, 0))
		db := &DB{raw: a.db, queue: a.queue, lifecycle: newLifecycle()}
		close(db.ready)
		results := make(chan error, 2)
		db.with(func(*replica.Replica) {
			for range 2 {
				go func() { results <- db.PutIf([]byte("k"), nil, nil, nil) }()
			}
			synctest.Wait()
		})
		one, other := <-results, <-results
		require.NotEqual(t, one == nil, other == nil, "%v, %v", one, other)
		require.ErrorIs(t, errors.Join(one, other), ErrChanged)
		require.NoError(t, a.db.Close())
		time.Sleep(time.Minute) // goleveldb's own goroutines end late
	})
}

// A group is staged again without one that cannot be written. Who was refused for what was before it is refused
// still, and who would have been refused for the one that is left out is not.
func TestConditions_AreCheckedAgainWhenAGroupIsStagedAgain(t *testing.T) {
	a := newSizedNode(t, newCrashWorld(1, 0, 0))
	bad := &request{stage: func(t *replica.Txn) error {
		if err := t.Put([]store.Write{{Key: []byte("k"), Value: []byte("bad")}}); err != nil {
			return err
		}
		return errors.New("it cannot be written")
	}, done: make(chan error, 1)}
	first, second, third := on("j", "1"), on("j", "2"), on("k", "3")
	a.queue.waiting = []*request{first, second, bad, third}
	a.queue.lead()
	require.NoError(t, <-first.done)
	require.ErrorIs(t, <-second.done, ErrChanged)
	require.ErrorContains(t, <-bad.done, "cannot be written")
	require.NoError(t, <-third.done)
}

// What moves between the comparison of the states and the commit is noticed by the guard, committed or staged.
//
// design.md: W8
func TestChecked_NoticesWhatMovesUntilItIsCommitted(t *testing.T) {
	raw, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(t, err)
	db, err := Replicate(raw, &Options{Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer db.Close()
	key := []byte("k")
	guarded := func() *guard {
		var rs overlay.Reads
		rs.Note(key)
		g := &guard{spans: rs.Spans()}
		db.with(func(*replica.Replica) { db.queue.watch(g) })
		return g
	}
	result := []store.Write{{Key: []byte("result"), Value: []byte("r")}}

	g := guarded()
	require.NoError(t, db.Put([]byte("kk"), nil, nil))
	require.NoError(t, db.writeIf(result, g.check, nil))
	require.NoError(t, db.Put(key, []byte("v"), nil))
	require.ErrorIs(t, db.writeIf(result, g.check, nil), ErrChanged)
	db.with(func(*replica.Replica) { db.queue.unwatch(g) })
	require.Empty(t, db.queue.guards)

	g = guarded()
	put := &request{writes: []store.Write{{Key: key, Value: []byte("w")}}, done: make(chan error, 1)}
	commit := &request{writes: result, check: g.check, done: make(chan error, 1)}
	db.with(func(*replica.Replica) {
		db.queue.waiting = []*request{put, commit}
		db.queue.lead()
	})
	require.NoError(t, <-put.done)
	require.ErrorIs(t, <-commit.done, ErrChanged, "in the same batch")
}

// A write that failed may be there all the same, so nobody takes the cache for what is stored.
//
// design.md: W7
func TestRead_DoesNotTrustTheCacheAfterAFailedWrite(t *testing.T) {
	a := newSizedNode(t, newCrashWorld(1, 0, 0))
	db := &DB{raw: a.db, queue: a.queue}
	a.put(t, store.Write{Key: []byte("k"), Value: []byte("1")})
	v, err := db.Read([]byte("k"))
	require.NoError(t, err)
	require.Equal(t, []VersionID{{Origin(a.r.Self), 1}}, v.Seen)

	tx := a.r.Begin()
	require.NoError(t, tx.Put([]store.Write{{Key: []byte("k"), Value: []byte("2")}}))
	require.NoError(t, a.db.Write(tx.Finish(), nil)) // as one that failed, and was written
	a.queue.begun.Add(1)
	v, err = db.Read([]byte("k"))
	require.NoError(t, err)
	require.Equal(t, []VersionID{{Origin(a.r.Self), 2}}, v.Seen)
	require.Equal(t, "2", string(v.Bytes))
	a.r.Apply(tx, false)
	a.queue.taken.Store(a.queue.begun.Load())
	rec, cached := a.r.Peek(nil, []byte("k"))
	require.True(t, cached)
	stored, err := a.db.Get(store.KindKey(store.KindIndex, []byte("k")), nil)
	require.NoError(t, err)
	require.True(t, bytes.Equal(stored, rec))
}

func TestRead_OfAValueThatIsGoneIsCorruption(t *testing.T) {
	a := newSizedNode(t, newCrashWorld(1, 0, 0))
	db := &DB{raw: a.db, queue: a.queue}
	a.put(t, store.Write{Key: []byte("k"), Value: []byte("1")})
	require.NoError(t, a.db.Delete([]byte("k"), nil))
	_, err := db.Read([]byte("k"))
	require.ErrorIs(t, err, ErrCorrupted)
}
