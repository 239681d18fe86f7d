package transport

import (
	"cmp"
	"crypto/tls"
	"errors"
)

// newMutual enforces on a copy of the caller's config what this protocol
// needs, and refuses one that would let a stranger in or our own calls fail.
func newMutual(callers *tls.Config) (*Security, error) {
	bad := func(problem string) (*Security, error) {
		return nil, errors.New("replicator: Options.TLS: " + problem)
	}
	switch c := callers; {
	case len(c.Certificates) == 0 && c.GetCertificate == nil && c.GetConfigForClient == nil:
		return bad("no certificate to accept peers with, want Certificates, GetCertificate or GetConfigForClient")
	case len(c.Certificates) == 0 && c.GetClientCertificate == nil:
		return bad("no certificate to dial peers with, want Certificates or GetClientCertificate")
	case c.GetConfigForClient == nil && !verifiesClients(c):
		return bad("anybody with a certificate of a public authority could connect, want ClientCAs or VerifyConnection")
	case c.InsecureSkipVerify && c.VerifyConnection == nil:
		return bad("InsecureSkipVerify trusts any server, want it off or VerifyConnection set")
	}
	s := &Security{Config: enforce(callers), callers: callers}
	if perClient := callers.GetConfigForClient; perClient != nil {
		// What the caller returns for a client would replace all that was enforced.
		s.Config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := perClient(hello)
			if err != nil {
				return nil, err
			}
			if !verifiesClients(cmp.Or(c, callers)) {
				return nil, errors.New("the config for this client has neither ClientCAs nor VerifyConnection")
			}
			if c == nil {
				return nil, nil // s.config itself
			}
			return enforce(c), nil
		}
	}
	return s, nil
}

// verifiesClients tells whether c limits who may connect. Without ClientCAs
// crypto/tls takes the machine's authorities, which certify anybody.
// VerifyPeerCertificate does not count: a resumed connection skips it.
func verifiesClients(c *tls.Config) bool { return c.ClientCAs != nil || c.VerifyConnection != nil }

func enforce(callers *tls.Config) *tls.Config {
	c := callers.Clone()
	c.MinVersion = tls.VersionTLS13
	c.MaxVersion = tls.VersionTLS13
	c.ClientAuth = tls.RequireAndVerifyClientCert
	c.NextProtos = []string{protocolALPN}
	c.SessionTicketsDisabled = true
	c.ClientSessionCache = nil
	also := callers.VerifyConnection
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verifyProtocol(cs); err != nil {
			return err
		}
		if also != nil {
			return also(cs)
		}
		return nil
	}
	return c
}
