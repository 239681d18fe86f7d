package replicatortest_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/nettest"

	"github.com/level-replicator/replicator/replicatortest"
)

// pipe connects host a to host b.
func pipe(tb testing.TB, n *replicatortest.Network) (dialed, accepted net.Conn) {
	tb.Helper()
	listener, err := n.Host("b").Listen("0")
	require.NoError(tb, err)
	dialed, err = n.Host("a").Dial(context.Background(), "tcp", listener.Addr().String())
	require.NoError(tb, err)
	accepted, err = listener.Accept()
	require.NoError(tb, err)
	require.NoError(tb, listener.Close())
	tb.Cleanup(func() {
		dialed.Close()
		accepted.Close()
	})
	return dialed, accepted
}

// write sends all of p.
func write(tb testing.TB, c net.Conn, p string) {
	tb.Helper()
	_, err := io.WriteString(c, p)
	require.NoError(tb, err)
}

// read returns what one Read reads.
func read(tb testing.TB, c net.Conn) string {
	tb.Helper()
	p := make([]byte, 1024)
	n, err := c.Read(p)
	require.NoError(tb, err)
	return string(p[:n])
}

func TestConnKeepsTheContractOfNetConn(t *testing.T) {
	for name, delay := range map[string]time.Duration{"at once": 0, "with latency": time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
				n := replicatortest.NewNetwork(1)
				n.Delay(0, delay)
				a, b := pipe(t, n)
				return a, b, func() { a.Close(); b.Close() }, nil
			})
		})
	}
}

func TestWriterWaitsWhenTheBufferIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pipe(t, replicatortest.NewNetwork(1))
		p := make([]byte, replicatortest.BufferSize)
		n, err := a.Write(p)
		require.NoError(t, err)
		require.Equal(t, len(p), n)

		written := false
		go func() {
			_, err := a.Write([]byte("more"))
			written = err == nil
		}()
		synctest.Wait()
		require.False(t, written)
		_, err = io.ReadFull(b, p)
		require.NoError(t, err)
		synctest.Wait()
		require.True(t, written)
		require.Equal(t, "more", read(t, b))
	})
}

func TestWriteTellsHowMuchItTookBeforeItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := pipe(t, replicatortest.NewNetwork(1))
		start := time.Now()
		require.NoError(t, a.SetWriteDeadline(start.Add(3*time.Second)))
		n, err := a.Write(make([]byte, replicatortest.BufferSize+1))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.Equal(t, replicatortest.BufferSize, n)
		require.Equal(t, 3*time.Second, time.Since(start))
	})
}

func TestDeadlineMovedWhileWaitingCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := pipe(t, replicatortest.NewNetwork(1))
		start := time.Now()
		require.NoError(t, a.SetDeadline(start.Add(time.Hour)))
		time.AfterFunc(time.Second, func() { a.SetReadDeadline(start.Add(2 * time.Second)) })
		_, err := a.Read(make([]byte, 1))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.Equal(t, 2*time.Second, time.Since(start))
	})
}

func TestWhatWasWrittenBeforeCloseIsReadBeforeEOF(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := replicatortest.NewNetwork(1)
		n.Delay(time.Second, time.Second)
		a, b := pipe(t, n)
		write(t, a, "last words")
		require.NoError(t, a.Close())

		got, err := io.ReadAll(b)
		require.NoError(t, err)
		require.Equal(t, "last words", string(got))
		_, err = b.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
	})
}

func TestCloseEndsWhatWaitsOnBothSides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := replicatortest.NewNetwork(1)
		a, b := pipe(t, n)
		var readErr, writeErr, remoteErr error
		var all sync.WaitGroup
		all.Go(func() { _, writeErr = a.Write(make([]byte, 2*replicatortest.BufferSize)) })
		all.Go(func() { _, readErr = a.Read(make([]byte, 1)) })
		c, d := pipe(t, n)
		all.Go(func() { _, remoteErr = d.Write(make([]byte, 2*replicatortest.BufferSize)) })
		synctest.Wait()
		require.NoError(t, a.Close())
		require.NoError(t, c.Close())
		all.Wait()
		require.ErrorIs(t, readErr, net.ErrClosed)
		require.ErrorIs(t, writeErr, net.ErrClosed)
		require.ErrorIs(t, remoteErr, syscall.EPIPE)

		_, err := a.Read(make([]byte, 1))
		require.ErrorIs(t, err, net.ErrClosed)
		require.ErrorIs(t, a.Close(), net.ErrClosed)
		require.ErrorIs(t, a.SetDeadline(time.Time{}), net.ErrClosed)
		_, err = b.Write([]byte("lost, as TCP would"))
		require.NoError(t, err)
		_, err = b.Write([]byte("known by now"))
		require.ErrorIs(t, err, syscall.EPIPE)
	})
}

func TestWritesOfSeveralGoroutinesDoNotMix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pipe(t, replicatortest.NewNetwork(1))
		const size = replicatortest.BufferSize * 3 / 2 // no Write fits at once
		var writers sync.WaitGroup
		for _, letter := range "xyz" {
			writers.Go(func() { a.Write(bytes.Repeat([]byte{byte(letter)}, size)) })
		}
		p := make([]byte, size)
		for range 3 {
			_, err := io.ReadFull(b, p)
			require.NoError(t, err)
			require.Equal(t, size, bytes.Count(p, p[:1]))
		}
		writers.Wait()
	})
}

func TestAddressesNameHostAndPort(t *testing.T) {
	n := replicatortest.NewNetwork(1)
	listener, err := n.Host("b").Listen("9000")
	require.NoError(t, err)
	defer listener.Close()
	require.Equal(t, "b:9000", listener.Addr().String())
	c, err := n.Host("a").Dial(t.Context(), "tcp", "b:9000")
	require.NoError(t, err)
	defer c.Close()
	s, err := listener.Accept()
	require.NoError(t, err)
	defer s.Close()
	require.Equal(t, "b:9000", c.RemoteAddr().String())
	require.Equal(t, c.RemoteAddr(), s.LocalAddr())
	require.Equal(t, c.LocalAddr(), s.RemoteAddr())
	host, port, err := net.SplitHostPort(c.LocalAddr().String())
	require.NoError(t, err)
	require.Equal(t, "a", host)
	require.NotEqual(t, "0", port)
}
