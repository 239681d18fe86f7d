package replicator_test

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

func TestWatchGivesChangesOfAllReplicasInOrder(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b", "a:9000")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		changes := a.Watch(ctx, []byte("w/"))
		put(t, a, "w/1", "here") // before the loop: not lost
		put(t, a, "other", "x")
		requireAgreement(t, a, b)
		c.net.Partition([]string{"a"}, []string{"b"}) // so that one pull brings both
		require.NoError(t, b.Delete([]byte("w/1"), nil))
		put(t, b, "w/2", "there")
		c.net.Heal()
		var got []string
		for ch, err := range changes {
			require.NoError(t, err)
			if !ch.Deleted {
				require.Equal(t, ch.Value, ch.Version.Value)
			}
			require.NotZero(t, ch.Version.Seq)
			got = append(got, fmt.Sprintf("%s=%s deleted %v local %v by a %v", ch.Key, ch.Value, ch.Deleted, ch.Local, ch.Version.Origin == a.Status().Origin))
			if len(got) == 3 {
				break
			}
		}
		require.Equal(t, []string{
			"w/1=here deleted false local true by a true",
			"w/1= deleted true local false by a false",
			"w/2=there deleted false local false by a false",
		}, got)
		for range changes {
			t.Fatal("a loop that was left is over")
		}
	})
}

// A pull of more than one batch is committed newest first, and that is said; but no key
// may be told of in an order in which nobody had it.
func TestWatchNeverRunsBackwardsOnAKey(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b", "a:9000")
		requireAgreement(t, a, b)
		changes := a.Watch(t.Context(), nil)
		big := make([]byte, 3000)
		n := 0
		write := func() {
			batch := new(leveldb.Batch)
			for range 50 {
				n++
				batch.Put(fmt.Appendf(nil, "k%d", 7*n%300), append(fmt.Appendf(nil, "%08d", n), big...))
			}
			require.NoError(t, b.Write(batch, nil))
		}
		c.net.Partition([]string{"a"}, []string{"b"})
		for range 40 { // 300 keys, about 1 MB
			write()
		}
		c.net.Heal()
		for range 200 { // and it goes on while that is pulled
			write()
			time.Sleep(5 * time.Millisecond)
		}
		requireAgreement(t, a, b)
		put(t, b, "end", "")
		last := map[string]int{}
		told, newest := 0, 0
		for ch, err := range changes {
			require.NoError(t, err)
			if string(ch.Key) == "end" {
				break
			}
			at, err := strconv.Atoi(string(ch.Value[:8]))
			require.NoError(t, err)
			require.Greater(t, at, last[string(ch.Key)], "key %s", ch.Key)
			last[string(ch.Key)] = at
			told++
			newest = max(newest, at)
		}
		require.Len(t, last, 300)
		require.Equal(t, n, newest)
		require.Greater(t, told, 300)
	})
}

func TestWatchGivesChangesInCommitOrder(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b", "a:9000")
		requireAgreement(t, a, b)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		seq := b.Watch(ctx, []byte("w/"))
		put(t, b, "w/1", "here") // after Watch, before the loop
		put(t, b, "x", "not asked for")
		batch := new(leveldb.Batch)
		batch.Put([]byte("w/2"), []byte("first"))
		batch.Put([]byte("w/3"), nil)
		batch.Put([]byte("w/2"), []byte("last"))
		require.NoError(t, b.Write(batch, nil))
		require.NoError(t, b.Delete([]byte("w/1"), nil))
		require.NoError(t, b.Delete([]byte("w/missing"), nil))
		requireAgreement(t, a, b)
		put(t, a, "w/2", "there")
		requireAgreement(t, a, b)

		var got []string
		for ch, err := range seq {
			require.NoError(t, err)
			got = append(got, fmt.Sprintf("%s=%s deleted:%t local:%t clock:%d", ch.Key, ch.Value, ch.Deleted, ch.Local, ch.Version.Clock))
			require.Equal(t, ch.Value, ch.Version.Value)
			if ch.Local {
				require.Equal(t, b.Status().Origin, ch.Version.Origin)
			} else {
				require.Equal(t, a.Status().Origin, ch.Version.Origin)
				break
			}
		}
		want := []string{
			"w/1=here deleted:false local:true clock:0",
			"w/3= deleted:false local:true clock:0",
			"w/2=last deleted:false local:true clock:0",
			"w/1= deleted:true local:true clock:1",
			"w/2=there deleted:false local:false clock:1",
		}
		require.Equal(t, want, got)
	})
}

func TestWatchTellsOfConflictsAndOfTheirEnd(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b", "a:9000")
		requireAgreement(t, a, b)
		c.net.Partition([]string{"a"}, []string{"b"})
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		seq := a.Watch(ctx, nil)
		put(t, a, "k", "a")
		put(t, b, "k", "b")
		c.net.Heal()
		requireAgreement(t, a, b)
		put(t, b, "k", "settled")
		requireAgreement(t, a, b)
		var conflicts []bool
		for ch, err := range seq {
			require.NoError(t, err)
			conflicts = append(conflicts, ch.Conflict)
			if string(ch.Value) == "settled" {
				break
			}
		}
		require.Equal(t, []bool{false, true, false}, conflicts)
	})
}

func TestSlowReaderIsToldThatItMissedSomeAndGoesOn(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		a := newCluster(t).start("a")
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		seq := a.Watch(ctx, nil)
		big := make([]byte, 64<<10)
		for i := range 200 { // 12.5 MiB, in 20 s of which nothing is read
			require.NoError(t, a.Put(fmt.Appendf(nil, "%03d", i), big, nil))
			time.Sleep(100 * time.Millisecond)
		}
		n, missed := 0, false
		for ch, err := range seq {
			if err != nil {
				require.Equal(t, replicator.ErrMissed, err)
				require.False(t, missed)
				missed = true
				require.Nil(t, ch.Key)
				require.Positive(t, n)
				require.Less(t, n*len(big), 5<<20, "what is kept is bounded")
				put(t, a, "after", "v")
				continue
			}
			if missed {
				require.Equal(t, "after", string(ch.Key), "what was written after the mark was taken is not missed")
				break
			}
			require.Equal(t, fmt.Sprintf("%03d", n), string(ch.Key), "what comes before the mark has no holes")
			n++
		}
		require.True(t, missed)
	})
}

func TestBurstOverrunsNoReaderWhoIsThere(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		a := newCluster(t).start("a")
		seq := a.Watch(t.Context(), nil)
		n := 0
		read := make(chan struct{})
		go func() {
			defer close(read)
			for ch, err := range seq {
				require.NoError(t, err)
				if n++; string(ch.Key) == "end" {
					return
				}
			}
		}()
		synctest.Wait()        // it waits
		for batch := range 2 { // 6 MiB each, of which the second finds the first
			b := new(leveldb.Batch)
			for i := range 20_000 {
				b.Put(fmt.Appendf(nil, "%d/%d", batch, i), []byte("v"))
			}
			require.NoError(t, a.Write(b, nil))
		}
		put(t, a, "end", "")
		<-read
		require.Equal(t, 40_001, n)
	})
}

func TestReaderWhoDoesNotReadIsNotKeptMoreThanItsShare(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		a := newCluster(t).start("a")
		seq := a.Watch(t.Context(), nil)
		big := make([]byte, 1<<20)
		for i := range 100 { // within no time, which is a burst: but all of it is not kept
			require.NoError(t, a.Put(fmt.Append(nil, i), big, nil))
		}
		n := 0
		for _, err := range seq {
			if err != nil {
				require.Equal(t, replicator.ErrMissed, err)
				break
			}
			n++
		}
		require.Less(t, n, 64)
		require.Greater(t, n, 60)
	})
}

func TestWatchEnds(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		a := newCluster(t).start("a")
		loop := func(ctx context.Context) chan struct{} {
			ended := make(chan struct{})
			seq := a.Watch(ctx, nil)
			go func() {
				defer close(ended)
				for range seq {
				}
			}()
			return ended
		}
		ctx, cancel := context.WithCancel(context.Background())
		byContext, byClose := loop(ctx), loop(context.Background())
		synctest.Wait()
		cancel()
		<-byContext
		select {
		case <-byClose:
			t.Fatal("the other one ended, too")
		default:
		}
		require.NoError(t, a.Close())
		<-byClose
		for range a.Watch(context.Background(), nil) {
			t.Fatal("a closed database has no changes")
		}
	})
}

func TestPurgedDeletionIsNoChange(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		a := newCluster(t).open("a", replicatortest.MemDB(t), &replicator.Options{TombstoneTTL: time.Minute})
		sync := &opt.WriteOptions{Sync: true} // only what is on disk is forgotten
		require.NoError(t, a.Put([]byte("k"), []byte("v"), sync))
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		seq := a.Watch(ctx, nil)
		require.NoError(t, a.Delete([]byte("k"), sync))
		require.EqualValues(t, 1, a.Status().Tombstones)
		time.Sleep(3 * time.Minute)
		require.Zero(t, a.Status().Tombstones)
		put(t, a, "end", "")
		deletions := 0
		for ch, err := range seq {
			require.NoError(t, err)
			if string(ch.Key) == "end" {
				break
			}
			require.True(t, ch.Deleted)
			deletions++
		}
		require.Equal(t, 1, deletions)
	})
}

func TestOpenTransactionStallsNobody(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b", "a:9000")
		put(t, a, "k", "before")
		requireAgreement(t, a, b)
		tr, err := a.OpenTransaction()
		require.NoError(t, err)
		require.NoError(t, tr.Put([]byte("staged"), []byte("v"), nil))
		put(t, a, "k", "meanwhile")
		put(t, b, "from b", "v")
		requireAgreement(t, a, b)
		require.Equal(t, "v", value(t, a, "from b"), "replication went on")
		v, err := tr.Get([]byte("k"), nil)
		require.NoError(t, err)
		require.Equal(t, "before", string(v), "it reads the database as it was")
		require.Equal(t, "-", value(t, a, "staged"))

		second := make(chan *replicator.Transaction)
		go func() {
			tr, err := a.OpenTransaction()
			if err == nil {
				second <- tr
			}
			close(second)
		}()
		synctest.Wait()
		select {
		case <-second:
			t.Fatal("two transactions at once")
		default:
		}
		require.NoError(t, tr.Commit())
		next := <-second
		v, err = next.Get([]byte("staged"), nil)
		require.NoError(t, err)
		require.Equal(t, "v", string(v))
		requireAgreement(t, a, b)
		require.Equal(t, "v", value(t, b, "staged"), "it is logged")

		waiting := make(chan error)
		go func() {
			_, err := a.OpenTransaction()
			waiting <- err
		}()
		synctest.Wait()
		go a.Close()
		require.Equal(t, leveldb.ErrClosed, <-waiting)
		_, err = next.Get([]byte("k"), nil)
		require.EqualError(t, err, "leveldb: transaction already closed")
		require.Equal(t, leveldb.ErrClosed, next.Commit())
	})
}

func TestLocalRangesAreNotReplicated(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		local := make([]*replicator.Options, 2)
		for i := range local {
			local[i] = &replicator.Options{LocalRanges: localRange("cache/")}
		}
		local[1].Peers = []string{"a:9000"}
		a, b := c.open("a", replicatortest.MemDB(t), local[0]), c.open("b", replicatortest.MemDB(t), local[1])
		put(t, a, "cache/1", "a")
		put(t, b, "cache/1", "b")
		put(t, a, "k", "v")
		require.NoError(t, b.Sync(context.Background()))
		require.Equal(t, "v", value(t, b, "k"))
		require.Equal(t, "a", value(t, a, "cache/1"))
		require.Equal(t, "b", value(t, b, "cache/1"))
		require.EqualValues(t, 1, a.Status().Keys)

		// Who does not agree on the ranges is refused, and told why.
		d := c.start("d", "a:9000")
		put(t, d, "cache/2", "d")
		require.ErrorContains(t, d.Sync(context.Background()), "local range")
		require.Equal(t, "-", value(t, a, "cache/2"))
	})
}
