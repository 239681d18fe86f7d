package transport

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator/internal/testca"
	"github.com/stretchr/testify/require"
)

// side is one end of a connection: it shakes hands, honestly or not.
type side func(context.Context, net.Conn) (net.Conn, error)

// pairing is what one end saw: the bytes of the other that it accepted, and how
// it ended, as handshakeError reports it.
type pairing struct {
	got []byte
	err error
}

// thief signs with a key that is not that of the certificate it shows.
type thief struct {
	ed25519.PrivateKey
	shown crypto.PublicKey
}

// named is the address of a listener that is not of package net.
type named string

// client authenticates a dialed connection and returns the one to talk over.
// The server's name is the connection's remote address; [Security.ClientTo]
// takes the name that was dialed.
func (s *Security) client(ctx context.Context, conn net.Conn) (net.Conn, error) {
	return s.ClientTo(ctx, conn, conn.RemoteAddr().String())
}

// meet connects two sides over loopback. Each that gets through its handshake
// sends eight bytes of application data and reads the other's.
func meet(t *testing.T, client, server side) (c, s pairing) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	done := make(chan pairing)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			done <- pairing{err: err}
			return
		}
		done <- converse(ctx, raw, server)
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	c = converse(ctx, raw, client)
	return c, <-done
}

func converse(ctx context.Context, raw net.Conn, hands side) (o pairing) {
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(20 * time.Second))
	conn, err := hands(ctx, raw)
	if err != nil {
		return pairing{err: HandshakeError(err)}
	}
	// A frame: as everywhere, its first byte is 0.
	if _, err = conn.Write([]byte{0, 0, 0, 4, 1, 2, 3, 4}); err != nil {
		return pairing{err: HandshakeError(err)}
	}
	got := make([]byte, 8)
	n, err := io.ReadFull(conn, got)
	return pairing{got[:n], HandshakeError(err)}
}

func requireTalk(t *testing.T, client, server side) {
	t.Helper()
	c, s := meet(t, client, server)
	require.NoError(t, errors.Join(c.err, s.err))
	require.Len(t, c.got, 8)
	require.Len(t, s.got, 8)
}

// requireRefused also wants that neither accepted a byte of the other's.
func requireRefused(t *testing.T, client, server side) (c, s error) {
	t.Helper()
	co, so := meet(t, client, server)
	require.Empty(t, co.got)
	require.Empty(t, so.got)
	require.Error(t, co.err)
	require.Error(t, so.err)
	return co.err, so.err
}

func secured(t *testing.T, c Credentials) *Security {
	t.Helper()
	s, err := NewSecurity(c)
	require.NoError(t, err)
	return s
}

func withSecret(t *testing.T, secret []byte, old ...[]byte) *Security {
	t.Helper()
	return secured(t, Credentials{Cluster: "one", Secret: secret, OldSecrets: old})
}

// hostile is a raw TLS client and server with the true key of secret A
// and whatever change makes of its config.
func hostile(t *testing.T, change func(*tls.Config)) (client, server side) {
	t.Helper()
	config := withSecret(t, testca.SecretA).Config.Clone()
	config.VerifyConnection = nil // checks off
	config.ClientAuth = tls.NoClientCert
	change(config)
	client = func(ctx context.Context, conn net.Conn) (net.Conn, error) {
		c := tls.Client(conn, config)
		return c, c.HandshakeContext(ctx)
	}
	server = func(ctx context.Context, conn net.Conn) (net.Conn, error) {
		c := tls.Server(conn, config)
		return c, c.HandshakeContext(ctx)
	}
	return client, server
}

func TestSameSecretTalks(t *testing.T) {
	a, b := withSecret(t, testca.SecretA), withSecret(t, testca.SecretA)
	require.True(t, a.Enabled())
	requireTalk(t, a.client, b.Server)
	require.Equal(t, a.Config.Certificates, b.Config.Certificates, "the certificate follows from the secret alone")
}

func TestTheHonestCoreOfTheHostileSidesTalks(t *testing.T) {
	// Else the refusals below could have any reason.
	a := withSecret(t, testca.SecretA)
	client, server := hostile(t, func(*tls.Config) {})
	requireTalk(t, client, a.Server)
	requireTalk(t, a.client, server)
}

func TestAnotherSecretOrClusterIsRefused(t *testing.T) {
	const why = "another secret or"
	a, b := withSecret(t, testca.SecretA), withSecret(t, testca.SecretB)
	other := secured(t, Credentials{Cluster: "two", Secret: testca.SecretA})
	for _, pair := range [][2]*Security{{a, b}, {b, a}, {a, other}, {other, a}} {
		c, s := requireRefused(t, pair[0].client, pair[1].Server)
		require.ErrorContains(t, c, why)
		require.ErrorContains(t, s, why)
	}
}

func TestHostileSidesAreRefusedInBothRoles(t *testing.T) {
	a := withSecret(t, testca.SecretA)
	foreign := withSecret(t, testca.SecretB).Config.Certificates
	truth := a.Config.Certificates[0]
	for name, change := range map[string]func(*tls.Config){
		"another key, checks off": func(c *tls.Config) { c.Certificates = foreign },
		"the right public key without the private key": func(c *tls.Config) {
			_, wrong, err := ed25519.GenerateKey(nil)
			require.NoError(t, err)
			c.Certificates = []tls.Certificate{{Certificate: truth.Certificate, PrivateKey: thief{wrong, truth.PrivateKey.(ed25519.PrivateKey).Public()}}}
		},
		"two certificates": func(c *tls.Config) {
			c.Certificates = []tls.Certificate{{Certificate: [][]byte{truth.Certificate[0], foreign[0].Certificate[0]}, PrivateKey: truth.PrivateKey}}
		},
		"a key that is not ed25519": func(c *tls.Config) { c.Certificates = testca.NewAuthority(t).Issue(t, "node.test") },
		"TLS 1.2":                   func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
		"no ALPN":                   func(c *tls.Config) { c.NextProtos = nil },
		"another ALPN":              func(c *tls.Config) { c.NextProtos = []string{"h2"} },
	} {
		t.Run(name, func(t *testing.T) {
			client, server := hostile(t, change)
			requireRefused(t, client, a.Server)
			requireRefused(t, a.client, server)
		})
	}
}

func (k thief) Public() crypto.PublicKey { return k.shown }

func TestClientWithoutCertificateIsRefused(t *testing.T) {
	client, _ := hostile(t, func(c *tls.Config) { c.Certificates = nil })
	c, _ := requireRefused(t, client, withSecret(t, testca.SecretA).Server)
	require.ErrorContains(t, c, "the peer refused this replica")
}

func TestPlainAndTLSDoNotMixAndSaySo(t *testing.T) {
	plain, a := secured(t, Credentials{}), withSecret(t, testca.SecretA)
	require.False(t, plain.Enabled())
	requireTalk(t, plain.client, plain.Server)

	c, s := requireRefused(t, plain.client, a.Server)
	require.ErrorContains(t, c, "only one side uses TLS")
	require.ErrorContains(t, s, "does not speak TLS")

	c, s = requireRefused(t, a.client, plain.Server)
	require.ErrorContains(t, c, "TLS")
	require.ErrorIs(t, s, errSpeaksTLS)
	var why *HandshakeFailure
	require.ErrorAs(t, c, &why)
}

func TestPlainServerThatWaitsForAFrameRecognizesTLS(t *testing.T) {
	// It answers nothing before it has read, so the client sees a hang-up.
	silent := func(ctx context.Context, conn net.Conn) (net.Conn, error) {
		c, err := (&Security{}).Server(ctx, conn)
		if err == nil {
			_, err = c.Read(make([]byte, 4))
		}
		return c, err
	}
	c, s := requireRefused(t, withSecret(t, testca.SecretA).client, silent)
	require.ErrorContains(t, c, "only one side uses TLS")
	require.ErrorIs(t, s, errSpeaksTLS)
}

func TestSecretsRotateInThreePassesInAnyOrder(t *testing.T) {
	passes := []*Security{
		withSecret(t, testca.SecretA),
		withSecret(t, testca.SecretA, testca.SecretB),
		withSecret(t, testca.SecretB, testca.SecretA),
		withSecret(t, testca.SecretB),
	}
	for i := range passes[:3] {
		requireTalk(t, passes[i].client, passes[i+1].Server)
		requireTalk(t, passes[i+1].client, passes[i].Server)
	}
	requireRefused(t, passes[0].client, passes[2].Server)
	requireRefused(t, passes[2].client, passes[0].Server)
}

func TestVersionIsCheckedAlsoWhereTheConfigWouldPermitAnother(t *testing.T) {
	a := withSecret(t, testca.SecretA)
	cs := tls.ConnectionState{Version: tls.VersionTLS12, NegotiatedProtocol: protocolALPN}
	require.ErrorContains(t, verifyProtocol(cs), "the peer speaks TLS 1.2, want TLS 1.3")
	cs.Version = tls.VersionTLS13
	require.NoError(t, verifyProtocol(cs))
	require.ErrorContains(t, a.Config.VerifyConnection(cs), "0 certificates", "no peer passes without one")
}

func TestFailedHandshakeClosesTheConnection(t *testing.T) {
	ours, theirs := net.Pipe()
	go theirs.Write(make([]byte, 8)) // no TLS
	_, err := withSecret(t, testca.SecretA).Server(t.Context(), ours)
	require.ErrorContains(t, err, "does not speak TLS")
	_, err = ours.Write([]byte{0})
	require.ErrorIs(t, err, io.ErrClosedPipe)
	theirs.Close()
}

func TestSilentPeerIsCutWhenTheContextEnds(t *testing.T) {
	for _, hands := range []side{withSecret(t, testca.SecretA).client, withSecret(t, testca.SecretA).Server} {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer theirs.Close()
			go io.Copy(io.Discard, theirs)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			start := time.Now()
			_, err := hands(ctx, ours)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorContains(t, err, "did not finish the TLS handshake")
			require.Equal(t, 5*time.Second, time.Since(start))
			_, err = ours.Write([]byte{0})
			require.ErrorIs(t, err, io.ErrClosedPipe, "the connection is closed")
		})
	}
}

func TestHandshakeErrorKeepsTheCauseAndIsExplainedOnce(t *testing.T) {
	require.NoError(t, HandshakeError(nil))
	once := HandshakeError(io.EOF)
	require.ErrorIs(t, once, io.EOF)
	require.Equal(t, once, HandshakeError(once))
	clear := errors.New("clear as it is")
	require.Equal(t, clear, HandshakeError(clear))
}

func TestListeningForStrangersInTheClearIsRefused(t *testing.T) {
	tcp := func(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 9000} }
	for _, addr := range []net.Addr{tcp("0.0.0.0"), tcp("::"), tcp("192.168.1.7"), &net.TCPAddr{Port: 9000},
		tcp("fe80::1"), named("node-1:9000")} {
		err := CheckListen(addr, false)
		for _, want := range []string{addr.String(), "Options.Secret", "Options.TLS", "Options.Insecure"} {
			require.ErrorContains(t, err, want)
		}
		require.NoError(t, CheckListen(addr, true))
		require.NoError(t, CheckListen(addr, true))
		require.NoError(t, CheckListen(addr, true))
	}
	for _, addr := range []net.Addr{tcp("127.0.0.1"), tcp("127.8.9.1"), tcp("::1"), tcp("::ffff:127.0.0.1"),
		&net.UnixAddr{Name: "/run/x", Net: "unix"}, named("127.0.0.1:9000"), named("[::ffff:127.0.0.1]:9000")} {
		require.NoError(t, CheckListen(addr, false), addr.String())
	}
}

func (named) Network() string { return "own" }

func (n named) String() string { return string(n) }
