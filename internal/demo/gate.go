package demo

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
)

// gate can hold a replica's connections to others. It makes edits concurrent: on loopback
// replication takes about a millisecond, and the slower replica would have seen the
// other's edit.
//
// While it holds, nothing fails; dialing waits.
type gate struct {
	// Invariant: locked for reading once for each open connection.
	sessions sync.RWMutex
	held     atomic.Bool
}

// hold waits until all connections are closed and keeps new ones waiting.
func (g *gate) hold() {
	g.sessions.Lock()
	g.held.Store(true)
}

// release ends hold; without one it does nothing.
func (g *gate) release() {
	if g.held.CompareAndSwap(true, false) {
		g.sessions.Unlock()
	}
}

// dial is for Options.Dial. While the gate holds it does not heed ctx: whoever
// holds must release before the database is closed.
func (g *gate) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	g.sessions.RLock()
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		g.sessions.RUnlock()
		return nil, err
	}
	return &gatedConn{Conn: conn, closed: sync.OnceFunc(g.sessions.RUnlock)}, nil
}

type gatedConn struct {
	net.Conn
	closed func()
}

func (c *gatedConn) Close() error {
	defer c.closed()
	return c.Conn.Close()
}
