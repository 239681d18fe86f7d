package transport

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"time"

	"github.com/level-replicator/replicator/internal/netaddr"
)

// LeastSecret is how many bytes a secret has at least.
const LeastSecret = 16

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
	expiryWatch

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

// Client authenticates a dialed connection and returns the one to talk over.
// The server's name is the connection's remote address; [security.clientTo]
// takes the name that was dialed.
func (s *Security) Client(ctx context.Context, conn net.Conn) (net.Conn, error) {
	return s.ClientTo(ctx, conn, conn.RemoteAddr().String())
}

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

// newShared pins the keys made from the secrets. The certificate only carries
// the key: no clock, name or authority is asked about it.
func newShared(cluster string, secret []byte, old [][]byte) (*Security, error) {
	own, err := secretKey(cluster, secret)
	if err != nil {
		return nil, err
	}
	accepted := []ed25519.PublicKey{own.Public().(ed25519.PublicKey)}
	for _, s := range old {
		key, err := secretKey(cluster, s)
		if err != nil {
			return nil, err
		}
		accepted = append(accepted, key.Public().(ed25519.PublicKey))
	}
	cert, err := secretCertificate(own)
	if err != nil {
		return nil, err
	}
	return &Security{secrets: append([][]byte{bytes.Clone(secret)}, cloneAll(old)...), Config: &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{cert},
		ClientAuth:             tls.RequireAnyClientCert,
		InsecureSkipVerify:     true, // VerifyConnection verifies, by the pinned keys
		NextProtos:             []string{protocolALPN},
		SessionTicketsDisabled: true,
		// Not VerifyPeerCertificate: a resumed connection skips that.
		VerifyConnection: func(cs tls.ConnectionState) error {
			return verifyShared(cs, accepted)
		},
	}}, nil
}

func cloneAll(list [][]byte) (clones [][]byte) {
	for _, b := range list {
		clones = append(clones, bytes.Clone(b))
	}
	return clones
}

// secretKey derives the key of a cluster's servers. HKDF does not slow a
// guesser down and need not: secrets are generated, at least 16 bytes.
func secretKey(cluster string, secret []byte) (ed25519.PrivateKey, error) {
	seed, err := hkdf.Key(sha256.New, secret, nil, "level-replicator/1 identity of cluster "+cluster, ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("replicator: Options.Secret: %w", err)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// secretCertificate is the same bytes for the same key, valid at any time
// that a machine without a battery may believe in.
func secretCertificate(key ed25519.PrivateKey) (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "level-replicator"},
		NotBefore:    time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("replicator: Options.Secret: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

func verifyShared(cs tls.ConnectionState, accepted []ed25519.PublicKey) error {
	if err := verifyProtocol(cs); err != nil {
		return err
	}
	if n := len(cs.PeerCertificates); n != 1 {
		return fmt.Errorf("the peer presents %d certificates, want the one made from the secret", n)
	}
	key, ok := cs.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok {
		return ErrOtherSecret
	}
	for _, a := range accepted {
		if a.Equal(key) {
			return nil
		}
	}
	return ErrOtherSecret
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

// newMutual enforces on a copy of the caller's config what this protocol
// needs, and refuses one that would let a stranger in or our own calls fail.
func newMutual(callers *tls.Config) (*Security, error) {
	bad := func(problem string) (*Security, error) {
		return nil, errors.New("replicator: Options.TLS: " + problem)
	}
	switch c := callers; {
	case len(c.Certificates) == 0 && c.GetCertificate == nil && c.GetConfigForClient == nil:
		return bad("no certificate to accept peers with, want Certificates, GetCertificate or GetConfigForClient")
	case len(c.Certificates) == 0 && c.GetClientCertificate == nil:
		return bad("no certificate to dial peers with, want Certificates or GetClientCertificate")
	case c.GetConfigForClient == nil && !verifiesClients(c):
		return bad("anybody with a certificate of a public authority could connect, want ClientCAs or VerifyConnection")
	case c.InsecureSkipVerify && c.VerifyConnection == nil:
		return bad("InsecureSkipVerify trusts any server, want it off or VerifyConnection set")
	}
	s := &Security{Config: harden(callers), callers: callers}
	s.watch(s.Config)
	if perClient := callers.GetConfigForClient; perClient != nil {
		// What the caller returns for a client would replace all that was enforced.
		s.Config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := perClient(hello)
			if err != nil {
				return nil, err
			}
			if !verifiesClients(cmp.Or(c, callers)) {
				return nil, errors.New("the config for this client has neither ClientCAs nor VerifyConnection")
			}
			if c == nil {
				return nil, nil // s.config itself
			}
			return harden(c), nil
		}
	}
	return s, nil
}

// verifiesClients tells whether c limits who may connect. Without ClientCAs
// crypto/tls takes the machine's authorities, which certify anybody.
// VerifyPeerCertificate does not count: a resumed connection skips it.
func verifiesClients(c *tls.Config) bool { return c.ClientCAs != nil || c.VerifyConnection != nil }

func harden(callers *tls.Config) *tls.Config {
	c := callers.Clone()
	c.MinVersion = tls.VersionTLS13
	c.MaxVersion = tls.VersionTLS13
	c.ClientAuth = tls.RequireAndVerifyClientCert
	c.NextProtos = []string{protocolALPN}
	c.SessionTicketsDisabled = true
	c.ClientSessionCache = nil
	also := callers.VerifyConnection
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verifyProtocol(cs); err != nil {
			return err
		}
		if also != nil {
			return also(cs)
		}
		return nil
	}
	return c
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
