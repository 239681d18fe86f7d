package replicatortest_test

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"os"
	"os/exec"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"

	"github.com/level-replicator/replicator/replicatortest"
)

// tlsConfig is a replica's with a certificate of its own, for a client that trusts it.
func tlsConfig(t *testing.T) (server, client *tls.Config) {
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"b"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(0, 0).AddDate(1000, 0, 0)}
	der, err := x509.CreateCertificate(nil, template, template, public, private)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	server = &tls.Config{MinVersion: tls.VersionTLS13,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: private}}}
	return server, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: "b"}
}

func TestTLSRunsOverItInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := replicatortest.NewNetwork(1)
		n.Delay(10*time.Millisecond, 10*time.Millisecond)
		a, b := pipe(t, n)
		serverConfig, clientConfig := tlsConfig(t)
		start := time.Now()
		server, client := tls.Server(b, serverConfig), tls.Client(a, clientConfig)
		go func() {
			defer server.Close()
			if server.HandshakeContext(t.Context()) == nil {
				io.CopyN(server, server, 1<<20)
			}
		}()
		require.NoError(t, client.HandshakeContext(t.Context()))
		require.Equal(t, 20*time.Millisecond, time.Since(start), "one round trip")
		go client.Write(make([]byte, 1<<20))
		got, err := io.ReadAll(client)
		require.NoError(t, err)
		require.Len(t, got, 1<<20)
		require.NoError(t, client.Close())
	})
}

// synctest panics if a goroutine of the bubble remains, so this bubble is the check.
func TestNothingIsLeftWhenAllIsClosed(t *testing.T) {
	n := replicatortest.NewNetwork(1) // outside, as a test with several bubbles would
	for range 2 {
		synctest.Test(t, func(t *testing.T) {
			n.Delay(time.Millisecond, time.Second)
			listener, err := n.Host("b").Listen("1")
			require.NoError(t, err)
			c, err := n.Host("a").Dial(t.Context(), "tcp", "b:1")
			require.NoError(t, err)
			s, err := listener.Accept()
			require.NoError(t, err)
			require.NoError(t, s.SetDeadline(time.Now().Add(time.Hour)))
			write(t, c, "never read")
			go listener.Accept()
			go c.Read(make([]byte, 1))
			go s.Write(make([]byte, 2*replicatortest.BufferSize))
			synctest.Wait()
			start := time.Now()
			require.NoError(t, c.Close())
			require.NoError(t, s.Close())
			require.NoError(t, listener.Close())
			synctest.Wait()
			require.Zero(t, time.Since(start))
		})
	}
}

func TestMemDBSuitsAPlainBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := replicatortest.MemDB(t)
		require.NoError(t, db.Put([]byte("key"), []byte("value"), nil))
		closed := replicatortest.MemDB(t)
		require.NoError(t, closed.Close())
	})
}

func TestMemDBIsClosedWithItsTest(t *testing.T) {
	var db *leveldb.DB
	t.Run("inner", func(t *testing.T) { db = replicatortest.MemDB(t) })
	require.ErrorIs(t, db.Put([]byte("key"), nil, nil), leveldb.ErrClosed)
}

func TestBubbleWaitsForWhatDatabasesLeave(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		db, err := leveldb.OpenFile(t.TempDir(), nil)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, db.Close()) })
	})
}

func TestStuckBubbleIsEndedByItsWatchdog(t *testing.T) {
	const stuck = "REPLICATORTEST_STUCK"
	if os.Getenv(stuck) != "" {
		replicatortest.Bubble(t, 100*time.Millisecond, func(t *testing.T) {
			for {
				time.Sleep(30 * time.Second)
			}
		})
	}
	self := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	self.Env = append(os.Environ(), stuck+"=1")
	out, err := self.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "the bubble of "+t.Name()+" is stuck: not done after 100ms")
	require.Contains(t, string(out), "bubble_test.go") // where it stands
}
