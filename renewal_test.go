package replicator

import (
	"bytes"
	"crypto/tls"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRenewedCertificatesHoldForTheNextConnection(t *testing.T) {
	a, b := newAuthority(t), newAuthority(t)
	current, fails := a.config(t), error(nil)
	var log bytes.Buffer
	s := secured(t, credentials{
		getTLS: func() (*tls.Config, error) { return current, fails }, log: slog.New(slog.NewTextHandler(&log, nil)),
	})
	of := func(x *authority) *security { return mutual(t, x.config(t)) }
	both := func(other *security) {
		t.Helper()
		requireTalk(t, s.client, other.server)
		requireTalk(t, other.client, s.server)
	}
	both(of(a))
	requireRefused(t, s.client, of(b).server)
	late := time.Now().Add(95 * 24 * time.Hour)
	_, warn := s.expiry(late)
	require.True(t, warn)

	current = b.config(t) // certificate and authority, in both roles
	both(of(b))
	requireRefused(t, s.client, of(a).server)
	requireRefused(t, of(a).client, s.server)
	_, warn = s.expiry(late)
	require.True(t, warn, "of the new one")
	require.Contains(t, log.String(), "renewed=true")

	log.Reset()
	fails = errors.New("half written")
	both(of(b))
	both(of(b))
	fails, current = nil, &tls.Config{}
	both(of(b))
	require.Equal(t, 1, bytes.Count(log.Bytes(), []byte("half written")), &log)
	require.Contains(t, log.String(), "no certificate to accept peers with")
	current = a.config(t)
	both(of(a))
}

func TestRenewedSecretsHoldForTheNextConnection(t *testing.T) {
	type keys struct {
		secret []byte
		old    [][]byte
	}
	one, two := keys{secret: secretA}, keys{secret: secretA}
	renewable := func(k *keys) *security {
		return secured(t, credentials{log: slog.New(slog.DiscardHandler), getSecrets: func() ([]byte, [][]byte, error) { return k.secret, k.old, nil }})
	}
	a, b := renewable(&one), renewable(&two)
	for _, pass := range []keys{{secretA, [][]byte{secretB}}, {secretB, [][]byte{secretA}}, {secretB, nil}} {
		for _, k := range []*keys{&one, &two} {
			*k = pass
			requireTalk(t, a.client, b.server)
			requireTalk(t, b.client, a.server)
		}
	}
	one = keys{secret: []byte("short")}
	requireTalk(t, a.client, b.server)
	one = keys{secret: secretA}
	requireRefused(t, a.client, b.server)
}

func TestWhatCannotBeHadAtTheOpeningIsRefused(t *testing.T) {
	for want, o := range map[string]Options{
		"GetTLS: no file":        {GetTLS: func() (*tls.Config, error) { return nil, errors.New("no file") }},
		"GetTLS: returned nil":   {GetTLS: func() (*tls.Config, error) { return nil, nil }},
		"Options.TLS: no certif": {GetTLS: func() (*tls.Config, error) { return &tls.Config{}, nil }},
		"GetSecrets: 2 bytes":    {GetSecrets: func() ([]byte, [][]byte, error) { return []byte("ab"), nil, nil }},
	} {
		_, err := newSecurity(o.credentials())
		require.ErrorContains(t, err, want)
	}
	for _, o := range []Options{
		{GetTLS: func() (*tls.Config, error) { return nil, nil }, Secret: secretA},
		{GetSecrets: func() ([]byte, [][]byte, error) { return nil, nil, nil }, TLS: &tls.Config{}},
		{GetSecrets: func() ([]byte, [][]byte, error) { return nil, nil, nil }, OldSecrets: [][]byte{secretA}},
	} {
		_, err := o.withDefaults()
		require.ErrorContains(t, err, "want one of them")
	}
}

func TestCallbackOfTLSLearnsWhichHostWasDialed(t *testing.T) {
	a := newAuthority(t)
	var host string
	c := a.config(t)
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		host = cs.ServerName
		return nil
	}
	requireTalk(t, to(mutual(t, c), "node.test:9000"), mutual(t, a.config(t)).server)
	require.Equal(t, "node.test", host)
}
