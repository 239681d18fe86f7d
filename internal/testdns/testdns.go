// Package testdns is a DNS server for tests.
package testdns

import (
	"context"
	"net"
	"sync"
	"testing"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
)

// Server answers with records that can be changed.
type Server struct {
	mu      sync.Mutex
	records []dns.RR
}

// Start starts a server at addr, "127.0.0.1:0" for a free port, which ends with the test. It
// returns a resolver that asks it and no other.
func Start(t *testing.T, addr string) (*Server, *net.Resolver) {
	t.Helper()
	conn, err := net.ListenPacket("udp4", addr)
	require.NoError(t, err)
	n := &Server{}
	started := make(chan struct{})
	s := &dns.Server{PacketConn: conn, Handler: n, NotifyStartedFunc: func() { close(started) }}
	ended := make(chan error, 1)
	go func() { ended <- s.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		require.NoError(t, s.Shutdown())
		require.NoError(t, <-ended)
	})
	return n, Resolver(conn.LocalAddr().String())
}

// Resolver returns a resolver that asks the server at addr and no other.
func Resolver(addr string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp4", addr)
	}}
}

// Set replaces all records, given as in a zone file.
func (n *Server) Set(t *testing.T, records ...string) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.records = nil
	for _, r := range records {
		rr, err := dns.NewRR(r)
		require.NoError(t, err)
		n.records = append(n.records, rr)
	}
}

// ServeDNS implements dns.Handler.
func (n *Server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := new(dns.Msg).SetRcode(q, dns.RcodeNameError)
	for _, rr := range n.records {
		if h := rr.Header(); dns.CanonicalName(h.Name) == dns.CanonicalName(q.Question[0].Name) {
			m.Rcode = dns.RcodeSuccess
			if h.Rrtype == q.Question[0].Qtype {
				m.Answer = append(m.Answer, rr)
			}
		}
	}
	w.WriteMsg(m)
}
