package session

import (
	"encoding/binary"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// maxOrigins bounds the origins that one session may name: one for each incarnation of each database
// that ever wrote.
const maxOrigins = 100_000

// Names numbers origins in the frames of one direction: each is spelt out in the
// first frame that needs it.
type Names struct {
	list  []causal.Origin
	index map[causal.Origin]uint64
	fresh int    // how many were spelt out
	rest  []byte // of frame
}

func (n *Names) Number(o causal.Origin) uint64 {
	i, ok := n.index[o]
	if !ok {
		if n.index == nil {
			n.index = map[causal.Origin]uint64{}
		}
		i = uint64(len(n.list))
		n.list = append(n.list, o)
		n.index[o] = i
	}
	return i
}

func (n *Names) Origin(i uint64) (causal.Origin, bool) {
	if i >= uint64(len(n.list)) {
		return causal.Origin{}, false
	}
	return n.list[i], true
}

// Frame puts the origins that body needs in front of it.
func (n *Names) Frame(body func(b []byte) []byte) []byte {
	n.rest = body(n.rest[:0])
	rest := n.rest
	b := make([]byte, 0, len(rest)+10+16*(len(n.list)-n.fresh))
	b = binary.AppendUvarint(b, uint64(len(n.list)-n.fresh))
	for _, o := range n.list[n.fresh:] {
		b = append(b, o[:]...)
	}
	n.fresh = len(n.list)
	return append(b, rest...)
}

// open reads the origins in front of a frame.
func (n *Names) open(payload []byte) (store.Decoder, error) {
	d := store.Decoder{B: payload}
	k := d.Count(16)
	if len(n.list)+k > maxOrigins {
		return d, replica.ProtocolErrorf("more than %d origins", maxOrigins)
	}
	n.list = slices.Grow(n.list, k)
	for range k {
		n.list = append(n.list, d.Origin())
	}
	return d, nil
}
