package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// conns are the connections of HTTP clients, at most max. When all places are taken, a new
// client gets that of an idle connection, or else that of a client which has kept the
// replica waiting for more than a second. Otherwise it is refused.
type conns struct {
	net.Listener
	max int
	log *slog.Logger

	refusing chan struct{} // those that are being refused

	mu      sync.Mutex
	places  map[*place]struct{}
	refused bool // a refusal was logged since there was room
}

// place is a connection, which has a place until it is closed or ousted.
type place struct {
	net.Conn
	of *conns

	mu     sync.Mutex
	state  http.ConnState
	since  time.Time // of the state
	waits  waits     // for the client, of what is active
	moved  int       // bytes to or from the client
	holds  int64     // bytes of memory
	ousted bool
}

// waits is what a request waits for.
type waits byte

const (
	forNothing waits = iota
	forBody
	forTaking // of the answer
)

const (
	// A client that keeps a replica waiting for longer, with less than slowRate, is ousted
	// if its place or the memory that it holds is wanted.
	clientPatience = time.Second
	slowRate       = 64 << 10 // bytes a second

	refusingMost = 16
	refusingTime = time.Second
)

func newConns(l net.Listener, most int, log *slog.Logger) *conns {
	return &conns{Listener: l, max: most, log: log, refusing: make(chan struct{}, refusingMost), places: map[*place]struct{}{}}
}

// Accept waits for a connection and a place for it.
func (cs *conns) Accept() (net.Conn, error) {
	const least = 5 * time.Millisecond
	for pause := least; ; {
		conn, err := cs.Listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil, err
		}
		if err != nil { // out of file handles, say: it may pass
			if pause == least {
				cs.log.Warn("cannot accept HTTP connections", "error", err)
			}
			time.Sleep(pause)
			pause = min(2*pause, time.Second)
			continue
		}
		pause = least
		if p := cs.admit(conn); p != nil {
			return p, nil
		}
		select {
		case cs.refusing <- struct{}{}:
			go func() {
				defer func() { <-cs.refusing }()
				refuse(conn)
			}()
		default:
			conn.Close()
		}
	}
}

func (cs *conns) admit(conn net.Conn) *place {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if len(cs.places) >= cs.max && !cs.oustLocked(false) {
		if !cs.refused {
			cs.log.Warn("all places for HTTP connections are taken; more are turned away", "bound", cs.max)
		}
		cs.refused = true
		return nil
	}
	cs.refused = cs.refused && len(cs.places) > cs.max/2
	p := &place{Conn: conn, of: cs, since: time.Now()}
	cs.places[p] = struct{}{}
	return p
}

// refuse answers why, and leaves the client time to read it: if the connection were closed
// at once, it would be reset while the client still sends.
func refuse(conn net.Conn) {
	defer conn.Close()
	const body = `{"error":"too many connections; try again"}` + "\n"
	conn.SetDeadline(time.Now().Add(refusingTime))
	io.WriteString(conn, "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"+body)
	if tcp, ok := conn.(*net.TCPConn); ok && tcp.CloseWrite() == nil {
		io.Copy(io.Discard, conn)
	}
}

// oustSlow ends the slowest request that holds memory, if there is one.
func (cs *conns) oustSlow() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.oustLocked(true)
}

// oustLocked takes the place of the connection that can best do without it.
func (cs *conns) oustLocked(forMemory bool) bool {
	var worst *place
	var most float64
	now := time.Now()
	for p := range cs.places {
		if n := p.burden(now, forMemory); n > most {
			worst, most = p, n
		}
	}
	if worst == nil {
		return false
	}
	delete(cs.places, worst)
	worst.oust()
	return true
}

// unused is the least burden of a connection without a request.
const unused = 1e12

// burden returns how dispensable a connection is; 0 if it must stay.
func (p *place) burden(now time.Time, forMemory bool) float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	took := now.Sub(p.since)
	switch {
	case forMemory && p.holds == 0:
		return 0
	case p.state == http.StateIdle:
		return unused * (2 + took.Seconds())
	case took < clientPatience:
		return 0
	case p.state == http.StateNew:
		return unused + took.Seconds()
	case p.waits != forNothing && float64(p.moved) < slowRate*took.Seconds():
		return took.Seconds() / float64(1+p.moved)
	}
	return 0
}

// oust takes a place away. An active request notices and answers.
func (p *place) oust() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ousted = true
	switch {
	case p.state != http.StateActive:
		p.Conn.Close() // does not wait
	case p.waits == forBody:
		p.Conn.SetReadDeadline(time.Now())
	case p.waits == forTaking:
		p.Conn.SetWriteDeadline(time.Now())
	}
}

// wait notes what a request waits for from now on, and that n bytes were moved. It reports
// whether the request may go on, and calls extend if so.
func (p *place) wait(what waits, n int, extend func()) bool {
	if p == nil { // of a test, without conns
		extend()
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ousted && what == forBody {
		return false // and an answer may say so
	}
	p.waits = what
	p.moved += n
	extend()
	return true
}

func (p *place) hold(n int64) {
	if p != nil {
		p.mu.Lock()
		p.holds = n
		p.mu.Unlock()
	}
}

// Close frees the place.
func (p *place) Close() error {
	p.of.mu.Lock()
	delete(p.of.places, p)
	p.of.mu.Unlock()
	return p.Conn.Close()
}

// turn notes the state of a connection, for http.Server.ConnState.
func turn(c net.Conn, to http.ConnState) {
	if p, ok := c.(*place); ok {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.state, p.since, p.waits, p.moved, p.holds = to, time.Now(), forNothing, 0, 0
		if p.ousted && to == http.StateIdle {
			p.Conn.Close()
		}
	}
}

type placeKey struct{}

// withPlace is for http.Server.ConnContext.
func withPlace(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, placeKey{}, c)
}

func placeOf(r *http.Request) *place {
	p, _ := r.Context().Value(placeKey{}).(*place)
	return p
}
