package sim

import (
	"fmt"
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// crashed opens the database of a node again as after the end of its process, and leaves everything that the opening
// leaves to the background.
func (n *node) crashed() {
	old := n.r
	n.r = replica.New(replica.Config{Store: old.Store, Draw: old.Draw, Now: old.Now, Resolve: old.Resolve, MaxKey: old.MaxKey, MaxValue: old.MaxValue,
		MaxSkew: old.MaxSkew, TombstoneTTL: old.TombstoneTTL, PeerTTL: old.PeerTTL, CacheSize: 1 << 20, FilterSize: 1 << 18})
	b, err := n.r.Open("")
	require.NoError(n.t, err)
	require.NoError(n.t, n.db.Write(b, nil))
}

func (n *node) counting() bool {
	_, counting := n.r.Counting()
	return counting
}

// between is a keeper with whom something happens each time after the replica was used.
type between struct {
	testKeeper
	then func()
}

func (b between) With(f func(r *replica.Replica)) {
	b.testKeeper.With(f)
	b.then()
}

// design.md: O9
func TestOpen_ReadsLittleHoweverLongTheLog(t *testing.T) {
	a, b := newNode(t), newNode(t)
	for i := range 3000 {
		a.put(fmt.Sprintf("k%04d", i), "v")
	}
	a.saved()
	b.put("of b", "v")
	talk(t, a, b)
	a.saved()
	self := a.r.Self
	for i := range 5 {
		a.put(fmt.Sprint("new", i), "v")
	}
	stamp := a.versions("new4")[0].Stamp
	a.entries = 0
	a.crashed()
	require.Less(t, a.entries, 100)
	require.True(t, a.counting())
	require.Equal(t, causal.Vector{{Origin: self, Seq: 3005}}, a.r.Cloud)
	require.EqualValues(t, 3000, a.r.Known.Seq(causal.Covered, self))
	require.EqualValues(t, 1, a.r.Known.Seq(causal.Covered, b.r.Self))
	require.True(t, a.r.Orphans())
	a.put("and now", "v")
	require.Greater(t, a.versions("and now")[0].Stamp, stamp)
	require.NoError(t, TidyUp(a, 100, Never))
	require.NoError(t, CheckStore(a.db, a.r))
	require.EqualValues(t, 3007, a.r.Keys)
}

// Nothing is covered by a store that is older than its mark says, so all of the log is above the version vector.
//
// design.md: O9
func TestOpen_FindsTheEndOfEachLog(t *testing.T) {
	a := newNode(t)
	var want causal.Vector
	for o := range byte(60) {
		for seq := range uint64(1 + int(o)%40) {
			require.NoError(t, a.Commit(func(tx *replica.Txn) error {
				_, err := tx.Merge(fmt.Appendf(nil, "%d/%d", o, seq), []store.Version{foreign(o+1, seq+1)}, &causal.Knowledge{})
				return err
			}))
			want = want.Raise(causal.Dot{Origin: causal.Origin{o + 1}, Seq: seq + 1})
		}
	}
	require.Equal(t, want, a.r.Cloud)
	a.crashed()
	require.Equal(t, want, a.r.Cloud)
}

// What is written while records are counted is counted once, wherever the cursor is.
//
// design.md: O10
func TestOpen_CountsWhatIsWrittenMeanwhileOnce(t *testing.T) {
	for step := 1; step < 300; step += 1 + step/2 {
		a := newNode(t)
		key := func(i int) string { return fmt.Sprintf("k%02d", i%20) }
		for i := range 20 {
			a.put(key(i), "v")
		}
		a.del(key(3))
		a.mergeFrom(&causal.Knowledge{}, foreign(1, 1))
		a.mergeFrom(&causal.Knowledge{}, foreign(2, 1)) // a conflict
		a.crashed()
		nth := 0
		write := func() {
			if nth++; nth > 60 {
				return // it must come to an end
			}
			switch i := nth * 7; nth % 5 {
			case 0:
				a.del(key(i))
			case 1:
				a.put(fmt.Sprint("new", nth), "v")
			case 2:
				require.NoError(t, a.Commit(func(tx *replica.Txn) error {
					_, err := tx.Merge([]byte(key(i)), []store.Version{foreign(9, uint64(nth))}, &causal.Knowledge{})
					return err
				}))
			default:
				a.put(key(i), "w")
			}
		}
		k := between{testKeeper{testHost: a, step: 1}, write}
		for p := (&replica.Tidying{Step: step}); a.counting(); {
			require.NoError(t, p.Next(k))
			require.NoError(t, CheckStore(a.db, a.r), "step %d", step)
			if below, counting := a.r.Counting(); counting && below[2] == store.KindIndex {
				require.False(t, a.r.Filter.Lacks([]byte("never written")))
			}
		}
		require.Equal(t, countIndex(t, a).Digest, a.r.Digest)
		require.False(t, a.r.MayHaveStale, "nothing that a crash left, whatever was written meanwhile")
		require.True(t, a.r.Filter.Lacks([]byte("never written")), "the filter is filled")
		require.False(t, a.r.Filter.Lacks([]byte("k00")))
	}
}

// design.md: O10
func TestOpen_CountsOnceMoreWhatChangedTooMuch(t *testing.T) {
	a := newNode(t)
	a.put("k", "v")
	a.crashed()
	var many []store.Write
	for i := range 1 << 13 { // each changes log-index and log
		many = append(many, store.Write{Key: fmt.Appendf(nil, "m%05d", i), Value: []byte("v")})
	}
	floods := 3
	k := between{testKeeper{testHost: a, step: 1}, func() {
		if floods--; floods >= 0 {
			require.NoError(t, a.Commit(func(tx *replica.Txn) error { return tx.Put(many) }))
		}
	}}
	p := new(replica.Tidying)
	require.NoError(t, p.Next(k))
	require.Zero(t, floods)
	below, _ := a.r.Counting()
	require.Equal(t, store.KindRange(store.KindIndex).Start, below, "the stretch was given up")
	require.NoError(t, TidyUp(a, 100, Never))
	require.NoError(t, CheckStore(a.db, a.r))
}

// A hint of a conflict that a crash left is counted with the hints, and once only if its key gets into conflict.
//
// design.md: O10
func TestOpen_CountsHintsThatACrashLeftOnce(t *testing.T) {
	for _, counted := range []bool{false, true} {
		a := newNode(t)
		a.put("k", "v")
		a.put("l", "v")
		for _, k := range []string{"k", "l"} {
			require.NoError(t, a.db.Put(store.KindKey(store.KindConflict, []byte(k)), nil, nil))
		}
		a.crashed()
		k := testKeeper{testHost: a, step: 1}
		for p := new(replica.Tidying); counted && !p.Done; {
			require.NoError(t, p.Next(k))
		}
		a.mergeFrom(&causal.Knowledge{}, foreign(1, 1))
		require.NoError(t, TidyUp(a, 100, Never))
		require.EqualValues(t, 1, a.r.Conflicts)
		require.NoError(t, CheckStore(a.db, a.r))
	}
}

// A log-index that cannot be read is left out, and does not keep the rest from being counted.
func TestOpen_CountsPastARecordThatCannotBeRead(t *testing.T) {
	a := newNode(t)
	a.put("k", "v")
	a.put("l", "v")
	require.NoError(t, a.db.Put(store.KindKey(store.KindIndex, []byte("k")), []byte{1, 9}, nil))
	a.crashed()
	require.NoError(t, TidyUp(a, 100, Never))
	require.EqualValues(t, 1, a.r.Unreadable)
	require.EqualValues(t, 1, a.r.Keys)
	require.Equal(t, a.versions("l")[0].Hash(), a.r.Digest)
}

// While a replica counts, neither it nor a peer of any release takes the digests to differ, in
// either direction.
//
// design.md: O11
func TestOpen_NobodyComparesWhatIsNotCounted(t *testing.T) {
	for _, flagged := range []bool{true, false} {
		for _, dials := range []bool{true, false} {
			a, b := newNode(t), newNode(t)
			for i := range 50 {
				a.put(fmt.Sprint("k", i), "v")
			}
			gossip(t, a, b)
			a.saved()
			a.crashed()
			meet := func() (kinds map[session.FrameType]int, idle bool) {
				kinds = map[session.FrameType]int{}
				x, y := a, b
				if !dials {
					x, y = b, a
				}
				p := session.Params{PageSize: 1 << 10, BatchSize: 1 << 16, MaxValue: 1 << 26, MaxKey: 1 << 16}
				if x.r.Members[y.r.Self] != nil {
					p.CachedPeer = y.r.Self
				}
				sx, sy := session.New(x, true, p), session.New(y, false, p)
				drive(t, sx, sy, func(_, to *session.Session, f session.Frame) {
					kinds[f.Kind]++
					if f.Kind == session.FrameHello {
						h, err := session.DecodeHello(f.Payload)
						require.NoError(t, err)
						if h.Counting && !flagged { // an earlier release does not know the flag
							h.Counting = false
							f.Payload = h.Append(nil)
						}
					}
					require.NoError(t, to.Receive(f.Kind, f.Payload))
				})
				return kinds, sx.Result().Idle && sy.Result().Idle
			}
			for range 3 {
				kinds, idle := meet()
				require.False(t, idle)
				require.Zero(t, kinds[session.FrameProbe]+kinds[session.FrameFetch], "they reconcile: %v", kinds)
				require.Zero(t, kinds[session.FramePull])
				require.Equal(t, flagged, b.r.Members[a.r.Self].Counting)
				require.True(t, b.r.Members[a.r.Self].Agreed.IsZero())
			}
			require.True(t, a.counting())
			a.put("l", "while it counts")
			meet()
			require.Equal(t, "while it counts", b.get("l"))
			require.NoError(t, TidyUp(a, 100, Never))
			meet()
			require.False(t, b.r.Members[a.r.Self].Counting)
			require.False(t, b.r.Members[a.r.Self].Agreed.IsZero())
			requireEqualNodes(t, a, b)
			_, idle := meet()
			require.True(t, idle)
		}
	}
}

// design.md: O11
func TestOpen_CloseWhileCountingLeavesNoMark(t *testing.T) {
	a := newNode(t)
	for i := range 50 {
		a.put(fmt.Sprint("k", i), "v")
	}
	a.crashed()
	a.put("l", "v")
	self := a.r.Self
	require.NoError(t, (&replica.Tidying{Step: 10}).Next(testKeeper{testHost: a, step: 1}))
	require.NoError(t, replica.MarkClean(a.db, a.r))
	_, err := a.db.Get(store.MetaClean, nil)
	require.ErrorIs(t, err, leveldb.ErrNotFound)
	a.crashed()
	require.EqualValues(t, 1, a.r.Known.Seq(causal.Covered, self), "but for the mark it was closed cleanly")
	require.True(t, a.counting())
	require.NoError(t, TidyUp(a, 100, Never))
	require.NoError(t, CheckStore(a.db, a.r))
	require.NoError(t, replica.MarkClean(a.db, a.r))
	a.crashed()
	require.False(t, a.counting())
	require.NoError(t, CheckStore(a.db, a.r))
}

// Tombstones that were not counted yet are not forgotten by the looks at them.
//
// design.md: G5, O10
func TestOpen_PurgesOnceItHasCounted(t *testing.T) {
	a := newNode(t)
	a.put("k", "v")
	a.del("k")
	a.saved()
	a.crashed()
	require.False(t, a.r.PurgeDue())
	require.NoError(t, TidyUp(a, 100, Never))
	require.True(t, a.r.PurgeDue())
	a.purge()
	require.Zero(t, a.r.Tombstones)
	require.NoError(t, CheckStore(a.db, a.r))
}
