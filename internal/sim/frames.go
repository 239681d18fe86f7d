package sim

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"

	"github.com/level-replicator/replicator/internal/session"
)

func AppendFrame(b []byte, k session.FrameType, payload []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(1+len(payload)))
	return append(append(b, byte(k)), payload...)
}

// Speak has a session produce until it has something to say, and returns that.
func Speak(s *session.Session) (out []session.Frame, err error) {
	for out = s.Frames(); len(out) == 0 && s.More() && err == nil; out = s.Frames() {
		err = s.Produce()
	}
	return slices.Clone(out), err
}

// Incompressible returns a value of n bytes.
func Incompressible(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := 0; i+8 <= n; i += 8 {
		x := r.Uint64()
		for j := range 8 {
			b[i+j] = byte(x >> (8 * j))
		}
	}
	return b
}
