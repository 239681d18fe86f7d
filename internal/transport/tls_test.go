package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"
	"testing"

	"github.com/level-replicator/replicator/internal/testca"
	"github.com/stretchr/testify/require"
)

func mutual(t *testing.T, c *tls.Config) *Security {
	t.Helper()
	return secured(t, Credentials{TLS: c})
}

func to(s *Security, addr string) side {
	return func(ctx context.Context, conn net.Conn) (net.Conn, error) { return s.ClientTo(ctx, conn, addr) }
}

func TestServersOfOneAuthorityTalk(t *testing.T) {
	a := testca.NewAuthority(t)
	one, two := mutual(t, a.Config(t)), mutual(t, a.Config(t))
	requireTalk(t, one.client, two.Server)
	requireTalk(t, to(one, "node.test:9000"), two.Server)
}

func TestServerIsRefusedForAnotherHostThanDialed(t *testing.T) {
	a := testca.NewAuthority(t)
	one, two := mutual(t, a.Config(t)), mutual(t, a.Config(t))
	c, s := requireRefused(t, to(one, "other.test:9000"), two.Server)
	require.ErrorContains(t, c, "not trusted here")
	require.ErrorContains(t, c, "other.test")
	require.ErrorContains(t, s, "the peer refused this replica")

	pinned := a.Config(t)
	pinned.ServerName = "node.test"
	requireTalk(t, to(mutual(t, pinned), "other.test:9000"), two.Server)
}

func TestAnotherAuthorityIsRefusedInBothRoles(t *testing.T) {
	a, b := testca.NewAuthority(t), testca.NewAuthority(t)
	one := mutual(t, a.Config(t))
	requireRefused(t, one.client, mutual(t, b.Config(t)).Server)

	// A client that trusts us but that we do not: it sees an alert, late.
	c := b.Config(t)
	c.RootCAs = a.Pool
	client, server := requireRefused(t, mutual(t, c).client, one.Server)
	require.ErrorContains(t, client, "another authority")
	require.ErrorContains(t, server, "not trusted here")
}

func TestTLSIsEnforcedWhateverTheCallersConfigSays(t *testing.T) {
	a := testca.NewAuthority(t)
	weak := a.Config(t)
	weak.ClientAuth = tls.NoClientCert
	weak.MaxVersion = tls.VersionTLS12
	weak.NextProtos = []string{"h2"}
	perClient := a.Config(t)
	perClient.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return weak, nil }
	fallback := a.Config(t)
	fallback.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, nil }

	for _, c := range []*tls.Config{weak, perClient, fallback} {
		s := mutual(t, c)
		requireTalk(t, mutual(t, a.Config(t)).client, s.Server)
		for _, change := range []func(*tls.Config){
			func(c *tls.Config) { c.Certificates = nil },
			func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 },
			func(c *tls.Config) { c.NextProtos = nil },
			func(c *tls.Config) { c.NextProtos = []string{"h2"} },
		} {
			client, _ := hostile(t, func(c *tls.Config) {
				c.Certificates = a.Issue(t, "node.test")
				c.MinVersion = tls.VersionTLS12
				change(c)
			})
			requireRefused(t, client, s.Server)
		}
	}
}

func TestPerClientConfigThatVerifiesNobodyIsRefused(t *testing.T) {
	a := testca.NewAuthority(t)
	c := a.Config(t)
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{Certificates: a.Issue(t, "node.test")}, nil
	}
	_, s := requireRefused(t, mutual(t, a.Config(t)).client, mutual(t, c).Server)
	require.ErrorContains(t, s, "neither ClientCAs nor VerifyConnection")
}

func TestCallersConfigIsNotModified(t *testing.T) {
	a := testca.NewAuthority(t)
	c := a.Config(t)
	c.NextProtos = []string{"h2"}
	c.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	s := mutual(t, c)
	requireTalk(t, s.client, s.Server)

	require.EqualValues(t, tls.VersionTLS13, s.Config.MinVersion)
	require.Equal(t, []string{"h2"}, c.NextProtos)
	require.NotNil(t, c.ClientSessionCache)
	require.Zero(t, c.MinVersion)
	require.Zero(t, c.MaxVersion)
	require.Zero(t, c.ClientAuth)
	require.Empty(t, c.ServerName)
	require.False(t, c.SessionTicketsDisabled)
	require.Nil(t, c.VerifyConnection)
	require.Nil(t, c.GetCertificate)
	require.Nil(t, c.GetClientCertificate)
}

func TestNoConnectionSkipsTheCallersVerification(t *testing.T) {
	a := testca.NewAuthority(t)
	var calls atomic.Int32
	c := a.Config(t)
	c.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		calls.Add(1)
		if cs.DidResume {
			return errors.New("resumed")
		}
		return nil
	}
	s := mutual(t, c)
	for range 3 {
		requireTalk(t, to(s, "node.test:1"), s.Server)
	}
	require.EqualValues(t, 6+2, calls.Load(), "the server asks before it resumes")

	strict := a.Config(t)
	strict.VerifyConnection = func(tls.ConnectionState) error { return errors.New("not this one") }
	_, refusal := requireRefused(t, s.client, mutual(t, strict).Server)
	require.ErrorContains(t, refusal, "not this one")
}

func TestConfigThatCannotWorkOrLetsStrangersInIsRefused(t *testing.T) {
	a := testca.NewAuthority(t)
	for want, change := range map[string]func(*tls.Config){
		"no certificate to accept": func(c *tls.Config) { c.Certificates = nil },
		"no certificate to dial": func(c *tls.Config) {
			c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c.Certificates[0], nil }
			c.Certificates = nil
		},
		"want ClientCAs or VerifyConnection": func(c *tls.Config) { c.ClientCAs = nil },
		"InsecureSkipVerify trusts any":      func(c *tls.Config) { c.InsecureSkipVerify = true },
	} {
		c := a.Config(t)
		change(c)
		_, err := NewSecurity(Credentials{TLS: c})
		require.ErrorContains(t, err, "replicator: Options.TLS: ")
		require.ErrorContains(t, err, want)
	}
}
