package replicator

import (
	"crypto/tls"
	"errors"
	"testing"

	"github.com/level-replicator/replicator/internal/testca"
	"github.com/level-replicator/replicator/internal/transport"
	"github.com/stretchr/testify/require"
)

func TestWhatCannotBeHadAtTheOpeningIsRefused(t *testing.T) {
	for want, o := range map[string]Options{
		"GetTLS: no file":        {GetTLS: func() (*tls.Config, error) { return nil, errors.New("no file") }},
		"GetTLS: returned nil":   {GetTLS: func() (*tls.Config, error) { return nil, nil }},
		"Options.TLS: no certif": {GetTLS: func() (*tls.Config, error) { return &tls.Config{}, nil }},
		"GetSecrets: 2 bytes":    {GetSecrets: func() ([]byte, [][]byte, error) { return []byte("ab"), nil, nil }},
	} {
		_, err := transport.NewSecurity(o.credentials())
		require.ErrorContains(t, err, want)
	}
	for _, o := range []Options{
		{GetTLS: func() (*tls.Config, error) { return nil, nil }, Secret: testca.SecretA},
		{GetSecrets: func() ([]byte, [][]byte, error) { return nil, nil, nil }, TLS: &tls.Config{}},
		{GetSecrets: func() ([]byte, [][]byte, error) { return nil, nil, nil }, OldSecrets: [][]byte{testca.SecretA}},
	} {
		_, err := o.withDefaults()
		require.ErrorContains(t, err, "want one of them")
	}
}
