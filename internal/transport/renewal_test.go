package transport

import (
	"bytes"
	"crypto/tls"
	"errors"
	"log/slog"
	"testing"

	"github.com/level-replicator/replicator/internal/testca"
	"github.com/stretchr/testify/require"
)

func TestRenewedCertificatesHoldForTheNextConnection(t *testing.T) {
	a, b := testca.NewAuthority(t), testca.NewAuthority(t)
	current, fails := a.Config(t), error(nil)
	var log bytes.Buffer
	s := secured(t, Credentials{
		GetTLS: func() (*tls.Config, error) { return current, fails }, Log: slog.New(slog.NewTextHandler(&log, nil)),
	})
	of := func(x *testca.Authority) *Security { return mutual(t, x.Config(t)) }
	both := func(other *Security) {
		t.Helper()
		requireTalk(t, s.client, other.Server)
		requireTalk(t, other.client, s.Server)
	}
	both(of(a))
	requireRefused(t, s.client, of(b).Server)

	current = b.Config(t) // certificate and authority, in both roles
	both(of(b))
	requireRefused(t, s.client, of(a).Server)
	requireRefused(t, of(a).client, s.Server)
	require.Contains(t, log.String(), "renewed=true")

	log.Reset()
	fails = errors.New("half written")
	both(of(b))
	both(of(b))
	fails, current = nil, &tls.Config{}
	both(of(b))
	require.Equal(t, 1, bytes.Count(log.Bytes(), []byte("half written")), &log)
	require.Contains(t, log.String(), "no certificate to accept peers with")
	current = a.Config(t)
	both(of(a))
}

func TestRenewedSecretsHoldForTheNextConnection(t *testing.T) {
	type keys struct {
		secret []byte
		old    [][]byte
	}
	one, two := keys{secret: testca.SecretA}, keys{secret: testca.SecretA}
	renewable := func(k *keys) *Security {
		return secured(t, Credentials{Log: slog.New(slog.DiscardHandler), GetSecrets: func() ([]byte, [][]byte, error) { return k.secret, k.old, nil }})
	}
	a, b := renewable(&one), renewable(&two)
	for _, pass := range []keys{{testca.SecretA, [][]byte{testca.SecretB}}, {testca.SecretB, [][]byte{testca.SecretA}}, {testca.SecretB, nil}} {
		for _, k := range []*keys{&one, &two} {
			*k = pass
			requireTalk(t, a.client, b.Server)
			requireTalk(t, b.client, a.Server)
		}
	}
	one = keys{secret: []byte("short")}
	requireTalk(t, a.client, b.Server)
	one = keys{secret: testca.SecretA}
	requireRefused(t, a.client, b.Server)
}

func TestCallbackOfTLSLearnsWhichHostWasDialed(t *testing.T) {
	a := testca.NewAuthority(t)
	var host string
	c := a.Config(t)
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		host = cs.ServerName
		return nil
	}
	requireTalk(t, to(mutual(t, c), "node.test:9000"), mutual(t, a.Config(t)).Server)
	require.Equal(t, "node.test", host)
}
