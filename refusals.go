package replicator

import (
	"cmp"
	"errors"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/level-replicator/replicator/internal/netaddr"
	"github.com/level-replicator/replicator/internal/printable"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/transport"
)

const (
	maxRefusals  = 32
	refusalPause = 10 * time.Minute
)

// Refusal is a connection that was turned away before it had become one of a
// peer: of another cluster, without the secret, of another protocol, one too many.
type Refusal struct {
	From   string    `json:"from"` // host, or "others" when there are too many to list
	Reason string    `json:"reason"`
	Count  int64     `json:"count"`
	Last   time.Time `json:"last"`
}

// refusals lists who was turned away. All of it is in memory and bounded, so that
// strangers cost nothing that lasts. The log gets one line when an entry begins, and
// again when it comes back after refusalPause.
type refusals struct {
	mu   sync.Mutex
	list []Refusal
}

func (r *refusals) note(log *slog.Logger, remote net.Addr, err error) {
	from, reason, now := netaddr.HostOf(remote.String()), printable.Printable(reasonOf(err)), time.Now()
	if first := r.count(from, reason, now); first {
		log.Warn("replicator: connection turned away", "from", from, "error", session.PrintableError(err))
	}
}

// count counts one and reports whether to log it.
func (r *refusals) count(from, reason string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		for i := range r.list {
			if e := &r.list[i]; e.From == from && e.Reason == reason {
				first := now.Sub(e.Last) >= refusalPause
				e.Count++
				e.Last = now
				return first
			}
		}
		r.list = slices.DeleteFunc(r.list, func(e Refusal) bool { return now.Sub(e.Last) >= refusalPause })
		if len(r.list) < maxRefusals || from == "others" {
			r.list = append(r.list, Refusal{From: from, Reason: reason, Count: 1, Last: now})
			return true
		}
		from, reason = "others", "various"
	}
}

// status lists them, the latest first.
func (r *refusals) status() []Refusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := slices.Clone(r.list)
	slices.SortFunc(list, func(a, b Refusal) int {
		return cmp.Or(b.Last.Compare(a.Last), cmp.Compare(a.From+a.Reason, b.From+b.Reason))
	})
	return list
}

// reasonOf is what an error says without the ports, which differ each time.
func reasonOf(err error) string {
	var (
		step     *PeerError
		rejected *session.HelloError
		refused  *transport.HandshakeFailure
		op       *net.OpError
	)
	if errors.As(err, &step) {
		err = step.Err
	}
	switch {
	case errors.As(err, &rejected):
		return rejected.Why
	case errors.As(err, &refused):
		return refused.Why
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "it did not say who it is in time"
	case errors.As(err, &op):
		return op.Err.Error()
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	return strings.TrimPrefix(text, "replicator: ")
}
