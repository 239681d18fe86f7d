package replicator

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// incompressible gives a value of n bytes.
func incompressible(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := 0; i+8 <= n; i += 8 {
		x := r.Uint64()
		for j := range 8 {
			b[i+j] = byte(x >> (8 * j))
		}
	}
	return b
}

// carried is what went over the wire, and what was held in memory meanwhile.
type carried struct {
	bytes    int // on the wire, both ways
	queued   int // at most, at a sender
	retained int // at most, of received frames
}

// carry holds a session as the shell does: one produce, and all that came of it is sent.
func carry(t testing.TB, a, b *node, pa, pb sessionParams) (c carried, sa, sb *session) {
	sa, sb = newSession(a, true, pa), newSession(b, false, pb)
	sa.start()
	for !sa.done || !sb.done {
		moved := false
		for _, x := range []struct{ from, to *session }{{sa, sb}, {sb, sa}} {
			for {
				c.queued = max(c.queued, x.from.queuedBytes())
				out := slices.Clone(x.from.out)
				x.from.out = nil
				for _, f := range out {
					moved = true
					c.bytes += frameHead + len(f.payload)
					require.LessOrEqual(t, len(f.payload), frameCap)
					if err := x.to.receive(f.kind, f.payload); err != nil {
						require.NoError(t, err)
					}
					c.retained = max(c.retained, x.to.retained())
				}
				if !x.from.more() {
					break
				}
				require.NoError(t, x.from.produce())
			}
		}
		require.True(t, moved, "stuck: %v %v", sa.expect, sb.expect)
	}
	return c, sa, sb
}

func shellParams(maxValue int) sessionParams {
	return sessionParams{pageSize: pageSize, window: windowSize, batchSize: batchLimit, maxValue: maxValue, maxKey: 64 << 10}
}

// siblings makes so many writes of one key, none of which has seen another, and brings
// them to one server.
func siblings(t testing.TB, key string, n, size int) *node {
	a := newNode(t)
	for i := range n {
		require.NoError(t, a.commit(func(tx *txn) error {
			v := version{dot: dot{Origin{1, byte(i >> 8), byte(i)}, 1}, stamp: stamp(i + 1), count: 1, value: incompressible(uint64(i), size)}
			_, err := tx.merge([]byte(key), []version{v}, &knowledge{})
			tx.claim(v.dot)
			return err
		}))
	}
	return a
}

func TestLargeValuesJoin(t *testing.T) {
	for _, x := range []struct{ n, size, maxValue int }{{5, 1 << 20, 1 << 20}, {40, 1 << 20, 64 << 20}, {4, 24 << 20, 24 << 20}} {
		t.Run(fmt.Sprintf("%d of %d", x.n, x.size), func(t *testing.T) {
			a, b := newNode(t), newNode(t)
			for i := range x.n {
				a.put(fmt.Sprint("k", i), string(incompressible(uint64(i), x.size)))
			}
			p := shellParams(x.maxValue)
			c, _, _ := carry(t, b, a, p, p)
			requireEqualNodes(t, a, b)
			require.Less(t, c.bytes, x.n*x.size*21/20)
			require.LessOrEqual(t, c.queued, windowSize+x.size+pageSize, "a sender holds what it reads of one state")
			require.LessOrEqual(t, c.retained, 2*x.size+8*pageSize)
			t.Logf("%+v", c)
		})
	}
}

func TestSiblingsLargerTogetherThanAnyBoundJoin(t *testing.T) {
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
func TestWhatIsTooLargeIsHeldBackAndNothingElse(t *testing.T) {
	a, b, c := newNode(t), newNode(t), newNode(t)
	a.put("early", "v")
	a.put("large", string(incompressible(1, 2000)))
	for i := range 500 {
		a.put(fmt.Sprint("key-", i), string(incompressible(uint64(i), 300)))
	}
	a.put(string(incompressible(2, 700)), "of a key that is too large")
	p, small := shellParams(1<<20), shellParams(1000)
	small.maxKey = 500
	carry(t, b, a, small, p)
	require.Equal(t, "-", b.get("large"))
	require.Equal(t, a.get("key-7"), b.get("key-7"))
	require.Equal(t, a.get("key-499"), b.get("key-499"))
	require.Len(t, b.r.heldBack, 2)
	require.EqualValues(t, 1, b.r.known.at(claimed, a.r.self), "what is claimed is held")
	require.True(t, b.r.above.has(dot{a.r.self, 3}))
	require.False(t, b.r.above.has(dot{a.r.self, 2}))

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
	require.Len(t, b.r.heldBack, 1)

	carry(t, b, a, p, p)
	require.Empty(t, b.r.heldBack)
	require.Empty(t, b.r.above)
	requireEqualNodes(t, a, b)
}

// Whoever sends all values with their names sends also what is too large.
func TestWhatAnEarlierServerSendsTooLargeIsHeldBack(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.put("large", string(incompressible(1, 2000)))
	a.put("chunked", string(incompressible(1, 600<<10)))
	a.put("late", "v")
	small := shellParams(1000)
	sa, sb := newSession(b, true, small), newSession(a, false, shellParams(1<<20))
	drive(t, sa, sb, func(_, to *session, f frame) {
		if f.kind == frameHello {
			f.payload = earlierHello(f.payload)
		}
		require.NoError(t, to.receive(f.kind, f.payload))
		require.Less(t, to.retained(), frameCap)
	})
	require.Equal(t, "v", b.get("late"))
	require.Len(t, b.r.heldBack, 2)
	require.Zero(t, b.r.known.at(claimed, a.r.self))
}

func TestStatusSaysWhatIsHeldBack(t *testing.T) {
	a := serve(t, Options{})
	require.NoError(t, a.Put([]byte("large"), incompressible(1, 1<<20), nil))
	require.NoError(t, a.Put([]byte("small"), []byte("v"), nil))
	b := serve(t, Options{MaxValue: 1000, Peers: []string{a.Addr().String()}})
	require.NoError(t, b.Sync(t.Context()))
	v, err := b.Get([]byte("small"), nil)
	require.NoError(t, err)
	require.Equal(t, "v", string(v))
	s := b.Status()
	require.EqualValues(t, 1, s.HeldBack)
	require.EqualValues(t, 1<<20, s.Largest)
	require.Equal(t, "ok", s.Peers[0].State)
	for _, p := range a.Status().Peers {
		require.Positive(t, p.Lag, "it must not be taken to hold what it was not sent")
	}
	require.NoError(t, a.Put([]byte("large"), []byte("small now"), nil))
	require.NoError(t, b.Sync(t.Context()))
	require.Zero(t, b.Status().HeldBack)
	agree(t, a, b)
}

// Of a key whose siblings came in part, the rest is sent when the session broke off.
func TestPullOfLargeSiblingsGoesOnWhereItBrokeOff(t *testing.T) {
	a, b := siblings(t, "k", 12, 400<<10), newNode(t)
	a.put("other", "v")
	p := shellParams(1 << 20)
	sent := 0
	for range 20 {
		sa, sb := newSession(b, true, p), newSession(a, false, p)
		chunks := 0
		err := driveUntil(t, sa, sb, func(f frame) bool {
			if f.kind == frameChunk {
				sent += len(f.payload)
				chunks++
			}
			return chunks > 8
		})
		require.NoError(t, err)
		if sa.done {
			break
		}
		require.NoError(t, sa.abandon())
		sb.leaveServing()
		require.Equal(t, "v", b.get("other"), "a large key holds up no other")
	}
	requireEqualNodes(t, a, b)
	require.Less(t, sent, 12*400<<10*3/2)
}

// driveUntil carries frames until they are to be cut off.
func driveUntil(t testing.TB, sa, sb *session, cut func(f frame) bool) error {
	sa.start()
	for !sa.done || !sb.done {
		for _, x := range []struct{ from, to *session }{{sa, sb}, {sb, sa}} {
			for x.from.more() && len(x.from.out) == 0 {
				require.NoError(t, x.from.produce())
			}
			for len(x.from.out) > 0 {
				f := x.from.out[0]
				x.from.out = x.from.out[1:]
				if cut(f) {
					return nil
				}
				if err := x.to.receive(f.kind, f.payload); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// A replica that is closed, or killed, in the midst of its first pull goes on where it was.
func TestFirstPullGoesOnAfterARestart(t *testing.T) {
	for _, how := range []string{"closed", "killed", "killed before anything was known to be on disk"} {
		t.Run(how, func(t *testing.T) {
			a := newNode(t)
			total := 0
			for i := range 3000 {
				a.put(fmt.Sprintf("key-%04d", i), string(incompressible(uint64(i), 300)))
				total += 300
			}
			st := storage.NewMemStorage()
			b := openNode(t, st, highestClock)
			p := shellParams(1 << 20)
			p.pageSize, p.window, p.batchSize = 16<<10, 16<<10, 32<<10
			sent, restarts := 0, 0
			for ; b.r.known.claims != a.r.known.claims; restarts++ {
				require.Less(t, restarts, 8, "no progress")
				now := 0
				sa, sb := newSession(b, true, p), newSession(a, false, p)
				require.NoError(t, driveUntil(t, sa, sb, func(f frame) bool {
					now += len(f.payload)
					return now > total/4
				}))
				if sent += now; sa.done {
					break
				}
				require.NoError(t, sa.abandon())
				sb.leaveServing()
				switch how {
				case "closed":
					require.NoError(t, leave(b.db, b.r))
				case "killed":
					m := mark{claim: b.r.known.vector(claimed), commits: b.r.commits, resume: b.r.resumePoint()}
					require.NoError(t, flush(b.db))
					b.r.onDisk(m)
					require.NoError(t, b.commit(func(t *txn) error { t.stageCheckpoints(); return nil }))
				default:
					require.NoError(t, b.commit(func(t *txn) error { t.stageCheckpoints(); return nil }))
				}
				require.NoError(t, b.db.Close())
				b = openNode(t, st, highestClock)
				if how != "closed" && how != "killed" {
					require.Nil(t, b.r.pending, "a power failure may have taken what was merged")
					return
				}
			}
			requireEqualNodes(t, a, b)
			require.Greater(t, restarts, 2)
			require.Less(t, sent, total*3/2)
			require.NoError(t, b.commit(func(t *txn) error { t.stageCheckpoints(); return nil }))
			_, err := b.db.Get(metaResume, nil)
			require.ErrorIs(t, err, leveldb.ErrNotFound, "it is over")
		})
	}
}

func TestResumePointThatCannotBeReadIsLeft(t *testing.T) {
	for _, rec := range []string{"", "\x01", "\x02\x00\x00\x00", "\x01\xff\xff\xff\xff\x0f", "\x01\x00\x01"} {
		st := storage.NewMemStorage()
		b := openNode(t, st, highestClock)
		require.NoError(t, b.db.Put(metaResume, []byte(rec), nil))
		require.NoError(t, b.db.Close())
		b = openNode(t, st, highestClock)
		require.Nil(t, b.r.pending)
		require.Empty(t, b.r.above)
	}
}

func TestSmallFramesDoNotWaitForLargeValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const room = 64 << 20
		db := &DB{opts: Options{MaxInFlight: room}, inflight: newInflight(room - smallRoom(room)), small: newInflight(smallRoom(room)), large: make(chan struct{}, 1)}
		var slow [3]conversation
		for i := range slow { // slow peers in the midst of large values
			slow[i].db = db
			go func() {
				for range 1000 { // one of them goes beyond the bound
					if slow[i].reserve(t.Context(), 256<<10) != nil {
						return
					}
				}
			}()
		}
		synctest.Wait()
		began := time.Now()
		fast := conversation{db: db}
		for range 100 {
			require.NoError(t, fast.reserve(t.Context(), 300<<10))
			fast.keep(0)
		}
		require.Zero(t, time.Since(began))
	})
}

// Every size around the bounds of pages and of what is sent with its name, alone and beside
// others of one key, in one pull.
func TestValuesOfAllSizesJoin(t *testing.T) {
	const page = 1 << 10
	sizes := []int{0, 1, 100, page - 1, page, page + 1, 3 * page, apartPages*page - sentAtLeast, apartPages * page, apartPages*page + 1, 20 * page}
	a, b := newNode(t), newNode(t)
	n := byte(0)
	for i, size := range sizes {
		a.put(fmt.Sprint("alone", i), string(incompressible(uint64(i), size)))
		for j, beside := range sizes {
			key := fmt.Sprintf("siblings %d %d", i, j)
			for k, size := range []int{size, beside} {
				n++
				v := version{dot: dot{Origin{2, n, byte(i), byte(j)}, 1}, stamp: stamp(k + 1), count: 1, value: incompressible(uint64(k+100*j+1), size)}
				require.NoError(t, a.commit(func(tx *txn) error {
					_, err := tx.merge([]byte(key), []version{v}, &knowledge{})
					tx.claim(v.dot)
					return err
				}))
			}
		}
	}
	p := shellParams(20 * page)
	p.pageSize, p.window = page, 16*page
	c, sa, _ := carry(t, b, a, p, p)
	requireEqualNodes(t, a, b)
	require.Empty(t, b.r.heldBack)
	require.LessOrEqual(t, c.queued, 16*page+20*page+8*page)
	require.LessOrEqual(t, c.retained, p.batchSize+2*20*page+wantKeys*100)
	require.Positive(t, sa.stats.pulled)
	again, _, _ := carry(t, b, a, p, p)
	require.Less(t, again.bytes, 20_000, "all is there")
}
