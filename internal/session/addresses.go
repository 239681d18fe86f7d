package session

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/cespare/xxhash/v2"
	"github.com/level-replicator/replicator/internal/netaddr"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// MaxAddresses bounds how many addresses a peer may send.
const MaxAddresses = 1024

// addrHash stands for addresses in the hello, so that they are sent once, and again
// when they have changed: 32 bits, as a missed change only costs a detour.
func addrHash(addrs []string) uint32 {
	if len(addrs) == 0 {
		return 0
	}
	return uint32(xxhash.Sum64String(strings.Join(addrs, "\n"))) | 1
}

func (s *Session) sendAddresses() {
	b := binary.AppendUvarint(nil, uint64(len(s.told.addrs)))
	for _, a := range s.told.addrs {
		b = store.AppendBytes(b, []byte(a))
	}
	s.outbox.send(FrameAddresses, b)
}

func (s *Session) gotAddresses(payload []byte) error {
	addrs, err := decodeAddresses(payload)
	if err != nil {
		return replica.ProtocolErrorf("addresses: %v", err)
	}
	s.host.Learn(addrs)
	s.host.With(func(r *replica.Replica) { r.NoteSeen(s.theirs.Origin, s.theirs.Name).AddrHash = s.theirs.AddrHash })
	return nil
}

// decodeAddresses reads addresses and leaves out those that nobody could dial.
func decodeAddresses(payload []byte) ([]string, error) {
	d := store.Decoder{B: payload}
	var addrs []string
	n := d.Count(1)
	if n > MaxAddresses {
		return nil, fmt.Errorf("%d of them, at most %d are allowed", n, MaxAddresses)
	}
	for range n {
		if a := d.String(255); d.Err == nil && netaddr.Dialable(a) {
			addrs = append(addrs, a)
		}
	}
	return addrs, d.End()
}
