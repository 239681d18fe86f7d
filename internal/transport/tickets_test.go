package transport

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator/internal/testca"
	"github.com/stretchr/testify/require"
)

// at is a connection whose other end has a fixed address.
type at struct {
	net.Conn
	addr named
}

func (c at) RemoteAddr() net.Addr { return c.addr }

// dialedAs dials a name whose address is remote, wherever the connection leads to.
func dialedAs(s *Security, name, remote string) side {
	return func(ctx context.Context, conn net.Conn) (net.Conn, error) {
		return s.ClientTo(ctx, at{conn, named(remote)}, name)
	}
}

// again dials what is always the same address.
func again(s *Security) side { return dialedAs(s, "node.test:9000", "10.0.0.1:9000") }

// seen stores the state of the connections that a side makes.
func seen(hands side, cs *tls.ConnectionState) side {
	return func(ctx context.Context, conn net.Conn) (net.Conn, error) {
		c, err := hands(ctx, conn)
		if err == nil {
			*cs = c.(*tls.Conn).ConnectionState()
		}
		return c, err
	}
}

// requireFull and requireResumed connect the two, and want that both resume a session, or neither.
func requireFull(t *testing.T, client, server side) (c, s tls.ConnectionState) {
	t.Helper()
	c, s = requireKind(t, false, client, server)
	require.Equal(t, tls.X25519MLKEM768, c.CurveID)
	return c, s
}

func requireResumed(t *testing.T, client, server side) (c, s tls.ConnectionState) {
	t.Helper()
	return requireKind(t, true, client, server)
}

func requireKind(t *testing.T, resumed bool, client, server side) (c, s tls.ConnectionState) {
	t.Helper()
	requireTalk(t, seen(client, &c), seen(server, &s))
	require.Equal(t, resumed, c.DidResume, "the client resumed")
	require.Equal(t, resumed, s.DidResume, "the server resumed")
	require.Equal(t, protocolALPN, c.NegotiatedProtocol)
	require.NotEmpty(t, c.PeerCertificates)
	require.NotEmpty(t, s.PeerCertificates)
	return c, s
}

// renewable is a security with credentials that the test replaces.
func renewable[V any](t *testing.T, first V, credentials func(get func() V) Credentials) (*Security, *atomic.Pointer[V]) {
	t.Helper()
	var now atomic.Pointer[V]
	now.Store(&first)
	c := credentials(func() V { return *now.Load() })
	c.Log = slog.New(slog.DiscardHandler)
	return secured(t, c), &now
}

func renewableSecrets(t *testing.T, secrets ...[]byte) (*Security, *atomic.Pointer[[][]byte]) {
	t.Helper()
	return renewable(t, secrets, func(get func() [][]byte) Credentials {
		return Credentials{Cluster: "one", GetSecrets: func() ([]byte, [][]byte, error) { s := get(); return s[0], s[1:], nil }}
	})
}

func renewableTLS(t *testing.T, c *tls.Config) (*Security, *atomic.Pointer[*tls.Config]) {
	t.Helper()
	return renewable(t, c, func(get func() *tls.Config) Credentials {
		return Credentials{GetTLS: func() (*tls.Config, error) { return get(), nil }}
	})
}

func TestConnectionToAPeerThatWasMetResumes(t *testing.T) {
	a := testca.NewAuthority(t)
	for name, pair := range map[string][2]*Security{
		"secret":       {withSecret(t, testca.SecretA), withSecret(t, testca.SecretA)},
		"certificates": {mutual(t, a.Config(t)), mutual(t, a.Config(t))},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := again(pair[0]), pair[1].Server
			c, s := requireFull(t, client, server)
			for range 3 {
				rc, rs := requireResumed(t, client, server)
				require.Equal(t, c.PeerCertificates, rc.PeerCertificates)
				require.Equal(t, s.PeerCertificates, rs.PeerCertificates)
				require.Contains(t, resumedCurves, rc.CurveID)
			}
			requireFull(t, again(pair[1]), pair[0].Server)
			requireResumed(t, again(pair[1]), pair[0].Server)
		})
	}
}

func TestPeerThatForgotItsTicketsGetsAFullHandshakeOnTheSameConnection(t *testing.T) {
	client, server := withSecret(t, testca.SecretA), withSecret(t, testca.SecretA)
	requireFull(t, again(client), server.Server)
	for range 2 {
		server = withSecret(t, testca.SecretA) // restarted
		requireFull(t, again(client), server.Server)
	}
	requireResumed(t, again(client), server.Server)
}

func TestFullHandshakeAfterARefusedTicketOffersNone(t *testing.T) {
	const preSharedKey = 41 // RFC 8446, section 4.2
	a := testca.NewAuthority(t)
	var hellos, keys []bool
	c := a.Config(t)
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		_, offers := newTickets(nil).offered(hello.SupportedProtos)
		hellos, keys = append(hellos, offers), append(keys, slices.Contains(hello.Extensions, preSharedKey))
		return nil, nil
	}
	client := again(mutual(t, a.Config(t)))
	requireFull(t, client, mutual(t, c).Server)
	requireFull(t, client, mutual(t, c).Server)
	require.Equal(t, []bool{false, true, false}, hellos)
	require.Equal(t, hellos, keys)
}

func TestTicketsWorkOverAConnectionThatBuffersNothing(t *testing.T) {
	client, first, second := withSecret(t, testca.SecretA), withSecret(t, testca.SecretA), withSecret(t, testca.SecretA)
	for _, server := range []*Security{first, first, second, second} {
		ours, theirs := net.Pipe()
		done := make(chan pairing)
		go func() { done <- converse(t.Context(), theirs, readsFirst(server.Server)) }()
		c := converse(t.Context(), ours, again(client))
		s := <-done
		require.NoError(t, errors.Join(c.err, s.err))
		require.Len(t, c.got, 8)
	}
}

// readsFirst reads the frame that converse sends before it lets converse send one.
func readsFirst(hands side) side {
	return func(ctx context.Context, conn net.Conn) (net.Conn, error) {
		c, err := hands(ctx, conn)
		if err != nil {
			return nil, err
		}
		b := make([]byte, 8)
		_, err = c.Read(b)
		return &ahead{c, b}, err
	}
}

type ahead struct {
	net.Conn
	read []byte
}

func (c *ahead) Read(p []byte) (int, error) {
	n := copy(p, c.read)
	c.read = c.read[n:]
	return n, nil
}

func TestRotatedSecretDoesNotResumeAtTheServer(t *testing.T) {
	client := again(withSecret(t, testca.SecretA))
	server, secrets := renewableSecrets(t, testca.SecretA)
	requireFull(t, client, server.Server)
	requireResumed(t, client, server.Server)

	secrets.Store(&[][]byte{testca.SecretA, testca.SecretB})
	requireFull(t, client, server.Server)
	requireResumed(t, client, server.Server)
	secrets.Store(&[][]byte{testca.SecretB, testca.SecretA})
	requireRefused(t, client, server.Server) // this client never knew B

	secrets.Store(&[][]byte{testca.SecretA})
	requireFull(t, client, server.Server)
	secrets.Store(&[][]byte{testca.SecretB})
	for range 2 {
		_, s := requireRefused(t, client, server.Server)
		require.ErrorContains(t, s, "another secret")
	}
}

func TestRotatedSecretDoesNotResumeAtTheClient(t *testing.T) {
	client, secrets := renewableSecrets(t, testca.SecretA)
	server := withSecret(t, testca.SecretA, testca.SecretB).Server
	requireFull(t, again(client), server)
	requireResumed(t, again(client), server)
	secrets.Store(&[][]byte{testca.SecretB, testca.SecretA})
	_, s := requireFull(t, again(client), server)
	key, err := secretKey("one", testca.SecretB)
	require.NoError(t, err)
	require.Equal(t, key.Public(), s.PeerCertificates[0].PublicKey, "the server knows the new secret of the client")
	requireResumed(t, again(client), server)

	requireFull(t, again(client), withSecret(t, testca.SecretA, testca.SecretB).Server)
	only := withSecret(t, testca.SecretA).Server
	secrets.Store(&[][]byte{testca.SecretA})
	requireFull(t, again(client), only)
	secrets.Store(&[][]byte{testca.SecretB})
	for range 2 {
		c, _ := requireRefused(t, again(client), only)
		require.ErrorContains(t, c, "another secret")
	}
}

func TestTicketsAreOfNoUseUnderOtherSecretsEvenIfKept(t *testing.T) {
	before, after := withSecret(t, testca.SecretA), withSecret(t, testca.SecretB)
	peer := withSecret(t, testca.SecretA)
	requireFull(t, again(before), peer.Server)
	after.tickets.held = before.tickets.held
	requireRefused(t, again(after), peer.Server)

	requireFull(t, again(peer), before.Server)
	after.tickets.issued = before.tickets.issued
	requireRefused(t, again(peer), after.Server)
	requireFull(t, again(peer), before.Server)
	after.tickets.proofs = before.tickets.proofs
	requireRefused(t, again(peer), after.Server)
}

func TestReplacedAuthorityDoesNotResume(t *testing.T) {
	a, b := testca.NewAuthority(t), testca.NewAuthority(t)
	both := x509.NewCertPool()
	for _, x := range []*testca.Authority{a, b} {
		both.AddCert(x.Certificate())
	}
	peer := a.Config(t)
	peer.ClientCAs, peer.RootCAs = both, both
	one, config := renewableTLS(t, a.Config(t))
	two := mutual(t, peer)
	requireFull(t, again(one), two.Server)
	requireFull(t, again(two), one.Server)

	renewed := b.Config(t)
	renewed.ClientCAs, renewed.RootCAs = both, both
	config.Store(&renewed) // others still accepted, another certificate
	requireFull(t, again(one), two.Server)
	requireFull(t, again(two), one.Server)
	requireResumed(t, again(one), two.Server)
	requireResumed(t, again(two), one.Server)

	strict := b.Config(t)
	config.Store(&strict) // the authority of the peer is no longer accepted
	requireRefused(t, again(one), two.Server)
	requireRefused(t, again(two), one.Server)
}

func TestAuthorityReplacedForOneClientDoesNotResume(t *testing.T) {
	a, b := testca.NewAuthority(t), testca.NewAuthority(t)
	var pool atomic.Pointer[x509.CertPool]
	pool.Store(a.Pool)
	c := a.Config(t)
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{Certificates: c.Certificates, ClientCAs: pool.Load()}, nil
	}
	client, server := again(mutual(t, a.Config(t))), mutual(t, c).Server
	requireFull(t, client, server)
	requireResumed(t, client, server)
	pool.Store(b.Pool)
	_, refusal := requireRefused(t, client, server)
	require.ErrorContains(t, refusal, "not trusted here", "after a full handshake")
	pool.Store(a.Pool)
	requireFull(t, client, server)
	requireResumed(t, client, server)
}

func TestRevokedCertificateDoesNotResume(t *testing.T) {
	a := testca.NewAuthority(t)
	for name, install := range map[string]func(*tls.Config, func() error){
		"VerifyConnection": func(c *tls.Config, revoked func() error) {
			c.VerifyConnection = func(tls.ConnectionState) error { return revoked() }
		},
		"VerifyPeerCertificate": func(c *tls.Config, revoked func() error) {
			c.VerifyPeerCertificate = func(raw [][]byte, chains [][]*x509.Certificate) error {
				if len(raw) != 1 || len(chains) != 1 {
					return fmt.Errorf("%d certificates, %d chains", len(raw), len(chains))
				}
				return revoked()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var revoked atomic.Bool
			var asked atomic.Int32
			c := a.Config(t)
			install(c, func() error {
				asked.Add(1)
				if revoked.Load() {
					return errors.New("revoked")
				}
				return nil
			})
			strict, other := mutual(t, c), mutual(t, a.Config(t))
			for _, pair := range [][2]side{{again(strict), other.Server}, {again(other), strict.Server}} {
				requireFull(t, pair[0], pair[1])
				before := asked.Load()
				requireResumed(t, pair[0], pair[1])
				require.Greater(t, asked.Load(), before, "a resumed connection is verified")
				revoked.Store(true)
				for range 2 {
					requireRefused(t, pair[0], pair[1])
				}
				revoked.Store(false)
				requireFull(t, pair[0], pair[1])
			}
		})
	}
}

func TestCertificateRenewedByACallbackDoesNotResume(t *testing.T) {
	a := testca.NewAuthority(t)
	var current atomic.Pointer[tls.Certificate]
	current.Store(&a.Issue(t, "node.test")[0])
	c := a.Config(t)
	c.Certificates = nil
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return current.Load(), nil }
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return current.Load(), nil }
	renewing, other := mutual(t, c), mutual(t, a.Config(t))
	for range 2 {
		_, s := requireFull(t, again(renewing), other.Server)
		require.Equal(t, current.Load().Certificate[0], s.PeerCertificates[0].Raw)
		requireResumed(t, again(renewing), other.Server)
		cs, _ := requireFull(t, again(other), renewing.Server)
		require.Equal(t, current.Load().Certificate[0], cs.PeerCertificates[0].Raw)
		requireResumed(t, again(other), renewing.Server)
		current.Store(&a.Issue(t, "node.test")[0])
	}
}

func TestTicketOfOneReplicaIsNotUsedAtAnother(t *testing.T) {
	client, a, b := withSecret(t, testca.SecretA), withSecret(t, testca.SecretA), withSecret(t, testca.SecretA)
	name := func(remote string) side { return dialedAs(client, "cluster.test:9000", remote) }
	// One name, two addresses.
	requireFull(t, name("10.0.0.1:9000"), a.Server)
	requireFull(t, name("10.0.0.2:9000"), b.Server)
	requireResumed(t, name("10.0.0.1:9000"), a.Server)
	requireResumed(t, name("10.0.0.2:9000"), b.Server)
	// One address, two replicas.
	for range 2 {
		requireFull(t, name("10.0.0.1:9000"), b.Server)
		requireFull(t, name("10.0.0.1:9000"), a.Server)
	}
	requireResumed(t, name("10.0.0.1:9000"), a.Server)
	// One proxy, two names.
	proxied := func(name string) side { return dialedAs(client, name, "10.0.0.3:1080") }
	requireFull(t, proxied("a.test:9000"), a.Server)
	requireFull(t, proxied("b.test:9000"), b.Server)
	requireResumed(t, proxied("a.test:9000"), a.Server)
	requireResumed(t, proxied("b.test:9000"), b.Server)
}

// copied is a cache with one ticket.
type copied struct{ *tls.ClientSessionState }

func (c copied) Get(string) (*tls.ClientSessionState, bool) { return c.ClientSessionState, true }

func (copied) Put(string, *tls.ClientSessionState) {}

func TestCopiedTicketWithoutTheSecretAuthenticatesNobody(t *testing.T) {
	honest, server := withSecret(t, testca.SecretA), withSecret(t, testca.SecretA)
	ticket := func() (*tls.ClientSessionState, []byte) {
		requireFull(t, again(honest), server.Server)
		h, ok := honest.tickets.held.take("node.test:9000 10.0.0.1:9000")
		require.True(t, ok)
		id, _, err := h.ticket.ResumptionState()
		require.NoError(t, err)
		return h.ticket, id
	}
	with := func(session *tls.ClientSessionState, offers ...string) side {
		client, _ := hostile(t, func(c *tls.Config) {
			c.Certificates = nil
			c.ServerName = "node.test"
			c.ClientSessionCache = copied{session}
			c.NextProtos = append(c.NextProtos, offers...)
		})
		return client
	}
	session, id := ticket()
	requireRefused(t, with(session), server.Server)
	requireRefused(t, with(session, newTickets(nil).offer(id)), server.Server)
	requireRefused(t, with(session, newTickets([][]byte{make([]byte, 32)}).offer(id)), server.Server)
	requireRefused(t, with(session, withSecret(t, testca.SecretB).tickets.offer(id)), server.Server)

	// Else the refusals could have any reason. It is good once.
	right := with(session, honest.tickets.offer(id))
	requireResumed(t, right, server.Server)
	requireRefused(t, right, server.Server)

	// Nor is an offer that was overheard of use without the key that goes with the ticket.
	own, _ := ticket()
	_, id = ticket()
	requireRefused(t, with(own, honest.tickets.offer(id)), server.Server)
	requireRefused(t, with(nil, honest.tickets.offer(id)), server.Server)
}

func TestOffersOfTicketsAreChecked(t *testing.T) {
	both := withSecret(t, testca.SecretA, testca.SecretB).tickets
	id := make([]byte, ticketSize)
	rand.Read(id)
	for name, protocols := range map[string][]string{
		"nothing":    {resumeALPN},
		"no base64":  {resumeALPN + "%"},
		"too short":  {resumeALPN + "AAAA"},
		"no proof":   {protocolALPN, newTickets(nil).offer(id)},
		"half proof": {both.offer(id)[:len(both.offer(id))-4]},
	} {
		ticket, offers := both.offered(protocols)
		require.True(t, offers, name)
		require.Nil(t, ticket, name)
	}
	for _, other := range []*tickets{withSecret(t, testca.SecretA).tickets, withSecret(t, testca.SecretB).tickets} {
		ticket, _ := both.offered([]string{protocolALPN, other.offer(id)})
		require.Equal(t, id, ticket)
	}
	_, offers := both.offered([]string{protocolALPN, "h2"})
	require.False(t, offers)
}

func TestServerResumesOrRefusesAnOffer(t *testing.T) {
	// A client that offers a ticket and then does not use it gets no full handshake.
	honest, server := withSecret(t, testca.SecretA), withSecret(t, testca.SecretA)
	requireFull(t, again(honest), server.Server)
	h, _ := honest.tickets.held.take("node.test:9000 10.0.0.1:9000")
	id, _, err := h.ticket.ResumptionState()
	require.NoError(t, err)
	client, _ := hostile(t, func(c *tls.Config) { c.NextProtos = append(c.NextProtos, honest.tickets.offer(id)) })
	requireRefused(t, client, server.Server)
}

func TestClientResumesOrHangsUp(t *testing.T) {
	// The server makes a full handshake, without ML-KEM, of what was to resume.
	client, server := withSecret(t, testca.SecretA), withSecret(t, testca.SecretA)
	requireFull(t, again(client), server.Server)
	_, without := hostile(t, func(c *tls.Config) { c.ClientAuth, c.SessionTicketsDisabled = tls.RequireAnyClientCert, true })
	c, _ := requireRefused(t, again(client), without)
	require.ErrorIs(t, c, errNotResumed)
	requireTalk(t, again(client), without)
}

func TestTicketsAreBounded(t *testing.T) {
	client, server := withSecret(t, testca.SecretA), withSecret(t, testca.SecretA)
	requireFull(t, again(client), server.Server)
	for i := range 2 * maxTickets {
		client.tickets.held.put(fmt.Sprint(i), held{})
		server.tickets.issued.put(fmt.Sprint(i), issued{})
	}
	require.Len(t, client.tickets.held.byKey, maxTickets)
	require.Equal(t, maxTickets, client.tickets.held.order.Len())
	require.Len(t, server.tickets.issued.byKey, maxTickets)
	requireFull(t, again(client), server.Server) // the oldest were dropped
	requireResumed(t, again(client), server.Server)
	require.Len(t, client.tickets.held.byKey, maxTickets)
}

func TestRecentKeepsTheNewestUntilTaken(t *testing.T) {
	r := newRecent[int](2)
	r.put("a", 1)
	r.put("b", 0)
	r.put("b", 2) // nothing has to go
	require.Len(t, r.byKey, 2)
	r.put("a", 3) // is now the newest
	r.put("c", 4)
	_, ok := r.take("b")
	require.False(t, ok)
	for key, want := range map[string]int{"a": 3, "c": 4} {
		v, ok := r.take(key)
		require.True(t, ok)
		require.Equal(t, want, v)
		_, ok = r.take(key)
		require.False(t, ok)
	}
}

func TestSidesProveTheirKeysAgainAfterAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := withSecret(t, testca.SecretA), withSecret(t, testca.SecretA)
		resumed := func() bool {
			ours, theirs := net.Pipe()
			done := make(chan pairing)
			var c, s tls.ConnectionState
			go func() { done <- converse(t.Context(), theirs, readsFirst(seen(server.Server, &s))) }()
			require.NoError(t, converse(t.Context(), ours, seen(again(client), &c)).err)
			require.NoError(t, (<-done).err)
			require.Equal(t, c.DidResume, s.DidResume)
			return c.DidResume
		}
		require.False(t, resumed())
		for range 5 {
			time.Sleep(ticketLifetime/5 - time.Second)
			require.True(t, resumed())
		}
		time.Sleep(6 * time.Second)
		require.False(t, resumed(), "however short ago the last was")
		require.True(t, resumed())
	})
}

func TestBothSidesForgetAnOldSession(t *testing.T) {
	client, server := withSecret(t, testca.SecretA), withSecret(t, testca.SecretA)
	age := func(m *met) { m.since = m.since.Add(-ticketLifetime) }
	requireFull(t, again(client), server.Server)
	h, _ := client.tickets.held.take("node.test:9000 10.0.0.1:9000")
	age(&h.met)
	client.tickets.held.put("node.test:9000 10.0.0.1:9000", h)
	requireFull(t, again(client), server.Server)
	for id := range server.tickets.issued.byKey {
		i, _ := server.tickets.issued.take(id)
		age(&i.met)
		server.tickets.issued.put(id, i)
	}
	requireFull(t, again(client), server.Server)
	since := func() (s []time.Time) {
		for _, e := range client.tickets.held.byKey {
			s = append(s, e.Value.(recentEntry[held]).value.since)
		}
		for _, e := range server.tickets.issued.byKey {
			s = append(s, e.Value.(recentEntry[issued]).value.since)
		}
		return s
	}
	before := since()
	requireResumed(t, again(client), server.Server)
	require.ElementsMatch(t, before, since(), "resuming proves no key")
}

func TestCallersSessionSettingsHold(t *testing.T) {
	a := testca.NewAuthority(t)
	plain := mutual(t, a.Config(t))
	without := a.Config(t)
	without.SessionTicketsDisabled = true
	s := mutual(t, without)
	for range 2 {
		requireFull(t, again(s), plain.Server)
		requireFull(t, again(plain), s.Server)
	}
	require.Empty(t, s.tickets.held.byKey)
	require.Empty(t, s.tickets.issued.byKey)

	var now atomic.Bool
	c := a.Config(t)
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		its := c.Clone()
		its.SessionTicketsDisabled = now.Load()
		return its, nil
	}
	s = mutual(t, c)
	requireFull(t, again(plain), s.Server)
	now.Store(true)
	requireFull(t, again(plain), s.Server)

	own := a.Config(t)
	cache := &counting{ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	own.ClientSessionCache = cache
	s = mutual(t, own)
	requireFull(t, again(s), plain.Server)
	requireResumed(t, again(s), plain.Server)
	require.EqualValues(t, 2, cache.puts.Load())
	require.Empty(t, s.tickets.held.byKey)

	curves := a.Config(t)
	curves.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768}
	s = mutual(t, curves)
	for range 2 {
		requireFull(t, again(plain), s.Server)
	}
	requireFull(t, again(s), plain.Server)
	cs, _ := requireResumed(t, again(s), plain.Server)
	require.Equal(t, tls.X25519MLKEM768, cs.CurveID)
}

type counting struct {
	tls.ClientSessionCache
	puts atomic.Int32
}

func (c *counting) Put(key string, s *tls.ClientSessionState) {
	c.puts.Add(1)
	c.ClientSessionCache.Put(key, s)
}

func TestTicketsBesideRotation(t *testing.T) {
	client, secrets := renewableSecrets(t, testca.SecretA, testca.SecretB)
	server, theirs := renewableSecrets(t, testca.SecretA, testca.SecretB)
	var done sync.WaitGroup
	for i := range 4 {
		done.Go(func() {
			for j := range 10 {
				if i == 0 {
					for _, s := range []*atomic.Pointer[[][]byte]{secrets, theirs} {
						swapped := slices.Clone(*s.Load())
						slices.Reverse(swapped)
						s.Store(&swapped)
					}
				}
				c, s := meet(t, dialedAs(client, "node.test:9000", fmt.Sprint(j%2)), server.Server)
				if err := errors.Join(c.err, s.err); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done.Wait()
}
