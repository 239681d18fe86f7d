package session_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/level-replicator/replicator/internal/session"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// helloBytes draws a hello as docs/format.md has it.
func helloBytes(t *rapid.T) []byte {
	number := func(b []byte, label string) []byte {
		return binary.AppendUvarint(b, rapid.Uint64Max(1<<62).Draw(t, label))
	}
	text := func(b []byte, label string, most int) []byte {
		s := rapid.StringN(-1, -1, most).Draw(t, label)
		return append(binary.AppendUvarint(b, uint64(len(s))), s...)
	}
	raw := func(b []byte, label string, n int) []byte {
		return append(b, rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, label)...)
	}
	most := rapid.Uint64Max(4).Draw(t, "max")
	b := binary.AppendUvarint(number([]byte("lrep"), "min"), most)
	b = text(text(text(b, "cluster", 64), "name", 255), "addr", 255)
	b = raw(b, "origin", 16)
	b = binary.BigEndian.AppendUint64(b, rapid.Uint64Max(1<<40).Draw(t, "wall"))
	b = raw(raw(number(b, "revision"), "sum", 16), "digest", 16)
	b = number(raw(b, "remembered", 16), "remembered revision")
	flags := rapid.ByteMax(63).Draw(t, "flags")
	if most < 2 {
		flags &^= 16 // nobody of version 1 stays
	}
	b = raw(raw(append(b, flags), "addresses", 4), "remembered addresses", 4)
	if flags&8 != 0 {
		b = number(number(b, "greatest value"), "greatest key")
	}
	return b
}

func TestHello_DecodesAndEncodes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := helloBytes(t)
		h, err := session.DecodeHello(b)
		require.NoError(t, err)
		require.Equal(t, b, h.Append(nil))
		later, err := session.DecodeHello(append(bytes.Clone(b), rapid.SliceOf(rapid.Byte()).Draw(t, "fields of a later protocol")...))
		require.NoError(t, err)
		require.Equal(t, h, later)
		_, err = session.DecodeHello(b[:rapid.IntRange(0, len(b)-1).Draw(t, "cut")])
		require.Error(t, err)
	})
}

func TestFrame_DecodesAndEncodes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kind := session.FrameType(rapid.ByteRange(1, 20).Draw(t, "kind"))
		payload := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "payload")
		b := append(session.AppendHead(nil, kind, len(payload)), payload...)
		k, p, _, err := session.ReadFrame(bytes.NewReader(b), nil, 1<<10)
		require.NoError(t, err)
		require.Equal(t, kind, k)
		require.True(t, bytes.Equal(payload, p))
		_, _, _, err = session.ReadFrame(bytes.NewReader(b[:len(b)-1]), nil, 1<<10)
		require.Error(t, err)
		if len(payload) > 8 {
			_, _, _, err = session.ReadFrame(bytes.NewReader(b), nil, len(payload)-1)
			require.Error(t, err, "it is longer than the limit")
		}
	})
}
