package sim

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// reopen reopens the database of a node, as after a crash, with another
// resolver.
func (n *node) reopen(resolve replica.ResolveFunc) {
	require.NoError(n.t, n.db.CompactRange(*store.KindRange(store.KindOrigin))) // an opening starts with an empty memtable
	old := n.r
	n.r = replica.New(replica.Config{Store: old.Store, Draw: old.Draw, Now: old.Now, Resolve: resolve, MaxKey: old.MaxKey, MaxValue: old.MaxValue,
		MaxSkew: old.MaxSkew, TombstoneTTL: old.TombstoneTTL, PeerTTL: old.PeerTTL, CacheSize: 1 << 20})
	b, err := n.r.Open("")
	require.NoError(n.t, err)
	require.NoError(n.t, n.db.Write(b, &opt.WriteOptions{Sync: true}))
	require.NoError(n.t, TidyUp(n, 100, Never))
}

// copied opens a copy of a node's database, as another replica or as a backup.
func (n *node) copied() *node {
	st := storage.NewMemStorage()
	db, err := leveldb.Open(st, nil)
	require.NoError(n.t, err)
	b := new(leveldb.Batch)
	it := n.db.NewIterator(nil, nil)
	defer it.Release()
	for it.Next() {
		b.Put(it.Key(), it.Value())
	}
	require.NoError(n.t, it.Error())
	require.NoError(n.t, db.Write(b, nil))
	require.NoError(n.t, db.Close())
	return openNode(n.t, st, n.r.Resolve)
}

// saved makes all that a node has durable, as two flushes of the memtable do, and
// writes that down.
func (n *node) saved() {
	n.r.NoteOnDisk(n.r.FlushMark())
	require.NoError(n.t, n.Commit(func(t *replica.Txn) error {
		t.StageCheckpoints()
		return nil
	}))
}

// gossip lets all nodes talk with the first until all are equal, twice, and then
// demands that they have nothing more to say.
func gossip(t testing.TB, nodes ...*node) {
	t.Helper()
	for range 3 {
		for _, n := range nodes[1:] {
			talk(t, n, nodes[0])
		}
	}
	for _, n := range nodes[1:] {
		sa, sb, _ := talk(t, n, nodes[0])
		require.True(t, sa.Result().Idle && sb.Result().Idle, "there is nothing left to say")
		require.Equal(t, nodes[0].r.Digest, n.r.Digest)
	}
}

// values are those of the versions of a key.
func (n *node) values(k string) (vs []string) {
	for _, v := range n.versions(k) {
		vs = append(vs, string(v.Value))
	}
	return vs
}

func threeWriters(t testing.TB, resolve replica.ResolveFunc) []*node {
	var nodes []*node
	for i := range 3 {
		n := openNode(t, storage.NewMemStorage(), resolve)
		for j := range i + 1 {
			n.put("k", fmt.Sprintf("w%d.%d", i, j))
		}
		nodes = append(nodes, n)
	}
	gossip(t, nodes...)
	return nodes
}

// design.md: M5
func TestMerge_PartitionedWritersAreAllListedUntilSomebodyWrites(t *testing.T) {
	nodes := threeWriters(t, replica.HighestClock)
	for _, n := range nodes {
		require.Equal(t, []string{"w0.0", "w1.1", "w2.2"}, n.values("k"))
		require.Equal(t, "w2.2", n.get("k"), "the highest clock wins")
		require.EqualValues(t, 1, n.r.Conflicts)
	}
	nodes[0].put("k", "resolved")
	require.EqualValues(t, 3, nodes[0].versions("k")[0].Clock)
	gossip(t, nodes...)
	for _, n := range nodes {
		require.Equal(t, []string{"resolved"}, n.values("k"))
		require.Equal(t, "resolved", n.get("k"))
		require.Zero(t, n.r.Conflicts)
		require.Len(t, n.log(), 1)
	}
}

// design.md: M8
func TestMerge_ResolverCanBeReplacedAndLosesNothing(t *testing.T) {
	nodes := threeWriters(t, replica.HighestClock)
	lowest := func(_ []byte, a, b *store.Version) store.Version {
		if a.Clock < b.Clock {
			return *a
		}
		return *b
	}
	for _, n := range nodes {
		require.Equal(t, "w2.2", n.get("k"))
		n.reopen(lowest)
		require.Equal(t, "w0.0", n.get("k"), "before anybody was met")
	}
	gossip(t, nodes...)
	for _, n := range nodes {
		require.Equal(t, "w0.0", n.get("k"))
		require.Equal(t, []string{"w0.0", "w1.1", "w2.2"}, n.values("k"))
		n.reopen(replica.HighestClock)
		require.Equal(t, "w2.2", n.get("k"), "and back")
	}
}

// design.md: M8
func TestMerge_ConcatenatingResolverConverges(t *testing.T) {
	concat := func(_ []byte, a, b *store.Version) store.Version {
		return store.Version{Value: slices.Concat(a.Value, []byte("+"), b.Value)}
	}
	nodes := threeWriters(t, concat)
	for _, n := range nodes {
		require.Equal(t, "w0.0+w1.1+w2.2", n.get("k"))
		require.Len(t, n.versions("k"), 3)
	}
	nodes[1].put("k", nodes[1].get("k")+"!")
	gossip(t, nodes...)
	for _, n := range nodes {
		require.Equal(t, "w0.0+w1.1+w2.2!", n.get("k"))
	}
}

// design.md: M8
func TestMerge_ResolverThatTossesACoinCausesNoTraffic(t *testing.T) {
	coin := func(_ []byte, a, b *store.Version) store.Version {
		var c [1]byte
		rand.Read(c[:])
		if c[0]&1 == 0 {
			return *a
		}
		return *b
	}
	nodes := threeWriters(t, coin) // gossip demands that sessions are idle
	for range 10 {
		for _, n := range nodes {
			n.reopen(coin)
		}
		gossip(t, nodes...)
		for _, n := range nodes {
			require.Equal(t, []string{"w0.0", "w1.1", "w2.2"}, n.values("k"))
			require.Contains(t, n.values("k"), n.get("k"))
		}
	}
}

// design.md: O1
func TestOpen_FortyCopiesOfOneDirectoryLoseNothing(t *testing.T) {
	first := newNode(t)
	first.put("common", "base")
	first.put("own", "base")
	nodes := []*node{first}
	for range 39 {
		nodes = append(nodes, first.copied())
	}
	for i, n := range nodes {
		n.put(fmt.Sprint("k", i), "v")
		n.put("common", fmt.Sprintf("by %02d", i))
	}
	gossip(t, nodes...)
	for _, n := range nodes {
		require.Len(t, n.versions("common"), 40)
		require.Equal(t, "base", n.get("own"))
		requireEqualNodes(t, first, n)
	}
	for i := range nodes {
		require.Equal(t, "v", first.get(fmt.Sprint("k", i)))
		require.Contains(t, first.values("common"), fmt.Sprintf("by %02d", i))
	}
}

// design.md: O1
func TestOpen_OldCopyLosesAndHidesNothing(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("k", "old")
	a.put("gone", "old")
	gossip(t, a, b)
	backup := a.copied()
	a.put("k", "after the backup")
	a.put("new", "after the backup")
	a.del("gone")
	gossip(t, a, b)
	r := backup
	r.put("k", "after the restore")
	r.put("mine", "after the restore")
	gossip(t, b, r)
	for _, n := range []*node{b, r} {
		require.ElementsMatch(t, []string{"after the backup", "after the restore"}, n.values("k"))
		require.Equal(t, "after the backup", n.get("new"))
		require.Equal(t, "after the restore", n.get("mine"))
		require.Equal(t, "-", n.get("gone"))
	}
	requireEqualNodes(t, b, r)
}

// cutTalk lets a pull from b, until a has taken in so many pages, and then cuts
// the connection.
func cutTalk(t testing.TB, a, b *node, pages int) {
	p := session.Params{PageSize: 1 << 10, BatchSize: 1, MaxValue: 1 << 26, MaxKey: 1 << 16}
	sa, sb := session.New(a, true, p), session.New(b, false, p)
	sa.Start()
	for {
		for _, f := range slices.Clone(sa.Frames()) {
			require.NoError(t, sb.Receive(f.Kind, f.Payload))
		}
		for _, f := range speak(t, sb) {
			require.NoError(t, sa.Receive(f.Kind, f.Payload))
			if f.Kind != session.FramePage {
				continue
			}
			if pages--; pages == 0 {
				require.NoError(t, sa.Abandon())
				require.NoError(t, sb.Abandon())
				return
			}
		}
		require.False(t, sa.Done(), "the pull was over before it was cut off")
	}
}

// design.md: P1, P5
func TestPull_InterruptedCoversNothingAndResumesOnlyWhereItMay(t *testing.T) {
	a, b, c := newNode(t), newNode(t), newNode(t)
	value := strings.Repeat("x", 300)
	for i := range 20 {
		b.put(fmt.Sprint("old", i), value)
	}
	gossip(t, b, c)
	for i := range 30 {
		b.put(fmt.Sprint("new", i), value)
	}
	cutTalk(t, a, b, 12) // the new ones and some of the old
	require.Empty(t, a.r.Known.Vector(causal.Covered), "nothing is covered")
	held := len(a.log())
	require.Greater(t, held, 30)
	require.Less(t, held, 50)
	require.NotNil(t, a.r.Pending)

	_, sc, _ := talk(t, a, c)
	require.Equal(t, 20, sc.Result().Served, "c does not cover what b knew, so it may skip nothing")
	require.EqualValues(t, 20, a.r.Known.Seq(causal.Covered, b.r.Self))

	d := newNode(t)
	cutTalk(t, d, b, 12)
	held = len(d.log())
	_, sb, _ := talk(t, d, b)
	require.Equal(t, 50-held, sb.Result().Served, "b goes on where it was cut off")
	requireEqualNodes(t, b, d)
}

// design.md: G3, G4
func TestWrite_AThousandIncarnationsLeaveAShortContext(t *testing.T) {
	a, b := newNode(t), newNode(t)
	longest := 0
	for i := range 1000 {
		if i > 0 {
			a.reopen(replica.HighestClock)
			talk(t, a, b) // until it has heard of a member it forgets nothing
		}
		a.put("k", fmt.Sprint(i))
		a.saved()
		talk(t, a, b)
		b.saved()
		talk(t, b, a)
		s, err := a.r.Lookup([]byte("k"))
		require.NoError(t, err)
		longest = max(longest, len(s[0].Context))
	}
	require.EqualValues(t, 999, a.versions("k")[0].Clock)
	require.LessOrEqual(t, longest, replica.PruneAbove+1)
	requireEqualNodes(t, a, b)
	require.Len(t, a.r.Own, 1000)
}
