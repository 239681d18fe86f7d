package transport

import (
	"cmp"
	"crypto/tls"
	"errors"
)

// newMutual enforces what this protocol needs on a copy of the caller's configuration. It refuses
// one that would let strangers in or with which dialing would always fail.
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
		// The configuration for one client replaces the one that was enforced.
		s.Config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := perClient(hello)
			if err != nil {
				return nil, err
			}
			if !verifiesClients(cmp.Or(c, callers)) {
				return nil, errors.New("the config for this client has neither ClientCAs nor VerifyConnection")
			}
			if c == nil {
				return nil, nil // s.Config itself
			}
			return enforce(c), nil
		}
	}
	s.tickets = newTickets(nil)
	s.server = s.serverConfig()
	return s, nil
}

// verifiesClients reports whether c limits who may connect. Without ClientCAs crypto/tls trusts the
// machine's authorities, which certify anybody. VerifyPeerCertificate does not count: crypto/tls
// itself skips it when a connection resumes.
func verifiesClients(c *tls.Config) bool { return c.ClientCAs != nil || c.VerifyConnection != nil }

// enforce returns a copy of a configuration with what the protocol needs: TLS 1.3, certificates on
// both sides, the protocol's name, and every check of the caller's on resumption, too.
func enforce(callers *tls.Config) *tls.Config {
	c := callers.Clone()
	c.MinVersion = tls.VersionTLS13
	c.MaxVersion = tls.VersionTLS13
	c.ClientAuth = tls.RequireAndVerifyClientCert
	c.NextProtos = []string{protocolALPN}
	alsoChains, also := callers.VerifyPeerCertificate, callers.VerifyConnection
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verifyProtocol(cs); err != nil {
			return err
		}
		if alsoChains != nil && cs.DidResume { // crypto/tls skips it
			var raw [][]byte
			for _, c := range cs.PeerCertificates {
				raw = append(raw, c.Raw)
			}
			if err := alsoChains(raw, cs.VerifiedChains); err != nil {
				return err
			}
		}
		if also != nil {
			return also(cs)
		}
		return nil
	}
	return c
}
