package replicator_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

// seen reads a key and returns its siblings, whether it has a value or not.
func seen(t testing.TB, db *replicator.DB, key string) []replicator.VersionID {
	t.Helper()
	v, err := db.Read([]byte(key))
	if err != leveldb.ErrNotFound {
		require.NoError(t, err)
	}
	return v.Seen
}

// deletionWins has reads return nothing if one of two siblings is a deletion.
func deletionWins(key []byte, a, b replicator.Version) replicator.Version {
	switch {
	case a.Deleted:
		return a
	case b.Deleted:
		return b
	}
	return replicator.HighestClock(key, a, b)
}

// apart has two replicas write a key without hearing of each other, and then agree.
func apart(t *testing.T, resolver replicator.Resolver, atA, atB func(db *replicator.DB)) (a, b *replicator.DB) {
	t.Helper()
	c := newCluster(t)
	a = c.open("a", replicatortest.MemDB(t), &replicator.Options{Resolver: resolver})
	b = c.open("b", replicatortest.MemDB(t), &replicator.Options{Resolver: resolver, Peers: []string{"a:9000"}})
	put(t, a, "k", "base")
	requireAgreement(t, a, b)
	c.net.Partition([]string{"a"}, []string{"b"})
	atA(a)
	atB(b)
	c.net.Heal()
	for range 600 {
		va, err := a.Versions([]byte("k"))
		require.NoError(t, err)
		vb, err := b.Versions([]byte("k"))
		require.NoError(t, err)
		if len(va) == 2 && len(vb) == 2 {
			return a, b
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("no conflict came of it")
	return
}

// design.md: W7
func TestRead_ReturnsWhatGetDoesAndNamesTheSiblings(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		db := newCluster(t).start("a")
		v, err := db.Read([]byte("k"))
		require.Equal(t, leveldb.ErrNotFound, err)
		require.Equal(t, replicator.Value{}, v)

		for _, want := range []string{"one", "", "three"} {
			put(t, db, "k", want)
			v, err = db.Read([]byte("k"))
			require.NoError(t, err)
			require.NotNil(t, v.Bytes, "nil says that there is none")
			require.Equal(t, want, string(v.Bytes))
			require.False(t, v.Conflict)
			versions, err := db.Versions([]byte("k"))
			require.NoError(t, err)
			require.Equal(t, []replicator.VersionID{versions[0].ID()}, v.Seen)
			require.Equal(t, replicator.VersionID{Origin: db.Status().Origin, Seq: versions[0].Seq}, v.Seen[0])
		}
		v.Bytes[0] = '#' // it is the caller's
		require.Equal(t, "three", value(t, db, "k"))

		require.NoError(t, db.Delete([]byte("k"), nil))
		v, err = db.Read([]byte("k"))
		require.Equal(t, leveldb.ErrNotFound, err)
		require.Equal(t, replicator.Value{}, v, "a tombstone is no value")
		_, err = db.Read([]byte("\xff\xffi"))
		require.Equal(t, leveldb.ErrNotFound, err)
		require.NoError(t, db.Close())
		_, err = db.Read([]byte("k"))
		require.Equal(t, leveldb.ErrClosed, err)
	})
}

// design.md: W6, W7
func TestRead_OfAConflictNamesAllSiblings(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		join := func(_ []byte, a, b replicator.Version) replicator.Version {
			return replicator.Version{Value: slices.Concat(a.Value, []byte("+"), b.Value)}
		}
		a, b := apart(t, join, func(db *replicator.DB) { put(t, db, "k", "x") }, func(db *replicator.DB) {
			put(t, db, "k", "x1")
			put(t, db, "k", "x2") // the higher clock
		})
		v, err := a.Read([]byte("k"))
		require.NoError(t, err)
		require.Equal(t, "x+x2", string(v.Bytes), "what the resolver composes")
		require.True(t, v.Conflict)
		require.Len(t, v.Seen, 2)
		w, err := b.Read([]byte("k"))
		require.NoError(t, err)
		require.ElementsMatch(t, v.Seen, w.Seen)
		require.ErrorIs(t, b.PutIf([]byte("k"), []byte("y"), v.Seen[:1], nil), replicator.ErrChanged, "one of two was not seen")
		slices.Reverse(v.Seen)
		require.NoError(t, b.PutIf([]byte("k"), []byte("y"), append(v.Seen, v.Seen[0]), nil), "a set, in any order, seen elsewhere")
		w, err = b.Read([]byte("k"))
		require.NoError(t, err)
		require.False(t, w.Conflict)
	})
}

// Equal values written at two replicas are siblings, but no conflict.
func TestRead_OfEqualSiblingsIsNoConflict(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		same := func(db *replicator.DB) { put(t, db, "k", "same") }
		a, _ := apart(t, nil, same, same)
		v, err := a.Read([]byte("k"))
		require.NoError(t, err)
		require.False(t, v.Conflict)
		require.Len(t, v.Seen, 2)
	})
}

// design.md: W6
func TestPutIf_WhereADeletionWinsNeedsAllSiblings(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		a, _ := apart(t, deletionWins, func(db *replicator.DB) { put(t, db, "k", "kept") },
			func(db *replicator.DB) { require.NoError(t, db.Delete([]byte("k"), nil)) })
		require.Equal(t, "-", value(t, a, "k"))
		require.ErrorIs(t, a.PutIf([]byte("k"), []byte("new"), nil, nil), replicator.ErrChanged, "the Put that nobody looked at is there")
		v, err := a.Read([]byte("k"))
		require.Equal(t, leveldb.ErrNotFound, err)
		require.Nil(t, v.Bytes)
		require.True(t, v.Conflict)
		require.Len(t, v.Seen, 2)
		require.NoError(t, a.PutIf([]byte("k"), []byte("new"), v.Seen, nil))
		require.Equal(t, "new", value(t, a, "k"))
	})
}

// design.md: W6
func TestPutIf_WritesOnlyWhatItsCallerSaw(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		db := newCluster(t).start("a")
		key := []byte("k")
		put(t, db, "other", "x")
		first := seen(t, db, "k")
		require.NoError(t, db.PutIf(key, []byte("1"), first, nil))
		err := db.PutIf(key, []byte("2"), first, nil)
		require.ErrorIs(t, err, replicator.ErrChanged)
		var which *replicator.ChangedError
		require.ErrorAs(t, err, &which)
		require.Equal(t, key, which.Key)
		require.ErrorContains(t, err, `"k"`)
		require.Equal(t, "1", value(t, db, "k"))

		second := seen(t, db, "k")
		require.ErrorIs(t, db.PutIf(key, []byte("2"), seen(t, db, "other"), nil), replicator.ErrChanged)
		require.ErrorIs(t, db.PutIf(key, []byte("2"), append(slices.Clone(second), seen(t, db, "other")...), nil), replicator.ErrChanged)
		require.NoError(t, db.PutIf(key, []byte("2"), second, &opt.WriteOptions{Sync: true}))
		require.ErrorIs(t, db.DeleteIf(key, second, nil), replicator.ErrChanged)
		require.ErrorIs(t, db.DeleteIf(key, nil, nil), replicator.ErrChanged, "it has a value")
		third := seen(t, db, "k")
		require.NoError(t, db.DeleteIf(key, third, nil))
		require.Equal(t, "-", value(t, db, "k"))
		require.ErrorIs(t, db.PutIf(key, []byte("3"), third, nil), replicator.ErrChanged, "that it is deleted was not seen")
		require.NoError(t, db.DeleteIf(key, nil, nil), "nothing to delete, as was seen")
		require.NoError(t, db.PutIf(key, []byte("3"), nil, nil))
		require.Equal(t, "3", value(t, db, "k"))
	})
}

// design.md: W6
func TestPutIf_NoSiblingsStandForNoValue(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		db, b := c.start("a"), c.start("b", "a:9000")
		key := []byte("k")
		require.NoError(t, db.PutIf(key, nil, nil, nil), "never written")
		require.NoError(t, db.Delete(key, nil))
		tombstone, err := db.Versions(key)
		require.NoError(t, err)
		require.True(t, tombstone[0].Deleted)
		require.NoError(t, db.WriteIf(nil, []replicator.Cond{{Key: key, Seen: []replicator.VersionID{tombstone[0].ID()}}}, nil), "its name is as good, while it is there")
		require.NoError(t, db.PutIf(key, []byte("1"), nil, nil), "deleted")
		require.NoError(t, db.Delete(key, nil))
		absent := seen(t, db, "k")
		for range 3 { // until it is stable everywhere
			put(t, db, "other", "x")
			require.NoError(t, db.WaitReplicated(t.Context(), 1))
			put(t, b, "another", "x")
			require.NoError(t, b.WaitReplicated(t.Context(), 1))
			time.Sleep(time.Minute)
		}
		versions, err := db.Versions(key)
		require.NoError(t, err)
		require.Empty(t, versions, "it is purged by now")
		require.NoError(t, db.PutIf(key, []byte("2"), absent, nil), "what was read before the purge holds after it")
	})
}

func TestWriteIf_IsAtomicWithItsConditions(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		db := newCluster(t).start("a")
		put(t, db, "guard", "g")
		put(t, db, "k", "0")
		guard, k := seen(t, db, "guard"), seen(t, db, "k")
		batch := new(leveldb.Batch)
		batch.Put([]byte("k"), []byte("1"))
		batch.Put([]byte("k"), []byte("2")) // the condition is of what was there before the batch
		batch.Put([]byte("new"), []byte("n"))
		conds := []replicator.Cond{{Key: []byte("guard"), Seen: guard}, {Key: []byte("k"), Seen: k}, {Key: []byte("new")}, {Key: []byte("absent")}}
		for _, c := range conds {
			require.NoError(t, db.WriteIf(nil, []replicator.Cond{c}, nil))
		}
		require.NoError(t, db.WriteIf(nil, conds, nil))
		require.NoError(t, db.WriteIf(batch, conds, nil))
		require.Equal(t, "2 n", value(t, db, "k")+" "+value(t, db, "new"))

		batch.Put([]byte("k"), []byte("3"))
		conds = []replicator.Cond{{Key: []byte("guard"), Seen: guard}, {Key: []byte("k"), Seen: seen(t, db, "k")}}
		put(t, db, "guard", "another, and not in the batch")
		err := db.WriteIf(batch, conds, nil)
		var which *replicator.ChangedError
		require.ErrorAs(t, err, &which)
		require.Equal(t, "guard", string(which.Key))
		require.Equal(t, "2 n", value(t, db, "k")+" "+value(t, db, "new"), "nothing was written")
		require.ErrorIs(t, db.WriteIf(nil, conds, nil), replicator.ErrChanged)
		require.ErrorIs(t, db.WriteIf(new(leveldb.Batch), []replicator.Cond{{Key: []byte("k"), Seen: k}}, nil), replicator.ErrChanged)
		require.NoError(t, db.WriteIf(batch, nil, nil), "without conditions it is Write")
		require.Equal(t, "3", value(t, db, "k"))
	})
}

func TestConditions_ThatCannotHoldAreRefusedWithAReason(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		db := c.open("a", replicatortest.MemDB(t), &replicator.Options{LocalRanges: localRange("local/"), Limits: replicator.Limits{MaxValue: 10}})
		put(t, db, "local/k", "v")
		put(t, db, "k", "v")
		id := seen(t, db, "k")
		require.ErrorIs(t, db.PutIf([]byte("local/k"), []byte("w"), nil, nil), replicator.ErrLocalKey)
		require.ErrorContains(t, db.WriteIf(nil, []replicator.Cond{{Key: []byte("local/k")}}, nil), `"local/k"`)
		require.ErrorIs(t, db.Update(t.Context(), []byte("local/k"), nil), replicator.ErrLocalKey)
		v, err := db.Read([]byte("local/k"))
		require.NoError(t, err)
		require.Equal(t, "v", string(v.Bytes))
		require.Nil(t, v.Seen)
		require.ErrorIs(t, db.PutIf([]byte("\xff\xffk"), nil, nil, nil), replicator.ErrReservedKey)
		require.ErrorIs(t, db.WriteIf(nil, []replicator.Cond{{Key: []byte("\xff\xffk")}}, nil), replicator.ErrReservedKey)
		require.ErrorIs(t, db.PutIf([]byte("k"), make([]byte, 11), id, nil), replicator.ErrTooLarge)
		require.ErrorContains(t, db.PutIf([]byte("k"), nil, []replicator.VersionID{{}}, nil), "Seq of a version")
		batch := new(leveldb.Batch)
		batch.Put([]byte("local/k"), []byte("w"))
		require.NoError(t, db.WriteIf(batch, []replicator.Cond{{Key: []byte("k"), Seen: id}}, nil), "the writes may be anywhere")
		require.Equal(t, "w", value(t, db, "local/k"))

		f := c.open("f", replicatortest.MemDB(t), &replicator.Options{Follower: true, Peers: []string{"a:9000"}, LocalRanges: localRange("local/")})
		require.NoError(t, f.Sync(t.Context()))
		require.Equal(t, id, seen(t, f, "k"), "a follower reads")
		require.Equal(t, replicator.ErrFollower, f.PutIf([]byte("k"), nil, id, nil))
		require.Equal(t, replicator.ErrFollower, f.Update(t.Context(), []byte("k"), nil))
		_, err = f.OpenCheckedTransaction()
		require.Equal(t, replicator.ErrFollower, err)

		require.NoError(t, db.SetReadOnly())
		require.Equal(t, id, seen(t, db, "k"))
		require.Equal(t, leveldb.ErrReadOnly, db.PutIf([]byte("k"), nil, id, nil))
		require.Equal(t, leveldb.ErrReadOnly, db.DeleteIf([]byte("k"), nil, nil), "not even that it does not hold")
		require.NoError(t, db.Close())
		require.Equal(t, leveldb.ErrClosed, db.PutIf([]byte("k"), nil, id, nil))
		require.Equal(t, leveldb.ErrClosed, db.WriteIf(nil, []replicator.Cond{{Key: []byte("k")}}, nil))
		require.Equal(t, leveldb.ErrClosed, db.Update(t.Context(), []byte("k"), nil))
		_, err = db.OpenCheckedTransaction()
		require.Equal(t, leveldb.ErrClosed, err)
	})
}

// design.md: W6
func TestPutIf_OfRacingWritersExactlyOneWins(t *testing.T) {
	db := newCluster(t).start("a") // in real time, so that they do race
	for _, writers := range []int{1, 2, 8, 64} {
		for round := range 25 {
			key := fmt.Appendf(nil, "%d/%d", writers, round)
			if round%2 == 1 {
				require.NoError(t, db.Put(key, []byte("before"), nil))
			}
			saw := seen(t, db, string(key))
			var won atomic.Int64
			var wg sync.WaitGroup
			begin := make(chan struct{})
			for w := range writers {
				wg.Go(func() {
					<-begin
					err := db.PutIf(key, fmt.Append(nil, w), saw, &opt.WriteOptions{Sync: w%3 == 0})
					switch {
					case err == nil:
						won.Add(1)
					case !errors.Is(err, replicator.ErrChanged):
						t.Error(err)
					}
				})
			}
			close(begin)
			wg.Wait()
			require.EqualValues(t, 1, won.Load(), "of %d writers", writers)
		}
	}
}

// A value that is read is that of the version that is named, whatever is written meanwhile.
//
// design.md: W7
func TestRead_IsOfOneState(t *testing.T) {
	db := newCluster(t).open("a", replicatortest.MemDB(t), &replicator.Options{})
	key := []byte("k")
	require.NoError(t, db.Put(key, []byte("1"), nil)) // as the origin's first write
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 2; !stop.Load(); i++ {
			if err := db.Put(key, strconv.AppendInt(nil, int64(i), 10), nil); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 2 {
		wg.Go(func() {
			for range 20_000 {
				v, err := db.Read(key)
				if err != nil || len(v.Seen) != 1 || string(v.Bytes) != strconv.FormatUint(v.Seen[0].Seq, 10) {
					t.Errorf("%q of %v: %v", v.Bytes, v.Seen, err)
					break
				}
			}
			stop.Store(true)
		})
	}
	wg.Wait()
}

// increment is what the callers of Update do here.
func increment(v replicator.Value) ([]byte, bool, error) {
	n, err := strconv.Atoi(string(v.Bytes))
	if v.Bytes == nil {
		n, err = 0, nil
	}
	return strconv.AppendInt(v.Bytes[:0], int64(n+1), 10), true, err
}

func TestUpdate_LosesNothingAndEveryoneGetsOn(t *testing.T) {
	db := newCluster(t).start("a")
	const each = 20
	for _, callers := range []int{1, 2, 8, 64} {
		key := fmt.Append(nil, callers)
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				for range each {
					if err := db.Update(t.Context(), key, increment); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		require.Equal(t, fmt.Sprint(callers*each), value(t, db, string(key)))
	}
}

// Callers that think take turns, so none of them is always late.
func TestUpdate_SlowCallersTakeTurns(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		db := newCluster(t).start("a")
		const callers, thinks = 64, 5 * time.Millisecond
		calls := 0
		var wg sync.WaitGroup
		counts := make([]int, callers)
		ctx, cancel := context.WithTimeout(t.Context(), 10*callers*thinks)
		defer cancel()
		var mu sync.Mutex
		for i := range callers {
			wg.Go(func() {
				for ctx.Err() == nil {
					err := db.Update(ctx, []byte("k"), func(v replicator.Value) ([]byte, bool, error) {
						mu.Lock()
						calls++
						mu.Unlock()
						time.Sleep(thinks)
						return increment(v)
					})
					if err == nil {
						counts[i]++
					}
				}
			})
		}
		wg.Wait()
		total := 0
		for _, n := range counts {
			total += n
			require.Positive(t, n, "of %v", counts)
		}
		require.Equal(t, fmt.Sprint(total), value(t, db, "k"))
		require.Greater(t, total, 10*callers*8/10, "of ten each that there was time for")
		require.Less(t, calls, 2*total, "they race")
	})
}

func TestUpdate_ThatIsRetriedSeesWhatCameBetween(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		db := newCluster(t).start("a")
		var saw []string
		update := func(v replicator.Value) ([]byte, bool, error) {
			saw = append(saw, fmt.Sprint(string(v.Bytes), v.Bytes == nil))
			if len(saw) <= 3 {
				put(t, db, "k", fmt.Sprint("other ", len(saw)))
			}
			copy(v.Bytes, "####") // they are f's
			clear(v.Seen)
			return []byte("mine"), len(saw) < 5, nil
		}
		require.NoError(t, db.Update(t.Context(), []byte("k"), update))
		require.Equal(t, []string{"true", "other 1false", "other 2false", "other 3false"}, saw)
		require.Equal(t, "mine", value(t, db, "k"))
		require.NoError(t, db.Update(t.Context(), []byte("k"), update))
		require.Equal(t, "-", value(t, db, "k"), "what is not kept is deleted")
	})
}

func TestUpdate_EndsWithItsFunctionAndItsContext(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		db := newCluster(t).start("a")
		key := []byte("k")
		put(t, db, "k", "before")
		nested := func(replicator.Value) ([]byte, bool, error) {
			return nil, true, fmt.Errorf("within: %w", replicator.ErrChanged)
		}
		err := db.Update(t.Context(), key, nested)
		require.EqualError(t, err, "within: "+replicator.ErrChanged.Error(), "an error of the function is no reason to try again")
		require.PanicsWithValue(t, "no", func() {
			_ = db.Update(t.Context(), key, func(replicator.Value) ([]byte, bool, error) { panic("no") })
		})
		ctx, cancel := context.WithCancel(t.Context())
		err = db.Update(ctx, key, func(replicator.Value) ([]byte, bool, error) {
			cancel()
			return []byte("late"), true, nil
		})
		require.Equal(t, context.Canceled, err)
		require.Equal(t, context.Canceled, db.Update(ctx, key, nil))
		require.Equal(t, "before", value(t, db, "k"))

		// What the documentation forbids goes on for ever, and no longer than its context.
		ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		n := 0
		err = db.Update(ctx, key, func(replicator.Value) ([]byte, bool, error) {
			n++
			require.NoError(t, db.Update(t.Context(), key, func(replicator.Value) ([]byte, bool, error) { return fmt.Append(nil, n), true, nil }))
			return []byte("outer"), true, nil
		})
		require.Equal(t, context.DeadlineExceeded, err)
		require.Equal(t, fmt.Sprint(n), value(t, db, "k"))

		// Nested on other keys it works, crosswise too.
		var wg sync.WaitGroup
		for _, keys := range [][2]string{{"x", "y"}, {"y", "x"}} {
			for range 4 {
				wg.Go(func() {
					err := db.Update(t.Context(), []byte(keys[0]), func(v replicator.Value) ([]byte, bool, error) {
						time.Sleep(time.Millisecond)
						err := db.Update(t.Context(), []byte(keys[1]+" within"), increment)
						if err != nil {
							return nil, false, err
						}
						return increment(v)
					})
					if err != nil {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
		require.Equal(t, "4 4", value(t, db, "x")+" "+value(t, db, "y"))
	})
}

func TestUpdate_EndsWhenTheDatabaseIsClosed(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		db := newCluster(t).start("a")
		done := make(chan error, 2)
		for range 2 {
			go func() {
				done <- db.Update(t.Context(), []byte("k"), func(replicator.Value) ([]byte, bool, error) {
					if err := db.Put([]byte("k"), nil, nil); err != nil {
						return nil, false, err
					}
					time.Sleep(time.Millisecond)
					return nil, true, nil
				})
			}()
		}
		time.Sleep(50 * time.Millisecond)
		require.NoError(t, db.Close())
		synctest.Wait()
		for range 2 {
			require.Equal(t, leveldb.ErrClosed, <-done)
		}
	})
}

// A pull may bring a write at any moment between a read and the write that follows it.
//
// design.md: W6
func TestPutIf_NeverReplacesWhatWasPulledInUnseen(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		all := func(_ []byte, a, b replicator.Version) replicator.Version {
			words := strings.Fields(string(a.Value) + " " + string(b.Value))
			slices.Sort(words)
			return replicator.Version{Value: []byte(strings.Join(slices.Compact(words), " "))}
		}
		a := c.open("a", replicatortest.MemDB(t), &replicator.Options{Resolver: all})
		b := c.open("b", replicatortest.MemDB(t), &replicator.Options{Resolver: all, Peers: []string{"a:9000"}})
		var wg sync.WaitGroup
		var refused atomic.Int64
		for _, db := range []*replicator.DB{a, b} {
			wg.Go(func() {
				name := db.Status().Name
				for i := 0; i < 50; {
					v, err := db.Read([]byte("log"))
					if err != nil && err != leveldb.ErrNotFound {
						t.Error(err)
						return
					}
					time.Sleep(5 * time.Millisecond)
					entry := fmt.Sprintf("%s%d", name, i)
					switch err := db.PutIf([]byte("log"), slices.Concat(v.Bytes, []byte(" "+entry)), v.Seen, nil); {
					case errors.Is(err, replicator.ErrChanged):
						refused.Add(1)
					case err != nil:
						t.Error(err)
						return
					default:
						i++
					}
				}
			})
		}
		wg.Wait()
		requireAgreement(t, a, b)
		require.Positive(t, refused.Load(), "nothing came between")
		words := strings.Fields(value(t, a, "log"))
		for _, name := range []string{"a", "b"} {
			for i := range 50 {
				require.Contains(t, words, fmt.Sprint(name, i))
			}
		}
	})
}
