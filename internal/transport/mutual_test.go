package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/testca"
	"github.com/stretchr/testify/require"
)

func mutual(t *testing.T, c *tls.Config) *Security {
	t.Helper()
	return secured(t, Credentials{Tls: c})
}

func to(s *Security, addr string) side {
	return func(ctx context.Context, conn net.Conn) (net.Conn, error) { return s.ClientTo(ctx, conn, addr) }
}

func TestServersOfOneAuthorityTalk(t *testing.T) {
	a := testca.NewAuthority(t)
	one, two := mutual(t, a.Config(t)), mutual(t, a.Config(t))
	requireTalk(t, one.Client, two.Server)
	requireTalk(t, to(one, "node.test:9000"), two.Server)
}

func TestServerIsRefusedForAnotherHostThanDialed(t *testing.T) {
	a := testca.NewAuthority(t)
	one, two := mutual(t, a.Config(t)), mutual(t, a.Config(t))
	c, s := requireRefused(t, to(one, "other.test:9000"), two.Server)
	require.ErrorContains(t, c, "not trusted here")
	require.ErrorContains(t, c, "other.test")
	require.ErrorContains(t, s, "the peer refused this server")

	pinned := a.Config(t)
	pinned.ServerName = "node.test"
	requireTalk(t, to(mutual(t, pinned), "other.test:9000"), two.Server)
}

func TestAnotherAuthorityIsRefusedInBothRoles(t *testing.T) {
	a, b := testca.NewAuthority(t), testca.NewAuthority(t)
	one := mutual(t, a.Config(t))
	requireRefused(t, one.Client, mutual(t, b.Config(t)).Server)

	// A client that trusts us but that we do not: it sees an alert, late.
	c := b.Config(t)
	c.RootCAs = a.Pool
	client, server := requireRefused(t, mutual(t, c).Client, one.Server)
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
		requireTalk(t, mutual(t, a.Config(t)).Client, s.Server)
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
	_, s := requireRefused(t, mutual(t, a.Config(t)).Client, mutual(t, c).Server)
	require.ErrorContains(t, s, "neither ClientCAs nor VerifyConnection")
}

func TestCallersConfigIsNotModified(t *testing.T) {
	a := testca.NewAuthority(t)
	c := a.Config(t)
	c.NextProtos = []string{"h2"}
	c.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	s := mutual(t, c)
	requireTalk(t, s.Client, s.Server)

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
	require.EqualValues(t, 6, calls.Load())

	strict := a.Config(t)
	strict.VerifyConnection = func(tls.ConnectionState) error { return errors.New("not this one") }
	_, refusal := requireRefused(t, s.Client, mutual(t, strict).Server)
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
		_, err := NewSecurity(Credentials{Tls: c})
		require.ErrorContains(t, err, "replicator: Options.TLS: ")
		require.ErrorContains(t, err, want)
	}
}

func TestExpiryWarnsOnceAtEachStep(t *testing.T) {
	s := mutual(t, testca.NewAuthority(t).Config(t)) // 100 days
	start := time.Now()
	var warned []int
	for day := range 103 {
		left, warn := s.Expiry(start.Add(time.Duration(day) * 24 * time.Hour))
		require.InDelta(t, float64(100-day)*24, left.Hours(), 1)
		if warn {
			warned = append(warned, 100-day)
		}
	}
	require.Equal(t, []int{30, 7, 1, 0}, warned)
}

func TestExpiryOfCertificatesFromCallbacksIsWatchedAndRenewalsCalmIt(t *testing.T) {
	a := testca.NewAuthority(t)
	cert := a.Issue(t, "node.test")
	c := a.Config(t)
	c.Certificates = nil
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert[0], nil }
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert[0], nil }
	s := mutual(t, c)
	late := time.Now().Add(95 * 24 * time.Hour)
	_, warn := s.Expiry(late)
	require.False(t, warn, "nothing was presented yet")
	requireTalk(t, s.Client, s.Server)
	_, warn = s.Expiry(late)
	require.True(t, warn)
	_, warn = s.Expiry(time.Now())
	require.False(t, warn, "as after a renewal")
	_, warn = s.Expiry(late)
	require.True(t, warn, "and then again")
}

func TestTheFirstCertificateToExpireCounts(t *testing.T) {
	now := time.Now()
	ends := func(days int) tls.Certificate {
		return tls.Certificate{Leaf: &x509.Certificate{NotAfter: now.Add(time.Duration(days) * 24 * time.Hour)}}
	}
	for _, certs := range [][]tls.Certificate{{ends(5), ends(50)}, {ends(50), ends(5)}} {
		var w expiryWatch
		w.watch(&tls.Config{Certificates: certs})
		left, warn := w.expiry(now)
		require.Equal(t, 5*24*time.Hour, left)
		require.True(t, warn)
	}
}

func TestSecretsDoNotExpire(t *testing.T) {
	for _, s := range []*Security{WithSecret(t, testca.SecretA), secured(t, Credentials{})} {
		left, warn := s.Expiry(time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC))
		require.False(t, warn)
		require.Greater(t, left, 250*365*24*time.Hour)
	}
}
