package sim

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/fuzzing"
	"github.com/level-replicator/replicator/internal/indexcache"
	"github.com/level-replicator/replicator/internal/mdns"
	"github.com/level-replicator/replicator/internal/netaddr"
	"github.com/level-replicator/replicator/internal/printable"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/comparer"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/memdb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// To seek inputs by what they reach, and then to run all on five million others each:
//
//	go test -run '^$' -fuzz '^FuzzPage$' -fuzztime 1m .
//	go test -run '^Fuzz' -v -timeout 0 -mutations 5000000 -mutations.corpus $(go env GOCACHE)/fuzz/github.com/level-replicator/replicator .

var fuzzNames = []causal.Origin{{'a', 'l', 'p', 'h', 'a', 15: 1}, {'b', 'e', 't', 'a', 15: 1}}

// fuzzAliases are the aliases of fuzzNames.
type fuzzAliases struct{ store.AliasTable }

func (a fuzzAliases) Number(o causal.Origin) uint64 { return uint64(slices.Index(a.AliasTable, o)) }

// dry is a replica whose commits are staged and checked, and then forgotten, so
// that each execution begins in the same state.
type dry struct {
	*node
	base  replica.Replica
	alias map[causal.Origin]uint32
}

func newDry(t testing.TB) *dry {
	n := newFixedNode(t, "beta")
	n.put("both", "from beta")
	for _, k := range []string{"a", "b", "c"} {
		n.put(k, "v")
		n.put(k, "w")
	}
	n.del("c")
	return &dry{node: n.node, base: *n.r, alias: maps.Clone(n.r.Alias)}
}

func (d *dry) reset() {
	txn, cache := d.r.Txn, d.r.Cache
	*d.r = d.base
	d.r.Txn, d.r.Cache = txn, cache
	d.r.Alias, d.r.Members, d.r.Own = maps.Clone(d.alias), map[causal.Origin]*replica.Member{}, maps.Clone(d.base.Own)
	d.r.Known = d.base.Known.Clone()
}

func (d *dry) Commit(stage func(t *replica.Txn) error) error {
	t := d.r.Begin()
	if err := stage(t); err != nil {
		return err
	}
	return t.Finish().Replay(honest{d.t})
}

// honest looks at what is about to be stored.
type honest struct{ t testing.TB }

func (h honest) Delete(key []byte) {}

func (h honest) Put(key, value []byte) {
	if store.Reserved(key) && (key[2] == store.KindIndex || key[2] == store.KindTombstone || key[2] == store.KindConflict) && store.Reserved(key[3:]) {
		h.t.Fatalf("stored an entry for the reserved key %q", key[3:])
	}
	if store.Reserved(key) && !strings.ContainsRune("ilmnotxr", rune(key[2])) {
		h.t.Fatalf("stored %q in the reserved range", key)
	}
}

// prepared is a session in the midst of a conversation.
func (d *dry) prepared(dialed bool, waits session.Step) *session.Session {
	return d.midway(dialed, session.Midway{Step: waits})
}

func (d *dry) midway(dialed bool, m session.Midway) *session.Session {
	d.reset()
	m.Peer = session.Hello{Min: 1, Max: 2, Cluster: "c1", Name: "alpha", Origin: fuzzNames[0], Addr: "alpha:9000"}
	m.Named = fuzzNames
	m.Known = []causal.Row{{Origin: fuzzNames[0], Seqs: [causal.Columns]uint64{9, 5, 3, 3}}, {Origin: fuzzNames[1], Seqs: [causal.Columns]uint64{1, 1, 1, 1}}}
	return session.NewMidway(d, dialed, fixedNode{d.node, "beta.example:9000"}.params(), m)
}

// play has the session take in a frame and say what follows from it.
func (d *dry) play(s *session.Session, kind session.FrameType, payload []byte) {
	if s.Receive(kind, payload) != nil {
		require.True(d.t, s.Done(), "a fault ends the conversation")
		return
	}
	for i := 0; i < 20 && s.More(); i++ {
		if s.Produce() != nil {
			return
		}
	}
	for _, f := range s.Frames() {
		require.LessOrEqual(d.t, len(f.Payload), session.FrameCap)
	}
}

// seeds adds the golden payloads of a kind, and some that are cut or changed.
func seeds(f *testing.F, kind session.FrameType) *fuzzing.Corpus {
	c := &fuzzing.Corpus{F: f}
	files, err := filepath.Glob(filepath.Join("testdata", "format", "*.txt"))
	require.NoError(f, err)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txt")
		if name == "records" {
			continue
		}
		for _, s := range GoldenFrames(f, name) {
			if s.Kind == kind {
				c.Add(s.Payload)
				c.Add(s.Payload[:len(s.Payload)/2])
			}
		}
	}
	c.Add([]byte{})
	c.Add(binary.AppendUvarint(nil, 1<<63))
	c.Add(bytes.Repeat([]byte{0xff}, 40))
	return c
}

func fuzzFrame(f *testing.F, kind session.FrameType, prepare func(d *dry) *session.Session) {
	d := newDry(f)
	fuzzing.Run1(seeds(f, kind), func(t testing.TB, payload []byte) {
		d.t = t
		d.play(prepare(d), kind, payload)
	})
}

func FuzzVectors(f *testing.F) {
	fuzzFrame(f, session.FrameVectors, func(d *dry) *session.Session { return d.prepared(false, session.WaitPull) })
}

func FuzzAddresses(f *testing.F) {
	fuzzFrame(f, session.FrameAddresses, func(d *dry) *session.Session { return d.prepared(false, session.WaitPull) })
}

func FuzzPull(f *testing.F) {
	fuzzFrame(f, session.FramePull, func(d *dry) *session.Session { return d.prepared(false, session.WaitPull) })
}

func FuzzJoin(f *testing.F) {
	fuzzFrame(f, session.FrameJoin, func(d *dry) *session.Session { return d.prepared(false, session.WaitPull) })
}

func FuzzSections(f *testing.F) {
	fuzzFrame(f, session.FrameSections, func(d *dry) *session.Session {
		return d.midway(true, session.Midway{Step: session.WaitAnswer, Pulling: true, Joins: true})
	})
}

// FuzzEntries plays log entries to a replica that joins.
func FuzzEntries(f *testing.F) {
	fuzzFrame(f, session.FrameEntries, func(d *dry) *session.Session { return d.joining() })
}

// FuzzRows plays rows, which need entries, and something else in between.
func FuzzRows(f *testing.F) {
	c := &fuzzing.Corpus{F: f}
	var entries, rows []byte
	for _, s := range GoldenFrames(f, "join") {
		switch s.Kind {
		case session.FrameEntries:
			entries = s.Payload
		case session.FrameRows:
			rows = s.Payload
			c.Add(entries, rows)
		}
	}
	c.Add([]byte{}, rows)
	d := newDry(f)
	fuzzing.Run2(c, func(t testing.TB, entries, rows []byte) {
		d.t = t
		s := d.joining()
		for _, x := range []session.Frame{{Kind: session.FrameEntries, Payload: entries}, {Kind: session.FrameRows, Payload: rows}, {Kind: session.FrameEnd, Payload: []byte{1}}} {
			if !s.Done() {
				d.play(s, x.Kind, x.Payload)
			}
		}
		require.NoError(t, s.Abandon())
	})
}

// joining is a session that takes in a join.
func (d *dry) joining() *session.Session {
	return d.midway(true, session.Midway{Step: session.WaitAnswer, Pulling: true, Joins: true, Sections: true})
}

func FuzzProbe(f *testing.F) {
	fuzzFrame(f, session.FrameProbe, func(d *dry) *session.Session { return d.prepared(false, session.WaitTurn) })
}

func FuzzFetch(f *testing.F) {
	fuzzFrame(f, session.FrameFetch, func(d *dry) *session.Session { return d.prepared(false, session.WaitTurn) })
}

func FuzzWant(f *testing.F) {
	fuzzFrame(f, session.FrameWant, func(d *dry) *session.Session { return d.prepared(false, session.WaitTurn) })
}

func FuzzRefuse(f *testing.F) {
	fuzzFrame(f, session.FrameRefuse, func(d *dry) *session.Session { return d.prepared(true, session.WaitAnswer) })
}

func FuzzProbed(f *testing.F) {
	c := &fuzzing.Corpus{F: f}
	for _, kind := range []byte{0, 1, 3} {
		c.Add(kind, []byte{0, 0})
		c.Add(kind, []byte{0, 1 /* dots */, 1, 0, 8, 2})
		for _, s := range GoldenFrames(f, "repair") {
			if s.Kind == session.FrameProbeReply {
				c.Add(kind, s.Payload)
			}
		}
	}
	d := newDry(f)
	fuzzing.Run2(c, func(t testing.TB, kind byte, payload []byte) {
		d.t = t
		s := d.midway(true, session.Midway{Step: session.WaitAnswer, Pulling: true, Repair: true, Kind: kind, Probed: true})
		d.play(s, session.FrameProbeReply, payload)
	})
}

// FuzzPage plays a page, after a chunk, and the end of the pull.
func FuzzPage(f *testing.F) {
	c := &fuzzing.Corpus{F: f}
	seed := func(name string) {
		for _, s := range GoldenFrames(f, name) {
			if s.Kind == session.FramePage {
				c.Add(false, []byte("\x01chunk"), s.Payload)
				c.Add(true, []byte{}, s.Payload)
			}
		}
	}
	seed("pull")
	seed("repair")
	d := newDry(f)
	fuzzing.Run3(c, func(t testing.TB, repairs bool, chunk, payload []byte) {
		d.t = t
		s := d.midway(true, session.Midway{Step: session.WaitAnswer, Pulling: true, Repair: repairs, Kind: byte(len(chunk) % 4)})
		if !repairs && len(chunk) > 0 {
			d.play(s, session.FrameChunk, chunk)
		}
		for _, x := range []session.Frame{{Kind: session.FramePage, Payload: payload}, {Kind: session.FrameEnd, Payload: []byte{1}}} {
			if !s.Done() {
				d.play(s, x.Kind, x.Payload)
			}
		}
	})
}

func FuzzHello(f *testing.F) {
	d := newDry(f)
	fuzzing.Run1(seeds(f, session.FrameHello), func(t testing.TB, payload []byte) {
		d.t = t
		d.reset()
		d.play(session.New(d, len(payload)%2 == 0, fixedNode{d.node, "beta.example:9000"}.params()), session.FrameHello, payload)
		h, err := session.DecodeHello(payload)
		if err != nil {
			return
		}
		again, err := session.DecodeHello(h.Append(nil))
		require.NoError(t, err)
		require.Equal(t, h, again)
	})
}

func FuzzReadFrame(f *testing.F) {
	c := &fuzzing.Corpus{F: f}
	c.Add([]byte{0, 0, 0, 1, 10})
	c.Add([]byte{0xff, 0xff, 0xff, 0xff, 1, 2, 3})
	c.Add([]byte{0, 0, 0, 0, 1})
	fuzzing.Run1(c, func(t testing.TB, b []byte) {
		kind, payload, _, err := session.ReadFrame(bytes.NewReader(b), nil, 1<<16)
		if err != nil {
			return
		}
		again := AppendFrame(nil, kind, payload)
		require.Equal(t, b[:len(again)], again)
	})
}

// goldenRecords adds the golden records of a kind, keys included where wanted.
func goldenRecords(f *testing.F, kind byte, name string, add func(key, value []byte)) {
	text, err := os.ReadFile(filepath.Join("testdata", "format", "records.txt"))
	require.NoError(f, err)
	for line := range strings.Lines(string(text)) {
		p := strings.Split(strings.TrimSuffix(line, "\n"), " ")
		k, err := hex.DecodeString(p[1])
		require.NoError(f, err)
		v, err := hex.DecodeString(p[2])
		require.NoError(f, err)
		if p[0] == string(kind) && strings.HasPrefix(string(k[3:]), name) {
			add(k, v)
		}
	}
}

func FuzzLogEntry(f *testing.F) {
	c := &fuzzing.Corpus{F: f}
	goldenRecords(f, store.KindLog, "", func(k, v []byte) { c.Add(k, v) })
	os := fuzzAliases{fuzzNames}
	fuzzing.Run2(c, func(t testing.TB, key, record []byte) {
		e, err := store.DecodeEntry(key, record, os)
		if err != nil || e.Deleted {
			return
		}
		require.False(t, e.Context.Contains(e.Dot))
		if !e.Inline {
			return // the value, and so the checksum, is elsewhere
		}
		again, err := store.DecodeEntry(key, store.AppendEntry(nil, &e, os), os)
		require.NoError(t, err)
		require.Equal(t, e.Context, again.Context)
		require.True(t, bytes.Equal(e.Key, again.Key) && bytes.Equal(e.Value, again.Value))
	})
}

func FuzzMarkOfAConflict(f *testing.F) {
	c := &fuzzing.Corpus{F: f}
	goldenRecords(f, store.KindConflict, "", func(k, v []byte) { c.Add(v) })
	c.Add([]byte{store.FormatVersion, store.FlagDeleted})
	c.Add([]byte{})
	fuzzing.Run1(c, func(t testing.TB, record []byte) {
		s, known := store.DecodeResolved(record)
		if !known {
			return
		}
		again, known := store.DecodeResolved(s.Append(nil))
		require.True(t, known)
		require.Equal(t, s, again)
	})
}

func FuzzLocalRanges(f *testing.F) {
	c := &fuzzing.Corpus{F: f}
	c.Add(store.AppendRanges(nil, nil))
	c.Add(store.AppendRanges(nil, store.NormalRanges([]*util.Range{{Start: []byte("l"), Limit: []byte("m")}, {Start: []byte("x")}})))
	fuzzing.Run1(c, func(t testing.TB, record []byte) {
		ranges, err := store.DecodeRanges(record)
		if err != nil {
			return
		}
		require.Equal(t, record, store.AppendRanges(nil, ranges))
		normal := store.NormalRanges(ranges)
		require.Equal(t, normal, store.NormalRanges(normal))
		for _, g := range ranges {
			for _, key := range [][]byte{g.Start, g.Limit, append(slices.Clone(g.Start), 0)} {
				in := string(key) >= string(g.Start) && string(key) < string(g.Limit)
				require.False(t, in && !store.Reserved(key) && !store.InRanges(normal, key), "%q is in %q to %q", key, g.Start, g.Limit)
			}
		}
	})
}

func FuzzLogIndex(f *testing.F) {
	c := &fuzzing.Corpus{F: f}
	goldenRecords(f, store.KindIndex, "", func(k, v []byte) { c.Add(v) })
	fuzzing.Run1(c, func(t testing.TB, record []byte) {
		os := fuzzAliases{fuzzNames}
		s, err := store.DecodeIndex(record, os)
		if err != nil {
			return
		}
		again, err := store.DecodeIndex(store.AppendIndex(nil, s, os), os)
		require.NoError(t, err)
		require.True(t, s.SameDots(again))
	})
}

// opened opens a store that holds some records, or says why it does not open.
func opened(t testing.TB, records ...[2][]byte) (*replica.Replica, error) {
	db := memdb.New(comparer.DefaultComparer, 1<<10)
	for _, kv := range records {
		require.NoError(t, db.Put(kv[0], kv[1]))
	}
	r := replica.New(replica.Config{Store: memStore{db}, Now: time.Now, Draw: func() causal.Origin { return causal.Origin{'n', 'e', 'w'} }})
	_, err := r.Open("c1")
	return r, err
}

// memStore is a store without snapshots.
type memStore struct{ db *memdb.DB }

func (s memStore) Get(key []byte, _ *opt.ReadOptions) ([]byte, error) { return s.db.Get(key) }

func (s memStore) NewIterator(g *util.Range, _ *opt.ReadOptions) iterator.Iterator {
	return s.db.NewIterator(g)
}

func (s memStore) Snapshot() (store.Snapshot, error) { return nil, leveldb.ErrClosed }

func originKey(alias uint32) []byte {
	return store.KindKey(store.KindOrigin, binary.BigEndian.AppendUint32(nil, alias))
}

func FuzzOriginRecord(f *testing.F) {
	c := &fuzzing.Corpus{F: f}
	goldenRecords(f, store.KindOrigin, "", func(k, v []byte) { c.Add(v) })
	fuzzing.Run1(c, func(t testing.TB, record []byte) {
		r, err := opened(t, [2][]byte{originKey(0), record})
		if err != nil {
			return
		}
		for _, w := range r.Known.Rows {
			for _, c := range []causal.Column{causal.Durable, causal.Purged} {
				require.LessOrEqual(t, w.Seqs[c], w.Seqs[causal.Covered])
			}
			require.LessOrEqual(t, max(w.Seqs[causal.Covered], w.Seqs[causal.Pruned]), uint64(causal.MaxSeq))
		}
	})
}

func FuzzCleanMark(f *testing.F) {
	c := &fuzzing.Corpus{F: f}
	goldenRecords(f, store.KindMeta, "clean", func(k, v []byte) { c.Add(v) })
	origin := func(alias uint32) [2][]byte {
		o := fuzzNames[alias]
		return [2][]byte{originKey(alias), append(append([]byte{store.FormatVersion, 0}, o[:]...), 0, 0, 0)}
	}
	fuzzing.Run1(c, func(t testing.TB, record []byte) {
		r, err := opened(t, origin(0), origin(1), [2][]byte{store.MetaClean, record})
		if err == nil {
			require.GreaterOrEqual(t, min(r.Keys, r.Tombstones, r.Conflicts), int64(0))
		}
	})
}

func FuzzMemberRecord(f *testing.F) {
	c := &fuzzing.Corpus{F: f}
	goldenRecords(f, store.KindMember, "", func(k, v []byte) { c.Add(k, v) })
	c.Add(store.KindKey(store.KindMember, []byte("x")), []byte{1})
	fuzzing.Run2(c, func(t testing.TB, key, record []byte) {
		if !bytes.HasPrefix(key, store.KindKey(store.KindMember, nil)) {
			return
		}
		if r, err := opened(t, [2][]byte{key, record}); err == nil {
			require.Len(t, r.Members, 1)
		}
	})
}

func FuzzHint(f *testing.F) {
	c := &fuzzing.Corpus{F: f}
	c.Add(strings.Join(mdns.Record{Cluster: mdns.ClusterHash("c"), Addrs: []string{"10.0.0.1:9000"}}.Txt(), "\n"))
	c.Add("v=1\ncid=\npid=00112233445566778899aabbccddeeff\na=[::1%eth0]:1\na=x:99999")
	fuzzing.Run1(c, func(t testing.TB, txt string) {
		h, ok := mdns.ParseRecord(strings.Split(txt, "\n"))
		if !ok {
			return
		}
		require.LessOrEqual(t, len(h.Addrs), mdns.MaxRecordAddrs)
		for _, a := range h.Addrs {
			require.NoError(t, netaddr.CheckAddr(a))
			require.Equal(t, a, printable.Printable(a))
		}
	})
}

// FuzzHostileSession has bytes drive a live session against a store: they are cut
// into frames, and what the server sends meanwhile is thrown away. Whatever
// they are, the store afterwards opens, and holds nothing it must not.
func FuzzHostileSession(f *testing.F) {
	join := func(name string, dialer bool) (b []byte) {
		for _, s := range GoldenFrames(f, name) {
			if s.dialer == dialer {
				b = AppendFrame(b, s.Kind, s.Payload)
			}
		}
		return b
	}
	c := &fuzzing.Corpus{F: f}
	for _, name := range []string{"pull", "repair", "idle", "refusal", "stream", "join"} {
		c.Add(false, join(name, true))
		c.Add(true, join(name, false))
	}
	for _, more := range hostileStreams(f) {
		c.Add(false, append(join("stream", true), more...))
	}
	fuzzing.Run2(c, func(t testing.TB, dialed bool, b []byte) {
		n := newFixedNode(t, "omega")
		n.put("both", "from omega")
		n.put("gone", "x")
		n.del("gone")
		p := n.params()
		p.Stay, p.JoinAbove = stayParams().Stay, 1
		s := session.New(n, dialed, p)
		s.Start()
		frames := 0
		for r := bytes.NewReader(b); !s.Done(); frames++ {
			kind, payload, _, err := session.ReadFrame(r, nil, session.FrameCap)
			if err != nil || s.Receive(kind, payload) != nil {
				break
			}
			busy(n.node, s, frames)
			for i := 0; i < 50 && s.More(); i++ {
				if s.Produce() != nil {
					break
				}
			}
			s.Frames()
		}
		s.Abandon() // may find that what came cannot be merged
		requireSound(t, n)
	})
}

// busy has a replica do something over a stream of its own accord.
func busy(n *node, s *session.Session, turn int) {
	l := s.Stream()
	if l == nil {
		return
	}
	switch turn % 6 {
	case 0:
		n.put("mine", "of now")
		l.Push()
	case 5:
		n.put("mine", "of now")
		l.PushOwn()
	case 1:
		l.Report()
	case 2:
		l.Request()
	case 3:
		l.Spare()
	}
	if turn == 40 {
		l.Leave()
	}
}

// hostileStreams are what a peer may do on a stream that it should not, or not so often.
func hostileStreams(t testing.TB) (all [][]byte) {
	join := func(frames ...session.Frame) (b []byte) {
		for _, f := range frames {
			b = AppendFrame(b, f.Kind, f.Payload)
		}
		return b
	}
	push, vectors := session.Frame{Kind: session.FramePush, Payload: []byte{1}}, session.Frame{Kind: session.FrameVectors, Payload: []byte{0, 9, 0, 0, 0}}
	end, bye := session.Frame{Kind: session.FrameEnd, Payload: []byte{1}}, session.Frame{Kind: session.FrameBye, Payload: []byte{1}}
	var page session.Frame
	for _, f := range GoldenFrames(t, "stream") {
		if f.Kind == session.FramePage && f.dialer {
			page = f.Frame
		}
	}
	return [][]byte{
		join(push, vectors, page, end, push, vectors, page, end, bye),
		join(push, vectors, page, page, page),
		join(push, page, end, push, vectors, end),
		join(push, vectors, session.Frame{Kind: session.FrameEnd, Payload: []byte{0}}, push, vectors, page, end, bye),
		join(bye, push, vectors, end),
		join(page, push),
		join(push, push, end, end),
		bytes.Repeat(join(session.Frame{Kind: session.FrameRequest}, session.Frame{Kind: session.FrameSpare}, vectors), 50),
		bytes.Repeat(join(push, vectors, end), 30),
	}
}

// FuzzStream has bytes come over a stream of a replica whose commits are forgotten.
func FuzzStream(f *testing.F) {
	c := &fuzzing.Corpus{F: f}
	for _, b := range hostileStreams(f) {
		c.Add(true, b)
		c.Add(false, b)
	}
	d := newDry(f)
	fuzzing.Run2(c, func(t testing.TB, pushes bool, b []byte) {
		d.t = t
		s := d.midway(true, session.Midway{Stays: true})
		r := bytes.NewReader(b)
		for frames := 0; !s.Done(); frames++ {
			kind, payload, _, err := session.ReadFrame(r, nil, session.FrameCap)
			if err != nil {
				break
			}
			if l := s.Stream(); pushes {
				l.Push()
				l.Report()
			}
			d.play(s, kind, payload)
			require.LessOrEqual(t, s.Retained(), len(b), "no more than came")
		}
		if !s.Done() {
			require.LessOrEqual(t, s.Queued(), session.WindowSize)
			s.Abandon()
		}
		require.False(t, s.More() && s.Done())
	})
}

// requireSound looks for what no peer may bring about.
func requireSound(t testing.TB, n fixedNode) {
	t.Helper()
	require.Equal(t, n.r.Seq, n.r.Known.Seq(causal.Covered, n.r.Self), "nobody else writes our log")
	for _, w := range n.r.Known.Rows {
		require.LessOrEqual(t, max(w.Seqs[causal.Durable], w.Seqs[causal.Purged]), w.Seqs[causal.Covered])
	}
	counted := countIndex(t, n.node)
	require.Equal(t, n.r.Digest, counted.Digest)
	require.Equal(t, n.r.Keys, counted.Keys)
	it := n.db.NewIterator(store.KindRange(store.KindIndex), nil)
	defer it.Release()
	for it.Next() {
		key := it.Key()[3:]
		require.False(t, store.Reserved(key), "an entry for the reserved key %q", key)
		s, err := store.DecodeIndex(it.Value(), n.r)
		require.NoError(t, err)
		_, err = store.ReadVersions(n.r.Store, key, s, n.r)
		require.NoError(t, err, "key %q", key)
		// The next local write must be one that others accept.
	}
	require.NoError(t, it.Error())
	for it.First(); it.Valid(); it.Next() {
		key := slices.Clone(it.Key()[3:])
		require.NoError(t, n.Commit(func(t *replica.Txn) error { return t.Put([]store.Write{{Key: key, Value: []byte("next")}}) }))
		s, err := n.r.Lookup(key)
		require.NoError(t, err)
		require.False(t, s[0].Context.Contains(s[0].Dot), "the next write of key %q would be refused", key)
		n.r.Cache = indexcache.Cache{}
		_, err = n.r.Lookup(key)
		require.NoError(t, err)
	}
}
