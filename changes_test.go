package replicator_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/fuzzing"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// follower collects what a consumer is yielded, as text.
type follower struct {
	index  map[string]string
	cursor replicator.Cursor
	told   []string // reset, key=value, key deleted
}

func (f *follower) take(c replicator.Change) {
	switch {
	case c.Reset:
		f.index = map[string]string{}
		f.told = append(f.told, "reset")
	case c.Key == nil:
	case c.Deleted:
		delete(f.index, string(c.Key))
		f.told = append(f.told, string(c.Key)+" deleted")
	default:
		f.index[string(c.Key)] = string(c.Value)
		f.told = append(f.told, fmt.Sprintf("%s=%s", c.Key, c.Value))
	}
	if !c.Cursor.IsZero() {
		f.cursor = c.Cursor
	}
}

// once catches up, and returns what was told meanwhile.
func (f *follower) once(t testing.TB, db *replicator.DB, o replicator.ChangesOptions) []string {
	o.Once, f.told = true, nil
	for c, err := range db.Changes(t.Context(), f.cursor, &o) {
		require.NoError(t, err)
		f.take(c)
	}
	return f.told
}

func newFollower() *follower { return &follower{index: map[string]string{}} }

// design.md: F1
func TestChangesResumeAtAnyReplica(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b", "a:9000")
		put(t, a, "k1", "1")
		put(t, a, "k2", "2")
		f := newFollower()
		require.Equal(t, []string{"reset", "k1=1", "k2=2"}, f.once(t, a, replicator.ChangesOptions{}))
		require.Empty(t, f.once(t, a, replicator.ChangesOptions{}), "nothing has changed")

		requireAgreement(t, a, b)
		put(t, b, "k3", "3")
		require.NoError(t, b.Delete([]byte("k1"), nil))
		requireAgreement(t, a, b)
		require.ElementsMatch(t, []string{"k1 deleted", "k3=3"}, f.once(t, b, replicator.ChangesOptions{}))
		require.Empty(t, f.once(t, a, replicator.ChangesOptions{}), "the cursor of b is good at a")
		require.Equal(t, map[string]string{"k2": "2", "k3": "3"}, f.index)

		for i := range 10 { // one key, again and again, is one change
			put(t, a, "k2", fmt.Sprint(i))
		}
		require.Equal(t, []string{"k2=9"}, f.once(t, a, replicator.ChangesOptions{}))
	})
}

func TestChangesFollowLive(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b", "a:9000")
		put(t, a, "before", "1")
		requireAgreement(t, a, b)
		ctx, cancel := context.WithCancel(t.Context())
		f, done := newFollower(), make(chan struct{})
		var local []bool
		go func() {
			defer close(done)
			for ch, err := range a.Changes(ctx, replicator.Cursor{}, nil) {
				require.NoError(t, err)
				f.take(ch)
				if ch.Key != nil {
					local = append(local, ch.Local)
				}
			}
		}()
		synctest.Wait()
		require.Equal(t, []string{"reset", "before=1"}, f.told)
		put(t, a, "here", "2")
		synctest.Wait()
		put(t, b, "there", "3")
		requireAgreement(t, a, b)
		synctest.Wait()
		require.Equal(t, []string{"reset", "before=1", "here=2", "there=3"}, f.told)
		require.Equal(t, []bool{true, true, false}, local)
		time.Sleep(3 * time.Second) // writes without Sync are brought to disk for the cursor
		synctest.Wait()
		last := f.cursor
		cancel()
		<-done
		g := follower{index: f.index, cursor: last}
		require.Empty(t, g.once(t, a, replicator.ChangesOptions{}))
	})
}

// design.md: F6
func TestChangesGiveACursorWithASyncedWriteAtOnce(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		put(t, a, "before", "")
		f := newFollower()
		f.once(t, a, replicator.ChangesOptions{})
		next := make(chan replicator.Change)
		go func() {
			defer close(next)
			for ch, err := range a.Changes(t.Context(), f.cursor, nil) {
				if err == leveldb.ErrClosed {
					return
				}
				require.NoError(t, err)
				next <- ch
			}
		}()
		synctest.Wait()
		require.NoError(t, a.Put([]byte("k"), []byte("synced"), &opt.WriteOptions{Sync: true}))
		ch := <-next
		require.Equal(t, "synced", string(ch.Value))
		require.False(t, ch.Cursor.IsZero())
		put(t, a, "k", "not synced")
		ch = <-next
		require.Equal(t, "not synced", string(ch.Value))
		require.True(t, ch.Cursor.IsZero(), "a crash could take its name")
		began := time.Now()
		ch = <-next
		require.Nil(t, ch.Key)
		require.False(t, ch.Cursor.IsZero())
		require.LessOrEqual(t, time.Since(began), 3*time.Second)
		require.NoError(t, a.Close())
		for range next {
		}
	})
}

// What wakes consumers comes with the first of them and goes with the last; one that begins or ends at the moment of a
// commit takes it from nobody.
func TestChangesWakeEachConsumerWhileOthersComeAndGo(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for round := range 300 {
			var wg sync.WaitGroup
			for i := range 1 + round%3 {
				since, key := a.Cursor(), fmt.Sprintf("%d.%d", round, i)
				wg.Go(func() {
					for ch, err := range a.Changes(ctx, since, &replicator.ChangesOptions{NoCursors: true}) {
						if !assert.NoError(t, err) || string(ch.Key) == key {
							return
						}
					}
				})
				wg.Go(func() { assert.NoError(t, a.Put([]byte(key), nil, nil)) })
			}
			wg.Wait()
			require.NoError(t, ctx.Err(), "somebody was not woken in round %d", round)
		}
	})
}

func TestChangesLeaveNoGoroutine(t *testing.T) {
	wakers := func() int {
		var all bytes.Buffer
		require.NoError(t, pprof.Lookup("goroutine").WriteTo(&all, 2))
		return strings.Count(all.String(), "wakeConsumers(")
	}
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		synctest.Wait()
		require.Zero(t, wakers())
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for range a.Changes(ctx, replicator.Cursor{}, nil) {
				}
			})
		}
		synctest.Wait()
		require.Equal(t, 1, wakers())
		cancel()
		wg.Wait()
		synctest.Wait()
		require.Zero(t, wakers())
	})
}

func TestChangesOfTheEmptyKey(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		f := newFollower()
		put(t, a, "", "")
		require.Equal(t, []string{"reset", "="}, f.once(t, a, replicator.ChangesOptions{}))
		put(t, a, "", "1")
		require.Equal(t, []string{"=1"}, f.once(t, a, replicator.ChangesOptions{}))
		require.NoError(t, a.Delete(nil, nil))
		require.Equal(t, []string{" deleted"}, f.once(t, a, replicator.ChangesOptions{}))
	})
}

func TestChangesBeginWithWhatComesNext(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		put(t, a, "before", "1")
		f := follower{index: map[string]string{}, cursor: a.Cursor()}
		put(t, a, "after", "2")
		began, was := time.Now(), f.cursor.String()
		require.Equal(t, []string{"after=2"}, f.once(t, a, replicator.ChangesOptions{NoCursors: true}))
		require.Equal(t, was, f.cursor.String(), "no cursor is yielded")
		require.Equal(t, began, time.Now(), "nothing waits for the disk")
	})
}

func TestChangesOfSomeKeys(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		for _, k := range []string{"a1", "b1", "c1", "d1"} {
			put(t, a, k, "x")
		}
		some := replicator.ChangesOptions{Prefix: []byte("b"), Ranges: []*util.Range{{Start: []byte("d")}}, KeysOnly: true}
		f := newFollower()
		require.Equal(t, []string{"reset", "b1=", "d1="}, f.once(t, a, some))
		for _, k := range []string{"a1", "b1", "c1"} {
			require.NoError(t, a.Delete([]byte(k), nil))
		}
		put(t, a, "d2", "y")
		put(t, a, "c2", "y")
		require.Equal(t, []string{"b1 deleted", "d2="}, f.once(t, a, some))
		put(t, a, "c3", "y")
		was := f.cursor
		require.Empty(t, f.once(t, a, some))
		require.NotEqual(t, was.String(), f.cursor.String(), "it moves on with what others change")
	})
}

// A consumer that was away while a deletion was purged has to begin again; one that knows of the deletion has not.
//
// design.md: F3
func TestChangesResetOnlyWhereADeletionWasMissed(t *testing.T) {
	replicatortest.Bubble(t, time.Hour, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		put(t, a, "stays", "1")
		put(t, a, "goes", "1")
		away, knows := newFollower(), newFollower()
		away.once(t, a, replicator.ChangesOptions{})
		require.NoError(t, a.Delete([]byte("goes"), nil))
		knows.once(t, a, replicator.ChangesOptions{})
		require.Eventually(t, func() bool { return a.Status().Tombstones == 0 }, 10*time.Minute, time.Second)
		require.Empty(t, knows.once(t, a, replicator.ChangesOptions{}))
		require.Equal(t, []string{"reset", "stays=1"}, away.once(t, a, replicator.ChangesOptions{}))
		require.Equal(t, map[string]string{"stays": "1"}, away.index)
	})
}

// A deletion that some member has not confirmed is there for consumers, too, until TombstoneTTL.
func TestChangesDeliverADeletionThatAMemberHasNotConfirmed(t *testing.T) {
	replicatortest.Bubble(t, 12*time.Hour, func(t *testing.T) {
		c := newCluster(t)
		a := c.open("a", replicatortest.MemDB(t), &replicator.Options{TombstoneTTL: time.Hour})
		b := c.start("b", "a:9000")
		put(t, a, "stays", "1")
		put(t, a, "goes", "1")
		requireAgreement(t, a, b)
		within, beyond := newFollower(), newFollower()
		within.once(t, a, replicator.ChangesOptions{})
		beyond.once(t, a, replicator.ChangesOptions{})
		c.net.Partition([]string{"a"}, []string{"b"})
		require.NoError(t, a.Delete([]byte("goes"), nil))
		time.Sleep(50 * time.Minute)
		require.Equal(t, []string{"goes deleted"}, within.once(t, a, replicator.ChangesOptions{}))
		require.Eventually(t, func() bool { return a.Status().Tombstones == 0 }, 2*time.Hour, time.Minute)
		require.Equal(t, []string{"reset", "stays=1"}, beyond.once(t, a, replicator.ChangesOptions{}))
	})
}

func TestChangesWaitForAReplicaThatIsBehind(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b", "a:9000")
		requireAgreement(t, a, b)
		c.net.Partition([]string{"a"}, []string{"b"})
		put(t, a, "k", "1")
		f := newFollower()
		f.once(t, a, replicator.ChangesOptions{})
		for _, err := range b.Changes(t.Context(), f.cursor, &replicator.ChangesOptions{MaxWait: time.Second}) {
			require.ErrorIs(t, err, replicator.ErrBehind)
		}
		go func() {
			time.Sleep(2 * time.Second)
			c.net.Heal()
		}()
		require.Empty(t, f.once(t, b, replicator.ChangesOptions{}))
	})
}

// design.md: F7
func TestChangesRefuseWhatIsNoCursorOfTheCluster(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		other := c.open("other", replicatortest.MemDB(t), &replicator.Options{Cluster: "another"})
		put(t, other, "k", "1")
		f := newFollower()
		f.once(t, other, replicator.ChangesOptions{})
		var errs []error
		for ch, err := range a.Changes(t.Context(), f.cursor, nil) {
			require.Zero(t, ch)
			errs = append(errs, err)
		}
		require.Len(t, errs, 1)
		require.ErrorIs(t, errs[0], replicator.ErrCursor)
		require.ErrorContains(t, errs[0], "another cluster")

		b, err := f.cursor.MarshalBinary()
		require.NoError(t, err)
		later := append([]byte{2}, b[1:]...)
		require.ErrorContains(t, new(replicator.Cursor).UnmarshalBinary(later), "it is of version 2")
		for i := range b {
			damaged := append([]byte{}, b...)
			damaged[i] ^= 0x10
			require.ErrorIs(t, new(replicator.Cursor).UnmarshalBinary(damaged), replicator.ErrCursor)
		}
		for i := 1; i < len(b); i++ {
			require.ErrorIs(t, new(replicator.Cursor).UnmarshalBinary(b[:i]), replicator.ErrCursor)
		}
		_, err = replicator.ParseCursor("no cursor")
		require.ErrorIs(t, err, replicator.ErrCursor)
	})
}

// design.md: F7
func TestCursorIsTextAndBytes(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		put(t, a, "k", "1")
		f := newFollower()
		f.once(t, a, replicator.ChangesOptions{})
		base := f.cursor
		text, err := json.Marshal(base)
		require.NoError(t, err)
		var back replicator.Cursor
		require.NoError(t, json.Unmarshal(text, &back))
		require.Equal(t, base.String(), back.String())
		var zero replicator.Cursor
		require.NoError(t, zero.UnmarshalText(nil))
		require.True(t, zero.IsZero())

		put(t, a, "k", "2")
		f.once(t, a, replicator.ChangesOptions{})
		delta, err := f.cursor.MarshalSince(base)
		require.NoError(t, err)
		require.LessOrEqual(t, len(delta), 64)
		again, err := base.UnmarshalSince(delta)
		require.NoError(t, err)
		require.Equal(t, f.cursor.String(), again.String())
		require.ErrorIs(t, new(replicator.Cursor).UnmarshalBinary(delta), replicator.ErrCursor)
		_, err = f.cursor.UnmarshalSince(delta)
		require.ErrorIs(t, err, replicator.ErrCursor)
		whole, err := f.cursor.MarshalSince(replicator.Cursor{})
		require.NoError(t, err)
		again, err = base.UnmarshalSince(whole)
		require.NoError(t, err)
		require.Equal(t, f.cursor.String(), again.String())
	})
}

// TestCursorIsReadAsItWasWritten reads cursors that this version wrote. If it fails, stored cursors are lost: raise the
// version, and keep the old decoder.
func TestCursorIsReadAsItWasWritten(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "cursors.txt"))
	require.NoError(t, err)
	var base replicator.Cursor
	n := 0
	for line := range strings.Lines(string(text)) {
		name, digits, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || name == "#" {
			continue
		}
		n++
		b, err := hex.DecodeString(digits)
		require.NoError(t, err)
		c, err := base.UnmarshalSince(b)
		require.NoError(t, err, name)
		again, err := c.MarshalSince(base)
		if name != "since" {
			again, err = c.MarshalBinary()
			base = c
		}
		require.NoError(t, err)
		require.Equal(t, digits, hex.EncodeToString(again), name)
	}
	require.Equal(t, 3, n)
}

func FuzzCursor(f *testing.F) {
	text, err := os.ReadFile(filepath.Join("testdata", "cursors.txt"))
	require.NoError(f, err)
	in := &fuzzing.Corpus{F: f}
	for line := range strings.Lines(string(text)) {
		if _, digits, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			if b, err := hex.DecodeString(digits); err == nil {
				in.Add(b)
			}
		}
	}
	fuzzing.Run1(in, func(t testing.TB, b []byte) {
		var c replicator.Cursor
		if c.UnmarshalBinary(b) != nil {
			return
		}
		again, err := c.MarshalBinary()
		require.NoError(t, err)
		require.Equal(t, string(b), string(again))
	})
}

// A consumer that takes nothing for a long time costs nothing, and misses nothing.
func TestChangesOfASlowConsumerComeFromTheLog(t *testing.T) {
	replicatortest.Bubble(t, time.Hour, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		put(t, a, "first", "")
		value := strings.Repeat("v", 4<<10)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		index := map[string]bool{}
		for ch, err := range a.Changes(ctx, replicator.Cursor{}, nil) {
			require.NoError(t, err)
			if ch.Key == nil {
				continue
			}
			index[string(ch.Key)] = true
			switch len(index) {
			case 1: // 40 MB, while it does not look
				for i := range 100 {
					batch := new(leveldb.Batch)
					for j := range 100 {
						batch.Put(fmt.Appendf(nil, "k%04d", 100*i+j), []byte(value))
					}
					require.NoError(t, a.Write(batch, nil))
				}
			case 10_001:
				cancel()
			}
		}
		require.Len(t, index, 10_001)
	})
}

func TestChangesOfAClosedDatabase(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		ended := make(chan error, 1)
		go func() {
			for _, err := range a.Changes(context.Background(), replicator.Cursor{}, nil) {
				if err != nil {
					ended <- err
				}
			}
			close(ended)
		}()
		synctest.Wait()
		require.NoError(t, a.Close())
		require.ErrorIs(t, <-ended, leveldb.ErrClosed)
		for _, err := range a.Changes(t.Context(), replicator.Cursor{}, nil) {
			require.ErrorIs(t, err, leveldb.ErrClosed)
		}
	})
}

// design.md: F5
func TestChangesTellWhatAnotherResolverMakesOfConflicts(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b", "a:9000")
		requireAgreement(t, a, b)
		c.net.Partition([]string{"a"}, []string{"b"})
		put(t, a, "k", "1")
		put(t, a, "k", "of a")
		put(t, b, "k", "of b")
		c.net.Heal()
		requireAgreement(t, a, b)
		f := newFollower()
		require.Equal(t, []string{"reset", "k=of a"}, f.once(t, a, replicator.ChangesOptions{}))
		lowest := func(_ []byte, x, y replicator.Version) replicator.Version {
			if x.Clock < y.Clock {
				return x
			}
			return y
		}
		other := c.open("other", replicatortest.MemDB(t), &replicator.Options{Peers: []string{"a:9000"}, Resolver: lowest})
		require.NoError(t, other.WaitFor(t.Context(), a.Token()))
		for ch, err := range other.Changes(t.Context(), f.cursor, &replicator.ChangesOptions{Once: true}) {
			require.NoError(t, err)
			if ch.Key != nil {
				require.True(t, ch.Resolver)
				require.True(t, ch.Conflict)
			}
			f.take(ch)
		}
		require.Equal(t, "of b", f.index["k"])
	})
}
