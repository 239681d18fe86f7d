package sim

import (
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/feed"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
)

// published commits what is staged, and tells the hub.
func (n *node) published(h *feed.Hub, stage func(t *replica.Txn) error) {
	require.NoError(n.t, n.Commit(stage))
	h.Publish(&n.r.Txn, n.r.Txn.Changes)
}

// A sibling that is found to be superseded goes without a new version, so the log above any cursor says
// nothing of it.
//
// design.md: F4
func TestFeed_DeliversWhatChangesWithoutANewVersion(t *testing.T) {
	for _, limit := range []int{1, 1 << 20} { // the hub still has the commit, or has kept only this of it
		n := newNode(t)
		h := new(feed.Hub)
		h.Limit(limit, 1<<20)
		winner, loser := foreign(2, 1), foreign(1, 1)
		winner.Clock = 7
		n.mergeFrom(&causal.Knowledge{}, winner, loser)
		require.NoError(t, n.Commit(func(t *replica.Txn) error {
			t.Cover(winner.Dot)
			t.Cover(loser.Dot)
			return nil
		}))
		at := feed.Position{Root: n.r.Known.Vector(causal.Covered)} // the log above it says nothing of k
		n.put("y", "1")
		n.put("z", "1")
		r := feed.NewReader(h, n.With, at, feed.Config{PageKeys: 1})
		defer r.Close()
		p, err := r.Next()
		require.NoError(t, err)
		require.Equal(t, "2/1", string(p.Records[0].Value))
		require.True(t, p.Records[0].Conflict)
		require.False(t, r.Live())
		var peer causal.Knowledge
		for _, c := range []causal.Column{causal.Covered, causal.Pruned} {
			peer.Raise(c, winner.Dot)
		}
		n.published(h, func(t *replica.Txn) error {
			_, err := t.Reconcile([]byte("k"), []store.Version{loser}, &peer)
			return err
		})
		require.Equal(t, []string{"1/1"}, n.values("k"))
		var last string
		for !p.Idle {
			p, err = r.Next()
			require.NoError(t, err)
			for i := range p.Records {
				if string(p.Records[i].Key) == "k" {
					last = string(p.Records[i].Value)
				}
			}
		}
		require.Equal(t, "1/1", last)
	}
}

// A tombstone that is purged while a consumer catches up is in no log any more.
//
// design.md: F3
func TestFeed_DeliversADeletionThatIsPurgedMeanwhile(t *testing.T) {
	n := newNode(t)
	h := new(feed.Hub)
	for _, k := range []string{"a", "k", "l", "z"} {
		n.put(k, "1")
	}
	at := feed.Position{Root: n.r.Known.Vector(causal.Covered)}
	n.put("a", "2")
	n.del("k")
	n.del("l") // two are more than there is room for in the page that ends the catch-up
	n.saved()
	r := feed.NewReader(h, n.With, at, feed.Config{PageKeys: 1})
	defer r.Close()
	p, err := r.Next()
	require.NoError(t, err)
	require.Empty(t, p.Reset)
	require.Equal(t, "a", string(p.Records[0].Key))
	n.r.TombstoneTTL = 0
	purging := n.r.BeginPurge()
	require.NoError(t, purging.Next(publishing{testKeeper{testHost: n, step: 100}, n, h}))
	require.Zero(t, n.r.Tombstones)
	deleted := map[string]bool{}
	for !p.Idle {
		p, err = r.Next()
		require.NoError(t, err)
		require.Empty(t, p.Reset)
		for i := range p.Records {
			deleted[string(p.Records[i].Key)] = p.Records[i].Deleted
		}
	}
	require.True(t, deleted["k"])
	require.True(t, deleted["l"])

	late := feed.NewReader(h, n.With, at, feed.Config{})
	defer late.Close()
	p, err = late.Next()
	require.NoError(t, err)
	require.Equal(t, feed.Purged, p.Reset)
}

// However large its windows are, and whether or not a crash may have left stale entries, a reader delivers what the
// replica holds.
//
// design.md: O4
func TestFeed_DeliversTheSameForEveryWindow(t *testing.T) {
	a := written(t)
	a.put("k", "1")
	leftBehind := store.AppendLogKey(nil, a.r.Alias[a.r.Self], a.r.Seq)
	rec, err := a.db.Get(leftBehind, nil)
	require.NoError(t, err)
	a.put("k", "2")
	want := userData(t, a.db)
	for _, stale := range []bool{false, true} {
		if a.r.MayHaveStale = stale; stale {
			require.NoError(t, a.db.Put(leftBehind, rec, nil))
		}
		for _, conf := range []feed.Config{{PageKeys: 7}, {PageKeys: 100}, {}, {PageBytes: 5000}, {KeysOnly: true}} {
			r := feed.NewReader(new(feed.Hub), a.With, feed.Position{Root: causal.Vector{{Origin: a.r.Self, Seq: 1}}}, conf)
			told := map[string]int{}
			for p := (feed.Page{}); !p.Idle; {
				p, err = r.Next()
				require.NoError(t, err)
				require.Empty(t, p.Reset)
				for _, rec := range p.Records {
					value, ok := want[string(rec.Key)]
					require.Equal(t, !ok, rec.Deleted)
					if !conf.KeysOnly {
						require.Equal(t, value, string(rec.Value))
					}
					if !rec.Resolver {
						told[string(rec.Key)]++
					}
				}
			}
			r.Close()
			missing := 0
			for key := range want {
				missing += int(store.Btoi(told[key] == 0))
			}
			require.LessOrEqual(t, missing, 1, "but for the one that the position covers")
			require.Equal(t, 1, told["k"])
		}
	}
}

// publishing is a keeper that tells the hub.
type publishing struct {
	testKeeper
	n *node
	h *feed.Hub
}

func (k publishing) Each(keys [][]byte, stage replica.Stager) error {
	for len(keys) > 0 {
		done := 0
		k.n.published(k.h, func(t *replica.Txn) (err error) {
			done, err = stage(t, keys)
			return err
		})
		keys = keys[done:]
	}
	return nil
}
