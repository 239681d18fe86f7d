package sim

import (
	"encoding/binary"
	"math/rand/v2"

	"github.com/level-replicator/replicator/internal/session"
)

func AppendFrame(b []byte, k session.FrameType, payload []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(1+len(payload)))
	return append(append(b, byte(k)), payload...)
}

// Incompressible gives a value of n bytes.
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
