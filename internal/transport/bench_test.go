//go:build unix

package transport

import (
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/testca"
	"github.com/stretchr/testify/require"
)

// BenchmarkHandshake connects over loopback, authenticates both sides and sends eight bytes each
// way. Plain has no TLS and shows what the connection itself costs.
func BenchmarkHandshake(b *testing.B) {
	secured := func(c Credentials) *Security {
		s, err := NewSecurity(c)
		require.NoError(b, err)
		return s
	}
	secret := Credentials{Cluster: "one", Secret: testca.SecretA}
	certificates := Credentials{TLS: testca.NewAuthority(b).Config(b)}
	b.Run("Plain", func(b *testing.B) { benchmarkHandshake(b, secured(Credentials{}), secured(Credentials{}), false) })
	for name, c := range map[string]Credentials{"Secret": secret, "Certificates": certificates} {
		b.Run(name+"/Full", func(b *testing.B) { benchmarkHandshake(b, secured(c), secured(c), true) })
		b.Run(name+"/Resumed", func(b *testing.B) { benchmarkHandshake(b, secured(c), secured(c), false) })
	}
}

// benchmarkHandshake forgets the tickets after each connection if told to.
func benchmarkHandshake(b *testing.B, client, server *Security, forget bool) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	defer l.Close()
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			conn, err := server.Server(b.Context(), raw)
			if err == nil {
				io.CopyN(conn, conn, 8)
				io.Copy(io.Discard, conn)
				conn.Close()
			}
		}
	}()
	frame := []byte{0, 0, 0, 4, 1, 2, 3, 4}
	before := processorTime()
	b.ReportAllocs()
	var bytes int64
	for b.Loop() {
		raw, err := net.Dial("tcp", l.Addr().String())
		require.NoError(b, err)
		counted := NewProgressConn(raw, Rates{})
		conn, err := client.client(b.Context(), counted)
		require.NoError(b, err)
		conn.Write(frame)
		_, err = io.ReadFull(conn, frame)
		require.NoError(b, err)
		conn.Close()
		bytes += counted.In.Load() + counted.Out.Load()
		if forget {
			client.tickets.held = newRecent[held](1)
		}
	}
	b.ReportMetric(float64(processorTime()-before)/float64(b.N), "cpu-ns/op")
	b.ReportMetric(float64(bytes)/float64(b.N), "bytes/op")
}

func processorTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
