package transport

import (
	"crypto/tls"
	"crypto/x509"
	"sync/atomic"
	"time"
)

// expiryWatch knows when the caller's own certificates run out: replication
// would stop on one day everywhere, without anybody having changed anything.
type expiryWatch struct {
	fixed  time.Time    // of Certificates; zero if there are none
	latest atomic.Int64 // of the last one that a callback gave, Unix seconds; 0 before
	step   atomic.Int32 // the last that was reported
}

// watch notes the leaf certificates that c holds, and those that its callbacks
// will present.
func (w *expiryWatch) watch(c *tls.Config) {
	for i := range c.Certificates {
		if end := notAfter(&c.Certificates[i]); w.fixed.IsZero() || !end.IsZero() && end.Before(w.fixed) {
			w.fixed = end
		}
	}
	note := func(cert *tls.Certificate) {
		if cert == nil {
			return
		}
		if end := notAfter(cert); !end.IsZero() {
			w.latest.Store(end.Unix())
		}
	}
	if get := c.GetCertificate; get != nil {
		c.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert, err := get(hello)
			note(cert)
			return cert, err
		}
	}
	if get := c.GetClientCertificate; get != nil {
		c.GetClientCertificate = func(request *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := get(request)
			note(cert)
			return cert, err
		}
	}
}

// notAfter is zero for a certificate that cannot be read; the handshake
// will say so.
func notAfter(cert *tls.Certificate) time.Time {
	leaf := cert.Leaf
	if leaf == nil && len(cert.Certificate) > 0 {
		leaf, _ = x509.ParseCertificate(cert.Certificate[0])
	}
	if leaf == nil {
		return time.Time{}
	}
	return leaf.NotAfter
}

// Expiry is that of the certificate that holds now.
func (s *Security) Expiry(now time.Time) (left time.Duration, warn bool) {
	return s.now().expiryWatch.expiry(now)
}

// expiry tells how long the caller's own certificate still holds, and whether
// to warn of it now: once each at 30, 7 and 1 days before and when it is over,
// if asked about once a day, and again after a renewal. Without a certificate
// of the caller's nothing ends.
func (w *expiryWatch) expiry(now time.Time) (left time.Duration, warn bool) {
	left = 1<<63 - 1
	if !w.fixed.IsZero() {
		left = w.fixed.Sub(now)
	}
	if latest := w.latest.Load(); latest != 0 {
		left = min(left, time.Unix(latest, 0).Sub(now))
	}
	step := expiryStep(left)
	return left, w.step.Swap(step) < step
}

// expiryStep counts the warnings that are due when so much time is left.
func expiryStep(left time.Duration) int32 {
	const day = 24 * time.Hour
	step := int32(0)
	for _, bound := range []time.Duration{30 * day, 7 * day, day, 0} {
		if left <= bound {
			step++
		}
	}
	return step
}
