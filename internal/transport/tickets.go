package transport

import (
	"cmp"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"time"
)

const (
	// maxTickets bounds the tickets that a replica holds, and those that it has issued.
	maxTickets = 256
	// ticketLifetime is how long connections may resume one another until both sides have to
	// prove again, by a full handshake, that they have their private keys.
	ticketLifetime = time.Hour
	ticketSize     = 16
	// resumeALPN begins the name of a further protocol that a client offers along with a ticket.
	resumeALPN = protocolALPN + "/resume/"
)

// errNotResumed makes both sides begin anew, on the same connection, with a full handshake.
var errNotResumed = errors.New("the ticket is not, or no longer, accepted")

// resumedCurves are what a resumed handshake exchanges keys by. It needs no hybrid with ML-KEM, which
// is most of the processor time and of the bytes: the key of the session that it resumes, agreed on
// with one, goes into its own keys.
var resumedCurves = []tls.CurveID{tls.X25519, tls.CurveP256}

// tickets make it cheap to connect to a replica again. They belong to one [Security],
// so renewed secrets or certificates begin without any.
//
// The side that was dialed issues a ticket, a random name for a session that it keeps in memory;
// the dialer uses it once. Before either resumes a session it verifies the other's identity again,
// and compares the certificate that it presents now with the one of then; if something
// is no longer so, a full handshake follows. crypto/tls verifies in VerifyConnection once more.
//
// To crypto/tls a ticket and the key that goes with it are proof enough. With a secret the dialer
// also proves that it has that: whoever copied a ticket, with its key, has not.
//
// The dialer offers a ticket by the name of a further protocol, too. So the other side knows before
// it chooses the key exchange that there is a session to resume, and refuses the handshake if there is
// none: then both begin anew, and no full handshake goes without ML-KEM.
type tickets struct {
	proofs [][]byte // keys derived from the accepted secrets, the presented first; none with certificates
	issued *recent[issued]
	held   *recent[held]
}

func newTickets(proofs [][]byte) *tickets {
	return &tickets{proofs, newRecent[issued](maxTickets), newRecent[held](maxTickets)}
}

// met is what two replicas agreed on a session with.
type met struct {
	peer  tls.ConnectionState // as VerifyConnection judges it
	own   string              // the sum of the certificates that we presented
	since time.Time           // of the full handshake
}

// issued is a session that a ticket of ours names.
type issued struct {
	met
	state []byte // of a tls.SessionState
}

// held is a ticket of a peer.
type held struct {
	met
	ticket  *tls.ClientSessionState
	request *tls.CertificateRequestInfo // for the certificate; nil if that comes of no callback
}

func newMet(cs tls.ConnectionState, own string, since time.Time) met {
	return met{own: own, since: since, peer: tls.ConnectionState{
		Version: cs.Version, CipherSuite: cs.CipherSuite, NegotiatedProtocol: cs.NegotiatedProtocol, ServerName: cs.ServerName,
		PeerCertificates: cs.PeerCertificates, VerifiedChains: cs.VerifiedChains,
		OCSPResponse: cs.OCSPResponse, SignedCertificateTimestamps: cs.SignedCertificateTimestamps,
		DidResume: true,
	}}
}

// holds reports whether a session may be resumed: under c, we would present what we did and accept
// the peer again. If crypto/tls verifies peers, a chain of theirs has to end in roots.
func (m *met) holds(c *tls.Config, own string, verifies bool, roots *x509.CertPool, usage x509.ExtKeyUsage) bool {
	return time.Since(m.since) < ticketLifetime && m.own == own &&
		(!verifies || slices.ContainsFunc(m.peer.VerifiedChains, func(chain []*x509.Certificate) bool {
			return chainHolds(chain, c, roots, usage)
		})) &&
		c.VerifyConnection(m.peer) == nil
}

// chainHolds reports whether a chain that was verified once still ends at an authority and has not expired.
func chainHolds(chain []*x509.Certificate, c *tls.Config, roots *x509.CertPool, usage x509.ExtKeyUsage) bool {
	now := time.Now()
	if c.Time != nil {
		now = c.Time()
	}
	expired := func(c *x509.Certificate) bool { return now.Before(c.NotBefore) || now.After(c.NotAfter) }
	if len(chain) == 0 || slices.ContainsFunc(chain, expired) {
		return false
	}
	_, err := chain[len(chain)-1].Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
	return err == nil
}

// offer is the name of the further protocol: a ticket and the proof that its dialer has the secret.
func (t *tickets) offer(ticket []byte) string {
	if len(t.proofs) > 0 {
		ticket = append(slices.Clip(ticket), prove(t.proofs[0], ticket)...)
	}
	return resumeALPN + base64.RawURLEncoding.EncodeToString(ticket)
}

func prove(key, ticket []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(ticket)
	return mac.Sum(nil)[:16]
}

// offered returns the ticket of an offer, if the proof that goes with it is right, and whether there is
// an offer at all.
func (t *tickets) offered(protocols []string) (ticket []byte, offers bool) {
	i := slices.IndexFunc(protocols, func(p string) bool { return strings.HasPrefix(p, resumeALPN) })
	if i < 0 {
		return nil, false
	}
	b, err := base64.RawURLEncoding.DecodeString(protocols[i][len(resumeALPN):])
	if err != nil || len(b) < ticketSize {
		return nil, true
	}
	ticket, proof := b[:ticketSize], b[ticketSize:]
	right := func(key []byte) bool { return hmac.Equal(prove(key, ticket), proof) }
	if len(t.proofs) > 0 && !slices.ContainsFunc(t.proofs, right) {
		return nil, true
	}
	return ticket, true
}

// serverConfig returns what a connection is accepted with.
func (s *Security) serverConfig() *tls.Config {
	c := s.Config.Clone()
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c := s.Config
		if c.GetConfigForClient != nil {
			its, err := c.GetConfigForClient(hello)
			if err != nil {
				return nil, err
			}
			c = cmp.Or(its, c)
		}
		return s.tickets.accept(c, hello)
	}
	return c
}

// accept returns the configuration for one client: that resumes the session of its
// ticket, if it offers one and c still holds with it, and issues it the next.
func (t *tickets) accept(c *tls.Config, hello *tls.ClientHelloInfo) (*tls.Config, error) {
	ticket, offers := t.offered(hello.SupportedProtos)
	own, since := presented(c, hello), time.Now()
	redeem := func(ticket []byte) *tls.SessionState {
		from, ok := t.issued.take(string(ticket))
		if !ok || !from.holds(c, own, c.ClientAuth == tls.RequireAndVerifyClientCert, c.ClientCAs, x509.ExtKeyUsageClientAuth) {
			return nil
		}
		state, err := tls.ParseSessionState(from.state)
		if err != nil {
			return nil
		}
		since = from.since
		return state
	}
	its := c.Clone()
	its.WrapSession = func(cs tls.ConnectionState, state *tls.SessionState) ([]byte, error) {
		b, err := state.Bytes()
		if err != nil {
			return nil, err
		}
		ticket := make([]byte, ticketSize)
		rand.Read(ticket) // never fails: see crypto/rand
		t.issued.put(string(ticket), issued{newMet(cs, own, since), b})
		return ticket, nil
	}
	if !offers {
		its.UnwrapSession = func(ticket []byte, _ tls.ConnectionState) (*tls.SessionState, error) {
			if len(t.proofs) > 0 {
				return nil, nil // there is no proof with it
			}
			return redeem(ticket), nil // the cache is the caller's own
		}
		return its, nil
	}
	state := redeem(ticket)
	if state == nil || c.SessionTicketsDisabled || !exchanges(c, hello.SupportedCurves) {
		return nil, errNotResumed
	}
	// crypto/tls wants proof that the client has the key of this session.
	its.UnwrapSession = func([]byte, tls.ConnectionState) (*tls.SessionState, error) { return state, nil }
	resumeOnly(its)
	return its, nil
}

// exchanges reports whether the caller's configuration lets a client exchange keys by one of curves.
func exchanges(c *tls.Config, curves []tls.CurveID) bool {
	return len(c.CurvePreferences) == 0 ||
		slices.ContainsFunc(curves, func(id tls.CurveID) bool { return slices.Contains(c.CurvePreferences, id) })
}

// resumeOnly makes a handshake fail that crypto/tls turns into a full one.
func resumeOnly(c *tls.Config) {
	verify := c.VerifyConnection
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if !cs.DidResume {
			return errNotResumed
		}
		return verify(cs)
	}
}

// presented returns the sum of the certificates that c presents to a client.
func presented(c *tls.Config, hello *tls.ClientHelloInfo) string {
	if c.GetCertificate != nil {
		if cert, err := c.GetCertificate(hello); err == nil && cert != nil {
			return certificateSum(*cert)
		}
	}
	return certificateSum(c.Certificates...)
}

func certificateSum(certs ...tls.Certificate) string {
	sum := sha256.New()
	for _, c := range certs {
		if len(c.Certificate) > 0 {
			sum.Write(c.Certificate[0])
		}
	}
	return string(sum.Sum(nil))
}
