package replicatortest

import (
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// firstPort is where the ports that nobody asked for begin.
	firstPort = 49152
	// backlog is how many connections a listener holds that nobody accepted.
	backlog = 128
	// dialTimeout bounds a Dial that gets no answer.
	dialTimeout = time.Second
)

// Host is one machine on a [Network]. Its methods may be called from any
// goroutine.
type Host struct {
	net            *Network
	name           string
	sent, received atomic.Int64

	// Guarded by net.mu.
	listeners map[string]*listener // by port
	port      uint16               // next one to hand out
	behind    *Host                // whose address others see
}

// Name is the name by which others dial the host.
func (h *Host) Name() string { return h.name }

// Behind puts the host behind another one that translates addresses (NAT): connections
// that it opens from now on come from router, to those who accept them. Dialing the router
// leads to the router; whether the host itself can be dialed by its name is left to
// [Network.Block].
func (h *Host) Behind(router *Host) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.behind = router
}

// Bytes returns how many bytes the host's connections have sent and received.
// What was sent but lost, or not yet read at the other end, is not received.
func (h *Host) Bytes() (sent, received int64) { return h.sent.Load(), h.received.Load() }

// Listen accepts connections on a port, a number in decimal; "0" picks a free
// one. The address of the listener reads "name:port". Closing it resets the
// connections that nobody accepted and leaves the others alone.
func (h *Host) Listen(port string) (net.Listener, error) {
	fail := func(err error) (net.Listener, error) {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: address(net.JoinHostPort(h.name, port)), Err: err}
	}
	if number, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fail(&net.AddrError{Err: "invalid port", Addr: port})
	} else {
		port = strconv.FormatUint(number, 10)
	}
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if port == "0" {
		port = h.freePort()
	}
	if h.listeners[port] != nil {
		return fail(os.NewSyscallError("bind", syscall.EADDRINUSE))
	}
	l := &listener{host: h, port: port}
	l.changed.L = &h.net.mu
	h.listeners[port] = l
	return l, nil
}

// freePort returns a port that no listener has. The caller holds net.mu.
func (h *Host) freePort() string {
	for {
		port := strconv.Itoa(int(h.port))
		if h.port++; h.port == 0 {
			h.port = firstPort
		}
		if h.listeners[port] == nil {
			return port
		}
	}
}

// Dial connects to "name:port"; the network must be "tcp". It suits
// replicator.Options.Dial. Errors are *[net.OpError], as those of net.Dialer:
// ECONNREFUSED when nobody listens, a *[net.DNSError] when the network has no such
// host. A host that cannot be reached, or whose backlog is full, does not
// answer: Dial then waits for the end of ctx, one second at most (ETIMEDOUT).
func (h *Host) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := h.dial(ctx, network, addr)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: address(addr), Err: err}
	}
	return c, nil
}

func (h *Host) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
	default:
		return nil, net.UnknownNetworkError(network)
	}
	name, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	l := h.newLink(name, addr)
	if l == nil {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	// Judged at the far end, after the first half of the handshake.
	there, back := l.streams[0].draw(), l.streams[1].draw()
	if err := pause(ctx, there); err != nil {
		return nil, err
	}
	err = h.net.connect(l, port)
	if errors.Is(err, syscall.ETIMEDOUT) {
		back = dialTimeout - there
	}
	if waitErr := pause(ctx, back); waitErr != nil {
		if err == nil {
			l.ends[0].Close()
		}
		return nil, waitErr
	}
	if err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	return l.ends[0], nil
}

// pause waits for a while or the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	if err := ctx.Err(); err != nil || d <= 0 {
		return err
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// newLink prepares a connection from h. It returns nil if there is no such host.
func (h *Host) newLink(to, addr string) *link {
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	target := n.hosts[to]
	if target == nil {
		return nil
	}
	r := route{h.name, to}
	n.dials[r]++
	seen := h
	if h.behind != nil {
		seen = h.behind
	}
	local := address(net.JoinHostPort(seen.name, seen.freePort()))
	return newLink(h, target, local, address(addr), n.dials[r])
}

// connect hands the far end of the link to its listener. Reaching, registering and
// queueing are one step under the lock, so that no partition falls in between.
func (n *Network) connect(l *link, port string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.reaches(l.from.name, l.to.name) {
		return syscall.ETIMEDOUT
	}
	target := l.to.listeners[port]
	if target == nil {
		return syscall.ECONNREFUSED
	}
	if len(target.queue) == backlog {
		return syscall.ETIMEDOUT
	}
	n.linkIDs++
	l.id = n.linkIDs
	if n.cutAfter > 0 {
		l.drawBudget(n.cutAfter)
	}
	n.links[l] = struct{}{}
	target.queue = append(target.queue, l.ends[1])
	target.changed.Signal()
	return nil
}

// listener is guarded by the network's lock.
type listener struct {
	host    *Host
	port    string
	changed sync.Cond
	queue   []*conn
	closed  bool
}

func (l *listener) Accept() (net.Conn, error) {
	n := l.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	for len(l.queue) == 0 && !l.closed {
		l.changed.Wait()
	}
	if l.closed {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	}
	c := l.queue[0]
	l.queue = l.queue[1:]
	return c, nil
}

func (l *listener) Close() error {
	n := l.host.net
	n.mu.Lock()
	if l.closed {
		n.mu.Unlock()
		return &net.OpError{Op: "close", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	}
	l.closed = true
	delete(l.host.listeners, l.port)
	queue := l.queue
	l.queue = nil
	l.changed.Broadcast()
	n.mu.Unlock()
	for _, c := range queue {
		c.link.reset()
	}
	return nil
}

func (l *listener) Addr() net.Addr { return address(net.JoinHostPort(l.host.name, l.port)) }

// address reads "name:port".
type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }
