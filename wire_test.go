package replicator

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/fuzzing"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/testdb"
	"github.com/stretchr/testify/require"
)

func packed(kind session.FrameType, payload []byte) []byte {
	return append([]byte{byte(kind)}, s2.Encode(nil, payload)...)
}

func TestCompressionSavesBytesAndEveryReplicaReadsIt(t *testing.T) {
	sent := map[Compression]int64{}
	for _, c := range []Compression{NoCompression, CompressRemote, CompressAll} {
		a := serve(t, Options{Compression: c})
		for i := range 200 {
			require.NoError(t, a.Put(fmt.Appendf(nil, "key-%d", i), bytes.Repeat(fmt.Appendf(nil, "value-%d ", i), 100), nil))
		}
		large := bytes.Repeat([]byte("in chunks "), session.PageSize/5)
		require.NoError(t, a.Put([]byte("large"), large, nil))
		b := serve(t, Options{Peers: []string{a.Addr().String()}}) // compresses nothing itself
		require.NoError(t, b.Put([]byte("back"), bytes.Repeat([]byte("b"), 10<<10), nil))
		require.NoError(t, b.Sync(t.Context()))
		agree(t, a, b)
		sent[c] = b.Status().BytesIn
	}
	require.InDelta(t, sent[NoCompression], sent[CompressRemote], 4096, "both are on loopback")
	require.Less(t, sent[CompressAll], sent[NoCompression]/4)
}

func TestWhatDoesNotCompressIsSentAsItIs(t *testing.T) {
	random := make([]byte, 10<<10)
	rand.Read(random)
	c := conversation{packs: true}
	f := session.Frame{Kind: session.FramePage, Payload: random}
	require.Equal(t, f, c.pack(f))
	f = session.Frame{Kind: session.FramePage, Payload: make([]byte, packAbove-1)}
	require.Equal(t, f, c.pack(f), "it is short")
	f = session.Frame{Kind: session.FrameHello, Payload: make([]byte, 10<<10)}
	require.Equal(t, f, c.pack(f), "everybody must be able to read it")
	f = session.Frame{Kind: session.FramePage, Payload: make([]byte, 10<<10)}
	require.Equal(t, session.FramePacked, c.pack(f).Kind)
	c.packs = false
	require.Equal(t, f, c.pack(f))
}

func TestHostilePackedFramesAreRefused(t *testing.T) {
	db := serve(t, Options{})
	require.NoError(t, db.Put([]byte("k"), []byte("honest"), nil))
	before := testdb.Contents(t, db.raw)
	short := packed(session.FramePage, make([]byte, 100))
	for name, x := range map[string]struct {
		payload []byte
		want    string
	}{
		"empty":                   {nil, "may not be packed"},
		"hello":                   {packed(session.FrameHello, make([]byte, 100)), "may not be packed"},
		"packed twice":            {packed(session.FramePacked, short), "may not be packed"},
		"wait":                    {packed(session.FrameKeepalive, nil), "may not be packed"},
		"no block":                {[]byte{byte(session.FramePage)}, "packed frame"},
		"cut off":                 {short[:len(short)-1], "packed frame"},
		"bomb":                    {packed(session.FramePage, make([]byte, session.FrameCap+1)), "at most 4194304 are allowed"},
		"announces four GiB":      {append([]byte{byte(session.FramePage)}, 0xff, 0xff, 0xff, 0xff, 0x0f), "packed frame"},
		"does not belong here":    {packed(session.FramePage, make([]byte, 100)), "does not belong here"},
		"garbage in a good block": {packed(session.FrameVectors, bytes.Repeat([]byte{0xff}, 100)), "vectors"},
	} {
		t.Run(name, func(t *testing.T) {
			r := greetAsMember(t, db)
			r.send(session.FramePacked, x.payload)
			_, why := r.refusal()
			require.Contains(t, why, x.want)
		})
	}
	require.Equal(t, before, testdb.Contents(t, db.raw))

	conn, err := net.Dial("tcp", db.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	stranger := &rogue{t: t, conn: conn}
	stranger.send(session.FramePacked, short)
	_, why := stranger.refusal()
	require.Contains(t, why, "does not belong here", "before the hello")
}

func TestGoldenPackedFrameIsUnderstood(t *testing.T) {
	db := serve(t, Options{})
	c := conversation{db: db, memory: reservation{of: &db.network.memory}}
	defer c.memory.keep(0)
	text, err := os.ReadFile("internal/sim/testdata/format/packed.txt")
	require.NoError(t, err)
	golden, err := hex.DecodeString(strings.Fields(string(text))[2])
	require.NoError(t, err)
	kind, payload, err := c.unpack(t.Context(), golden[session.FrameHead:])
	require.NoError(t, err)
	require.Equal(t, session.FrameChunk, kind)
	require.Equal(t, append([]byte{1}, strings.Repeat("0123456789abcdef", 80)...), payload)
}

func TestCompressionIsChecked(t *testing.T) {
	_, err := Replicate(nil, &Options{Compression: 3})
	require.ErrorContains(t, err, "Options.Compression: 3, want")
}

// FuzzPacked unpacks whatever comes, and packs it again.
func FuzzPacked(f *testing.F) {
	in := &fuzzing.Corpus{F: f}
	in.Add(packed(session.FramePage, bytes.Repeat([]byte("page "), 100)))
	in.Add(packed(session.FrameVectors, nil))
	in.Add([]byte{byte(session.FramePage), 0xff, 0xff, 0xff, 0xff, 0x0f})
	memory := newFrameMemory(64 << 20)
	fuzzing.Run1(in, func(t testing.TB, payload []byte) {
		c := conversation{memory: reservation{of: &memory}, packs: true}
		defer c.memory.keep(0)
		kind, got, err := c.unpack(t.Context(), payload)
		if err != nil {
			return
		}
		require.LessOrEqual(t, len(got), session.FrameCap)
		again := c.pack(session.Frame{Kind: kind, Payload: got})
		if again.Kind != session.FramePacked {
			require.Equal(t, session.Frame{Kind: kind, Payload: got}, again)
			return
		}
		k, unpacked, err := c.unpack(t.Context(), again.Payload)
		require.NoError(t, err)
		require.Equal(t, kind, k)
		require.True(t, bytes.Equal(got, unpacked))
	})
}

func TestSmallFramesDoNotWaitForLargeValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := newFrameMemory(64 << 20)
		var slow [3]reservation
		for i := range slow { // slow peers in the midst of large values
			slow[i].of = &memory
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
		fast := reservation{of: &memory}
		for range 100 {
			require.NoError(t, fast.reserve(t.Context(), 300<<10))
			fast.keep(0)
		}
		require.Zero(t, time.Since(began))
	})
}

func TestManySessionsShareTheWindow(t *testing.T) {
	db := serve(t, Options{})
	require.Equal(t, session.WindowSize, db.network.window())
	db.network.talking.Add(128)
	require.LessOrEqual(t, 128*db.network.window(), 4*session.WindowSize)
	require.GreaterOrEqual(t, db.network.window(), session.PageSize)
	db.network.talking.Add(-128)
}

func TestSyncWaitsForAPullThatIsOnItsWayInAnotherSession(t *testing.T) {
	a := serve(t, Options{IdleTimeout: -1}) // what is pushed holds up no pull
	b := serve(t, Options{Peers: []string{a.Addr().String()}})
	require.Eventually(t, func() bool { return a.enterPull(b.self, 0) == session.NotSkipped }, 5*time.Second, time.Millisecond)
	require.NoError(t, b.Put([]byte("k"), []byte("v"), nil))

	before := b.Status().Sessions
	synced := make(chan error, 1)
	go func() { synced <- b.Sync(t.Context()) }()
	require.Eventually(t, func() bool { return b.Status().Sessions > before+3 }, 5*time.Second, time.Millisecond)
	require.Empty(t, synced)
	a.leavePull(b.self)
	require.NoError(t, <-synced)
	require.Equal(t, map[string]string{"k": "v"}, testdb.Contents(t, a))
}

// design.md: P7
func TestPullThatBringsMuchIsHeldOnce(t *testing.T) {
	a, b := causal.Origin{1}, causal.Origin{2}
	now := time.Unix(0, 0)
	var ps pulls
	require.Equal(t, session.NotSkipped, ps.enter(a, bulkWrites+1, now))
	require.Equal(t, session.SkippedBusy, ps.enter(b, bulkWrites+1, now), "the other brings the same")
	require.True(t, ps.missed)
	require.Equal(t, session.SkippedBusy, ps.enter(b, 1, now.Add(bulkAfter+1)))
	require.Equal(t, session.NotSkipped, ps.enter(b, bulkWrites+1, now.Add(bulkUntil)), "nobody waits long for a slow one")

	ps = pulls{}
	require.Equal(t, session.NotSkipped, ps.enter(a, 1, now))
	require.Equal(t, session.NotSkipped, ps.enter(b, bulkWrites+1, now), "a few writes do not hold up many")
	require.Equal(t, session.SkippedBusy, ps.enter(a, 1, now), "the same peer twice")
}

func TestWhoWaitsForAPullIsToldWhenItEnds(t *testing.T) {
	db := serve(t, Options{})
	require.Equal(t, session.NotSkipped, db.enterPull(causal.Origin{1}, 0))
	ended := db.gossip.pulls.next()
	select {
	case <-ended:
		t.Fatal("it has not ended")
	default:
	}
	db.leavePull(causal.Origin{1})
	<-ended
}
