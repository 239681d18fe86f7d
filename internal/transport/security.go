// Package transport has what stands between a socket and a session: authentication by a secret or
// by certificates, bounds on connections, bytes per second and bytes in memory, and progress.
package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"github.com/level-replicator/replicator/internal/netaddr"
)

// protocolALPN names the protocol inside TLS. A crypto/tls server accepts a client that offers
// no name at all, so both sides check it.
const protocolALPN = "level-replicator/1"

var (
	ErrOtherSecret = errors.New("the peer has another secret or another cluster name")
	errOtherALPN   = errors.New("the peer speaks TLS but not " + protocolALPN)
)

// Security turns raw connections into authenticated ones. Without credentials it hands them on
// as they are. Safe for concurrent use.
type Security struct {
	// Invariant: what is in config holds for both roles; nil means plain TCP.
	Config *tls.Config

	callers *tls.Config // that config was made of
	secrets [][]byte    // likewise; the first is presented

	tickets *tickets    // of sessions under config
	server  *tls.Config // that config, to accept with

	renewal *renewal // nil unless the credentials are read again for each connection
}

// Credentials are what a replica proves itself with: a secret, or TLS, or nothing.
type Credentials struct {
	Cluster    string
	Secret     []byte
	OldSecrets [][]byte
	TLS        *tls.Config

	// Instead of these, asked for each connection.
	GetTLS     func() (*tls.Config, error)
	GetSecrets func() (secret []byte, old [][]byte, err error)
	Log        *slog.Logger // of what getTLS and getSecrets come to
}

// NewSecurity makes the security that the credentials ask for; they have been checked.
//
// With Secret all replicas of a cluster have the same key. A replica presents the first secret and
// accepts all of them, in both roles. So a secret is changed in three passes over the replicas, each
// of which leaves every pair able to talk: add the new one to OldSecrets; swap the two; drop
// the old one. The price of one shared key is that any member can pass for any other and that
// none can be shut out alone. TLS with a certificate for each replica pays neither.
func NewSecurity(c Credentials) (*Security, error) {
	switch {
	case c.GetTLS != nil || c.GetSecrets != nil:
		return newRenewable(c)
	case c.TLS != nil:
		return newMutual(c.TLS)
	case c.Secret != nil:
		return newShared(c.Cluster, c.Secret, c.OldSecrets)
	}
	return &Security{}, nil
}

// OnRenewal has f called whenever the credentials have turned out to be others than before, so that
// connections that were made under those can be closed. Call it before the first connection.
func (s *Security) OnRenewal(f func()) {
	if s.renewal != nil {
		s.renewal.notify = f
	}
}

// Enabled reports whether there are credentials.
func (s *Security) Enabled() bool { return s.Config != nil || s.renewal != nil }

// ClientTo authenticates a connection that was dialed as addr, "host:port". If the caller's TLS
// configuration names no ServerName, the peer's certificate must be for that host, as in
// tls.Dial. ClientTo closes conn if it fails.
//
// In TLS 1.3 the client is done before the other side has judged it, so a refusal comes with
// the first Read. Until the peer's hello has arrived the caller must send nothing secret, must not
// count the peer as connected, and passes errors through [HandshakeError].
func (s *Security) ClientTo(ctx context.Context, conn net.Conn, addr string) (net.Conn, error) {
	if !s.Enabled() {
		return &plainConn{Conn: conn}, nil
	}
	s = s.now()
	config := s.Config
	if config.ServerName == "" && s.callers != nil { // VerifyConnection may want it, too
		config = config.Clone()
		config.ServerName = netaddr.HostOf(addr)
	}
	v := s.tickets.visit(config, conn, addr)
	if v == nil {
		secure := tls.Client(conn, config)
		return complete(ctx, conn, secure, secure.HandshakeContext(ctx))
	}
	if resuming := v.resuming(); resuming != nil {
		secure := tls.Client(conn, resuming)
		if err := secure.HandshakeContext(ctx); !alerted(err) {
			v.begun(secure.ConnectionState())
			return complete(ctx, conn, secure, err)
		}
	}
	secure := tls.Client(conn, v.full())
	err := secure.HandshakeContext(ctx)
	v.begun(secure.ConnectionState())
	return complete(ctx, conn, secure, err)
}

// Server authenticates an accepted connection and returns the one to use instead. It waits for
// the client until ctx ends, and closes conn if it fails.
func (s *Security) Server(ctx context.Context, conn net.Conn) (net.Conn, error) {
	if !s.Enabled() {
		return &plainConn{Conn: conn}, nil
	}
	config, late := s.now().server, &lateConn{Conn: conn}
	secure := tls.Server(late, config)
	err := secure.HandshakeContext(ctx)
	if errors.Is(err, errNotResumed) { // the client gets an alert
		secure = tls.Server(late, config)
		err = secure.HandshakeContext(ctx)
	}
	late.shaken(err)
	return complete(ctx, conn, secure, err)
}

// complete is for a handshake that was made at once, not at the first Read or Write: two goroutines
// would otherwise meet on the handshake's mutex, beyond the reach of ctx.
func complete(ctx context.Context, conn net.Conn, secure *tls.Conn, err error) (net.Conn, error) {
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("the peer did not finish the TLS handshake: %w", ctx.Err())
		}
		return nil, HandshakeError(err)
	}
	return secure, nil
}

func verifyProtocol(cs tls.ConnectionState) error {
	if cs.Version != tls.VersionTLS13 {
		return fmt.Errorf("the peer speaks %s, want TLS 1.3", tls.VersionName(cs.Version))
	}
	if cs.NegotiatedProtocol != protocolALPN {
		return errOtherALPN
	}
	return nil
}

// CheckListen returns an error if anybody on another machine could connect to addr and neither
// credentials nor Options.Insecure guard it.
func CheckListen(addr net.Addr, guarded bool) error {
	if guarded || netaddr.IsLocal(addr) {
		return nil
	}
	return fmt.Errorf("replicator: %s can be reached from other machines and nothing keeps strangers out: "+
		"set Options.Secret (see GenerateSecret) or Options.TLS, or accept plain TCP with Options.Insecure", addr)
}
