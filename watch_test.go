package replicator_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

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
