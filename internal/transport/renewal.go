package transport

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
	get    func(before *Security) (*Security, error) // returns before if nothing has changed
	latest atomic.Pointer[Security]
	failed atomic.Pointer[string] // what get last said, while it fails
	notify func()                 // called when get has returned others; nil: nobody wants to know
	log    *slog.Logger
}

// newRenewable makes a security that asks again for each connection.
func newRenewable(c Credentials) (*Security, error) {
	r := &renewal{log: c.Log, get: func(before *Security) (*Security, error) { return getShared(c.Cluster, c.GetSecrets, before) }}
	if c.GetTLS != nil {
		r.get = func(before *Security) (*Security, error) { return getMutual(c.GetTLS, before) }
	}
	first, err := r.get(&Security{})
	if err != nil {
		return nil, err
	}
	r.latest.Store(first)
	return &Security{renewal: r}, nil
}

func getMutual(get func() (*tls.Config, error), before *Security) (*Security, error) {
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

func getShared(cluster string, get func() (secret []byte, old [][]byte, err error), before *Security) (*Security, error) {
	secret, old, err := get()
	if err != nil {
		return nil, fmt.Errorf("replicator: Options.GetSecrets: %w", err)
	}
	all := append([][]byte{secret}, old...)
	if slices.EqualFunc(all, before.secrets, bytes.Equal) {
		return before, nil
	}
	for _, s := range all {
		if len(s) < LeastSecret {
			return nil, fmt.Errorf("replicator: Options.GetSecrets: %d bytes, want at least %d (see GenerateSecret)", len(s), LeastSecret)
		}
	}
	return newShared(cluster, secret, old)
}

// now is what holds for a connection that begins now. If it cannot be had, what held
// before holds on: a file is half written, say.
func (s *Security) now() *Security {
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
	if renewed && r.notify != nil {
		r.notify()
	}
	return next
}
