package replicator

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/transport"
)

// network is what sessions with peers run on. Its fields are fixed once Replicate returns, and
// guard themselves.
type network struct {
	listener  net.Listener
	security  *transport.Security
	admission *transport.Admission
	rates     transport.Rates
	memory    frameMemory
	talking   atomic.Int64 // sessions under way
	refusals  refusals
}

func newNetwork(o *Options, l net.Listener, sec *transport.Security) network {
	return network{
		listener: l, security: sec,
		admission: transport.NewAdmission(o.Limits.MaxPending, o.Limits.MaxConns), rates: transport.NewRates(o.Limits.ReadRate, o.Limits.WriteRate),
		memory: newFrameMemory(o.Limits.MaxInFlight),
	}
}

// window is how much a session may send of one state. All of them together hold
// about four of the largest in memory.
func (n *network) window() int { return session.WindowSize / max(1, int(n.talking.Load())/4) }

// frameMemory bounds the memory of received frames, see Limits.MaxInFlight.
type frameMemory struct {
	shared *transport.Budget
	small  *transport.Budget // for sessions that hold little
	large  chan struct{}     // capacity 1: holds a place for the session that may pass the bound
}

func newFrameMemory(most int) frameMemory {
	small := transport.SmallRoom(most)
	return frameMemory{transport.NewBudget(most - small), transport.NewBudget(small), make(chan struct{}, 1)}
}

// reservation is the part of a frameMemory that one session holds. Its goroutine alone uses it.
type reservation struct {
	of    *frameMemory
	held  int  // bytes, without those that it passed the bound with
	small int  // of them, those that are of the room for small frames
	large bool // it has the one place of those that hold more than their share
}

// reserve takes n bytes more. One session at a time may pass half of the bound,
// and is then counted no further: a value may be larger than the bound, and two
// that each held a half and waited for more would wait for each other.
//
// Small frames do not wait for large ones: a session that holds little has room
// of its own, which the others never fill.
func (r *reservation) reserve(ctx context.Context, n int) error {
	m := r.of
	if !r.large && r.held+n <= m.small.Share(2*session.PageSize) && m.small.Try(n) {
		r.held, r.small = r.held+n, r.small+n
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, session.InFlightTimeout)
	defer cancel()
	if !r.large && r.held > 0 && int64(r.held-r.small+n) > m.shared.Max/2 {
		select {
		case m.large <- struct{}{}:
			r.large = true
		case <-wait.Done():
			return fmt.Errorf("another session has held a large value for %v, try again later", session.InFlightTimeout)
		}
	}
	if r.large {
		return nil
	}
	if err := m.shared.Acquire(wait, n); err != nil {
		return fmt.Errorf("no room for %d bytes more among MaxInFlight in %v: %w", n, session.InFlightTimeout, err)
	}
	r.held += n
	return nil
}

// keep releases all but n bytes.
func (r *reservation) keep(n int) {
	if r.large && n <= r.held {
		<-r.of.large
		r.large = false
	}
	if free := r.held - n; free > 0 {
		large := min(free, r.held-r.small)
		r.of.shared.Release(large)
		r.of.small.Release(free - large)
		r.held, r.small = n, r.small-(free-large)
	}
}
