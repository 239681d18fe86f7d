package replicator_test

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"

	"github.com/level-replicator/replicator/replicatortest"
)

func TestWatchGivesChangesOfAllServersInOrder(t *testing.T) {
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
		for ch := range changes {
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
		for ch := range changes {
			require.False(t, ch.Missed)
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
