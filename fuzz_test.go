package replicator

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

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/comparer"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// To seek inputs by what they reach, and then to run all on five million others each:
//
//	go test -run '^$' -fuzz '^FuzzPage$' -fuzztime 1m .
//	go test -run '^Fuzz' -v -timeout 0 -mutations 5000000 -mutations.corpus $(go env GOCACHE)/fuzz/github.com/level-replicator/replicator .

var fuzzNames = []Origin{{'a', 'l', 'p', 'h', 'a', 15: 1}, {'b', 'e', 't', 'a', 15: 1}}

// dry is a server whose commits are staged and checked, and then forgotten, so
// that each execution begins in the same state.
type dry struct {
	*node
	base  replica
	alias map[Origin]uint32
}

func newDry(t testing.TB) *dry {
	n := newFixedNode(t, "beta")
	n.put("both", "from beta")
	for _, k := range []string{"a", "b", "c"} {
		n.put(k, "v")
		n.put(k, "w")
	}
	n.del("c")
	return &dry{node: n.node, base: *n.r, alias: maps.Clone(n.r.alias)}
}

func (d *dry) reset() {
	txn, cache := d.r.txn, d.r.cache
	*d.r = d.base
	d.r.txn, d.r.cache = txn, cache
	d.r.alias, d.r.members, d.r.own = maps.Clone(d.alias), map[Origin]*member{}, maps.Clone(d.base.own)
	d.r.aliases = slices.Clone(d.base.aliases)
	d.r.known = d.base.known.clone()
}

func (d *dry) commit(stage func(t *txn) error) error {
	t := d.r.begin()
	if err := stage(t); err != nil {
		return err
	}
	return t.finish().Replay(honest{d.t})
}

// honest looks at what is about to be stored.
type honest struct{ t testing.TB }

func (h honest) Delete(key []byte) {}
func (h honest) Put(key, value []byte) {
	if reserved(key) && (key[2] == kindIndex || key[2] == kindTombstone || key[2] == kindConflict) && reserved(key[3:]) {
		h.t.Fatalf("stored an entry for the reserved key %q", key[3:])
	}
	if reserved(key) && !strings.ContainsRune("ilmnotxr", rune(key[2])) {
		h.t.Fatalf("stored %q in the reserved range", key)
	}
}

// prepared is a session in the midst of a conversation.
func (d *dry) prepared(dialed bool, expect step) *session {
	d.reset()
	s := newSession(d, dialed, fixedNode{d.node, "beta.example:9000"}.params())
	s.sendHello(Origin{})
	s.theirs = hello{min: 1, max: 1, cluster: "c1", name: "alpha", origin: fuzzNames[0], addr: "alpha:9000"}
	s.out, s.expect = nil, expect
	s.reading.list = slices.Clone(fuzzNames)
	s.peer.take([]row{{origin: fuzzNames[0], at: [columns]uint64{9, 5, 3, 3}}, {origin: fuzzNames[1], at: [columns]uint64{1, 1, 1, 1}}})
	return s
}

// play has the session take in a frame and say what follows from it.
func (d *dry) play(s *session, kind frameType, payload []byte) {
	if s.receive(kind, payload) != nil {
		require.True(d.t, s.done, "a fault ends the conversation")
		return
	}
	for i := 0; i < 20 && s.more(); i++ {
		if s.produce() != nil {
			return
		}
	}
	for _, f := range s.out {
		require.LessOrEqual(d.t, len(f.payload), frameCap)
	}
}

// seeds adds the golden payloads of a kind, and some that are cut or changed.
func seeds(f *testing.F, kind frameType) *corpus {
	c := &corpus{f: f}
	files, err := filepath.Glob(filepath.Join("testdata", "format", "*.txt"))
	require.NoError(f, err)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txt")
		if name == "records" {
			continue
		}
		for _, s := range goldenFrames(f, name) {
			if s.kind == kind {
				c.add(s.payload)
				c.add(s.payload[:len(s.payload)/2])
			}
		}
	}
	c.add([]byte{})
	c.add(binary.AppendUvarint(nil, 1<<63))
	c.add(bytes.Repeat([]byte{0xff}, 40))
	return c
}

func fuzzFrame(f *testing.F, kind frameType, prepare func(d *dry) *session) {
	d := newDry(f)
	fuzz1(seeds(f, kind), func(t testing.TB, payload []byte) {
		d.t = t
		d.play(prepare(d), kind, payload)
	})
}

func FuzzVectors(f *testing.F) {
	fuzzFrame(f, frameVectors, func(d *dry) *session { return d.prepared(false, wantPull) })
}

func FuzzAddresses(f *testing.F) {
	fuzzFrame(f, frameAddresses, func(d *dry) *session { return d.prepared(false, wantPull) })
}

func FuzzPull(f *testing.F) {
	fuzzFrame(f, framePull, func(d *dry) *session { return d.prepared(false, wantPull) })
}

func FuzzProbe(f *testing.F) {
	fuzzFrame(f, frameProbe, func(d *dry) *session { return d.prepared(false, wantTurn) })
}

func FuzzFetch(f *testing.F) {
	fuzzFrame(f, frameFetch, func(d *dry) *session { return d.prepared(false, wantTurn) })
}

func FuzzWant(f *testing.F) {
	fuzzFrame(f, frameWant, func(d *dry) *session { return d.prepared(false, wantTurn) })
}

// FuzzResumePoint decodes what is stored of an unfinished pull, and encodes it again.
func FuzzResumePoint(f *testing.F) {
	in := &corpus{f: f}
	r := replica{pending: &pendingPull{done: spanMap{Origin{1}: {{1, 3}, {5, 9}}}, reach: vector{{Origin{1}, 9}, {Origin{2}, 1}}}, above: spanMap{Origin{2}: {{4, 4}}}}
	r.resume.rev = 1
	in.add(r.resumePoint().record)
	in.add([]byte{formatVersion, 0, 0, 0})
	in.add(binary.AppendUvarint([]byte{formatVersion}, 1<<63))
	fuzz1(in, func(t testing.TB, rec []byte) {
		p, above, ok := decodeResume(rec)
		if !ok {
			return
		}
		for o, ss := range p.done {
			for _, s := range ss {
				require.True(t, p.done.has(dot{o, s.from}) && p.done.has(dot{o, s.to}))
			}
		}
		r := replica{pending: p, above: above}
		r.resume.rev = 1
		if len(p.done)+len(above) == 0 {
			return
		}
		q, again, ok := decodeResume(r.resumePoint().record)
		require.True(t, ok)
		require.Equal(t, p, q)
		require.Equal(t, above, again)
	})
}

func FuzzRefuse(f *testing.F) {
	fuzzFrame(f, frameRefuse, func(d *dry) *session { return d.prepared(true, wantPage) })
}

func FuzzProbed(f *testing.F) {
	c := &corpus{f: f}
	for _, kind := range []byte{0, 1, 3} {
		c.add(kind, []byte{0, 0})
		c.add(kind, []byte{0, probedDots, 1, 0, 8, 2})
		for _, s := range goldenFrames(f, "repair") {
			if s.kind == frameProbed {
				c.add(kind, s.payload)
			}
		}
	}
	d := newDry(f)
	fuzz2(c, func(t testing.TB, kind byte, payload []byte) {
		d.t = t
		s := d.prepared(true, wantProbed)
		s.pulling = &pulling{repair: &repair{kind: repairKind(kind % 4), ranges: []dotRange{{last: lastDot}}}}
		s.params.compare = &comparison{}
		d.play(s, frameProbed, payload)
	})
}

// FuzzPage plays a page, after a chunk, and the end of the pull.
func FuzzPage(f *testing.F) {
	c := &corpus{f: f}
	seed := func(name string) {
		for _, s := range goldenFrames(f, name) {
			if s.kind == framePage {
				c.add(false, []byte("\x01chunk"), s.payload)
				c.add(true, []byte{}, s.payload)
			}
		}
	}
	seed("pull")
	seed("repair")
	d := newDry(f)
	fuzz3(c, func(t testing.TB, repairs bool, chunk, payload []byte) {
		d.t = t
		s := d.prepared(true, wantPage)
		s.pulling = &pulling{}
		if repairs {
			s.pulling.repair = &repair{kind: repairKind(len(chunk) % 4)}
			s.params.compare = &comparison{}
		} else if len(chunk) > 0 {
			d.play(s, frameChunk, chunk)
		}
		for _, x := range []frame{{framePage, payload}, {frameEnd, []byte{1}}} {
			if !s.done {
				d.play(s, x.kind, x.payload)
			}
		}
	})
}

func FuzzHello(f *testing.F) {
	d := newDry(f)
	fuzz1(seeds(f, frameHello), func(t testing.TB, payload []byte) {
		d.t = t
		d.reset()
		d.play(newSession(d, len(payload)%2 == 0, fixedNode{d.node, "beta.example:9000"}.params()), frameHello, payload)
		h, err := decodeHello(payload)
		if err != nil {
			return
		}
		again, err := decodeHello(h.append(nil))
		require.NoError(t, err)
		require.Equal(t, h, again)
	})
}

func FuzzReadFrame(f *testing.F) {
	c := &corpus{f: f}
	c.add([]byte{0, 0, 0, 1, 10})
	c.add([]byte{0xff, 0xff, 0xff, 0xff, 1, 2, 3})
	c.add([]byte{0, 0, 0, 0, 1})
	fuzz1(c, func(t testing.TB, b []byte) {
		kind, payload, _, err := readFrame(bytes.NewReader(b), nil, 1<<16)
		if err != nil {
			return
		}
		again := appendFrame(nil, kind, payload)
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
	c := &corpus{f: f}
	goldenRecords(f, kindLog, "", func(k, v []byte) { c.add(k, v) })
	os := aliases(fuzzNames)
	fuzz2(c, func(t testing.TB, key, record []byte) {
		e, err := decodeEntry(key, record, os)
		if err != nil || e.deleted {
			return
		}
		require.False(t, e.vv.has(e.dot))
		if !e.inline {
			return // the value, and so the checksum, is elsewhere
		}
		r := &replica{aliases: slices.Clone(fuzzNames), alias: map[Origin]uint32{fuzzNames[0]: 0, fuzzNames[1]: 1}}
		again, err := decodeEntry(key, appendEntry(nil, &e, r), os)
		require.NoError(t, err)
		require.Equal(t, e.vv, again.vv)
		require.True(t, bytes.Equal(e.key, again.key) && bytes.Equal(e.value, again.value))
	})
}

func FuzzMarkOfAConflict(f *testing.F) {
	c := &corpus{f: f}
	goldenRecords(f, kindConflict, "", func(k, v []byte) { c.add(v) })
	c.add([]byte{formatVersion, flagDeleted})
	c.add([]byte{})
	fuzz1(c, func(t testing.TB, record []byte) {
		s, known := decodeShown(record)
		if !known {
			return
		}
		again, known := decodeShown(s.append(nil))
		require.True(t, known)
		require.Equal(t, s, again)
	})
}

func FuzzLocalRanges(f *testing.F) {
	c := &corpus{f: f}
	c.add(appendRanges(nil, nil))
	c.add(appendRanges(nil, normalRanges([]*util.Range{{Start: []byte("l"), Limit: []byte("m")}, {Start: []byte("x")}})))
	fuzz1(c, func(t testing.TB, record []byte) {
		ranges, err := decodeRanges(record)
		if err != nil {
			return
		}
		require.Equal(t, record, appendRanges(nil, ranges))
		normal := normalRanges(ranges)
		require.Equal(t, normal, normalRanges(normal))
		for _, g := range ranges {
			for _, key := range [][]byte{g.Start, g.Limit, append(slices.Clone(g.Start), 0)} {
				in := string(key) >= string(g.Start) && string(key) < string(g.Limit)
				require.False(t, in && !reserved(key) && !inRanges(normal, key), "%q is in %q to %q", key, g.Start, g.Limit)
			}
		}
	})
}

func FuzzLogIndex(f *testing.F) {
	c := &corpus{f: f}
	goldenRecords(f, kindIndex, "", func(k, v []byte) { c.add(v) })
	fuzz1(c, func(t testing.TB, record []byte) {
		s, err := decodeIndex(record, aliases(fuzzNames))
		if err != nil {
			return
		}
		r := &replica{aliases: slices.Clone(fuzzNames), alias: map[Origin]uint32{fuzzNames[0]: 0, fuzzNames[1]: 1}}
		again, err := decodeIndex(appendIndex(nil, s, r), r)
		require.NoError(t, err)
		require.True(t, s.sameDots(again))
	})
}

// oneRecord is a store that holds one record.
type oneRecord struct{ key, value []byte }

func (o oneRecord) Get([]byte, *opt.ReadOptions) ([]byte, error) { return o.value, nil }
func (o oneRecord) snapshot() (snapshot, error)                  { return nil, leveldb.ErrClosed }
func (o oneRecord) Len() int                                     { return 1 }
func (o oneRecord) Index(int) (key, value []byte)                { return o.key, o.value }
func (o oneRecord) Search(key []byte) int {
	return max(comparer.DefaultComparer.Compare(key, o.key), 0)
}
func (o oneRecord) NewIterator(*util.Range, *opt.ReadOptions) iterator.Iterator {
	return iterator.NewArrayIterator(o)
}

func blank(o oneRecord) *replica {
	r := &replica{replicaConfig: replicaConfig{store: o, now: time.Now}, alias: map[Origin]uint32{}, own: map[Origin]bool{}, members: map[Origin]*member{}}
	return r
}

func FuzzOriginRecord(f *testing.F) {
	c := &corpus{f: f}
	goldenRecords(f, kindOrigin, "", func(k, v []byte) { c.add(v) })
	fuzz1(c, func(t testing.TB, record []byte) {
		r := blank(oneRecord{kindKey(kindOrigin, make([]byte, 4)), record})
		if r.readOrigins() != nil {
			return
		}
		for _, w := range r.known.rows {
			for c := range columns {
				require.LessOrEqual(t, w.at[c], w.at[claimed])
			}
			require.LessOrEqual(t, w.at[claimed], uint64(maxSeq))
		}
	})
}

func FuzzCleanMark(f *testing.F) {
	c := &corpus{f: f}
	goldenRecords(f, kindMeta, "clean", func(k, v []byte) { c.add(v) })
	fuzz1(c, func(t testing.TB, record []byte) {
		r := blank(oneRecord{metaClean, record})
		r.assign(fuzzNames[0])
		r.assign(fuzzNames[1])
		if clean, err := r.readClean(); err == nil {
			require.True(t, clean)
			require.GreaterOrEqual(t, min(r.keys, r.tombstones, r.disputed), int64(0))
		}
	})
}

func FuzzMemberRecord(f *testing.F) {
	c := &corpus{f: f}
	goldenRecords(f, kindMember, "", func(k, v []byte) { c.add(k, v) })
	c.add([]byte("x"), []byte{1})
	fuzz2(c, func(t testing.TB, key, record []byte) {
		if r := blank(oneRecord{key, record}); r.readMembers() == nil {
			require.Len(t, r.members, 1)
		}
	})
}

func FuzzHint(f *testing.F) {
	c := &corpus{f: f}
	c.add(strings.Join(hint{cluster: clusterHash("c"), addrs: []string{"10.0.0.1:9000"}}.txt(), "\n"))
	c.add("v=1\ncid=\npid=00112233445566778899aabbccddeeff\na=[::1%eth0]:1\na=x:99999")
	fuzz1(c, func(t testing.TB, txt string) {
		h, ok := parseHint(strings.Split(txt, "\n"))
		if !ok {
			return
		}
		require.LessOrEqual(t, len(h.addrs), maxHintAddrs)
		for _, a := range h.addrs {
			require.NoError(t, checkAddr(a))
			require.Equal(t, a, printable(a))
		}
	})
}

func FuzzToken(f *testing.F) {
	c := &corpus{f: f}
	c.add("AQ")
	c.add("AQAAAAAAAAAAAAAAAAAAAAAB")
	fuzz1(c, func(t testing.TB, text string) {
		if token, err := ParseToken(text); err == nil {
			require.Equal(t, text, token.String())
		}
	})
}

// FuzzHostileSession has bytes drive a live session against a store: they are cut
// into frames, and what the server sends meanwhile is thrown away. Whatever
// they are, the store afterwards opens, and holds nothing it must not.
func FuzzHostileSession(f *testing.F) {
	join := func(name string, dialer bool) (b []byte) {
		for _, s := range goldenFrames(f, name) {
			if s.dialer == dialer {
				b = appendFrame(b, s.kind, s.payload)
			}
		}
		return b
	}
	c := &corpus{f: f}
	for _, name := range []string{"pull", "repair", "idle", "refusal"} {
		c.add(false, join(name, true))
		c.add(true, join(name, false))
	}
	fuzz2(c, func(t testing.TB, dialed bool, b []byte) {
		n := newFixedNode(t, "omega")
		n.put("both", "from omega")
		n.put("gone", "x")
		n.del("gone")
		s := newSession(n, dialed, n.params())
		s.start()
		for r := bytes.NewReader(b); !s.done; {
			kind, payload, _, err := readFrame(r, nil, frameCap)
			if err != nil || s.receive(kind, payload) != nil {
				break
			}
			for i := 0; i < 50 && s.more(); i++ {
				if s.produce() != nil {
					break
				}
			}
			s.out = nil
		}
		s.abandon() // may find that what came cannot be merged
		requireSound(t, n)
	})
}

// requireSound looks for what no peer may bring about.
func requireSound(t testing.TB, n fixedNode) {
	t.Helper()
	require.Equal(t, n.r.seq, n.r.known.at(claimed, n.r.self), "nobody else writes our log")
	for _, w := range n.r.known.rows {
		require.LessOrEqual(t, max(w.at[durable], w.at[pruned], w.at[purged]), w.at[claimed])
	}
	counted := blank(oneRecord{})
	counted.store, counted.aliases, counted.alias = n.r.store, n.r.aliases, n.r.alias
	_, err := counted.recount()
	require.NoError(t, err)
	require.Equal(t, n.r.digest, counted.digest)
	require.Equal(t, n.r.keys, counted.keys)
	it := n.db.NewIterator(kindRange(kindIndex), nil)
	defer it.Release()
	for it.Next() {
		key := it.Key()[3:]
		require.False(t, reserved(key), "an entry for the reserved key %q", key)
		s, err := decodeIndex(it.Value(), n.r)
		require.NoError(t, err)
		_, err = readVersions(n.r.store, key, s, n.r)
		require.NoError(t, err, "key %q", key)
		// The next local write must be one that others accept.
	}
	require.NoError(t, it.Error())
	for it.First(); it.Valid(); it.Next() {
		key := slices.Clone(it.Key()[3:])
		require.NoError(t, n.commit(func(t *txn) error { return t.put([]write{{key: key, value: []byte("next")}}) }))
		s, err := n.r.lookup(key)
		require.NoError(t, err)
		require.False(t, s[0].vv.has(s[0].dot), "the next write of key %q would be refused", key)
		n.r.cache = cache{}
		_, err = n.r.lookup(key)
		require.NoError(t, err)
	}
}
