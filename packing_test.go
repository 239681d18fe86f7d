package replicator

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/stretchr/testify/require"
)

func packed(kind frameType, payload []byte) []byte {
	return append([]byte{byte(kind)}, s2.Encode(nil, payload)...)
}

func TestCompressionSavesBytesAndEveryServerReadsIt(t *testing.T) {
	sent := map[Compression]int64{}
	for _, c := range []Compression{CompressNothing, CompressRemote, CompressAll} {
		a := serve(t, Options{Compression: c})
		for i := range 200 {
			require.NoError(t, a.Put(fmt.Appendf(nil, "key-%d", i), bytes.Repeat(fmt.Appendf(nil, "value-%d ", i), 100), nil))
		}
		large := bytes.Repeat([]byte("in chunks "), pageSize/5)
		require.NoError(t, a.Put([]byte("large"), large, nil))
		b := serve(t, Options{Peers: []string{a.Addr().String()}}) // compresses nothing itself
		require.NoError(t, b.Put([]byte("back"), bytes.Repeat([]byte("b"), 10<<10), nil))
		require.NoError(t, b.Sync(t.Context()))
		agree(t, a, b)
		sent[c] = b.Status().BytesIn
	}
	require.InDelta(t, sent[CompressNothing], sent[CompressRemote], 4096, "both are on loopback")
	require.Less(t, sent[CompressAll], sent[CompressNothing]/4)
}

func TestWhatDoesNotCompressIsSentAsItIs(t *testing.T) {
	random := make([]byte, 10<<10)
	rand.Read(random)
	c := conversation{packs: true}
	f := frame{framePage, random}
	require.Equal(t, f, c.pack(f))
	f = frame{framePage, make([]byte, packAbove-1)}
	require.Equal(t, f, c.pack(f), "it is short")
	f = frame{frameHello, make([]byte, 10<<10)}
	require.Equal(t, f, c.pack(f), "everybody must be able to read it")
	f = frame{framePage, make([]byte, 10<<10)}
	require.Equal(t, framePacked, c.pack(f).kind)
	c.packs = false
	require.Equal(t, f, c.pack(f))
}

func TestHostilePackedFramesAreRefused(t *testing.T) {
	db := serve(t, Options{})
	require.NoError(t, db.Put([]byte("k"), []byte("honest"), nil))
	before := everything(t, db)
	short := packed(framePage, make([]byte, 100))
	for name, x := range map[string]struct {
		payload []byte
		want    string
	}{
		"empty":                   {nil, "may not be packed"},
		"hello":                   {packed(frameHello, make([]byte, 100)), "may not be packed"},
		"packed twice":            {packed(framePacked, short), "may not be packed"},
		"wait":                    {packed(frameWait, nil), "may not be packed"},
		"no block":                {[]byte{byte(framePage)}, "packed frame"},
		"cut off":                 {short[:len(short)-1], "packed frame"},
		"bomb":                    {packed(framePage, make([]byte, frameCap+1)), "at most 4194304 are allowed"},
		"announces four GiB":      {append([]byte{byte(framePage)}, 0xff, 0xff, 0xff, 0xff, 0x0f), "packed frame"},
		"does not belong here":    {packed(framePage, make([]byte, 100)), "does not belong here"},
		"garbage in a good block": {packed(frameVectors, bytes.Repeat([]byte{0xff}, 100)), "vectors"},
	} {
		t.Run(name, func(t *testing.T) {
			r := greetAsMember(t, db)
			r.send(framePacked, x.payload)
			_, why := r.refusal()
			require.Contains(t, why, x.want)
		})
	}
	require.Equal(t, before, everything(t, db))

	conn, err := net.Dial("tcp", db.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	stranger := &rogue{t: t, conn: conn}
	stranger.send(framePacked, short)
	_, why := stranger.refusal()
	require.Contains(t, why, "does not belong here", "before the hello")
}

func TestGoldenPackedFrameIsUnderstood(t *testing.T) {
	db := serve(t, Options{})
	c := conversation{db: db}
	defer c.keep(0)
	f := goldenFrames(t, "packed")[0]
	kind, payload, err := c.unpack(t.Context(), f.payload)
	require.NoError(t, err)
	require.Equal(t, frameChunk, kind)
	require.Equal(t, append([]byte{1}, strings.Repeat("0123456789abcdef", 80)...), payload)
}

func TestCompressionIsChecked(t *testing.T) {
	_, err := Replicate(nil, &Options{Compression: 3})
	require.ErrorContains(t, err, "Options.Compression: 3, want")
}

// FuzzPacked unpacks whatever comes, and packs it again.
func FuzzPacked(f *testing.F) {
	in := &corpus{f: f}
	in.add(packed(framePage, bytes.Repeat([]byte("page "), 100)))
	in.add(packed(frameVectors, nil))
	in.add([]byte{byte(framePage), 0xff, 0xff, 0xff, 0xff, 0x0f})
	db := &DB{opts: Options{MaxInFlight: 64 << 20}, inflight: newInflight(56 << 20), small: newInflight(8 << 20), large: make(chan struct{}, 1)}
	fuzz1(in, func(t testing.TB, payload []byte) {
		c := conversation{db: db, packs: true}
		defer c.keep(0)
		kind, got, err := c.unpack(t.Context(), payload)
		if err != nil {
			return
		}
		require.LessOrEqual(t, len(got), frameCap)
		again := c.pack(frame{kind, got})
		if again.kind != framePacked {
			require.Equal(t, frame{kind, got}, again)
			return
		}
		k, unpacked, err := c.unpack(t.Context(), again.payload)
		require.NoError(t, err)
		require.Equal(t, kind, k)
		require.True(t, bytes.Equal(got, unpacked))
	})
}
