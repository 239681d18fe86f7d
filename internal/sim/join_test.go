package sim

import (
	"fmt"
	"strings"
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// joiner drives sessions in which the dialer joins, frame by frame.
type joiner struct {
	t        testing.TB
	params   session.Params // of both
	dialer   func(p *session.Params)
	after    func(f session.Frame)        // is called when the dialer has taken in a frame
	tamper   func(f *session.Frame)       // changes what it takes in
	cut      func(f session.Frame) bool   // cuts the connection after it has taken in a frame
	frames   map[session.FrameType]int    // that it took in
	payloads map[session.FrameType][]byte // of the last of each type
	session  *session.Session             // of the dialer
	how      byte                         // the last join began
	res      session.Result
	err      error
}

func newJoiner(t testing.TB) *joiner {
	return &joiner{t: t, params: session.Params{PageSize: 1 << 10, BatchSize: 1 << 16, MaxValue: 1 << 26, MaxKey: 1 << 16, JoinAbove: 1}}
}

// join has a pull from b, and reports whether it was answered in sections.
func (j *joiner) join(a, b session.Host) (sections bool) {
	pa, pb := j.params, j.params
	if j.dialer != nil {
		j.dialer(&pa)
	}
	sa, sb := session.New(a, true, pa), session.New(b, false, pb)
	j.frames, j.payloads, j.err = map[session.FrameType]int{}, map[session.FrameType][]byte{}, nil
	j.session = sa
	sa.Start()
	for !sa.Done() || !sb.Done() {
		moved := false
		for _, x := range []struct{ from, to *session.Session }{{sa, sb}, {sb, sa}} {
			for _, f := range speak(j.t, x.from) {
				moved = true
				if x.to != sa {
					j.payloads[f.Kind] = f.Payload
					require.NoError(j.t, x.to.Receive(f.Kind, f.Payload))
					continue
				}
				if j.frames[f.Kind]++; f.Kind == session.FrameSections && f.Payload[0] < 2 {
					j.how = f.Payload[0]
				}
				if j.tamper != nil {
					j.tamper(&f)
				}
				if j.err = sa.Receive(f.Kind, f.Payload); j.err != nil {
					require.NoError(j.t, sa.Abandon())
					require.NoError(j.t, sb.Abandon())
					return j.frames[session.FrameSections] > 0
				}
				if j.after != nil {
					j.after(f)
				}
				if j.cut != nil && j.cut(f) {
					require.NoError(j.t, sa.Abandon())
					require.NoError(j.t, sb.Abandon())
					return j.frames[session.FrameSections] > 0
				}
			}
		}
		require.True(j.t, moved, "stuck: %v %v", sa.Step(), sb.Step())
	}
	j.res = sa.Result()
	return j.frames[session.FrameSections] > 0
}

// nth cuts a connection after the nth frame of a type.
func nth(kind session.FrameType, n int) func(session.Frame) bool {
	return func(f session.Frame) bool {
		if f.Kind == kind {
			n--
		}
		return n == 0 && f.Kind == kind
	}
}

// filled is a node with keys of all sorts: alone, written again, deleted, in conflict, large.
func filled(t testing.TB, keys int) *node {
	n, other := newNode(t), newNode(t)
	other.put("k0003", "beside")
	for i := range keys {
		n.put(fmt.Sprintf("k%04d", i), fmt.Sprint("value ", i))
	}
	for i := 0; i < keys; i += 10 {
		n.put(fmt.Sprintf("k%04d", i), "written again")
	}
	for i := 5; i < keys; i += 20 {
		n.del(fmt.Sprintf("k%04d", i))
	}
	n.put("k0007", strings.Repeat("large", 20_000))
	talk(t, n, other)
	require.Len(t, n.versions("k0003"), 2)
	return n
}

// requireSwept checks that the log has one entry for each version that is held, and nothing else.
func requireSwept(t testing.TB, n *node) {
	t.Helper()
	require.False(t, n.r.Stale())
	require.NoError(t, CheckStore(n.db, n.r))
}

// A replica that lacks much is served in sections, and holds the same in the end.
// design.md: J1
func TestJoin_BringsAllThereIs(t *testing.T) {
	for _, page := range []int{1, 100, 1 << 10, 1 << 20} {
		for _, round := range []int64{0, 1, 30} {
			a, b, j := newNode(t), filled(t, 100), newJoiner(t)
			j.params.PageSize, j.params.RoundKeys = page, round
			require.True(t, j.join(a, b))
			requireEqualNodes(t, a, b)
			requireSwept(t, a)
			require.Equal(t, round > 0, j.frames[session.FrameSections] > 1)
			require.Positive(t, j.frames[session.FrameEntries])
			require.Positive(t, j.frames[session.FrameRows])
			require.Positive(t, j.frames[session.FramePage], "the key in conflict, and the large one")
			require.Equal(t, 101, j.res.Pulled, "one has two versions")
		}
	}
}

// What the receiver covers in the end is what the server did in the first state, though each page is of a later one.
// design.md: J1
func TestJoin_CoversTheFirstState(t *testing.T) {
	a, b, j := newNode(t), filled(t, 100), newJoiner(t)
	first, n := b.r.Known.Vector(causal.Covered), 0
	j.after = func(f session.Frame) {
		if f.Kind == session.FrameEntries || f.Kind == session.FrameRows {
			n++
			b.put(fmt.Sprintf("k%04d", n*7%100), fmt.Sprint("changed meanwhile ", n))
			b.put(fmt.Sprintf("new%d", n), "new")
		}
		if f.Kind == session.FrameEnd {
			require.Equal(t, first, a.r.Known.Vector(causal.Covered))
		}
	}
	require.True(t, j.join(a, b))
	require.Greater(t, n, 4)
	requireSwept(t, a)
	j.after = nil
	j.params.JoinAbove = 1000
	require.False(t, j.join(a, b))
	requireEqualNodes(t, a, b)
}

// A purge that the receiver missed is repaired, though it came after the first state.
// design.md: J1
func TestJoin_RepairGoesByTheLastState(t *testing.T) {
	a, b, j := newNode(t), filled(t, 60), newJoiner(t)
	a.put("k0001", "old") // and then b deletes it, and forgets that
	talk(t, b, a)
	b.del("k0001")
	for i := range 100 {
		b.put(fmt.Sprintf("l%04d", i), "new")
	}
	a.r.Known = causal.Knowledge{Rev: 1} // as if it were an old copy
	purged := false
	j.after = func(f session.Frame) {
		if f.Kind == session.FrameEntries && !purged {
			purged = true
			b.r.Members, b.r.StableCache = map[causal.Origin]*replica.Member{}, nil
			b.r.NoteOnDisk(b.r.FlushMark())
			b.purge()
			require.Empty(t, b.versions("k0001"))
		}
	}
	require.True(t, j.join(a, b))
	require.True(t, purged)
	require.Positive(t, j.frames[session.FrameProbeReply])
	require.Equal(t, userData(t, b.db), userData(t, a.db))
}

// What a join says of its progress never falls, and comes to all of the work.
func TestJoin_TellsHowFarItIs(t *testing.T) {
	a, b, j := newNode(t), filled(t, 300), newJoiner(t)
	last, seen := 0., 0
	j.after = func(f session.Frame) {
		p := j.session.Progress()
		if p.Part > 0 {
			require.GreaterOrEqual(t, p.Part, last)
			require.LessOrEqual(t, p.Part, 1.)
			require.InDelta(t, 300, p.Keys, 15)
			last, seen = p.Part, seen+1
		}
	}
	require.True(t, j.join(a, b))
	require.Greater(t, seen, 10)
	require.InDelta(t, 1, last, 0.01)
}

// A replica that lacks little is served as ever, and so is one that lacks much of a log that has more.
func TestJoin_LittleIsPulled(t *testing.T) {
	a, b, j := newNode(t), filled(t, 100), newJoiner(t)
	j.params.JoinAbove = 1000
	require.False(t, j.join(a, b))
	require.NotContains(t, j.payloads, session.FrameJoin)
	requireEqualNodes(t, a, b)
	b.put("k0001", "anew")
	j.params.JoinAbove = 1
	require.False(t, j.join(a, b))
	require.Contains(t, j.payloads, session.FrameJoin)
	requireEqualNodes(t, a, b)
	requireSwept(t, a)
}

// A peer of version 1 pulls as it did.
func TestJoin_PeerOfVersionOnePulls(t *testing.T) {
	a, b := newNode(t), filled(t, 100)
	p := newJoiner(t).params
	for _, f := range overhear(t, session.New(a, true, p), session.New(b, false, p)) {
		require.Less(t, f.Kind, session.FrameStay)
	}
	requireEqualNodes(t, a, b)
}

// syncing counts what is committed with Sync, and without.
type syncing struct {
	*node
	synced, unsynced int // log entries without a log-index, and rows
}

func (s *syncing) Commit(stage func(t *replica.Txn) error) error {
	return s.node.Commit(func(t *replica.Txn) error {
		err := stage(t)
		keys := map[byte]int{}
		c := kinds{keys}
		if t.Batch.All.Replay(c); keys[store.KindLog] > 0 && keys[store.KindIndex] == 0 {
			require.True(s.t, t.Sync, "a log entry ahead of its value, without Sync")
			s.synced += keys[store.KindLog]
		} else if keys[store.KindIndex] > 0 && keys[store.KindLog] == 0 {
			s.unsynced += keys[store.KindIndex]
		}
		return err
	})
}

// kinds counts the records of a batch that are put.
type kinds struct{ n map[byte]int }

func (k kinds) Put(key, value []byte) {
	if store.Reserved(key) {
		k.n[key[2]]++
	}
}

func (k kinds) Delete(key []byte) {}

// What a row leaves out is on disk before the row comes.
// design.md: J2
func TestJoin_EntriesAreCommittedWithSync(t *testing.T) {
	a, b := &syncing{node: newNode(t)}, filled(t, 100)
	require.True(t, newJoiner(t).join(a, b))
	requireEqualNodes(t, a.node, b)
	require.Equal(t, 99, a.synced, "all but the key in conflict")
	require.Equal(t, 98, a.unsynced, "and but the large one")
}

// A key that changed after its entry was sent is sent whole, and leaves no stale entry.
// design.md: J2
func TestJoin_KeyThatChangedIsSentWhole(t *testing.T) {
	a, b, j := newNode(t), newNode(t), newJoiner(t)
	for i := range 10 {
		b.put(fmt.Sprint("k", i), "v")
	}
	j.after = func(f session.Frame) {
		if f.Kind == session.FrameEntries {
			b.put("k4", "changed")
			b.del("k5")
		}
	}
	require.True(t, j.join(a, b))
	require.Equal(t, "changed", a.get("k4"))
	require.Equal(t, "-", a.get("k5"))
	require.Positive(t, j.frames[session.FramePage])
	requireSwept(t, a)
}

// Nor may the row of a key that had several versions, of which one is left, leave out what no entry said.
// design.md: J2
func TestJoin_KeyThatWasInConflictIsSentWhole(t *testing.T) {
	a, b, j := newNode(t), newNode(t), newJoiner(t)
	b.put("k", "stays")
	b.put("l", "has an entry")
	x, y := b.versions("k")[0], foreign(1, 1)
	var peer causal.Knowledge
	b.mergeFrom(&peer, y)
	require.Len(t, b.versions("k"), 2)
	j.after = func(f session.Frame) {
		if f.Kind == session.FrameEntries {
			peer.Raise(causal.Covered, y.Dot)
			peer.Raise(causal.Purged, y.Dot)
			require.NoError(t, b.Commit(func(t *replica.Txn) error { return t.DropPurged([]byte("k"), []store.Version{x}, &peer) }))
			require.Len(t, b.versions("k"), 1)
		}
	}
	require.True(t, j.join(a, b))
	require.NoError(t, j.err)
	require.Equal(t, "stays", a.get("k"))
	requireSwept(t, a)
}

// What a join has staged when it breaks off is neither held nor served, and goes.
// design.md: J3
func TestJoin_StagedEntriesAreHarmless(t *testing.T) {
	a, b, c, j := newNode(t), filled(t, 100), newNode(t), newJoiner(t)
	j.cut = nth(session.FrameEntries, 2)
	require.True(t, j.join(a, b))
	require.Greater(t, len(a.log()), 20)
	require.True(t, a.r.Stale())
	require.Empty(t, a.r.Cloud)
	require.Empty(t, userData(t, a.db))
	require.Zero(t, a.r.Keys)
	a.put("k0001", "written here")
	talk(t, c, a)
	require.Equal(t, userData(t, a.db), userData(t, c.db))
	require.Len(t, c.log(), 1)
	for more, err := true, error(nil); more; {
		more, err = replica.SweepBroken(a)
		require.NoError(t, err)
	}
	requireSwept(t, a)
}

// A sweep that an opening has begun leaves what a join has staged since.
// design.md: J3
func TestJoin_SweepLeavesWhatIsStaged(t *testing.T) {
	a, b, j := newNode(t), filled(t, 100), newJoiner(t)
	a.r.MayHaveStale = true
	swept := false
	j.after = func(f session.Frame) {
		if f.Kind == session.FrameRows && !swept {
			swept = true
			require.NoError(t, TidyUp(a, 100, Never))
		}
	}
	require.True(t, j.join(a, b))
	require.True(t, swept)
	requireEqualNodes(t, a, b)
	requireSwept(t, a)
}

// A value that is not the one that was logged is not taken in.
// design.md: J4
func TestJoin_RowMustBeWhatWasLogged(t *testing.T) {
	a, b, j := newNode(t), filled(t, 100), newJoiner(t)
	require.NoError(t, b.db.Put([]byte("k0042"), []byte("past the wrapper"), nil))
	require.True(t, j.join(a, b))
	require.ErrorIs(t, j.err, store.ErrCorrupted)
	require.ErrorContains(t, j.err, "k0042")
	require.Equal(t, "-", a.get("k0042"))
	require.Empty(t, a.r.Known.Vector(causal.Covered))
}

// A row needs its log entry.
// design.md: J4
func TestJoin_RowWithoutItsEntryIsRefused(t *testing.T) {
	a, b, j := newNode(t), newNode(t), newJoiner(t)
	for i := range 10 {
		b.put(fmt.Sprint("k", i), "v")
	}
	entries := 0
	j.params.PageSize = 1
	j.tamper = func(f *session.Frame) {
		if entries += int(store.Btoi(f.Kind == session.FrameEntries)); f.Kind == session.FrameEntries && entries == 4 {
			*f = session.Frame{Kind: session.FrameKeepalive}
		}
	}
	require.True(t, j.join(a, b))
	require.ErrorContains(t, j.err, "without its log entry")
	require.Equal(t, "-", a.get("k3"))
}

// Keys that are held are merged like any others.
// design.md: J5
func TestJoin_MergesWhatIsHeld(t *testing.T) {
	a, b := newNode(t), filled(t, 60)
	talk(t, a, b)
	a.put("k0001", "only here")
	a.put("k0002", "beside")
	b.put("k0002", "beside, too")
	b.put("k0004", "newer")
	a.del("k0006")
	b.put("k0006", "beside the deletion")
	for i := range 100 {
		b.put(fmt.Sprintf("m%04d", i), "new")
	}
	j := newJoiner(t)
	require.True(t, j.join(a, b))
	require.Equal(t, "only here", a.get("k0001"))
	require.Equal(t, "newer", a.get("k0004"))
	require.Len(t, a.versions("k0002"), 2)
	require.Len(t, a.versions("k0006"), 2)
	requireSwept(t, a)
	requireEqualNodes(t, a, b)
}

// gets counts the log-indexes that are looked up.
type gets struct {
	store.Store
	n *int
}

func (g gets) Get(key []byte, ro *opt.ReadOptions) ([]byte, error) {
	*g.n += int(store.Btoi(store.Reserved(key) && key[2] == store.KindIndex))
	return g.Store.Get(key, ro)
}

// design.md: J5
func TestJoin_LooksNothingUpWhereNothingIsHeld(t *testing.T) {
	a, b, j := newNode(t), newNode(t), newJoiner(t)
	for i := range 100 {
		b.put(fmt.Sprintf("k%02d", i), "v")
	}
	n := 0
	a.r.Store, a.r.Filter.Whole = gets{a.r.Store, &n}, false
	require.True(t, j.join(a, b))
	requireEqualNodes(t, a, b)
	require.Zero(t, n)
}

// What was held until lately is not staged: a power failure could bring back the log-index that names it as one of several.
// design.md: J5
func TestJoin_WhatMayReturnIsNotStaged(t *testing.T) {
	n := newNode(t)
	var peer causal.Knowledge
	x, y := foreign(1, 1), foreign(2, 1)
	n.mergeFrom(&peer, x, y)
	n.put("k", "supersedes both")
	entry := store.Entry{Version: x, Key: []byte("k"), Check: store.Checksum(x.Value)}
	stage := func() {
		n.r.BeginSections()
		require.NoError(t, n.Commit(func(t *replica.Txn) error { return t.StageAhead([]store.Entry{entry}, &peer) }))
	}
	stage()
	require.NotContains(t, n.log(), x.Dot)
	n.r.NoteOnDisk(n.r.FlushMark())
	stage()
	require.Contains(t, n.log(), x.Dot, "nothing is in doubt any more")
}

// A join goes on where it broke off, at any server that covers as much.
// design.md: J6
func TestJoin_GoesOnAtAnotherServer(t *testing.T) {
	a, b, c, j := newNode(t), filled(t, 200), newNode(t), newJoiner(t)
	talk(t, c, b)
	j.cut = nth(session.FrameRows, 3)
	require.True(t, j.join(a, b))
	before := len(userData(t, a.db))
	require.Greater(t, before, 20)
	c.put("k0000", "only at the other")
	j.cut = nil
	require.True(t, j.join(a, c))
	require.EqualValues(t, 1, j.how, "it goes on")
	require.Less(t, j.res.Pulled, 200-before+10)
	requireEqualAfterPull(t, a, c)
	require.Equal(t, "only at the other", a.get("k0000"))
}

// requireEqualAfterPull has the rest pulled, sweeps what a join left, and compares.
func requireEqualAfterPull(t testing.TB, a, b *node) {
	t.Helper()
	talk(t, a, b)
	for more, err := true, error(nil); more; {
		more, err = replica.SweepBroken(a)
		require.NoError(t, err)
	}
	requireEqualNodes(t, a, b)
	requireSwept(t, a)
}

// After a restart as well.
// design.md: J6
func TestJoin_GoesOnAfterARestart(t *testing.T) {
	for _, clean := range []bool{true, false} {
		st := storage.NewMemStorage()
		a, b, j := openNode(t, st, replica.HighestClock), filled(t, 200), newJoiner(t)
		j.cut = nth(session.FrameRows, 3)
		require.True(t, j.join(a, b))
		before := len(userData(t, a.db))
		if clean {
			require.NoError(t, replica.MarkClean(a.db, a.r))
		} else {
			a.r.NoteOnDisk(a.r.FlushMark())
			require.NoError(t, a.Commit(func(t *replica.Txn) error { t.StageUpkeep(); return nil }))
		}
		require.NoError(t, a.db.Close())
		a = openNode(t, st, replica.HighestClock)
		j.cut = nil
		require.True(t, j.join(a, b))
		require.EqualValues(t, 1, j.how, "it goes on")
		require.Less(t, j.res.Pulled, 200-before+10)
		require.NoError(t, TidyUp(a, 100, Never))
		requireEqualAfterPull(t, a, b)
	}
}

// A server that covers less, or knows of fewer purges, begins anew.
// design.md: J6
func TestJoin_BeginsAnewWhereTheServerKnowsLess(t *testing.T) {
	for _, lacks := range []string{"a write", "a purge"} {
		a, b, c, j := newNode(t), filled(t, 200), newNode(t), newJoiner(t)
		talk(t, c, b)
		if lacks == "a write" {
			b.put("k0199", "not at the other")
		} else {
			raise := causal.Dot{Origin: b.r.Self, Seq: 5}
			require.NoError(t, b.Commit(func(t *replica.Txn) error { t.RequireDurable(causal.Purged, raise); return nil }))
		}
		j.cut = nth(session.FrameRows, 3)
		require.True(t, j.join(a, b))
		j.cut = nil
		require.True(t, j.join(a, c))
		require.EqualValues(t, 0, j.how, lacks)
		requireEqualAfterPull(t, a, c)
	}
}

// design.md: J6
func TestJoin_PointRestsOnWhatWasCovered(t *testing.T) {
	a := newNode(t)
	a.put("k", "v")
	covered := causal.Dot{Origin: a.r.Self, Seq: 1}
	for seq, goesOn := range []bool{1: true, 2: false} {
		p := &replica.JoinPoint{Base: causal.Vector{{Origin: covered.Origin, Seq: uint64(seq)}}}
		if a.r.RememberJoin(p); seq > 0 {
			require.Equal(t, goesOn, a.r.JoinPoint() != nil)
		}
	}
}

// After a session that broke off rounds are short, as the entries of one have to come again.
// design.md: J4
func TestJoin_RoundsAreShortWhereSessionsBreakOff(t *testing.T) {
	for _, broke := range []bool{false, true} {
		a, b, j := newNode(t), filled(t, 200), newJoiner(t)
		j.params.RoundKeys = 400
		j.params.OnHello = func(*session.Hello) bool { return broke }
		require.True(t, j.join(a, b))
		require.Equal(t, broke, j.frames[session.FrameSections] > 5)
		requireEqualNodes(t, a, b)
		requireSwept(t, a)
	}
}

// What was held back, or only named, has to come again.
// design.md: J6
func TestJoin_DoesNotGoOnBehindWhatIsHeldBack(t *testing.T) {
	a, b, j := newNode(t), newNode(t), newJoiner(t)
	for i := range 100 {
		b.put(fmt.Sprintf("k%02d", i), "v")
	}
	b.put("k50", strings.Repeat("x", 2000))
	j.params.PageSize = 200
	j.dialer = func(p *session.Params) { p.MaxValue = 1000 }
	last := 0
	j.cut = func(f session.Frame) bool {
		last = len(userData(t, a.db))
		return last > 70
	}
	require.True(t, j.join(a, b))
	require.NotNil(t, a.r.JoinPoint())
	require.Less(t, string(a.r.JoinPoint().Cursor), "k50")
	j.cut = nil
	require.True(t, j.join(a, b))
	require.EqualValues(t, 1, j.how)
	require.True(t, j.res.HeldBack)
	require.Len(t, a.r.HeldBack, 1)
	require.False(t, a.r.Known.Covers(causal.Dot{Origin: b.r.Self, Seq: 101}))
}

// While one session joins another leaves its pull out.
// design.md: J7
func TestJoin_OneAtATime(t *testing.T) {
	a, b, c, j := newNode(t), filled(t, 100), newNode(t), newJoiner(t)
	talk(t, c, b)
	other := newJoiner(t)
	tried := false
	j.after = func(f session.Frame) {
		if f.Kind == session.FrameEntries && !tried {
			tried = true
			require.False(t, other.join(a, c))
			require.Equal(t, session.SkippedBusy, other.res.Skipped)
		}
	}
	require.True(t, j.join(a, b))
	require.True(t, tried)
	requireEqualNodes(t, a, b)
	j.after, j.cut = nil, nth(session.FrameEntries, 1)
	d := newNode(t)
	require.True(t, j.join(d, b))
	require.True(t, other.join(d, c), "the one that broke off is no hindrance")
	requireEqualAfterPull(t, d, c)
}
