package replicator

import (
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

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

func (n fixedNode) addresses() []string { return []string{n.addr} }

func newFixedNode(t testing.TB, name string) fixedNode {
	// Small buffers: the fuzzer opens many.
	db, err := leveldb.Open(storage.NewMemStorage(), &opt.Options{WriteBuffer: 64 << 10, BlockCacheCapacity: -1, DisableBufferPool: true})
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	var drawn byte
	wall := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	n := &node{t: t, db: db}
	n.r = newReplica(replicaConfig{
		store: countingStore{handle{db}, &n.entries}, resolve: highestClock, maxKey: 1 << 16, maxValue: 1 << 26,
		maxSkew: time.Minute, tombstoneTTL: time.Hour, peerTTL: time.Hour, cacheSize: 1 << 20,
		draw: func() (o Origin) { drawn++; copy(o[:], name); o[15] = drawn; return o },
		now:  func() time.Time { wall = wall.Add(time.Millisecond); return wall },
	})
	b, err := n.r.open("c1")
	require.NoError(t, err)
	require.NoError(t, db.Write(b, &opt.WriteOptions{Sync: true}))
	return fixedNode{n, name + ".example:9000"}
}

func (n fixedNode) params() sessionParams {
	return sessionParams{name: n.addr[:strings.Index(n.addr, ".")], cluster: "c1", addr: n.addr, pageSize: 256, batchSize: 1 << 16, maxValue: 1 << 26, maxKey: 1 << 16}
}

// said is a frame of a conversation, and who said it.
type said struct {
	dialer bool
	frame
}

var frameNames = [...]string{"", "hello", "refuse", "vectors", "addresses", "pull", "page", "chunk", "end", "turn", "bye", "probe", "probed", "fetch", "wait", "packed", "want"}

func frameName(k frameType) string {
	if int(k) < len(frameNames) {
		return frameNames[k]
	}
	return fmt.Sprint("frame ", byte(k))
}

// overhear holds a session to its end and writes down what is said.
func overhear(t testing.TB, sa, sb *session) (all []said) {
	drive(t, sa, sb, func(from, to *session, f frame) {
		all = append(all, said{from == sa, f})
		if err := to.receive(f.kind, f.payload); f.kind != frameRefuse && !to.refusing {
			require.NoError(t, err)
		}
	})
	return all
}

func converseFixed(t testing.TB, a, b fixedNode) []said {
	p := a.params()
	if a.r.members[b.r.self] != nil {
		p.remembered = b.r.self
	}
	return overhear(t, newSession(a, true, p), newSession(b, false, b.params()))
}

// repairFixed is a conversation of two servers that claim the same, while a key
// is damaged at one.
func repairFixed(t testing.TB) []said {
	a, b := newFixedNode(t, "alpha"), newFixedNode(t, "beta")
	for i := range 5000 {
		b.put(fmt.Sprintf("key-%04d", i), "v")
	}
	converseFixed(t, a, b)
	s, err := b.r.lookup([]byte("key-0007"))
	require.NoError(t, err)
	b.r.digest = b.r.digest.sub(s.hash())
	b.r.cache = cache{}
	for _, k := range [][]byte{[]byte("key-0007"), kindKey(kindIndex, []byte("key-0007")), appendLogKey(nil, b.r.alias[s[0].origin], s[0].seq)} {
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
	p.maxValue = 640
	all := overhear(t, newSession(d, true, p), newSession(a, false, a.params()))
	require.Len(t, d.versions("siblings"), 3)
	require.Len(t, d.r.heldBack, 1)
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
	stranger.cluster = "c2"
	all["refusal"] = overhear(t, newSession(a, true, stranger), newSession(b, false, b.params()))

	all["apart"] = apartFixed(t)

	all["wait"] = []said{{false, frame{frameWait, nil}}}

	a.put("key-01", "once more, so that the proofs and members differ")
	require.NoError(t, a.commit(func(t *txn) error { t.stageMembers(); return nil }))
	flushed, clean := new(leveldb.Batch), new(leveldb.Batch)
	a.r.stageFlushed(flushed)
	require.NoError(t, a.db.Write(flushed, nil))
	a.r.stageClean(clean)
	require.NoError(t, a.r.stageClosed(clean))
	require.NoError(t, a.db.Write(clean, nil))
	return all, a
}

func transcript(all []said) string {
	var b strings.Builder
	for _, s := range all {
		from := "acceptor"
		if s.dialer {
			from = "dialer"
		}
		fmt.Fprintf(&b, "%s %s %x\n", from, frameName(s.kind), append(appendHead(nil, s.kind, len(s.payload)), s.payload...))
	}
	return b.String()
}

func records(t testing.TB, n fixedNode) string {
	var b strings.Builder
	it := n.db.NewIterator(nil, nil)
	defer it.Release()
	for it.Next() {
		kind := "value"
		if reserved(it.Key()) {
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

func TestBytesOnDiskAndOnTheWireAreThoseOfTheGoldenFiles(t *testing.T) {
	all, n := fixedConversations(t)
	seen := map[frameType]bool{}
	for name, c := range all {
		golden(t, name, transcript(c))
		for _, s := range c {
			seen[s.kind] = true
		}
	}
	seen[framePacked] = true // what a compressor makes of it may change: see TestGoldenPackedFrameIsUnderstood
	for k := range frameNames[1:] {
		require.True(t, seen[frameType(k+1)], "no golden %s", frameNames[k+1])
	}
	recs := records(t, n)
	golden(t, "records", recs)
	for _, kind := range []byte{kindIndex, kindLog, kindMeta, kindMember, kindOrigin, kindTombstone, kindConflict} {
		require.Contains(t, "\n"+recs, "\n"+string(kind)+" ", "no golden record of kind %c", kind)
	}
}

// goldenFrames reads the frames of a golden conversation.
func goldenFrames(t testing.TB, name string) (all []said) {
	text, err := os.ReadFile(filepath.Join("testdata", "format", name+".txt"))
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		require.Len(t, f, 3)
		b, err := hex.DecodeString(f[2])
		require.NoError(t, err)
		kind, payload, _, err := readFrame(strings.NewReader(string(b)), nil, frameCap)
		require.NoError(t, err)
		require.Equal(t, f[1], frameName(kind))
		all = append(all, said{f[0] == "dialer", frame{kind, payload}})
	}
	return all
}

func TestGoldenHelloIsUnderstood(t *testing.T) {
	frames := goldenFrames(t, "pull")
	h, err := decodeHello(frames[0].payload)
	require.NoError(t, err)
	require.Equal(t, "c1", h.cluster)
	require.Equal(t, "alpha", h.name)
	require.Equal(t, "alpha.example:9000", h.addr)
	require.Equal(t, Origin{'a', 'l', 'p', 'h', 'a', 15: 1}, h.origin)
	require.EqualValues(t, 1, h.min)
	require.EqualValues(t, 2026, h.wall.UTC().Year())
	require.Equal(t, Origin{}, h.base)
	require.NotZero(t, h.book)
	frames = goldenFrames(t, "idle")
	require.Len(t, frames, 2)
	for _, f := range frames {
		require.LessOrEqual(t, len(f.payload)+frameHead, 200)
	}
}

// The frames that alpha once sent, played to a server like the one that got them,
// bring it what alpha held, and the answers are those that it gave.
func TestGoldenPullIsUnderstood(t *testing.T) {
	b := newFixedNode(t, "beta")
	b.put("both", "from beta")
	s := newSession(b, false, b.params())
	for _, f := range goldenFrames(t, "pull") {
		if f.dialer {
			require.NoError(t, s.receive(f.kind, f.payload), "%s", frameName(f.kind))
			continue
		}
		for len(s.out) == 0 && s.more() {
			require.NoError(t, s.produce())
		}
		require.NotEmpty(t, s.out)
		require.Equal(t, f.frame, s.out[0])
		s.out = s.out[1:]
	}
	require.True(t, s.done)
	require.Equal(t, strings.Repeat("0123456789abcdef", 40), b.get("large"))
	require.Equal(t, "-", b.get("gone"))
	require.Len(t, b.versions("both"), 2)
}

// A server of before values were asked for says so by leaving it out of its hello.
func TestGoldenPullOfAnEarlierServerIsUnderstood(t *testing.T) {
	b := newFixedNode(t, "beta")
	b.put("both", "from beta")
	s := newSession(b, false, b.params())
	for _, f := range goldenFrames(t, "pull-earlier") {
		if f.dialer {
			require.NoError(t, s.receive(f.kind, f.payload), "%s", frameName(f.kind))
		}
		for s.more() {
			require.NoError(t, s.produce())
		}
	}
	require.True(t, s.done)
	require.Equal(t, strings.Repeat("0123456789abcdef", 40), b.get("large"))
	require.Len(t, b.versions("both"), 2)
}

func TestGoldenRecordsOpenAsADatabase(t *testing.T) {
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
	n.r = newReplica(replicaConfig{store: handle{db}, draw: n.r.draw, now: n.r.now, resolve: highestClock, maxKey: 1 << 16, maxValue: 1 << 26, cacheSize: 1 << 20})
	_, err = n.r.open("c1")
	require.NoError(t, err)
	require.EqualValues(t, 42, n.r.keys)
	require.EqualValues(t, 1, n.r.tombstones)
	require.EqualValues(t, 1, n.r.disputed)
	counted := n.r.digest
	n.r.digest, n.r.keys, n.r.tombstones, n.r.disputed = sum{}, 0, 0, 0
	_, err = n.r.recount()
	require.NoError(t, err)
	require.Equal(t, counted, n.r.digest, "what was marked at the close is what the log-index adds up to")
	require.Len(t, n.versions("both"), 2)
	require.Equal(t, "from alpha", string(n.versions("both")[0].value))
	require.True(t, n.versions("gone")[0].deleted)
}

// later is the hello of a version that does not exist yet: it speaks protocols 1
// and 2, and has fields behind those known here.
func later(h hello) []byte {
	h.max = 2
	return append(h.append(nil), "\x07from the future"...)
}

func TestLaterVersionTalksToThisOne(t *testing.T) {
	for _, dials := range []bool{true, false} {
		t.Run("dialing "+strconv.FormatBool(dials), func(t *testing.T) {
			a, b := newFixedNode(t, "alpha"), newFixedNode(t, "beta")
			a.put("k", "from the future")
			b.put("l", "from today")
			sa, sb := newSession(a, dials, a.params()), newSession(b, !dials, b.params())
			dialer, acceptor := sa, sb
			if !dials {
				dialer, acceptor = sb, sa
			}
			dialer.start()
			for !sa.done || !sb.done {
				for _, x := range []struct{ from, to *session }{{dialer, acceptor}, {acceptor, dialer}} {
					for x.from.more() {
						require.NoError(t, x.from.produce())
					}
					for _, f := range x.from.out {
						if f.kind == frameHello && x.from == sa {
							f.payload = later(sa.mine)
						}
						require.NoError(t, x.to.receive(f.kind, f.payload))
					}
					x.from.out = nil
				}
			}
			require.EqualValues(t, 1, sb.version)
			requireEqualNodes(t, a.node, b.node)
			require.Equal(t, "from the future", b.get("k"))
		})
	}
}

func TestVersionsWithoutOneInCommonSayWhichTheySpeak(t *testing.T) {
	b := newFixedNode(t, "beta")
	s := newSession(b, false, b.params())
	h := hello{min: 2, max: 3, cluster: "c1", origin: Origin{1}}
	err := s.receive(frameHello, h.append(nil))
	require.ErrorContains(t, err, "the peer speaks protocol versions 2 to 3, this server 1 to 1")
	require.Len(t, s.out, 1, "no hello of ours goes out")
	var refused *RefusedError
	a := newSession(newFixedNode(t, "alpha"), true, b.params())
	require.ErrorAs(t, a.receive(s.out[0].kind, s.out[0].payload), &refused)
	require.EqualValues(t, refuseVersion, refused.Code)
	require.Contains(t, refused.Text, "want one of 1 to 1")
	require.Empty(t, b.r.members, "nothing is remembered of it")
}

func TestServerOfAnotherClusterIsToldNothing(t *testing.T) {
	a, b := newFixedNode(t, "alpha"), newFixedNode(t, "beta")
	p := b.params()
	p.cluster = "a very secret project"
	sa, sb := newSession(a, true, a.params()), newSession(b, false, p)
	sa.start()
	err := sb.receive(sa.out[0].kind, sa.out[0].payload)
	require.ErrorContains(t, err, `the peer is of cluster "c1", this server of "a very secret project"`)
	require.Len(t, sb.out, 1)
	for _, ours := range []string{"secret", "beta", string(b.r.self[:])} {
		require.NotContains(t, string(sb.out[0].payload), ours)
	}
	require.ErrorContains(t, sa.receive(sb.out[0].kind, sb.out[0].payload), `another cluster than "c1"`)
	require.Empty(t, b.r.members)
}

func appendFrame(b []byte, k frameType, payload []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(1+len(payload)))
	return append(append(b, byte(k)), payload...)
}
