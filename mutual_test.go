package replicator

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// authority issues certificates as an operator's own would.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{cert, key, pool}
}

// issue certifies a host name, and 127.0.0.1, for both roles and 100 days.
func (a *authority) issue(t *testing.T, host string) []tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(100 * 24 * time.Hour),
		DNSNames: []string{host}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	require.NoError(t, err)
	return []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
}

func (a *authority) config(t *testing.T) *tls.Config {
	t.Helper()
	return &tls.Config{Certificates: a.issue(t, "node.test"), ClientCAs: a.pool, RootCAs: a.pool}
}

func mutual(t *testing.T, c *tls.Config) *security {
	t.Helper()
	return secured(t, credentials{tls: c})
}

func to(s *security, addr string) side {
	return func(ctx context.Context, conn net.Conn) (net.Conn, error) { return s.clientTo(ctx, conn, addr) }
}

func TestServersOfOneAuthorityTalk(t *testing.T) {
	a := newAuthority(t)
	one, two := mutual(t, a.config(t)), mutual(t, a.config(t))
	requireTalk(t, one.client, two.server)
	requireTalk(t, to(one, "node.test:9000"), two.server)
}

func TestServerIsRefusedForAnotherHostThanDialed(t *testing.T) {
	a := newAuthority(t)
	one, two := mutual(t, a.config(t)), mutual(t, a.config(t))
	c, s := requireRefused(t, to(one, "other.test:9000"), two.server)
	require.ErrorContains(t, c, "not trusted here")
	require.ErrorContains(t, c, "other.test")
	require.ErrorContains(t, s, "the peer refused this server")

	pinned := a.config(t)
	pinned.ServerName = "node.test"
	requireTalk(t, to(mutual(t, pinned), "other.test:9000"), two.server)
}

func TestAnotherAuthorityIsRefusedInBothRoles(t *testing.T) {
	a, b := newAuthority(t), newAuthority(t)
	one := mutual(t, a.config(t))
	requireRefused(t, one.client, mutual(t, b.config(t)).server)

	// A client that trusts us but that we do not: it sees an alert, late.
	c := b.config(t)
	c.RootCAs = a.pool
	client, server := requireRefused(t, mutual(t, c).client, one.server)
	require.ErrorContains(t, client, "another authority")
	require.ErrorContains(t, server, "not trusted here")
}

func TestTLSIsEnforcedWhateverTheCallersConfigSays(t *testing.T) {
	a := newAuthority(t)
	weak := a.config(t)
	weak.ClientAuth = tls.NoClientCert
	weak.MaxVersion = tls.VersionTLS12
	weak.NextProtos = []string{"h2"}
	perClient := a.config(t)
	perClient.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return weak, nil }
	fallback := a.config(t)
	fallback.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, nil }

	for _, c := range []*tls.Config{weak, perClient, fallback} {
		s := mutual(t, c)
		requireTalk(t, mutual(t, a.config(t)).client, s.server)
		for _, change := range []func(*tls.Config){
			func(c *tls.Config) { c.Certificates = nil },
			func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 },
			func(c *tls.Config) { c.NextProtos = nil },
			func(c *tls.Config) { c.NextProtos = []string{"h2"} },
		} {
			client, _ := hostile(t, func(c *tls.Config) {
				c.Certificates = a.issue(t, "node.test")
				c.MinVersion = tls.VersionTLS12
				change(c)
			})
			requireRefused(t, client, s.server)
		}
	}
}

func TestPerClientConfigThatVerifiesNobodyIsRefused(t *testing.T) {
	a := newAuthority(t)
	c := a.config(t)
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{Certificates: a.issue(t, "node.test")}, nil
	}
	_, s := requireRefused(t, mutual(t, a.config(t)).client, mutual(t, c).server)
	require.ErrorContains(t, s, "neither ClientCAs nor VerifyConnection")
}

func TestCallersConfigIsNotModified(t *testing.T) {
	a := newAuthority(t)
	c := a.config(t)
	c.NextProtos = []string{"h2"}
	c.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	s := mutual(t, c)
	requireTalk(t, s.client, s.server)

	require.EqualValues(t, tls.VersionTLS13, s.config.MinVersion)
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
	a := newAuthority(t)
	var calls atomic.Int32
	c := a.config(t)
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
		requireTalk(t, to(s, "node.test:1"), s.server)
	}
	require.EqualValues(t, 6, calls.Load())

	strict := a.config(t)
	strict.VerifyConnection = func(tls.ConnectionState) error { return errors.New("not this one") }
	_, refusal := requireRefused(t, s.client, mutual(t, strict).server)
	require.ErrorContains(t, refusal, "not this one")
}

func TestConfigThatCannotWorkOrLetsStrangersInIsRefused(t *testing.T) {
	a := newAuthority(t)
	for want, change := range map[string]func(*tls.Config){
		"no certificate to accept": func(c *tls.Config) { c.Certificates = nil },
		"no certificate to dial": func(c *tls.Config) {
			c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c.Certificates[0], nil }
			c.Certificates = nil
		},
		"want ClientCAs or VerifyConnection": func(c *tls.Config) { c.ClientCAs = nil },
		"InsecureSkipVerify trusts any":      func(c *tls.Config) { c.InsecureSkipVerify = true },
	} {
		c := a.config(t)
		change(c)
		_, err := newSecurity(credentials{tls: c})
		require.ErrorContains(t, err, "replicator: Options.TLS: ")
		require.ErrorContains(t, err, want)
	}
}

func TestExpiryWarnsOnceAtEachStep(t *testing.T) {
	s := mutual(t, newAuthority(t).config(t)) // 100 days
	start := time.Now()
	var warned []int
	for day := range 103 {
		left, warn := s.expiry(start.Add(time.Duration(day) * 24 * time.Hour))
		require.InDelta(t, float64(100-day)*24, left.Hours(), 1)
		if warn {
			warned = append(warned, 100-day)
		}
	}
	require.Equal(t, []int{30, 7, 1, 0}, warned)
}

func TestExpiryOfCertificatesFromCallbacksIsWatchedAndRenewalsCalmIt(t *testing.T) {
	a := newAuthority(t)
	cert := a.issue(t, "node.test")
	c := a.config(t)
	c.Certificates = nil
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert[0], nil }
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert[0], nil }
	s := mutual(t, c)
	late := time.Now().Add(95 * 24 * time.Hour)
	_, warn := s.expiry(late)
	require.False(t, warn, "nothing was presented yet")
	requireTalk(t, s.client, s.server)
	_, warn = s.expiry(late)
	require.True(t, warn)
	_, warn = s.expiry(time.Now())
	require.False(t, warn, "as after a renewal")
	_, warn = s.expiry(late)
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
	for _, s := range []*security{withSecret(t, secretA), secured(t, credentials{})} {
		left, warn := s.expiry(time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC))
		require.False(t, warn)
		require.Greater(t, left, 250*365*24*time.Hour)
	}
}
