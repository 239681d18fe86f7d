package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/level-replicator/replicator"
)

// renewInterval is how long files are assumed to be unchanged.
const renewInterval = time.Second

// renewed is a value parsed from files, again when they have changed. It compares their
// contents: a file can be replaced by one of the same size and time.
type renewed[T any] struct {
	files []string
	parse func(texts [][]byte) (T, error)

	mu    sync.Mutex
	next  time.Time // to read them
	texts [][]byte
	value T
	err   error
}

// get returns the value, and an error if the files cannot be used now.
func (r *renewed[T]) get() (T, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if now.Before(r.next) {
		return r.value, r.err
	}
	r.next = now.Add(renewInterval)
	var texts [][]byte
	for _, file := range r.files {
		text, err := os.ReadFile(file)
		if err != nil {
			r.err = err
			return r.value, err
		}
		texts = append(texts, text)
	}
	if r.err == nil && r.texts != nil && slices.EqualFunc(texts, r.texts, bytes.Equal) {
		return r.value, nil
	}
	value, err := r.parse(texts)
	if r.err = err; err == nil {
		r.value, r.texts = value, texts
	}
	return r.value, err
}

// again has the next get read the files.
func (r *renewed[T]) again() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next = time.Time{}
}

// secrets are what --secret-file and --old-secret-file hold.
type secrets struct {
	own []byte
	old [][]byte
}

func (s *serving) setSecrets(o *replicator.Options) error {
	if s.secret == "" {
		if len(s.oldSecrets) > 0 {
			return &usageError{errors.New("--old-secret-file without --secret-file"), "an old secret is accepted beside the one of --secret-file"}
		}
		return nil
	}
	files := append([]string{s.secret}, s.oldSecrets...)
	r := &renewed[*secrets]{files: files, parse: func(texts [][]byte) (*secrets, error) {
		var all secrets
		for i, text := range texts {
			found, err := parseSecrets(files[i], text)
			if err != nil {
				return nil, err
			}
			if i == 0 {
				if len(found) != 1 {
					return nil, &usageError{fmt.Errorf("%s holds %d secrets, want one", files[i], len(found)), "levelrepl secret FILE makes one"}
				}
				all.own = found[0]
			} else {
				all.old = append(all.old, found...)
			}
		}
		return &all, nil
	}}
	if _, err := r.get(); errors.Is(err, os.ErrNotExist) {
		return &hintedError{fmt.Errorf("read the secret: %w", err), "levelrepl secret " + s.secret + " makes one; all replicas of a cluster have the same"}
	} else if err != nil {
		return err
	}
	o.GetSecrets = func() ([]byte, [][]byte, error) {
		all, err := r.get()
		if err != nil {
			return nil, nil, err
		}
		return all.own, all.old, nil
	}
	s.again = r.again
	return nil
}

// parseSecrets reads secrets, one per line.
func parseSecrets(file string, text []byte) (list [][]byte, err error) {
	for line := range strings.FieldsSeq(string(text)) {
		secret, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(secret) < 16 {
			return nil, &usageError{fmt.Errorf("%s holds no secret: want at least 16 bytes in base64", file), "levelrepl secret FILE makes one; a password will not do"}
		}
		list = append(list, secret)
	}
	return list, nil
}

func (s *serving) setTLS(o *replicator.Options) error {
	if s.tlsCert == "" && s.tlsKey == "" && s.tlsCA == "" {
		return nil
	}
	if s.tlsCert == "" || s.tlsKey == "" || s.tlsCA == "" {
		return &usageError{errors.New("--tls-cert, --tls-key and --tls-ca go together"), "peers prove themselves to each other, so each needs a certificate and the authority"}
	}
	if s.secret != "" {
		return &usageError{errors.New("--tls-cert beside --secret-file"), "give one of the two"}
	}
	r := &renewed[*tls.Config]{files: []string{s.tlsCert, s.tlsKey, s.tlsCA}, parse: func(texts [][]byte) (*tls.Config, error) {
		certificate, err := tls.X509KeyPair(texts[0], texts[1])
		if err != nil {
			return nil, fmt.Errorf("--tls-cert %s: %w", s.tlsCert, err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(texts[2]) {
			return nil, fmt.Errorf("--tls-ca %s: no certificate in it", s.tlsCA)
		}
		return &tls.Config{Certificates: []tls.Certificate{certificate}, RootCAs: pool, ClientCAs: pool}, nil
	}}
	if _, err := r.get(); err != nil {
		return err
	}
	o.GetTLS, s.again = r.get, r.again
	return nil
}

// hangups reads secrets and certificates again on SIGHUP, which would end the process
// otherwise, until the function that it returns is called.
func (s *serving) hangups(ctx context.Context, o *replicator.Options) (stop func()) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangup:
			}
			if s.again == nil {
				o.Logger.Info("SIGHUP: there are no secrets or certificates to read again")
				continue
			}
			s.again()
			err := error(nil)
			if o.GetTLS != nil {
				_, err = o.GetTLS()
			} else {
				_, _, err = o.GetSecrets()
			}
			if err != nil {
				o.Logger.Error("SIGHUP: cannot read secrets or certificates again; the old ones stay in use", "error", err)
			} else {
				o.Logger.Info("SIGHUP: secrets or certificates were read again")
			}
		}
	}()
	return func() {
		signal.Stop(hangup)
		cancel()
	}
}
