package transport

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/level-replicator/replicator/internal/netaddr"
)

// maxPendingPerIP keeps one address from taking all places of connections that are not yet
// authenticated.
const maxPendingPerIP = 4

// Admission bounds the connections that are accepted: pending until the peer is authenticated, then
// promoted. Safe for concurrent use.
type Admission struct {
	maxPending, maxConns int

	mu      sync.Mutex
	pending int
	waiting []*Ticket // the pending ones, the oldest first
	conns   int
	perIP   map[netip.Addr]int // Invariant: the pending ones of each address, no zero entry
}

// NewAdmission admits at most maxPending connections that are not yet authenticated and maxConns that
// are.
func NewAdmission(maxPending, maxConns int) *Admission {
	return &Admission{maxPending: maxPending, maxConns: maxConns, perIP: map[netip.Addr]int{}}
}

// Ticket is the place of one connection. Its owner always releases it.
type Ticket struct {
	a        *Admission
	ip       netip.Addr // zero if no bound by address applies
	since    time.Time  // when it was admitted
	cut      func()     // closes the connection; may be nil
	promoted bool       // guarded by a.mu, as are released and ousted
	released bool
	ousted   bool
}

// pendingTimeout is how long a pending connection keeps its place while others want it: many times
// what an honest handshake takes, so that abandoned connections keep nobody out.
const pendingTimeout = time.Second

var errOusted = errors.New("the peer did not say who it is, and its place was wanted")

// Admit returns a ticket for a new connection, or an error that names the bound it would exceed.
// It never waits; the caller closes a refused connection at once. If all places are taken, the
// oldest pending connection gives up its own after pendingTimeout: Admit calls its cut function, which should
// close it.
func (a *Admission) Admit(remote net.Addr, cut func()) (*Ticket, error) {
	ip := netaddr.BoundedIP(remote)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pending >= a.maxPending {
		a.oustLocked(time.Now())
	}
	if a.pending >= a.maxPending {
		return nil, fmt.Errorf("%d connections have yet to prove who they are, the bound is MaxPending", a.pending)
	}
	if ip.IsValid() {
		if a.perIP[ip] >= maxPendingPerIP {
			return nil, fmt.Errorf("%d connections of %s have yet to prove who they are, the bound for one address", a.perIP[ip], ip)
		}
		a.perIP[ip]++
	}
	a.pending++
	t := &Ticket{a: a, ip: ip, since: time.Now(), cut: cut}
	a.waiting = append(a.waiting, t)
	return t, nil
}

func (a *Admission) oustLocked(now time.Time) {
	if len(a.waiting) == 0 || a.waiting[0].cut == nil || now.Sub(a.waiting[0].since) < pendingTimeout {
		return
	}
	t := a.waiting[0]
	t.leavePendingLocked()
	t.released, t.ousted = true, true
	t.cut() // closing a connection does not wait
}

// Explain returns why a connection ended: that it was ousted, or else err.
func (t *Ticket) Explain(err error) error {
	t.a.mu.Lock()
	defer t.a.mu.Unlock()
	if t.ousted {
		return errOusted
	}
	return err
}

// Promote moves the connection from the pending to the others, when its peer
// has proved who it is. If there is no place it stays pending: release it.
func (t *Ticket) Promote() error {
	t.a.mu.Lock()
	defer t.a.mu.Unlock()
	switch {
	case t.released:
		return errors.New("the connection has already given up its place")
	case t.promoted:
		return nil
	case t.a.conns >= t.a.maxConns:
		return fmt.Errorf("%d connections are open, the bound is MaxConns", t.a.conns)
	}
	t.leavePendingLocked()
	t.promoted = true
	t.a.conns++
	return nil
}

// Release frees the place; only the first call does anything.
func (t *Ticket) Release() {
	t.a.mu.Lock()
	defer t.a.mu.Unlock()
	if t.released {
		return
	}
	t.released = true
	if t.promoted {
		t.a.conns--
		return
	}
	t.leavePendingLocked()
}

func (t *Ticket) leavePendingLocked() {
	t.a.pending--
	t.a.waiting = slices.DeleteFunc(t.a.waiting, func(w *Ticket) bool { return w == t })
	if !t.ip.IsValid() {
		return
	}
	if t.a.perIP[t.ip]--; t.a.perIP[t.ip] == 0 {
		delete(t.a.perIP, t.ip)
	}
}
