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

// protocolALPN names the protocol inside TLS. A server of Go's crypto/tls
// accepts a client that offers no name at all, so both sides check it.
const protocolALPN = "level-replicator/1"

var (
	ErrOtherSecret = errors.New("the peer has another secret or another cluster name")
	errOtherALPN   = errors.New("the peer speaks TLS but not " + protocolALPN)
)

// Security turns raw connections into authenticated ones, or hands them on as
// they are where neither Secret nor TLS is set. Safe for concurrent use.
type Security struct {
	// Invariant: what is in config holds for both roles; nil means plain TCP.
	Config *tls.Config

	callers *tls.Config // that config was made of
	secrets [][]byte    // likewise; the first is presented

	renewal *renewal // nil unless all of this is asked for anew for each connection
}

// Credentials are what a replica proves itself with: a secret, or TLS, or nothing.
type Credentials struct {
	Cluster    string
	Secret     []byte
	OldSecrets [][]byte
	Tls        *tls.Config

	// Instead of these, asked for each connection.
	GetTLS     func() (*tls.Config, error)
	GetSecrets func() (secret []byte, old [][]byte, err error)
	Log        *slog.Logger // of what getTLS and getSecrets come to
}

// NewSecurity makes the security that the credentials ask for; they have been checked.
//
// With Secret every server of the cluster has the same key. The first secret is
// presented, all are accepted, in both roles. So a secret is changed in three
// passes over the servers, each of which leaves every pair able to talk: add
// the new one to OldSecrets; swap the two; drop the old one. The price of one
// shared key is that any member can pass for any other, and that none can
// be shut out alone: TLS with a certificate for each server gives both.
func NewSecurity(c Credentials) (*Security, error) {
	switch {
	case c.GetTLS != nil || c.GetSecrets != nil:
		return newRenewable(c)
	case c.Tls != nil:
		return newMutual(c.Tls)
	case c.Secret != nil:
		return newShared(c.Cluster, c.Secret, c.OldSecrets)
	}
	return &Security{}, nil
}

func (s *Security) Enabled() bool { return s.Config != nil || s.renewal != nil }

// ClientTo authenticates a connection that was dialed as addr, "host:port":
// the server's certificate must be for that host, if TLS is the caller's and
// names no ServerName, as in tls.Dial. It closes conn if it fails.
//
// In TLS 1.3 a client is done before the server has judged it, so a refusal
// comes with the first Read: until the server's hello has arrived nothing may
// be sent that is secret, nobody counts as connected, and errors go through
// handshakeError.
func (s *Security) ClientTo(ctx context.Context, conn net.Conn, addr string) (net.Conn, error) {
	if !s.Enabled() {
		return &plainConn{Conn: conn}, nil
	}
	s = s.now()
	config := s.Config
	if config.ServerName == "" && s.callers != nil { // their VerifyConnection may want it, too
		config = config.Clone()
		config.ServerName = netaddr.HostOf(addr)
	}
	return complete(ctx, conn, tls.Client(conn, config))
}

// Server authenticates an accepted connection and returns the one to talk
// over. It waits for the client until ctx ends, and closes conn if it fails.
func (s *Security) Server(ctx context.Context, conn net.Conn) (net.Conn, error) {
	if !s.Enabled() {
		return &plainConn{Conn: conn}, nil
	}
	return complete(ctx, conn, tls.Server(conn, s.now().Config))
}

// complete shakes hands now, not at the first Read or Write: two goroutines
// would otherwise meet on the handshake's mutex, beyond the reach of ctx.
func complete(ctx context.Context, conn net.Conn, secure *tls.Conn) (net.Conn, error) {
	if err := secure.HandshakeContext(ctx); err != nil {
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

// CheckListen refuses to listen for strangers in the clear. Addresses that end
// on this machine are always fine.
func CheckListen(addr net.Addr, guarded bool) error {
	if guarded || netaddr.IsLocal(addr) {
		return nil
	}
	return fmt.Errorf("replicator: %s can be reached from other machines and nothing keeps strangers out: "+
		"set Options.Secret (see GenerateSecret) or Options.TLS, or accept plain TCP with Options.Insecure", addr)
}
