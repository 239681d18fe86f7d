package replicator

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestOversizeValueIsHeldBack(t *testing.T) {
	victim := newFixedNode(t, "victim")
	p := victim.params()
	p.maxValue = 100
	for _, inChunks := range []bool{false, true} {
		a := newFixedNode(t, "alpha")
		a.put("k", strings.Repeat("x", 101))
		pa := a.params()
		if inChunks {
			pa.pageSize = 60
		}
		sa, sb := newSession(a, false, pa), newSession(victim, true, p)
		overhear(t, sb, sa)
		require.Equal(t, "-", victim.get("k"))
		require.Empty(t, victim.log())
		require.Zero(t, victim.r.known.at(claimed, a.r.self))
		require.Len(t, victim.r.heldBack, 1)
		victim.r.heldBack = nil
	}
}

func TestFramesThatWouldTakeQuadraticTimeAreRefused(t *testing.T) {
	d := newDry(t)
	// 60,000 origins in falling order.
	b := binary.AppendUvarint(nil, 60_000)
	for i := range 60_000 {
		o := Origin{15: 1}
		binary.BigEndian.PutUint32(o[:], uint32(60_000-i))
		b = append(b, o[:]...)
	}
	b = append(b, 9, 0, 0)
	b = binary.AppendUvarint(b, 60_000)
	for i := range 60_000 {
		b = append(binary.AppendUvarint(b, uint64(i+2)), 1, 0, 0, 0)
	}
	require.ErrorContains(t, d.prepared(false, wantPull).receive(frameVectors, b), "vectors are out of order")

	spans := append([]byte{0, 1, 0}, binary.AppendUvarint(nil, 1<<20)...)
	spans = append(spans, bytes.Repeat([]byte{9, 9}, 1<<20)...)
	require.ErrorContains(t, d.prepared(false, wantPull).receive(framePull, spans), "spans")

	probe := append([]byte{0, 0}, binary.AppendUvarint(nil, 4096)...)
	for range 4096 { // each the whole log
		probe = append(probe, 0, 0)
		probe = append(append(probe, 1), binary.AppendUvarint(nil, maxSeq)...)
		probe = append(probe, make([]byte, 16)...)
	}
	require.ErrorContains(t, d.prepared(false, wantTurn).receive(frameProbe, probe), "ranges overlap")
}

func TestPeerThatKnowsMoreOfUsThanWeWroteIsRefused(t *testing.T) {
	d := newDry(t)
	s := d.prepared(false, wantPull)
	rows := append([]byte{0, 9, 0, 0, 1, 1}, 200, 1, 0, 0, 0) // origin 1, beta itself: claims 200
	require.ErrorContains(t, s.receive(frameVectors, rows), "claims write 200 of this server")
}

// A clock at its bound, which a hostile peer may have brought, leaves the key usable.
func TestClockAtItsBoundDoesNotPoisonTheKey(t *testing.T) {
	a, b := newFixedNode(t, "alpha"), newFixedNode(t, "beta")
	a.put("k", "v")
	s, err := a.r.lookup([]byte("k"))
	require.NoError(t, err)
	s[0].clock, s[0].stamp, s[0].value = maxClock, stampOf(a.r.now()), []byte("v")
	s[0].offset, s[0].count = 0, 1
	x := s[0]
	x.dot = dot{Origin{'e'}, 1}
	require.NoError(t, b.commit(func(t *txn) error { _, err := t.merge([]byte("k"), []version{x}, &knowledge{}); return err }))
	b.put("k", "next")
	b.put("k", "and next")
	b.r.cache = cache{}
	require.Len(t, b.versions("k"), 1)
	converseFixed(t, a, b)
	requireEqualNodes(t, a.node, b.node)
}

func TestValueLargerThanWhatMayBeInFlightArrives(t *testing.T) {
	a := serve(t, Options{Name: "a", MaxInFlight: 8 << 20})
	b := serve(t, Options{Name: "b", MaxInFlight: 8 << 20, Peers: []string{a.Addr().String()}})
	large := bytes.Repeat([]byte("0123456789abcdef"), 12<<20/16)
	require.NoError(t, a.Put([]byte("large"), large, nil))
	for i := range 10 {
		require.NoError(t, a.Put(fmt.Appendf(nil, "k%d", i), large[:1<<20], nil))
	}
	require.Eventually(t, func() bool { return b.Digest() == a.Digest() }, 40*time.Second, 10*time.Millisecond)
	got, err := b.Get([]byte("large"), nil)
	require.NoError(t, err)
	require.True(t, bytes.Equal(large, got))
	require.Eventually(t, func() bool { return len(b.large) == 0 }, 10*time.Second, time.Millisecond) // given back after the commit
	require.Eventually(t, func() bool { return b.inflight.try(7<<20) && b.small.try(1<<20) }, 10*time.Second, time.Millisecond, "all room is given back")
}

func TestOptionsThatCouldNotWorkAreNamed(t *testing.T) {
	for want, o := range map[string]Options{
		"Options.ReadRate: -1, want 0 for no bound or at least 65536":   {ReadRate: -1},
		"Options.WriteRate: 100, want 0 for no bound or at least 65536": {WriteRate: 100},
		"Options.MaxInFlight: 1000, want at least 8388608":              {MaxInFlight: 1000},
		"Options.MaxPending: -1":                                        {MaxPending: -1},
		"Options.MaxValue: 2147483647, want 1 to":                       {MaxValue: math.MaxInt32},
		"Options.Secret: 5 bytes":                                       {Secret: []byte("short")},
		"Options.OldSecrets: 3 bytes":                                   {Secret: secretA, OldSecrets: [][]byte{[]byte("old")}},
		"Options.MinInterval: 1m0s, want at most MaxInterval":           {MinInterval: time.Minute},
		`Options.Peers: address "nowhere"`:                              {Peers: []string{"nowhere"}},
	} {
		_, err := o.withDefaults()
		require.ErrorContains(t, err, want)
	}
}

func TestRefusalsAreBoundedAndLoggedOnce(t *testing.T) {
	var r refusals
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	for i := range 1000 {
		r.note(logger, remote(fmt.Sprintf("192.0.2.%d", i%100), 1000+i), &rejectedError{why: "another cluster"})
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
// server that comes from outside gets in, although all places are taken again and
// again, and the victim does not know where to dial it.
func TestConnectionsThatAreLeftOpenKeepNoNewServerOut(t *testing.T) {
	db := serve(t, Options{})
	var open []net.Conn
	for range 100 {
		c, err := net.Dial("tcp", db.Addr().String())
		require.NoError(t, err)
		open = append(open, c)
	}
	late := serve(t, Options{Peers: []string{db.Addr().String()}, MinInterval: 10 * time.Millisecond, MaxInterval: 500 * time.Millisecond})
	start := time.Now()
	require.Eventually(t, func() bool { return late.Status().Peers[0].State == "ok" }, 10*time.Second, 10*time.Millisecond)
	require.Less(t, time.Since(start), handshakeTimeout, "not only when theirs ran out")
	for _, c := range open {
		c.Close()
	}
}
