package replicator

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
)

// renewal is what [Options].GetTLS and GetSecrets came to. Safe for concurrent use.
type renewal struct {
	get    func(before *security) (*security, error) // returns before if nothing has changed
	latest atomic.Pointer[security]
	failed atomic.Pointer[string] // what get last said, while it fails
	log    *slog.Logger
}

// newRenewable makes a security that asks again for each connection.
func newRenewable(c credentials) (*security, error) {
	r := &renewal{log: c.log, get: func(before *security) (*security, error) { return getShared(c.cluster, c.getSecrets, before) }}
	if c.getTLS != nil {
		r.get = func(before *security) (*security, error) { return getMutual(c.getTLS, before) }
	}
	first, err := r.get(&security{})
	if err != nil {
		return nil, err
	}
	r.latest.Store(first)
	return &security{renewal: r}, nil
}

func getMutual(get func() (*tls.Config, error), before *security) (*security, error) {
	switch c, err := get(); {
	case err != nil:
		return nil, fmt.Errorf("replicator: Options.GetTLS: %w", err)
	case c == nil:
		return nil, errors.New("replicator: Options.GetTLS: returned nil, want a configuration")
	case c == before.callers:
		return before, nil
	default:
		return newMutual(c)
	}
}

func getShared(cluster string, get func() (secret []byte, old [][]byte, err error), before *security) (*security, error) {
	secret, old, err := get()
	if err != nil {
		return nil, fmt.Errorf("replicator: Options.GetSecrets: %w", err)
	}
	all := append([][]byte{secret}, old...)
	if slices.EqualFunc(all, before.secrets, bytes.Equal) {
		return before, nil
	}
	for _, s := range all {
		if len(s) < leastSecret {
			return nil, fmt.Errorf("replicator: Options.GetSecrets: %d bytes, want at least %d (see GenerateSecret)", len(s), leastSecret)
		}
	}
	return newShared(cluster, secret, old)
}

// now is what holds for a connection that begins now. If it cannot be had, what held
// before holds on: a file is half written, say.
func (s *security) now() *security {
	r := s.renewal
	if r == nil {
		return s
	}
	before := r.latest.Load()
	next, err := r.get(before)
	if err != nil {
		text := err.Error()
		if was := r.failed.Swap(&text); was == nil || *was != text {
			r.log.Error("replicator: secrets or certificates could not be renewed; those from before hold on", "error", err)
		}
		return before
	}
	renewed := next != before && r.latest.CompareAndSwap(before, next)
	if r.failed.Swap(nil) != nil || renewed {
		r.log.Info("replicator: secrets and certificates are up to date", "renewed", renewed)
	}
	return next
}
