package replicator

import (
	"crypto/tls"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/mdns"
	"github.com/level-replicator/replicator/internal/schedule"
	"github.com/level-replicator/replicator/internal/testca"
	"github.com/level-replicator/replicator/internal/transport"
	"github.com/stretchr/testify/require"
)

func TestPausesThatMeanNeverAreLongPauses(t *testing.T) {
	o, err := (&Options{MinInterval: math.MaxInt64, MaxInterval: math.MaxInt64}).withDefaults()
	require.NoError(t, err)
	for range 100 {
		require.Greater(t, schedule.Jitter(o.MaxInterval), 200*24*time.Hour)
		require.Greater(t, schedule.Jitter(o.MinInterval), 200*24*time.Hour)
	}
	require.Positive(t, 4*o.MaxInterval)
	for _, r := range []float64{0, 0.5, 1} {
		require.Greater(t, mdns.SpreadInterval(longest, r), 200*24*time.Hour)
	}
}

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

func TestOptionsThatCouldNotWorkAreNamed(t *testing.T) {
	for want, o := range map[string]Options{
		"Options.Limits.ReadRate: -1, want 0 for no bound or at least 65536":   {Limits: Limits{ReadRate: -1}},
		"Options.Limits.WriteRate: 100, want 0 for no bound or at least 65536": {Limits: Limits{WriteRate: 100}},
		"Options.Limits.MaxInFlight: 1000, want at least 8388608":              {Limits: Limits{MaxInFlight: 1000}},
		"Options.Limits.MaxPending: -1":                                        {Limits: Limits{MaxPending: -1}},
		"Options.Limits.MaxValue: 2147483647, want 1 to":                       {Limits: Limits{MaxValue: math.MaxInt32}},
		"Options.Secret: 5 bytes":                                              {Secret: []byte("short")},
		"Options.OldSecrets: 3 bytes":                                          {Secret: testca.SecretA, OldSecrets: [][]byte{[]byte("old")}},
		"Options.MinInterval: 1m0s, want at most MaxInterval":                  {MinInterval: time.Minute},
		`Options.Peers: address "nowhere"`:                                     {Peers: []string{"nowhere"}},
	} {
		_, err := o.withDefaults()
		require.ErrorContains(t, err, want)
	}
}

func TestCachesGrowUnlessAnOptionBoundsThem(t *testing.T) {
	for _, c := range []struct {
		o                   Options
		cache, most, filter int
	}{
		{Options{}, 32 << 20, 256 << 20, 64 << 20},
		{Options{CacheSize: 1 << 20, FilterSize: 2 << 20}, 1 << 20, 0, 2 << 20},
		{Options{CacheSize: -1, FilterSize: -1}, -1, 0, -1},
	} {
		o, err := c.o.withDefaults()
		require.NoError(t, err)
		got := o.replicaConfig(nil)
		require.Equal(t, []int{c.cache, c.most, c.filter}, []int{got.CacheSize, got.MostCache, got.FilterSize})
	}
}
