package transport

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"slices"
	"time"
)

// visit is one connection that was dialed, and its session cache.
type visit struct {
	tickets *tickets
	key     string // where to: several replicas may have one name, or one address
	config  *tls.Config
	got     held // what the connection began with, less the ticket if it was a full handshake
}

// visit prepares a connection; nil if it takes no tickets, or keeps them with the caller's.
func (t *tickets) visit(c *tls.Config, conn net.Conn, addr string) *visit {
	if c.SessionTicketsDisabled || c.ClientSessionCache != nil {
		return nil
	}
	return &visit{tickets: t, config: c, key: addr + " " + conn.RemoteAddr().String()}
}

// resuming returns a configuration that resumes an earlier session, or nil if none may be.
func (v *visit) resuming() *tls.Config {
	h, ok := v.tickets.held.take(v.key)
	if !ok || !h.holds(v.config, v.presents(h.request), !v.config.InsecureSkipVerify, v.config.RootCAs, x509.ExtKeyUsageServerAuth) {
		return nil
	}
	ticket, _, err := h.ticket.ResumptionState()
	if err != nil || len(ticket) != ticketSize {
		return nil
	}
	v.got = h
	c := v.config.Clone()
	c.ClientSessionCache = v
	c.NextProtos = append(slices.Clip(c.NextProtos), v.tickets.offer(ticket))
	if len(c.CurvePreferences) == 0 {
		c.CurvePreferences = resumedCurves
	}
	resumeOnly(c)
	return c
}

// full returns a configuration for a full handshake.
func (v *visit) full() *tls.Config {
	v.got = held{met: met{since: time.Now(), own: v.presents(nil)}}
	c := v.config.Clone()
	c.ClientSessionCache = v
	if get := c.GetClientCertificate; get != nil {
		c.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := get(r)
			if cert != nil {
				v.got.request, v.got.own = r, certificateSum(*cert)
			}
			return cert, err
		}
	}
	return c
}

// presents returns the sum of the certificates that we present when asked by a request.
func (v *visit) presents(r *tls.CertificateRequestInfo) string {
	if r != nil {
		if cert, err := v.config.GetClientCertificate(r); err == nil && cert != nil {
			return certificateSum(*cert)
		}
	}
	return certificateSum(v.config.Certificates...)
}

// begun notes whom the connection leads to, before the first Read, which may bring a ticket.
func (v *visit) begun(cs tls.ConnectionState) { v.got.met = newMet(cs, v.got.own, v.got.since) }

// Get implements [tls.ClientSessionCache].
func (v *visit) Get(string) (*tls.ClientSessionState, bool) { return v.got.ticket, v.got.ticket != nil }

// Put implements [tls.ClientSessionCache].
func (v *visit) Put(_ string, ticket *tls.ClientSessionState) {
	if ticket == nil {
		return // it failed, and was taken already
	}
	h := v.got
	h.ticket = ticket
	v.tickets.held.put(v.key, h)
}
