package transport

import (
	"context"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator/internal/testca"
	"github.com/stretchr/testify/require"
)

// bubble runs test in fake time with one end guarded and the other bare.
func bubble(t *testing.T, r Rates, test func(t *testing.T, ours *ProgressConn, theirs net.Conn)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer func() {
			ours.Close()
			theirs.Close()
			time.Sleep(time.Minute) // the other end's goroutine finds out
		}()
		test(t, NewProgressConn(ours, r), theirs)
	})
}

// drip writes n bytes at a time until the connection ends.
func drip(conn net.Conn, n int, every time.Duration) {
	for {
		time.Sleep(every)
		if _, err := conn.Write(make([]byte, n)); err != nil {
			return
		}
	}
}

// sip reads n bytes at a time until the connection ends.
func sip(conn net.Conn, n int, every time.Duration) {
	for b := make([]byte, n); ; time.Sleep(every) {
		if _, err := io.ReadFull(conn, b); err != nil {
			return
		}
	}
}

func requireSlow(t *testing.T, err error) {
	t.Helper()
	var slow *slowError
	require.ErrorAs(t, err, &slow)
	require.ErrorContains(t, err, "the peer is too slow")
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.True(t, err.(net.Error).Timeout())
}

func TestPeerThatSendsOneByteASecondIsCutAfterTenSeconds(t *testing.T) {
	bubble(t, Rates{}, func(t *testing.T, ours *ProgressConn, theirs net.Conn) {
		go drip(theirs, 1, 999*time.Millisecond)
		start := time.Now()
		n, err := io.ReadFull(ours, make([]byte, 1000))
		requireSlow(t, err)
		require.ErrorContains(t, err, "sent 10 bytes in 10s")
		require.Equal(t, 10, n)
		require.Equal(t, 10*time.Second, time.Since(start))
	})
}

func TestPeerThatReadsOneByteASecondIsCutAfterTenSeconds(t *testing.T) {
	bubble(t, Rates{}, func(t *testing.T, ours *ProgressConn, theirs net.Conn) {
		go sip(theirs, 1, 999*time.Millisecond)
		start := time.Now()
		n, err := ours.Write(make([]byte, 1<<20))
		requireSlow(t, err)
		require.ErrorContains(t, err, "took 11 bytes")
		require.Equal(t, 11, n)
		require.EqualValues(t, 11, ours.Out.Load())
		require.Equal(t, 10*time.Second, time.Since(start))
	})
}

func TestSmallWritesDoNotBuyTheSlowReaderTime(t *testing.T) {
	bubble(t, Rates{}, func(t *testing.T, ours *ProgressConn, theirs net.Conn) {
		go sip(theirs, 1, 999*time.Millisecond)
		start := time.Now()
		var err error
		for err == nil {
			_, err = ours.Write([]byte{1})
			ours.FrameDone()
		}
		requireSlow(t, err)
		require.Equal(t, 10*time.Second, time.Since(start))
	})
}

func TestPeerJustFastEnoughIsKept(t *testing.T) {
	bubble(t, Rates{}, func(t *testing.T, ours *ProgressConn, theirs net.Conn) {
		go drip(theirs, progressBytes/8, time.Second) // eight seconds for 64 KiB
		n, err := io.ReadFull(ours, make([]byte, 1<<20))
		require.NoError(t, err)
		require.EqualValues(t, n, ours.In.Load())
	})
	bubble(t, Rates{}, func(t *testing.T, ours *ProgressConn, theirs net.Conn) {
		go sip(theirs, progressBytes/8, time.Second)
		n, err := ours.Write(make([]byte, 1<<20))
		require.NoError(t, err)
		require.EqualValues(t, n, ours.Out.Load())
	})
}

func TestWholeFramesRenewTheTime(t *testing.T) {
	bubble(t, Rates{}, func(t *testing.T, ours *ProgressConn, theirs net.Conn) {
		go drip(theirs, 5, 9*time.Second)
		for range 20 {
			_, err := io.ReadFull(ours, make([]byte, 5))
			require.NoError(t, err)
			ours.FrameDone()
		}
		_, err := io.ReadFull(ours, make([]byte, 10)) // a frame that takes 18 s
		requireSlow(t, err)
	})
}

func TestFrameDoneReachesTheReadUnderWay(t *testing.T) {
	bubble(t, Rates{}, func(t *testing.T, ours *ProgressConn, theirs net.Conn) {
		start := time.Now()
		time.AfterFunc(9*time.Second, ours.FrameDone)
		_, err := ours.Read(make([]byte, 1))
		requireSlow(t, err)
		require.Equal(t, 19*time.Second, time.Since(start))
	})
}

func TestOwnPausesAreNotHeldAgainstThePeer(t *testing.T) {
	bubble(t, Rates{}, func(t *testing.T, ours *ProgressConn, theirs net.Conn) {
		go drip(theirs, 1, 0)
		for range 5 {
			time.Sleep(8 * time.Second) // a slow commit
			_, err := ours.Read(make([]byte, 1))
			require.NoError(t, err)
		}
	})
}

func TestCallersDeadlineHoldsBesideTheProgress(t *testing.T) {
	bubble(t, Rates{}, func(t *testing.T, ours *ProgressConn, theirs net.Conn) {
		start := time.Now()
		require.NoError(t, ours.SetDeadline(start.Add(5*time.Second)))
		_, err := ours.Read(make([]byte, 1))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.NotErrorAs(t, err, new(*slowError))
		require.Equal(t, 5*time.Second, time.Since(start))
		_, err = ours.Write(make([]byte, 1))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)

		// A later one does not put off the cut of a Read under way.
		require.NoError(t, ours.SetDeadline(time.Time{}))
		ours.FrameDone()
		start = time.Now()
		time.AfterFunc(time.Second, func() { ours.SetDeadline(start.Add(time.Hour)) })
		_, err = ours.Read(make([]byte, 1))
		requireSlow(t, err)
		require.Equal(t, 10*time.Second, time.Since(start))

		// And one in the past interrupts it.
		ours.FrameDone()
		start = time.Now()
		time.AfterFunc(time.Second, func() { ours.SetDeadline(start) })
		_, err = ours.Read(make([]byte, 1))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.NotErrorAs(t, err, new(*slowError))
		require.Equal(t, time.Second, time.Since(start))
	})
}

func TestRatesAreSharedByConnections(t *testing.T) {
	const perSecond, bytes = 100_000, 500_000
	synctest.Test(t, func(t *testing.T) {
		r := NewRates(perSecond, perSecond)
		start, done := time.Now(), make(chan error)
		for range 2 {
			ours, theirs := net.Pipe()
			a := NewProgressConn(ours, Rates{write: r.write})
			b := NewProgressConn(theirs, Rates{read: r.read})
			go func() {
				_, err := a.Write(make([]byte, bytes))
				done <- err
			}()
			go func() {
				_, err := io.ReadFull(b, make([]byte, bytes))
				done <- err
			}()
		}
		for range 4 {
			require.NoError(t, <-done)
		}
		require.InDelta(t, 2*bytes/perSecond, time.Since(start).Seconds(), 0.5)
	})
}

func TestReadRateHoldsBackASenderWithoutOne(t *testing.T) {
	r := NewRates(10_000, 0)
	bubble(t, r, func(t *testing.T, ours *ProgressConn, theirs net.Conn) {
		go theirs.Write(make([]byte, 200_000))
		start := time.Now()
		_, err := io.ReadFull(ours, make([]byte, 200_000))
		require.NoError(t, err, "and our own rate does not make the peer slow")
		require.InDelta(t, 20, time.Since(start).Seconds(), 0.5)
	})
}

func TestCloseEndsTheWaitForTheRate(t *testing.T) {
	bubble(t, NewRates(0, 1), func(t *testing.T, ours *ProgressConn, theirs net.Conn) {
		go io.Copy(io.Discard, theirs)
		time.AfterFunc(time.Second, func() { ours.Close(); ours.Close() })
		start := time.Now()
		_, err := ours.Write(make([]byte, 10_000))
		require.ErrorIs(t, err, net.ErrClosed)
		require.Equal(t, time.Second, time.Since(start))
	})
}

func TestSlownessIsNamedThroughTLS(t *testing.T) {
	a := withSecret(t, testca.SecretA)
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		guarded := NewProgressConn(ours, Rates{})
		go func() {
			if c, err := a.client(context.Background(), theirs); err == nil {
				drip(c, 1, time.Second)
			}
		}()
		conn, err := a.Server(t.Context(), guarded)
		require.NoError(t, err)
		guarded.FrameDone()
		_, err = io.ReadFull(conn, make([]byte, 1000))
		require.ErrorAs(t, err, new(*slowError))
		require.ErrorAs(t, HandshakeError(err), new(*slowError))
		conn.Close()
		theirs.Close()
	})
}

func TestPeerThatSaysThatItIsBusyMayReadLater(t *testing.T) {
	bubble(t, Rates{}, func(t *testing.T, ours *ProgressConn, theirs net.Conn) {
		start := time.Now()
		for i := range 5 {
			time.AfterFunc(time.Duration(i)*9*time.Second, ours.Busy)
		}
		_, err := ours.Write(make([]byte, 1<<20))
		requireSlow(t, err)
		require.Equal(t, (4*9+10)*time.Second, time.Since(start))
	})
}
