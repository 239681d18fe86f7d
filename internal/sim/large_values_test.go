package sim

import (
	"crypto/rand"
	"fmt"
	"slices"
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// carried is what went over the wire, and what was held in memory meanwhile.
type carried struct {
	bytes    int // on the wire, both ways
	queued   int // at most, at a sender
	retained int // at most, of received frames
}

// carry holds a session as the shell does: one produce, and all that came of it is sent.
func carry(t testing.TB, a, b *node, pa, pb session.Params) (c carried, sa, sb *session.Session) {
	sa, sb = session.New(a, true, pa), session.New(b, false, pb)
	sa.Start()
	for !sa.Done() || !sb.Done() {
		moved := false
		for _, x := range []struct{ from, to *session.Session }{{sa, sb}, {sb, sa}} {
			for {
				c.queued = max(c.queued, x.from.Queued())
				out := slices.Clone(x.from.Frames())
				for _, f := range out {
					moved = true
					c.bytes += session.FrameHead + len(f.Payload)
					require.LessOrEqual(t, len(f.Payload), session.FrameCap)
					if err := x.to.Receive(f.Kind, f.Payload); err != nil {
						require.NoError(t, err)
					}
					c.retained = max(c.retained, x.to.Retained())
				}
				if !x.from.More() {
					break
				}
				require.NoError(t, x.from.Produce())
			}
		}
		require.True(t, moved, "stuck: %v %v", sa.Step(), sb.Step())
	}
	return c, sa, sb
}

func shellParams(maxValue int) session.Params {
	return session.Params{PageSize: session.PageSize, Window: session.WindowSize, BatchSize: replica.BatchLimit, MaxValue: maxValue, MaxKey: 64 << 10}
}

// siblings makes so many writes of one key, none of which has seen another, and brings
// them to one replica.
func siblings(t testing.TB, key string, n, size int) *node {
	a := newNode(t)
	for i := range n {
		require.NoError(t, a.Commit(func(tx *replica.Txn) error {
			v := store.Version{Dot: causal.Dot{Origin: causal.Origin{1, byte(i >> 8), byte(i)}, Seq: 1}, Stamp: causal.Stamp(i + 1), Count: 1, Value: Incompressible(uint64(i), size)}
			_, err := tx.Merge([]byte(key), []store.Version{v}, &causal.Knowledge{})
			tx.Cover(v.Dot)
			return err
		}))
	}
	return a
}

// design.md: P9
func TestPull_LargeValues(t *testing.T) {
	for _, x := range []struct{ n, size, maxValue int }{{5, 1 << 20, 1 << 20}, {40, 1 << 20, 64 << 20}, {4, 24 << 20, 24 << 20}} {
		t.Run(fmt.Sprintf("%d of %d", x.n, x.size), func(t *testing.T) {
			a, b := newNode(t), newNode(t)
			for i := range x.n {
				a.put(fmt.Sprint("k", i), string(Incompressible(uint64(i), x.size)))
			}
			p := shellParams(x.maxValue)
			c, _, _ := carry(t, b, a, p, p)
			requireEqualNodes(t, a, b)
			require.Less(t, c.bytes, x.n*x.size*21/20)
			require.LessOrEqual(t, c.queued, session.WindowSize+x.size+session.PageSize, "a sender holds what it reads of one state")
			require.LessOrEqual(t, c.retained, 2*x.size+8*session.PageSize)
			t.Logf("%+v", c)
		})
	}
}

// design.md: M6, P9
func TestPull_SiblingsLargerTogetherThanAnyBound(t *testing.T) {
	for _, x := range []struct{ n, size, maxValue int }{{6, 1 << 20, 1 << 20}, {270, 16_000, 64 << 20}, {20, 250 << 10, 64 << 20}, {300, 1, 1 << 20}, {300, 20_000, 20_000}} {
		t.Run(fmt.Sprintf("%d of %d", x.n, x.size), func(t *testing.T) {
			a, b := siblings(t, "k", x.n, x.size), newNode(t)
			for i := range 10 {
				a.put(fmt.Sprint("other", i), "v")
			}
			p := shellParams(x.maxValue)
			c, _, _ := carry(t, b, a, p, p)
			requireEqualNodes(t, a, b)
			require.Len(t, b.versions("k"), x.n)
			require.Less(t, c.bytes, x.n*x.size*21/20+64<<10)
			t.Logf("%+v", c)
		})
	}
}

// A replica that takes less than its peers has all else, and is not sent it again.
// design.md: M10
func TestMerge_HoldsBackOnlyWhatIsTooLarge(t *testing.T) {
	a, b, c := newNode(t), newNode(t), newNode(t)
	a.put("early", "v")
	a.put("large", string(Incompressible(1, 2000)))
	for i := range 500 {
		a.put(fmt.Sprint("key-", i), string(Incompressible(uint64(i), 300)))
	}
	a.put(string(Incompressible(2, 700)), "of a key that is too large")
	p, small := shellParams(1<<20), shellParams(1000)
	small.MaxKey = 500
	carry(t, b, a, small, p)
	require.Equal(t, "-", b.get("large"))
	require.Equal(t, a.get("key-7"), b.get("key-7"))
	require.Equal(t, a.get("key-499"), b.get("key-499"))
	require.Len(t, b.r.HeldBack, 2)
	require.EqualValues(t, 1, b.r.Known.Seq(causal.Covered, a.r.Self), "what is covered is held")
	require.True(t, b.r.Above.Has(causal.Dot{Origin: a.r.Self, Seq: 3}))
	require.False(t, b.r.Above.Has(causal.Dot{Origin: a.r.Self, Seq: 2}))

	again, _, _ := carry(t, b, a, small, p)
	require.Less(t, again.bytes, 4000, "it is not sent over and over")
	carry(t, c, a, p, p)
	elsewhere, _, _ := carry(t, b, c, small, p)
	require.Less(t, elsewhere.bytes, 4000, "nor by others")

	a.put("large", "small now")
	a.put("late", "v")
	carry(t, b, a, small, p)
	require.Equal(t, "small now", b.get("large"))
	require.Equal(t, "v", b.get("late"))
	require.Len(t, b.r.HeldBack, 1)

	carry(t, b, a, p, p)
	require.Empty(t, b.r.HeldBack)
	require.Empty(t, b.r.Above)
	requireEqualNodes(t, a, b)
}

// b takes x from a pull that breaks off: x has seen a write that its context leaves out, and that b
// does not cover. What b writes over it hides that write from who holds b's version back, also
// when b has come to cover it through somebody who knows nothing of that.
//
// design.md: M10, M11
func TestMerge_CoversNothingThatAHeldBackVersionMayHaveSeen(t *testing.T) {
	hidden, x := foreign(1, 1), foreign(2, 1)
	peer := &causal.Knowledge{}
	peer.Raise(causal.Covered, hidden.Dot)
	peer.Raise(causal.Pruned, hidden.Dot)
	b, c := newNode(t), newNode(t)
	require.NoError(t, b.Commit(func(t *replica.Txn) error {
		t.JoinWatermarks(peer)
		_, err := t.Merge([]byte("k"), []store.Version{x}, peer)
		return err
	}))
	require.EqualValues(t, 1, b.r.Known.Seq(causal.Pruned, hidden.Origin))
	require.False(t, b.r.Known.Superseded(hidden.Dot), "it is not covered, and so the watermark says nothing")
	b.saved()
	b.reopen(replica.HighestClock)
	require.EqualValues(t, 1, b.r.Known.Seq(causal.Pruned, hidden.Origin), "nor does a crash take it")
	b.put("k", string(Incompressible(1, 2000)))
	require.NoError(t, b.Commit(func(t *replica.Txn) error { t.Cover(hidden.Dot); t.Cover(x.Dot); return nil }))
	require.True(t, b.r.Known.Superseded(hidden.Dot))

	p, small := shellParams(1<<20), shellParams(1000)
	carry(t, c, b, small, p)
	require.Len(t, c.r.HeldBack, 1)
	require.False(t, c.r.Known.Covers(hidden.Dot))
	require.False(t, c.r.Above.Has(hidden.Dot))
	carry(t, c, b, p, p)
	requireEqualNodes(t, b, c)
	require.True(t, c.r.Known.Superseded(hidden.Dot))
}

// Nothing is covered of who holds what came from a peer of before, for nobody knows what it has seen.
//
// design.md: M11
func TestMerge_CoversNothingOfAPeerWhosePruningIsUntold(t *testing.T) {
	a, b, c := newNode(t), newNode(t), newNode(t)
	a.put("small", "v")
	a.put("large", string(Incompressible(1, 2000)))
	p, small := shellParams(1<<20), shellParams(1000)
	drive(t, session.New(b, true, p), session.New(a, false, p), func(_, to *session.Session, f session.Frame) {
		if f.Kind == session.FrameHello {
			f.Payload = earlierHello(f.Payload)
		}
		require.NoError(t, to.Receive(f.Kind, f.Payload))
	})
	require.Equal(t, a.get("large"), b.get("large"))
	carry(t, c, b, small, p)
	require.Equal(t, "v", c.get("small"))
	require.Zero(t, c.r.Known.Seq(causal.Covered, a.r.Self))
	require.Empty(t, c.r.Above)
	carry(t, c, b, p, p)
	requireEqualNodes(t, b, c)
}

// Whoever sends all values with their names sends also what is too large.
// design.md: M10
func TestMerge_HoldsBackWhatAnEarlierReleaseSends(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("large", string(Incompressible(1, 2000)))
	a.put("chunked", string(Incompressible(1, 600<<10)))
	a.put("late", "v")
	small := shellParams(1000)
	sa, sb := session.New(b, true, small), session.New(a, false, shellParams(1<<20))
	drive(t, sa, sb, func(_, to *session.Session, f session.Frame) {
		if f.Kind == session.FrameHello {
			f.Payload = earlierHello(f.Payload)
		}
		require.NoError(t, to.Receive(f.Kind, f.Payload))
		require.Less(t, to.Retained(), session.FrameCap)
	})
	require.Equal(t, "v", b.get("late"))
	require.Len(t, b.r.HeldBack, 2)
	require.Zero(t, b.r.Known.Seq(causal.Covered, a.r.Self))
}

// Of a key whose siblings came in part, the rest is sent when the session broke off.
// design.md: P9
func TestPull_LargeSiblingsGoOnWhereTheyBrokeOff(t *testing.T) {
	a, b := siblings(t, "k", 12, 400<<10), newNode(t)
	a.put("other", "v")
	p := shellParams(1 << 20)
	sent := 0
	for range 20 {
		sa, sb := session.New(b, true, p), session.New(a, false, p)
		chunks := 0
		err := driveUntil(t, sa, sb, func(f session.Frame) bool {
			if f.Kind == session.FrameChunk {
				sent += len(f.Payload)
				chunks++
			}
			return chunks > 8
		})
		require.NoError(t, err)
		if sa.Done() {
			break
		}
		require.NoError(t, sa.Abandon())
		require.NoError(t, sb.Abandon())
		require.Equal(t, "v", b.get("other"), "a large key holds up no other")
	}
	requireEqualNodes(t, a, b)
	require.Less(t, sent, 12*400<<10*3/2)
}

// driveUntil carries frames until they are to be cut off.
func driveUntil(t testing.TB, sa, sb *session.Session, cut func(f session.Frame) bool) error {
	sa.Start()
	for !sa.Done() || !sb.Done() {
		for _, x := range []struct{ from, to *session.Session }{{sa, sb}, {sb, sa}} {
			for _, f := range speak(t, x.from) {
				if cut(f) {
					return nil
				}
				if err := x.to.Receive(f.Kind, f.Payload); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// A replica that is closed, or killed, in the midst of its first pull goes on where it was.
// design.md: P5
func TestPull_ResumesAfterARestart(t *testing.T) {
	for _, how := range []string{"closed", "killed", "killed before anything was known to be on disk"} {
		t.Run(how, func(t *testing.T) {
			a := newNode(t)
			total := 0
			for i := range 3000 {
				a.put(fmt.Sprintf("key-%04d", i), string(Incompressible(uint64(i), 300)))
				total += 300
			}
			st := storage.NewMemStorage()
			b := openNode(t, st, replica.HighestClock)
			p := shellParams(1 << 20)
			p.PageSize, p.Window, p.BatchSize = 16<<10, 16<<10, 32<<10
			sent, restarts := 0, 0
			for ; b.r.Known.VectorSum != a.r.Known.VectorSum; restarts++ {
				require.Less(t, restarts, 8, "no progress")
				now := 0
				sa, sb := session.New(b, true, p), session.New(a, false, p)
				require.NoError(t, driveUntil(t, sa, sb, func(f session.Frame) bool {
					now += len(f.Payload)
					return now > total/4
				}))
				if sent += now; sa.Done() {
					break
				}
				require.NoError(t, sa.Abandon())
				require.NoError(t, sb.Abandon())
				switch how {
				case "closed":
					require.NoError(t, replica.MarkClean(b.db, b.r))
				case "killed":
					m := b.r.FlushMark()
					require.NoError(t, store.Flush(b.db))
					b.r.NoteOnDisk(m)
					require.NoError(t, b.Commit(func(t *replica.Txn) error { t.StageCheckpoints(); return nil }))
				default:
					require.NoError(t, b.Commit(func(t *replica.Txn) error { t.StageCheckpoints(); return nil }))
				}
				require.NoError(t, b.db.Close())
				b = openNode(t, st, replica.HighestClock)
				if how != "closed" && how != "killed" {
					require.Nil(t, b.r.Pending, "a power failure may have taken what was merged")
					return
				}
				require.NotEmpty(t, b.r.Skippable(&a.r.Known))
				require.Empty(t, b.r.Skippable(&causal.Knowledge{}), "of a server that knows less nothing may be left out")
			}
			requireEqualNodes(t, a, b)
			require.Greater(t, restarts, 2)
			require.Less(t, sent, total*3/2)
			require.NoError(t, b.Commit(func(t *replica.Txn) error { t.StageCheckpoints(); return nil }))
			_, err := b.db.Get(store.MetaResume, nil)
			require.ErrorIs(t, err, leveldb.ErrNotFound, "it is over")
		})
	}
}

// design.md: P5
func TestPull_LeavesAResumePointThatCannotBeRead(t *testing.T) {
	for _, rec := range []string{"", "\x01", "\x02\x00\x00\x00", "\x01\xff\xff\xff\xff\x0f", "\x01\x00\x01"} {
		st := storage.NewMemStorage()
		b := openNode(t, st, replica.HighestClock)
		require.NoError(t, b.db.Put(store.MetaResume, []byte(rec), nil))
		require.NoError(t, b.db.Close())
		b = openNode(t, st, replica.HighestClock)
		require.Nil(t, b.r.Pending)
		require.Empty(t, b.r.Above)
	}
}

// design.md: P5
func TestPull_ResumePointOfAnOlderStoreIsNotBelieved(t *testing.T) {
	st := storage.NewMemStorage()
	b := openNode(t, st, replica.HighestClock)
	b.put("k", "v")
	b.r.Above = causal.SpanMap{causal.Origin{2}: {{From: 4, To: 4}}}
	b.r.Resume.Rev++
	require.NoError(t, replica.MarkClean(b.db, b.r))
	require.NoError(t, b.db.Put(store.KindKey(store.KindMeta, []byte("flushed")), []byte("another opening"), nil)) // as if a table were missing
	require.NoError(t, b.db.Close())
	b = openNode(t, st, replica.HighestClock)
	require.NotEmpty(t, b.r.Rewound())
	require.Empty(t, b.r.Above, "what it says may be among what is missing")
	require.NoError(t, b.db.Close())
	b = openNode(t, st, replica.HighestClock)
	require.Empty(t, b.r.Above, "nor is it later")
}

// Every size around the bounds of pages and of what is sent with its name, alone and beside
// others of one key, in one pull.
func TestPull_ValuesOfAllSizes(t *testing.T) {
	const page = 1 << 10
	sizes := []int{0, 1, 100, page - 1, page, page + 1, 3 * page, session.ApartPages*page - session.SentAtLeast, session.ApartPages * page, session.ApartPages*page + 1, 20 * page}
	a, b := newNode(t), newNode(t)
	n := byte(0)
	for i, size := range sizes {
		a.put(fmt.Sprint("alone", i), string(Incompressible(uint64(i), size)))
		for j, beside := range sizes {
			key := fmt.Sprintf("siblings %d %d", i, j)
			for k, size := range []int{size, beside} {
				n++
				v := store.Version{Dot: causal.Dot{Origin: causal.Origin{2, n, byte(i), byte(j)}, Seq: 1}, Stamp: causal.Stamp(k + 1), Count: 1, Value: Incompressible(uint64(k+100*j+1), size)}
				require.NoError(t, a.Commit(func(tx *replica.Txn) error {
					_, err := tx.Merge([]byte(key), []store.Version{v}, &causal.Knowledge{})
					tx.Cover(v.Dot)
					return err
				}))
			}
		}
	}
	p := shellParams(20 * page)
	p.PageSize, p.Window = page, 16*page
	c, sa, _ := carry(t, b, a, p, p)
	requireEqualNodes(t, a, b)
	require.Empty(t, b.r.HeldBack)
	require.LessOrEqual(t, c.queued, 16*page+20*page+8*page)
	require.LessOrEqual(t, c.retained, p.BatchSize+2*20*page+session.WantKeys*100)
	require.Positive(t, sa.Result().Pulled)
	again, _, _ := carry(t, b, a, p, p)
	require.Less(t, again.bytes, 20_000, "all is there")
}

func TestPull_LargeValuesTravelInChunks(t *testing.T) {
	a, b := newNode(t), newNode(t)
	big := make([]byte, 100<<10)
	rand.Read(big)
	a.put("big", string(big))
	a.put("small", "s")
	b.put("big", string(big[:50<<10]))
	talk(t, a, b)
	require.Len(t, a.versions("big"), 2)
	requireEqualNodes(t, a, b)
}
