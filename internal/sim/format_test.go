package sim

import (
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/indexcache"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

var update = flag.Bool("update", false, "write the golden files of testdata/format anew")

// fixedNode is a node of which nothing is left to chance, so that it writes the
// same bytes each time. It knows one address.
type fixedNode struct {
	*node
	addr string
}

func (n fixedNode) Addresses() []string { return []string{n.addr} }

func newFixedNode(t testing.TB, name string) fixedNode {
	// Small buffers: the fuzzer opens many.
	db, err := leveldb.Open(storage.NewMemStorage(), &opt.Options{WriteBuffer: 64 << 10, BlockCacheCapacity: -1, DisableBufferPool: true})
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	var drawn byte
	wall := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	n := &node{t: t, db: db}
	n.r = replica.New(replica.Config{
		Store: countingStore{store.Handle{DB: db}, &n.entries}, Resolve: replica.HighestClock, MaxKey: 1 << 16, MaxValue: 1 << 26,
		MaxSkew: time.Minute, TombstoneTTL: time.Hour, PeerTTL: time.Hour, CacheSize: 1 << 20,
		Draw: func() (o causal.Origin) { drawn++; copy(o[:], name); o[15] = drawn; return o },
		Now:  func() time.Time { wall = wall.Add(time.Millisecond); return wall },
	})
	b, err := n.r.Open("c1")
	require.NoError(t, err)
	require.NoError(t, db.Write(b, &opt.WriteOptions{Sync: true}))
	return fixedNode{n, name + ".example:9000"}
}

func (n fixedNode) params() session.Params {
	return session.Params{Name: n.addr[:strings.Index(n.addr, ".")], Cluster: "c1", Addr: n.addr, PageSize: 256, BatchSize: 1 << 16, MaxValue: 1 << 26, MaxKey: 1 << 16}
}

// said is a frame of a conversation, and who said it.
type said struct {
	dialer bool
	session.Frame
}

var frameNames = [...]string{"", "hello", "refuse", "vectors", "addresses", "pull", "page", "chunk", "end", "turn", "bye", "probe", "probed", "fetch", "wait", "packed", "want", "stay", "push", "request", "spare", "join", "sections", "entries", "rows"}

func frameName(k session.FrameType) string {
	if int(k) < len(frameNames) {
		return frameNames[k]
	}
	return fmt.Sprint("frame ", byte(k))
}

// overhear holds a session to its end and writes down what is said. Both say that they speak version 1 of the
// protocol and no other, which is all by which it differs: so the golden files of version 1 stay what they are.
func overhear(t testing.TB, sa, sb *session.Session) (all []said) {
	drive(t, sa, sb, func(from, to *session.Session, f session.Frame) {
		f.Payload = firstVersion(f)
		all = append(all, said{from == sa, f})
		if err := to.Receive(f.Kind, f.Payload); f.Kind != session.FrameRefuse && !to.Result().Refused {
			require.NoError(t, err)
		}
	})
	return all
}

func converseFixed(t testing.TB, a, b fixedNode) []said {
	p := a.params()
	if a.r.Members[b.r.Self] != nil {
		p.CachedPeer = b.r.Self
	}
	return overhear(t, session.New(a, true, p), session.New(b, false, b.params()))
}

// repairFixed is a conversation of two replicas with equal version vectors, while a key
// is corrupted at one.
func repairFixed(t testing.TB) []said {
	a, b := newFixedNode(t, "alpha"), newFixedNode(t, "beta")
	for i := range 5000 {
		b.put(fmt.Sprintf("key-%04d", i), "v")
	}
	converseFixed(t, a, b)
	s, err := b.r.Lookup([]byte("key-0007"))
	require.NoError(t, err)
	b.r.Digest = b.r.Digest.Sub(s.Hash())
	b.r.Cache = indexcache.Cache{}
	for _, k := range [][]byte{[]byte("key-0007"), store.KindKey(store.KindIndex, []byte("key-0007")), store.AppendLogKey(nil, b.r.Alias[s[0].Origin], s[0].Seq)} {
		require.NoError(t, b.db.Delete(k, nil))
	}
	all := converseFixed(t, b, a)
	requireEqualNodes(t, a.node, b.node)
	return all
}

// apartFixed is a conversation about a key whose siblings are large together, and about a
// value that is larger than the receiver takes.
func apartFixed(t testing.TB) []said {
	a, b, c := newFixedNode(t, "alpha"), newFixedNode(t, "beta"), newFixedNode(t, "gamma")
	for i, n := range []fixedNode{a, b, c} {
		n.put("siblings", strings.Repeat(fmt.Sprint(i), 640))
	}
	a.put("large", strings.Repeat("x", 700))
	converseFixed(t, a, b)
	converseFixed(t, a, c)
	d := newFixedNode(t, "delta")
	p := d.params()
	p.MaxValue = 640
	all := overhear(t, session.New(d, true, p), session.New(a, false, a.params()))
	require.Len(t, d.versions("siblings"), 3)
	require.Len(t, d.r.HeldBack, 1)
	return all
}

// streamFixed is a conversation of version 2 after which both replicas stay.
func streamFixed(t testing.TB) (all []said) {
	a, b := newFixedNode(t, "alpha"), newFixedNode(t, "beta")
	pa, pb := a.params(), b.params()
	pa.Stay, pb.Stay = stayParams().Stay, stayParams().Stay
	pb.Wants = func(*replica.Replica, causal.Origin) bool { return true }
	a.put("k", "from alpha")
	b.put("l", "from beta")
	said := func(f session.Frame, dialer bool) { all = append(all, said{dialer, f}) }
	l := &live{t: t, s: [2]*session.Session{session.New(&durable{node: a.node}, true, pa), session.New(b, false, pb)}, overhears: said}
	l.s[0].Start()
	l.flow()
	a.put("k", "pushed")
	a.put("large", strings.Repeat("0123456789abcdef", 40))
	l.push(0)
	b.del("k")
	l.push(1) // and a report is wanted
	b.put("l", "reported")
	l.stream(1).Report()
	l.flow()
	l.stream(0).Request()
	l.flow()
	l.push(1)
	l.stream(1).Spare()
	l.flow()
	a.put("own", "pushed")
	l.pushOwn(0)
	l.stream(0).Leave()
	l.flow()
	l.requireOver()
	requireEqualNodes(t, a.node, b.node)
	return all
}

// joinFixed are two conversations of version 2: a join that is cut off among the rows, and one that goes on there.
func joinFixed(t testing.TB) (all []said) {
	a, b := newFixedNode(t, "alpha"), newFixedNode(t, "beta")
	a.put("both", "from alpha")
	b.put("both", "from beta")
	require.NoError(t, a.Commit(func(t *replica.Txn) error {
		var ws []store.Write
		for i := range 12 {
			ws = append(ws, store.Write{Key: fmt.Appendf(nil, "key-%02d", i), Value: fmt.Appendf(nil, "value %d %s", i, strings.Repeat("x", 20+i%2))})
		}
		return t.Put(ws)
	}))
	a.del("key-03")
	a.put("key-05", "anew")
	converseFixed(t, a, b)
	c := newFixedNode(t, "gamma")
	for _, frames := range []int{11, 1000} {
		p, q := c.params(), a.params()
		p.JoinAbove, q.JoinAbove = 1, 1
		sa, sb := session.New(c, true, p), session.New(a, false, q)
		sa.Start()
		for n := 0; n < frames && !sa.Done(); {
			for _, x := range []struct{ from, to *session.Session }{{sa, sb}, {sb, sa}} {
				for _, f := range speak(t, x.from) {
					if n++; n <= frames {
						all = append(all, said{x.from == sa, f})
						require.NoError(t, x.to.Receive(f.Kind, f.Payload))
					}
				}
			}
		}
		require.NoError(t, sa.Abandon())
		require.NoError(t, sb.Abandon())
	}
	requireEqualNodes(t, a.node, c.node)
	return all
}

// fixedConversations are such that every type of frame occurs, and leave nodes in
// whose stores every kind of record does.
func fixedConversations(t testing.TB) (map[string][]said, fixedNode) {
	all := map[string][]said{}
	a, b := newFixedNode(t, "alpha"), newFixedNode(t, "beta")
	a.put("both", "from alpha")
	b.put("both", "from beta")
	a.put("large", strings.Repeat("0123456789abcdef", 40))
	a.put("gone", "soon")
	a.del("gone")
	all["pull"] = converseFixed(t, a, b)
	converseFixed(t, a, b)
	all["idle"] = converseFixed(t, a, b)

	all["repair"] = repairFixed(t)
	for i := range 40 {
		b.put(fmt.Sprintf("key-%02d", i), "v")
	}
	converseFixed(t, a, b)

	stranger := a.params()
	stranger.Cluster = "c2"
	all["refusal"] = overhear(t, session.New(a, true, stranger), session.New(b, false, b.params()))

	all["apart"] = apartFixed(t)

	all["stream"] = streamFixed(t)

	all["join"] = joinFixed(t)

	all["wait"] = []said{{false, session.Frame{Kind: session.FrameKeepalive, Payload: nil}}}

	a.put("key-01", "once more, so that the proofs and members differ")
	require.NoError(t, a.Commit(func(t *replica.Txn) error { t.StageMembers(); return nil }))
	require.NoError(t, replica.MarkClean(a.db, a.r))
	require.NoError(t, a.db.Delete(store.MetaFlush, nil)) // it only made the memtable full
	return all, a
}

func transcript(all []said) string {
	var b strings.Builder
	for _, s := range all {
		from := "acceptor"
		if s.dialer {
			from = "dialer"
		}
		fmt.Fprintf(&b, "%s %s %x\n", from, frameName(s.Kind), append(session.AppendHead(nil, s.Kind, len(s.Payload)), s.Payload...))
	}
	return b.String()
}

func records(t testing.TB, n fixedNode) string {
	var b strings.Builder
	it := n.db.NewIterator(nil, nil)
	defer it.Release()
	for it.Next() {
		kind := "value"
		if store.Reserved(it.Key()) {
			kind = string(it.Key()[2])
		}
		fmt.Fprintf(&b, "%s %x %x\n", kind, it.Key(), it.Value())
	}
	require.NoError(t, it.Error())
	return b.String()
}

func golden(t testing.TB, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", "format", name+".txt")
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), got, "the format has changed: old databases and servers must still be understood. "+
		"If that is meant, say so in docs/format.md and run with -update")
}

func TestFormat_BytesAreThoseOfTheGoldenFiles(t *testing.T) {
	all, n := fixedConversations(t)
	seen := map[session.FrameType]bool{}
	for name, c := range all {
		golden(t, name, transcript(c))
		for _, s := range c {
			seen[s.Kind] = true
		}
	}
	seen[session.FramePacked] = true // what a compressor makes of it may change: see TestGoldenPackedFrameIsUnderstood
	for k := range frameNames[1:] {
		require.True(t, seen[session.FrameType(k+1)], "no golden %s", frameNames[k+1])
	}
	recs := records(t, n)
	golden(t, "records", recs)
	for _, kind := range []byte{store.KindIndex, store.KindLog, store.KindMeta, store.KindMember, store.KindOrigin, store.KindTombstone, store.KindConflict} {
		require.Contains(t, "\n"+recs, "\n"+string(kind)+" ", "no golden record of kind %c", kind)
	}
}

// GoldenFrames reads the frames of a golden conversation.
func GoldenFrames(t testing.TB, name string) (all []said) {
	text, err := os.ReadFile(filepath.Join("testdata", "format", name+".txt"))
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		require.Len(t, f, 3)
		b, err := hex.DecodeString(f[2])
		require.NoError(t, err)
		kind, payload, _, err := session.ReadFrame(strings.NewReader(string(b)), nil, session.FrameCap)
		require.NoError(t, err)
		require.Equal(t, f[1], frameName(kind))
		all = append(all, said{f[0] == "dialer", session.Frame{Kind: kind, Payload: payload}})
	}
	return all
}

func TestFormat_GoldenHelloIsUnderstood(t *testing.T) {
	frames := GoldenFrames(t, "pull")
	h, err := session.DecodeHello(frames[0].Payload)
	require.NoError(t, err)
	require.Equal(t, "c1", h.Cluster)
	require.Equal(t, "alpha", h.Name)
	require.Equal(t, "alpha.example:9000", h.Addr)
	require.Equal(t, causal.Origin{'a', 'l', 'p', 'h', 'a', 15: 1}, h.Origin)
	require.EqualValues(t, 1, h.Min)
	require.EqualValues(t, 2026, h.Wall.UTC().Year())
	require.Equal(t, causal.Origin{}, h.CachedOrigin)
	require.NotZero(t, h.AddrHash)
	frames = GoldenFrames(t, "idle")
	require.Len(t, frames, 2)
	for _, f := range frames {
		require.LessOrEqual(t, len(f.Payload)+session.FrameHead, 200)
	}
}

// The frames that alpha once sent, played to a replica like the one that got them,
// bring it what alpha held, and the answers are those that it gave.
func TestFormat_GoldenPullIsUnderstood(t *testing.T) {
	b := newFixedNode(t, "beta")
	b.put("both", "from beta")
	s := session.New(b, false, b.params())
	var out []session.Frame
	for _, f := range GoldenFrames(t, "pull") {
		if f.dialer {
			require.NoError(t, s.Receive(f.Kind, f.Payload), "%s", frameName(f.Kind))
			continue
		}
		if len(out) == 0 {
			out = speak(t, s)
		}
		require.NotEmpty(t, out)
		out[0].Payload = firstVersion(out[0])
		require.Equal(t, f.Frame, out[0])
		out = out[1:]
	}
	require.True(t, s.Done())
	require.Equal(t, strings.Repeat("0123456789abcdef", 40), b.get("large"))
	require.Equal(t, "-", b.get("gone"))
	require.Len(t, b.versions("both"), 2)
}

// A replica of before values were asked for says so by leaving it out of its hello.
func TestFormat_GoldenPullOfAnEarlierReleaseIsUnderstood(t *testing.T) {
	b := newFixedNode(t, "beta")
	b.put("both", "from beta")
	s := session.New(b, false, b.params())
	for _, f := range GoldenFrames(t, "pull-earlier") {
		if f.dialer {
			require.NoError(t, s.Receive(f.Kind, f.Payload), "%s", frameName(f.Kind))
		}
		for s.More() {
			require.NoError(t, s.Produce())
		}
	}
	require.True(t, s.Done())
	require.Equal(t, strings.Repeat("0123456789abcdef", 40), b.get("large"))
	require.Len(t, b.versions("both"), 2)
}

// A hello of version 1 and one of version 2 differ in the greatest version, and in the flags that say who stays.
func TestFormat_GoldenHellosOfBothVersionsAreUnderstood(t *testing.T) {
	first, err := session.DecodeHello(GoldenFrames(t, "pull")[0].Payload)
	require.NoError(t, err)
	require.EqualValues(t, 1, first.Max)
	second, err := session.DecodeHello(GoldenFrames(t, "stream")[0].Payload)
	require.NoError(t, err)
	require.EqualValues(t, 2, second.Max)
	require.Equal(t, len(first.Append(nil)), len(second.Append(nil)))
	require.EqualValues(t, 0x30, flagsOf(second)&^flagsOf(first))
	second.Max = 1
	again, err := session.DecodeHello(second.Append(nil))
	require.NoError(t, err)
	require.Zero(t, flagsOf(again)&0x10, "nobody of version 1 stays, whatever its flags")
}

// flagsOf are the flags of a hello, which stand before two hashes and two bounds.
func flagsOf(h session.Hello) byte {
	h.Apart = false
	b := h.Append(nil)
	return b[len(b)-9]
}

// The frames that alpha once said, and then pushed, bring a replica of now what alpha held, and it answers as beta did.
func TestFormat_GoldenStreamIsUnderstood(t *testing.T) {
	b := newFixedNode(t, "beta")
	b.put("l", "from beta")
	p := b.params()
	p.Stay = stayParams().Stay
	s := session.New(b, false, p)
	var answers []session.FrameType
	wrote := []func(){func() { b.del("k") }, func() { b.put("l", "reported") }}
	for _, f := range GoldenFrames(t, "stream") {
		if f.Kind == session.FramePush && !f.dialer {
			wrote[0]()
			wrote = wrote[1:]
			require.True(t, s.Stream().Push())
		}
		if f.dialer {
			require.NoError(t, s.Receive(f.Kind, f.Payload), "%s", frameName(f.Kind))
		}
		for s.More() {
			require.NoError(t, s.Produce())
		}
		for _, f := range s.Frames() {
			answers = append(answers, f.Kind)
		}
	}
	require.True(t, s.Done())
	require.Contains(t, answers, session.FrameStay)
	require.Equal(t, session.FrameBye, last(answers))
	require.Empty(t, wrote)
	require.Equal(t, "-", b.get("k"), "which was pushed, and deleted then")
	require.Equal(t, strings.Repeat("0123456789abcdef", 40), b.get("large"))
}

func TestFormat_GoldenRecordsOpenAsADatabase(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "format", "records.txt"))
	require.NoError(t, err)
	st := storage.NewMemStorage()
	db, err := leveldb.Open(st, nil)
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), " ")
		require.Len(t, f, 3)
		k, err := hex.DecodeString(f[1])
		require.NoError(t, err)
		v, err := hex.DecodeString(f[2])
		require.NoError(t, err)
		require.NoError(t, db.Put(k, v, nil))
	}
	require.NoError(t, db.Close())
	db, err = leveldb.Open(st, nil)
	require.NoError(t, err)
	defer db.Close()
	n := &node{t: t, db: db}
	n.r = newFixedNode(t, "delta").r
	n.r = replica.New(replica.Config{Store: store.Handle{DB: db}, Draw: n.r.Draw, Now: n.r.Now, Resolve: replica.HighestClock, MaxKey: 1 << 16, MaxValue: 1 << 26, CacheSize: 1 << 20})
	_, err = n.r.Open("c1")
	require.NoError(t, err)
	require.EqualValues(t, 42, n.r.Keys)
	require.EqualValues(t, 1, n.r.Tombstones)
	require.EqualValues(t, 1, n.r.Conflicts)
	counted := n.r.Digest
	require.Equal(t, counted, countIndex(t, n).Digest, "what was marked at the close is what the log-index adds up to")
	require.Len(t, n.versions("both"), 2)
	require.Equal(t, "from alpha", string(n.versions("both")[0].Value))
	require.True(t, n.versions("gone")[0].Deleted)
}

// later is the hello of a version that does not exist yet: it speaks those of now and the
// next, and has fields behind those known here.
func later(h session.Hello) []byte {
	h.Max = session.ProtocolMax + 1
	return append(h.Append(nil), "\x07from the future"...)
}

func TestFormat_LaterVersionTalksToThisOne(t *testing.T) {
	for _, dials := range []bool{true, false} {
		t.Run("dialing "+strconv.FormatBool(dials), func(t *testing.T) {
			a, b := newFixedNode(t, "alpha"), newFixedNode(t, "beta")
			a.put("k", "from the future")
			b.put("l", "from today")
			sa, sb := session.New(a, dials, a.params()), session.New(b, !dials, b.params())
			dialer, acceptor := sa, sb
			if !dials {
				dialer, acceptor = sb, sa
			}
			dialer.Start()
			for !sa.Done() || !sb.Done() {
				for _, x := range []struct{ from, to *session.Session }{{dialer, acceptor}, {acceptor, dialer}} {
					for x.from.More() {
						require.NoError(t, x.from.Produce())
					}
					for _, f := range slices.Clone(x.from.Frames()) {
						if f.Kind == session.FrameHello {
							h, err := session.DecodeHello(f.Payload)
							require.NoError(t, err)
							require.EqualValues(t, session.ProtocolMax, h.Max)
							if x.from == sa {
								f.Payload = later(h)
							}
						}
						require.NoError(t, x.to.Receive(f.Kind, f.Payload))
					}
				}
			}
			requireEqualNodes(t, a.node, b.node)
			require.Equal(t, "from the future", b.get("k"))
		})
	}
}

func TestFormat_VersionsWithoutOneInCommonSayWhichTheySpeak(t *testing.T) {
	b := newFixedNode(t, "beta")
	s := session.New(b, false, b.params())
	h := session.Hello{Min: 3, Max: 4, Cluster: "c1", Origin: causal.Origin{1}}
	err := s.Receive(session.FrameHello, h.Append(nil))
	require.ErrorContains(t, err, "the peer speaks protocol versions 3 to 4, this replica 1 to 2")
	out := s.Frames()
	require.Len(t, out, 1, "no hello of ours goes out")
	var refused *session.RefusedError
	a := session.New(newFixedNode(t, "alpha"), true, b.params())
	require.ErrorAs(t, a.Receive(out[0].Kind, out[0].Payload), &refused)
	require.EqualValues(t, session.RefuseVersion, refused.Code)
	require.Contains(t, refused.Text, "want one of 1 to 2")
	require.Empty(t, b.r.Members, "nothing is remembered of it")
}

func TestFormat_ReplicaOfAnotherClusterIsToldNothing(t *testing.T) {
	a, b := newFixedNode(t, "alpha"), newFixedNode(t, "beta")
	p := b.params()
	p.Cluster = "a very secret project"
	sa, sb := session.New(a, true, a.params()), session.New(b, false, p)
	sa.Start()
	hello := sa.Frames()[0]
	err := sb.Receive(hello.Kind, hello.Payload)
	require.ErrorContains(t, err, `the peer is of cluster "c1", this replica of "a very secret project"`)
	out := sb.Frames()
	require.Len(t, out, 1)
	for _, ours := range []string{"secret", "beta", string(b.r.Self[:])} {
		require.NotContains(t, string(out[0].Payload), ours)
	}
	require.ErrorContains(t, sa.Receive(out[0].Kind, out[0].Payload), `another cluster than "c1"`)
	require.Empty(t, b.r.Members)
}
