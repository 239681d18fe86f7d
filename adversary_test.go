package replicator

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math"
	randv2 "math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/sim"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/level-replicator/replicator/internal/testca"
	"github.com/level-replicator/replicator/internal/testdb"
	"github.com/level-replicator/replicator/internal/transport"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// serve opens a replica over a new database in memory, on loopback.
func serve(t testing.TB, o Options) *DB {
	t.Helper()
	raw, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(t, err)
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	o.Logger = slog.New(slog.DiscardHandler)
	db, err := Replicate(raw, &o)
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	<-db.Ready()
	return db
}

// agree waits until replicas hold the same under the keys of their users.
func agree(t testing.TB, dbs ...*DB) {
	t.Helper()
	require.Eventually(t, func() bool {
		for _, db := range dbs[1:] {
			if db.Digest() != dbs[0].Digest() {
				return false
			}
		}
		return true
	}, 20*time.Second, 2*time.Millisecond)
	for _, db := range dbs[1:] {
		require.Equal(t, testdb.Contents(t, dbs[0]), testdb.Contents(t, db))
	}
}

// rogue speaks the protocol by hand, and need not keep to it.
type rogue struct {
	t       testing.TB
	conn    net.Conn
	self    causal.Origin
	sending session.Names
	theirs  session.Hello
}

func drawnOrigin() (o causal.Origin) { rand.Read(o[:]); return o }

// greet connects and introduces itself as change has it.
func greet(t testing.TB, addr string, change func(h *session.Hello)) *rogue {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	r := &rogue{t: t, conn: conn, self: drawnOrigin()}
	h := session.Hello{Min: session.ProtocolMin, Max: session.ProtocolMax, Name: "rogue", Origin: r.self, Wall: time.Now(), Rev: 1, VectorSum: causal.Sum{1, 2}}
	if change != nil {
		change(&h)
	}
	r.send(session.FrameHello, h.Append(nil))
	return r
}

// member is one that has come through the introductions.
func greetAsMember(t testing.TB, db *DB) *rogue {
	t.Helper()
	require.Eventually(t, func() bool { // what another left behind may hold up its pull
		ps := &db.gossip.pulls
		ps.mu.Lock()
		defer ps.mu.Unlock()
		return len(ps.active) == 0
	}, 20*time.Second, time.Millisecond)
	r := greet(t, db.Addr().String(), nil)
	kind, payload := r.next()
	require.Equal(t, session.FrameHello, kind)
	var err error
	r.theirs, err = session.DecodeHello(payload)
	require.NoError(t, err)
	return r
}

// send does not mind a replica that has already hung up.
func (r *rogue) send(kind session.FrameType, payload []byte) {
	r.conn.Write(sim.AppendFrame(nil, kind, payload))
}

// next reads a frame, or 0 when the replica has hung up.
func (r *rogue) next() (session.FrameType, []byte) {
	kind, payload, _, err := session.ReadFrame(r.conn, nil, session.FrameCap)
	if err != nil {
		return 0, nil
	}
	return kind, payload
}

// await reads up to a frame of some kind, or the refusal that comes instead.
func (r *rogue) await(kind session.FrameType) session.FrameType {
	for {
		k, payload := r.next()
		switch k {
		case kind, 0:
			return k
		case session.FrameRefuse:
			r.t.Logf("refused: %q", payload)
			return k
		}
	}
}

// refusal is why the replica refuses; it fails if the replica does not.
func (r *rogue) refusal() (code session.RefuseCode, why string) {
	r.t.Helper()
	for {
		kind, payload := r.next()
		require.NotZero(r.t, kind, "the replica hung up without a word")
		if kind == session.FrameRefuse {
			d := store.Decoder{B: payload}
			code, why = session.RefuseCode(d.Uint()), d.String(512)
			require.NoError(r.t, d.End())
			return code, why
		}
	}
}

// vectors sends one row, whatever it says.
func (r *rogue) vectors(o causal.Origin, at ...uint64) {
	r.send(session.FrameVectors, r.sending.Frame(func(b []byte) []byte {
		b = append(b, 1, 0, 0, 1) // revision, nothing loose, no lineage, one row
		b = binary.AppendUvarint(b, r.sending.Number(o))
		for _, n := range at {
			b = binary.AppendUvarint(b, n)
		}
		return b
	}))
}

// turn claims something that there is to pull, and has the other side ask for it.
func (r *rogue) turn() {
	r.t.Helper()
	r.vectors(r.self, 1, 1, 0, 0)
	r.send(session.FrameTurn, nil)
	require.Equal(r.t, session.FramePull, r.await(session.FramePull))
}

// page answers a pull with one key.
func (r *rogue) page(key []byte, versions ...store.Version) {
	r.t.Helper()
	r.turn()
	r.send(session.FramePage, r.sending.Frame(func(b []byte) []byte {
		b = append(b, 0, 1) // no marks, one key
		b = store.AppendBytes(b, key)
		b = binary.AppendUvarint(b, uint64(len(versions)))
		for i := range versions {
			v := &versions[i]
			b = store.AppendDot(append(b, byte(store.Btoi(v.Deleted))*store.FlagDeleted), v.Dot, &r.sending)
			b = store.AppendBody(b, v, &r.sending)
			if !v.Deleted {
				b = store.AppendBytes(b, v.Value)
			}
		}
		return b
	}))
	r.send(session.FrameEnd, []byte{1})
}

// plain is a version that nothing is wrong with.
func (r *rogue) plain(seq uint64) store.Version {
	return store.Version{Dot: causal.Dot{Origin: r.self, Seq: seq}, Stamp: causal.StampOf(time.Now()), Value: []byte("from the rogue"), Count: 1}
}

func TestTheRogueIsBelievedWhenItBehaves(t *testing.T) {
	// Else the refusals below could have any reason.
	db := serve(t, Options{})
	r := greetAsMember(t, db)
	r.page([]byte("k"), r.plain(1))
	require.Equal(t, session.FrameBye, r.await(session.FrameBye))
	v, err := db.Get([]byte("k"), nil)
	require.NoError(t, err)
	require.Equal(t, "from the rogue", string(v))
}

func TestWhatAHostileMemberSendsIsRefusedAndNotStored(t *testing.T) {
	db := serve(t, Options{Limits: Limits{MaxValue: 1 << 10, MaxKey: 100}, LocalRanges: []*util.Range{util.BytesPrefix([]byte("local/"))}})
	require.NoError(t, db.Put([]byte("k"), []byte("honest"), nil))
	key := []byte("k")
	for name, c := range map[string]struct {
		want string
		do   func(r *rogue)
	}{
		"reserved key":      {"reserved", func(r *rogue) { r.page(store.KindKey(store.KindMeta, []byte("format")), r.plain(1)) }},
		"shortest reserved": {"reserved", func(r *rogue) { r.page([]byte{0xff, 0xff}, r.plain(1)) }},
		"local range":       {"local range", func(r *rogue) { r.page([]byte("local/k"), r.plain(1)) }},
		"seq 0":             {"without a seq", func(r *rogue) { r.page(key, r.plain(0)) }},
		"seq 2^64-1":        {"18446744073709551615", func(r *rogue) { r.page(key, r.plain(math.MaxUint64)) }},
		"seq 2^62":          {"4611686018427387904", func(r *rogue) { r.page(key, r.plain(1<<62)) }},
		"clock 2^64-1":      {"18446744073709551615", func(r *rogue) { v := r.plain(1); v.Clock = math.MaxUint64; r.page(key, v) }},
		"vv to 2^64-1": {"18446744073709551615", func(r *rogue) {
			v := r.plain(1)
			v.Context = causal.Vector{{Origin: causal.Origin{1}, Seq: math.MaxUint64}}
			r.page(key, v)
		}},
		"vv to its own dot": {"its own dot", func(r *rogue) { v := r.plain(3); v.Context = causal.Vector{{Origin: r.self, Seq: 3}}; r.page(key, v) }},
		"vv with a 0": {"seq of 0", func(r *rogue) {
			v := r.plain(1)
			v.Context = causal.Vector{{Origin: causal.Origin{1}, Seq: 0}}
			r.page(key, v)
		}},
		"vv out of order": {"out of order", func(r *rogue) {
			v := r.plain(1)
			v.Context = causal.Vector{{Origin: causal.Origin{2}, Seq: 1}, {Origin: causal.Origin{1}, Seq: 1}}
			r.page(key, v)
		}},
		"batch of 2^64-1":  {"18446744073709551615", func(r *rogue) { v := r.plain(1); v.Count = math.MaxUint64; r.page(key, v) }},
		"not in its batch": {"not in its batch", func(r *rogue) { v := r.plain(9); v.Offset, v.Count = 5, 2; r.page(key, v) }},
		"a year ahead":     {"future", func(r *rogue) { v := r.plain(1); v.Stamp = causal.StampOf(time.Now().AddDate(1, 0, 0)); r.page(key, v) }},
		"the end of time":  {"future", func(r *rogue) { v := r.plain(1); v.Stamp = math.MaxUint64; r.page(key, v) }},
		"a write of ours":  {"has made only", func(r *rogue) { v := r.plain(1); v.Dot = causal.Dot{Origin: r.theirs.Origin, Seq: 99}; r.page(key, v) }},
		"it has seen of ours": {"has made only", func(r *rogue) {
			v := r.plain(1)
			v.Context = causal.Vector{{Origin: r.theirs.Origin, Seq: 99}}
			r.page(key, v)
		}},
		"claims 2^64-1":   {"18446744073709551615", func(r *rogue) { r.vectors(r.self, math.MaxUint64, 0, 0, 0) }},
		"claims of ours":  {"has made only", func(r *rogue) { r.vectors(r.theirs.Origin, 99, 0, 0, 0) }},
		"proves too much": {"watermarks beyond the version vector", func(r *rogue) { r.vectors(r.self, 1, 1, 0, 2) }},
		"chunks without end": {"in one page, MaxValue is 1024", func(r *rogue) {
			r.turn()
			for range session.FrameCap/1000 + 10 {
				r.send(session.FrameChunk, append([]byte{1}, make([]byte, 1000)...))
			}
		}},
		"a want of much":          {"want of 65 keys", func(r *rogue) { r.send(session.FrameWant, append([]byte{0, 1, 65}, make([]byte, 200)...)) }},
		"a want of ours":          {"reserved key", func(r *rogue) { r.send(session.FrameWant, []byte{0, 1, 1, 2, 0xff, 0xff, 0}) }},
		"an end too soon":         {"does not belong here", func(r *rogue) { r.send(session.FrameEnd, []byte{1}) }},
		"a page out of turn":      {"does not belong here", func(r *rogue) { r.send(session.FramePage, nil) }},
		"a second hello":          {"does not belong here", func(r *rogue) { r.send(session.FrameHello, r.theirs.Append(nil)) }},
		"an unknown frame":        {"frame 200 does not belong here", func(r *rogue) { r.send(200, []byte("x")) }},
		"a page of nothing":       {"record ends early", func(r *rogue) { r.turn(); r.send(session.FramePage, nil) }},
		"2^60 keys":               {"at most", func(r *rogue) { r.turn(); r.send(session.FramePage, many(0, 0)) }},
		"2^60 origins":            {"at most", func(r *rogue) { r.send(session.FrameVectors, many()) }},
		"2^60 addresses":          {"at most", func(r *rogue) { r.send(session.FrameAddresses, many()) }},
		"2^60 origins in a pull":  {"at most", func(r *rogue) { r.send(session.FramePull, many(0)) }},
		"an origin nobody named":  {"unknown origin", func(r *rogue) { r.send(session.FramePull, []byte{0, 1, 7, 0}) }},
		"a frame of 4 GiB":        {"4294967295 bytes", func(r *rogue) { r.conn.Write([]byte{0xff, 0xff, 0xff, 0xff, 6}) }},
		"a frame just over 4 MiB": {"at most 4194304 are allowed", func(r *rogue) { r.conn.Write([]byte{0, 0x40, 0, 2, 6}) }},
		"a frame of nothing":      {"a frame of 0 bytes", func(r *rogue) { r.conn.Write([]byte{0, 0, 0, 0, 6}) }},
	} {
		t.Run(name, func(t *testing.T) {
			before := testdb.Contents(t, db.raw)
			r := greetAsMember(t, db)
			c.do(r)
			code, why := r.refusal()
			require.Contains(t, why, c.want)
			require.Equal(t, strings.Contains(c.want, "future"), code == session.RefuseClock)
			require.Equal(t, before, testdb.Contents(t, db.raw))
		})
	}
	require.Equal(t, map[string]string{"k": "honest"}, testdb.Contents(t, db))
	require.Len(t, db.Status().VersionVector, 1, "its own and nobody else's")
}

// many is a payload that claims more entries than any could hold.
func many(before ...byte) []byte {
	return append(binary.AppendUvarint(before, 1<<60), make([]byte, 64)...)
}

func TestStrangersLeaveNoMemberBehind(t *testing.T) {
	db := serve(t, Options{})
	for range 50 {
		r := greetAsMember(t, db)
		r.send(200, nil)
		r.refusal()
	}
	good := greetAsMember(t, db)
	good.vectors(good.self, 1, 0, 0, 0)
	good.page([]byte("k"), good.plain(1))
	require.Equal(t, session.FrameBye, good.await(session.FrameBye))
	require.NoError(t, db.commit(func(t *replica.Txn) error { t.StageMembers(); return nil }))
	members := 0
	for key := range testdb.Contents(t, db.raw) {
		if strings.HasPrefix(key, string(store.KindKey(store.KindMember, nil))) {
			members++
		}
	}
	require.Equal(t, 1, members, "only who held a session to its end is remembered")
}

func TestValueLargerThanWhatMayBeInFlightArrives(t *testing.T) {
	a := serve(t, Options{Name: "a", Limits: Limits{MaxInFlight: 8 << 20}})
	b := serve(t, Options{Name: "b", Limits: Limits{MaxInFlight: 8 << 20}, Peers: []string{a.Addr().String()}})
	large := bytes.Repeat([]byte("0123456789abcdef"), 12<<20/16)
	require.NoError(t, a.Put([]byte("large"), large, nil))
	for i := range 10 {
		require.NoError(t, a.Put(fmt.Appendf(nil, "k%d", i), large[:1<<20], nil))
	}
	require.Eventually(t, func() bool { return b.Digest() == a.Digest() }, 40*time.Second, 10*time.Millisecond)
	got, err := b.Get([]byte("large"), nil)
	require.NoError(t, err)
	require.True(t, bytes.Equal(large, got))
	require.Eventually(t, func() bool { return len(b.network.memory.large) == 0 }, 10*time.Second, time.Millisecond) // given back after the commit
	require.Eventually(t, func() bool { return b.network.memory.shared.Try(7<<20) && b.network.memory.small.Try(1<<20) }, 10*time.Second, time.Millisecond, "all room is given back")
}

func TestRefusalsAreBoundedAndLoggedOnce(t *testing.T) {
	var r refusals
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	for i := range 1000 {
		r.note(logger, &net.TCPAddr{IP: net.IPv4(192, 0, 2, byte(i%100)), Port: 1000 + i}, &session.HelloError{Why: "another cluster"})
	}
	list := r.status()
	require.Len(t, list, maxRefusals+1)
	total := int64(0)
	for _, e := range list {
		total += e.Count
	}
	require.EqualValues(t, 1000, total)
	require.Equal(t, maxRefusals+1, strings.Count(log.String(), "\n"))
}

// Connections that are opened and left have had their time after a second: then a
// replica that comes from outside gets in, although all places are taken again and
// again, and the victim does not know where to dial it.
func TestConnectionsThatAreLeftOpenKeepNoNewReplicaOut(t *testing.T) {
	db := serve(t, Options{})
	var open []net.Conn
	for range 100 {
		c, err := net.Dial("tcp", db.Addr().String())
		require.NoError(t, err)
		open = append(open, c)
	}
	late := serve(t, Options{Peers: []string{db.Addr().String()}, MinInterval: 10 * time.Millisecond, MaxInterval: 500 * time.Millisecond})
	start := time.Now()
	require.Eventually(t, func() bool { return late.Status().Peers[0].State == PeerOK }, 10*time.Second, 10*time.Millisecond)
	require.Less(t, time.Since(start), session.HandshakeTimeout, "not only when theirs ran out")
	for _, c := range open {
		c.Close()
	}
}

// besieged is a replica with one honest peer, and what is to hold while others
// attack it: writes go both ways, memory stays bounded, nothing else is stored.
type besieged struct {
	t              testing.TB
	victim, honest *DB
	rounds         int
}

func besiege(t *testing.T, o Options) *besieged {
	honest := serve(t, Options{})
	o.Peers = []string{honest.Addr().String()}
	return &besieged{t: t, victim: serve(t, o), honest: honest}
}

// holds checks all of it. Call it while the attack is under way.
func (b *besieged) holds() {
	b.t.Helper()
	for range 10 {
		b.rounds++
		k := []byte(fmt.Sprintf("%04d", b.rounds))
		require.NoError(b.t, b.victim.Put(append([]byte("victim"), k...), k, nil))
		require.NoError(b.t, b.honest.Put(append([]byte("honest"), k...), k, nil))
		agree(b.t, b.victim, b.honest)
	}
	require.Len(b.t, testdb.Contents(b.t, b.victim), 20*(b.rounds/10))
	require.Len(b.t, b.victim.Status().VersionVector, 2, "of the two honest replicas")
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	require.Less(b.t, m.HeapInuse+m.StackInuse, uint64(256<<20))
	require.NoError(b.t, b.victim.commit(func(t *replica.Txn) error { t.StageMembers(); return nil }))
	for key := range testdb.Contents(b.t, b.victim.raw) {
		if name, ok := strings.CutPrefix(key, string(store.KindKey(store.KindMember, nil))); ok {
			require.Equal(b.t, string(b.honest.self[:]), name, "no member but the honest one")
		}
	}
}

// connect opens n connections at once and calls f with each.
func (b *besieged) connect(n int, f func(i int, conn net.Conn)) (conns []net.Conn) {
	b.t.Helper()
	var wg sync.WaitGroup
	conns = make([]net.Conn, n)
	for i := range n {
		conn, err := net.Dial("tcp", b.victim.Addr().String())
		require.NoError(b.t, err)
		b.t.Cleanup(func() { conn.Close() })
		conns[i] = conn
		wg.Go(func() { f(i, conn) })
	}
	wg.Wait()
	return conns
}

// requireCut waits until the replica has hung up on everybody.
func requireCut(t testing.TB, conns []net.Conn) {
	t.Helper()
	for _, c := range conns {
		c.SetDeadline(time.Now().Add(15 * time.Second)) // fails if it is closed here already
		_, err := io.Copy(io.Discard, c)
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "still connected")
	}
}

func TestGarbageOnTwoHundredConnectionsDisturbsNobody(t *testing.T) {
	b := besiege(t, Options{})
	conns := b.connect(200, func(i int, conn net.Conn) {
		noise := randv2.New(randv2.NewPCG(1, uint64(i)))
		junk := make([]byte, 1+noise.IntN(1<<15))
		for j := range junk {
			junk[j] = byte(noise.Uint32())
		}
		switch i % 4 {
		case 1: // what looks like a hello, of any content
			junk = sim.AppendFrame(nil, session.FrameHello, junk)
		case 2: // a hello cut short or with bits turned over
			h := session.Hello{Min: 1, Max: 1, Origin: drawnOrigin(), Name: "x"}
			junk = h.Append(nil)
			junk[noise.IntN(len(junk)-60)] ^= 1 << noise.IntN(8)
			junk = sim.AppendFrame(nil, session.FrameHello, junk[:noise.IntN(len(junk))])
		case 3:
			junk = []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		}
		conn.Write(junk)
	})
	b.holds()
	requireCut(t, conns)
	b.holds()
	require.NotEmpty(t, b.victim.Status().Refusals)
	require.LessOrEqual(t, len(b.victim.Status().Refusals), maxRefusals+1)
}

func TestAThousandHalfOpenConnectionsKeepNobodyOut(t *testing.T) {
	b := besiege(t, Options{})
	before := runtime.NumGoroutine()
	conns := b.connect(1000, func(int, net.Conn) {})
	require.Less(t, runtime.NumGoroutine(), before+200, "those beyond MaxPending have none")
	b.holds()
	requireCut(t, conns)
}

func TestClaimsOfHugeFramesCostNoMemory(t *testing.T) {
	b := besiege(t, Options{})
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before := m.HeapInuse
	conns := b.connect(15, func(_ int, conn net.Conn) {
		conn.Write([]byte{0xff, 0xff, 0xff, 0xff, byte(session.FrameHello)})
	})
	requireCut(t, conns)
	for range 15 {
		r := greetAsMember(t, b.victim)
		r.conn.Write(binary.BigEndian.AppendUint32(nil, session.FrameCap)) // and no more
		r.conn.Write([]byte{byte(session.FrameVectors), 0})
	}
	runtime.ReadMemStats(&m)
	require.Less(t, int64(m.HeapInuse)-int64(before), int64(32<<20), "15 times 4 MiB were announced and 1 byte sent")
	b.holds()
}

// As an int of 32 bits half of these lengths are negative.
func TestLengthsAtEveryBoundaryOfAnIntAreRefused(t *testing.T) {
	b := besiege(t, Options{})
	lengths := []uint32{0, session.HelloCap + 2, math.MaxInt32 - 4, math.MaxInt32, math.MaxInt32 + 1, math.MaxInt32 + 2, math.MaxUint32 - 4, math.MaxUint32 - 3, math.MaxUint32}
	conns := b.connect(len(lengths), func(i int, conn net.Conn) {
		conn.Write(append(binary.BigEndian.AppendUint32(nil, lengths[i]), byte(session.FrameHello)))
	})
	requireCut(t, conns)
	for _, n := range lengths {
		r := greetAsMember(t, b.victim)
		r.conn.Write(append(binary.BigEndian.AppendUint32(nil, max(n, session.FrameCap+2)), byte(session.FramePage)))
	}
	b.holds()
}

func TestReplicasWithTLSAreAsHardToDisturb(t *testing.T) {
	honest := serve(t, Options{Secret: testca.SecretA})
	b := &besieged{t: t, honest: honest, victim: serve(t, Options{Secret: testca.SecretA, Peers: []string{honest.Addr().String()}})}
	conns := b.connect(200, func(i int, conn net.Conn) {
		switch i % 3 {
		case 0:
			h := session.Hello{Min: 1, Max: 1, Origin: drawnOrigin()}
			conn.Write(sim.AppendFrame(nil, session.FrameHello, h.Append(nil)))
		case 1:
			conn.Write([]byte{22, 3, 1, 0xff, 0xff, 1, 0, 0xff, 0xff})
		case 2:
			// A TLS client with another secret.
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			other, err := transport.NewSecurity(transport.Credentials{Cluster: "one", Secret: testca.SecretB})
			if assert.NoError(t, err) {
				other.ClientTo(ctx, conn, conn.RemoteAddr().String())
			}
		}
	})
	b.holds()
	requireCut(t, conns)
	require.NotEmpty(t, b.victim.Status().Refusals)
}

func TestReplicaThatIsItsOwnPeerNoticesAndRests(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	self := l.Addr().String()
	db := serve(t, Options{Listener: l, Peers: []string{self}})
	require.NoError(t, db.Put([]byte("k"), []byte("v"), nil))
	require.ErrorContains(t, db.Sync(t.Context()), "every address that is known ("+self+") leads to this replica itself")
	s := db.Status()
	require.True(t, s.Alone)
	require.Len(t, s.Peers, 1)
	require.Equal(t, PeerSelf, s.Peers[0].State)
	require.Less(t, time.Until(s.Peers[0].Next), 15*time.Second, "seconds, not an hour")
	require.Empty(t, s.Refusals, "it does not complain of itself")
	require.Len(t, s.VersionVector, 1)
}
