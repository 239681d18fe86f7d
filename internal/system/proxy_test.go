package system_test

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// badProxy passes connections on with a delay each way, and resets each after some
// bytes.
func badProxy(t *testing.T, to string, delay time.Duration, resetAfter int) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				out, err := net.Dial("tcp", to)
				if err != nil {
					in.Close()
					return
				}
				budget := resetAfter/2 + rand.IntN(resetAfter)
				go delayed(out, in, delay, budget)
				delayed(in, out, delay, budget)
			}()
		}
	}()
	return l.Addr().String()
}

func delayed(to, from net.Conn, delay time.Duration, budget int) {
	type part struct {
		b   []byte
		due time.Time
	}
	parts := make(chan part, 1024)
	go func() {
		for p := range parts {
			<-time.After(time.Until(p.due))
			if budget -= len(p.b); budget < 0 {
				to.(*net.TCPConn).SetLinger(0)
				from.(*net.TCPConn).SetLinger(0)
				to.Close()
				from.Close()
			}
			to.Write(p.b)
		}
		to.Close()
	}()
	for {
		b := make([]byte, 16<<10)
		n, err := from.Read(b)
		if n > 0 {
			parts <- part{b[:n], time.Now().Add(delay)}
		}
		if err != nil {
			close(parts)
			return
		}
	}
}

func TestReplicasBehindASlowProxyThatResetsAgree(t *testing.T) {
	var dbs [2]*replicator.DB
	var listeners [2]net.Listener
	var proxies [2]string
	for i := range listeners {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		listeners[i] = l
		proxies[i] = badProxy(t, l.Addr().String(), 100*time.Millisecond, 600<<10) // more than a page, which is what a pull keeps
	}
	for i, l := range listeners {
		raw, err := leveldb.Open(storage.NewMemStorage(), nil)
		require.NoError(t, err)
		dbs[i], err = replicator.Replicate(raw, &replicator.Options{
			Listener: l, Advertise: proxies[i], Peers: []string{proxies[1-i]}, MaxInterval: time.Second, Logger: slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
		t.Cleanup(func() { dbs[i].Close() })
	}
	value := make([]byte, 4000)
	for i := range 300 {
		for k, db := range dbs {
			rand.NewChaCha8([32]byte{byte(i), byte(k)}).Read(value)
			require.NoError(t, db.Put(fmt.Appendf(nil, "%d-%d", k, i), value, nil))
		}
	}
	start := time.Now()
	for dbs[0].Digest() != dbs[1].Digest() || dbs[0].Status().Keys != 600 {
		if time.Since(start) > 45*time.Second {
			t.Fatalf("no agreement: %+v\n%+v", dbs[0].Status(), dbs[1].Status())
		}
		<-time.After(10 * time.Millisecond)
	}
	t.Logf("agreed after %v and %d sessions", time.Since(start), dbs[0].Status().Sessions)
}
