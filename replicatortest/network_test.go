package replicatortest_test

import (
	"context"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/level-replicator/replicator/replicatortest"
)

// echo listens on port 1 of each host and sends back what comes.
func echo(t *testing.T, n *replicatortest.Network, hosts ...string) {
	t.Helper()
	for _, name := range hosts {
		listener, err := n.Host(name).Listen("1")
		require.NoError(t, err)
		t.Cleanup(func() { listener.Close() })
		go func() {
			for {
				c, err := listener.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					io.Copy(c, c)
				}()
			}
		}()
	}
}

// dial opens a connection to port 1 and closes it with the test.
func dial(t *testing.T, n *replicatortest.Network, from, to string) (net.Conn, error) {
	c, err := n.Host(from).Dial(context.Background(), "tcp", to+":1")
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// requireEcho has the connection carry bytes both ways.
func requireEcho(t *testing.T, c net.Conn) {
	t.Helper()
	write(t, c, "hello")
	require.Equal(t, "hello", read(t, c))
}

func requireReset(t *testing.T, c net.Conn) {
	t.Helper()
	_, err := c.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
	_, err = c.Write([]byte("x"))
	require.ErrorIs(t, err, syscall.ECONNRESET)
	var op *net.OpError
	require.ErrorAs(t, err, &op)
	require.False(t, op.Timeout())
}

func requireTimeout(t *testing.T, err error) {
	t.Helper()
	var e net.Error
	require.ErrorAs(t, err, &e)
	require.True(t, e.Timeout(), "%v", err)
}

func TestPartitionCutsAndHealJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := replicatortest.NewNetwork(1)
		echo(t, n, "a", "b", "c")
		ab, err := dial(t, n, "a", "b")
		require.NoError(t, err)
		ac, err := dial(t, n, "a", "c")
		require.NoError(t, err)
		ca, err := dial(t, n, "c", "a")
		require.NoError(t, err)

		n.Partition([]string{"a", "b"}, []string{"c"})
		requireEcho(t, ab)
		requireReset(t, ac)
		requireReset(t, ca)
		start := time.Now()
		_, err = dial(t, n, "a", "c")
		requireTimeout(t, err)
		require.ErrorIs(t, err, syscall.ETIMEDOUT)
		require.Equal(t, time.Second, time.Since(start))
		cc, err := dial(t, n, "c", "c")
		require.NoError(t, err)
		requireEcho(t, cc)

		n.Heal()
		ac, err = dial(t, n, "a", "c")
		require.NoError(t, err)
		requireEcho(t, ac)
	})
}

func TestPartitionWakesWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := replicatortest.NewNetwork(1)
		a, b := pipe(t, n)
		errs := make(chan error, 2)
		go func() {
			_, err := a.Read(make([]byte, 1))
			errs <- err
		}()
		go func() {
			_, err := a.Write(make([]byte, 2*replicatortest.BufferSize))
			errs <- err
		}()
		synctest.Wait()
		n.Partition([]string{"b"})
		require.ErrorIs(t, <-errs, syscall.ECONNRESET)
		require.ErrorIs(t, <-errs, syscall.ECONNRESET)
		// What was under way is lost with the connection.
		requireReset(t, b)
	})
}

func TestHostsInNoGroupStayTogetherAndOneInTwoBridges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := replicatortest.NewNetwork(1)
		echo(t, n, "a", "b", "c", "d")
		reach := func(from, to string) bool {
			_, err := dial(t, n, from, to)
			return err == nil
		}
		n.Partition([]string{"c"})
		require.True(t, reach("a", "b"))
		require.False(t, reach("a", "c"))
		require.False(t, reach("c", "a"))
		n.Partition([]string{"a", "b"}, []string{"b", "c"})
		require.True(t, reach("a", "b"))
		require.True(t, reach("b", "c"))
		require.False(t, reach("a", "c"))
		require.False(t, reach("d", "a"))
		n.Partition()
		require.True(t, reach("a", "c"))
	})
}

func TestBlockHoldsOneWayOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := replicatortest.NewNetwork(1)
		echo(t, n, "a", "b")
		ab, err := dial(t, n, "a", "b")
		require.NoError(t, err)
		ba, err := dial(t, n, "b", "a")
		require.NoError(t, err)
		n.Block("a", "b")
		requireReset(t, ab)
		requireEcho(t, ba)
		_, err = dial(t, n, "a", "b")
		requireTimeout(t, err)
		ba, err = dial(t, n, "b", "a")
		require.NoError(t, err)
		requireEcho(t, ba)
		n.Heal()
		_, err = dial(t, n, "a", "b")
		require.NoError(t, err)
	})
}

func TestDialSaysWhyItFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := replicatortest.NewNetwork(1)
		a := n.Host("a")
		_, err := a.Dial(t.Context(), "tcp", "a:1")
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		_, err = a.Dial(t.Context(), "tcp", "nobody:1")
		var dns *net.DNSError
		require.ErrorAs(t, err, &dns)
		require.True(t, dns.IsNotFound)
		_, err = a.Dial(t.Context(), "udp", "a:1")
		require.ErrorAs(t, err, new(net.UnknownNetworkError))
		_, err = a.Dial(t.Context(), "tcp", "a")
		require.ErrorContains(t, err, "missing port")

		n.Host("b")
		n.Partition([]string{"b"})
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err = a.Dial(ctx, "tcp", "b:1")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		requireTimeout(t, err)
		require.Equal(t, 300*time.Millisecond, time.Since(start))
		n.Heal()
		_, err = a.Dial(ctx, "tcp", "b:1")
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

func TestPortsBelongToOneListenerUntilItCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := replicatortest.NewNetwork(1)
		a := n.Host("a")
		first, err := a.Listen("9000")
		require.NoError(t, err)
		_, err = a.Listen("9000")
		require.ErrorIs(t, err, syscall.EADDRINUSE)
		_, err = a.Listen("http")
		require.ErrorContains(t, err, "invalid port")

		waiting, err := a.Dial(t.Context(), "tcp", "a:9000")
		require.NoError(t, err)
		require.NoError(t, first.Close())
		requireReset(t, waiting) // nobody accepted it
		require.NoError(t, waiting.Close())
		require.ErrorIs(t, first.Close(), net.ErrClosed)
		_, err = first.Accept()
		require.ErrorIs(t, err, net.ErrClosed)

		second, err := a.Listen("9000")
		require.NoError(t, err)
		time.AfterFunc(time.Second, func() { second.Close() })
		_, err = second.Accept()
		require.ErrorIs(t, err, net.ErrClosed)
	})
}

func TestFullBacklogDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := replicatortest.NewNetwork(1)
		listener, err := n.Host("a").Listen("1")
		require.NoError(t, err)
		for range 128 {
			_, err = dial(t, n, "b", "a")
			require.NoError(t, err)
		}
		_, err = dial(t, n, "b", "a")
		require.ErrorIs(t, err, syscall.ETIMEDOUT)
		c, err := listener.Accept()
		require.NoError(t, err)
		require.NoError(t, c.Close())
		_, err = dial(t, n, "b", "a")
		require.NoError(t, err)
		require.NoError(t, listener.Close())
	})
}

func TestDelayIsMeasuredExactly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := replicatortest.NewNetwork(1)
		n.Delay(70*time.Millisecond, 70*time.Millisecond)
		start := time.Now()
		a, b := pipe(t, n)
		require.Equal(t, 140*time.Millisecond, time.Since(start), "handshake")

		start = time.Now()
		write(t, a, "one")
		require.Zero(t, time.Since(start))
		time.Sleep(20 * time.Millisecond)
		write(t, a, "two")
		require.Equal(t, "one", read(t, b))
		require.Equal(t, 70*time.Millisecond, time.Since(start))
		require.Equal(t, "two", read(t, b))
		require.Equal(t, 90*time.Millisecond, time.Since(start))

		require.NoError(t, b.SetReadDeadline(time.Now().Add(30*time.Millisecond)))
		write(t, a, "three")
		_, err := b.Read(make([]byte, 10))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.Equal(t, 120*time.Millisecond, time.Since(start))
		require.NoError(t, b.SetReadDeadline(time.Time{}))
		require.NoError(t, a.Close())
		require.Equal(t, "three", read(t, b))
		_, err = b.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		require.Equal(t, 190*time.Millisecond, time.Since(start))
	})
}

func TestOrderIsKeptWhateverTheLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := replicatortest.NewNetwork(7)
		n.Delay(0, time.Second)
		a, b := pipe(t, n)
		go func() {
			for i := range 200 {
				a.Write([]byte{byte(i)})
				time.Sleep(time.Millisecond)
			}
			n.Delay(0, 0) // may not overtake either
			a.Write([]byte{200})
			a.Close()
		}()
		got, err := io.ReadAll(b)
		require.NoError(t, err)
		require.Len(t, got, 201)
		for i := range got {
			require.Equal(t, byte(i), got[i])
		}
	})
}

// cutAt returns after how many bytes the sender and the receiver see a reset.
func cutAt(t *testing.T, seed uint64, bytes int) (sent, received int) {
	n := replicatortest.NewNetwork(seed)
	n.CutAfter(bytes)
	a, b := pipe(t, n)
	done := make(chan int)
	go func() {
		got, err := io.ReadAll(b)
		require.ErrorIs(t, err, syscall.ECONNRESET)
		done <- len(got)
	}()
	var err error
	for err == nil {
		var k int
		k, err = a.Write(make([]byte, 1000))
		sent += k
	}
	require.ErrorIs(t, err, syscall.ECONNRESET)
	return sent, <-done
}

func TestCutComesAboutWhereAskedAndWhereTheSeedSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bytes = 1 << 18
		places := map[int]bool{}
		for seed := range uint64(10) {
			sent, received := cutAt(t, seed, bytes)
			require.Equal(t, sent, received)
			require.GreaterOrEqual(t, sent, bytes/2)
			require.Less(t, sent, bytes*3/2)
			again, _ := cutAt(t, seed, bytes)
			require.Equal(t, sent, again)
			places[sent] = true
		}
		require.Greater(t, len(places), 5)
	})
}

func TestCutAfterZeroSparesWhatExists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := replicatortest.NewNetwork(1)
		n.CutAfter(10)
		a, b := pipe(t, n)
		n.CutAfter(0)
		write(t, a, "longer than any cut could be after ten bytes")
		read(t, b)
		n.CutAfter(10)
		_, err := a.Write(make([]byte, 100))
		require.ErrorIs(t, err, syscall.ECONNRESET)
	})
}

func TestResetCutsOnlyWhatExistsBetweenTheTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := replicatortest.NewNetwork(1)
		echo(t, n, "a", "b", "c")
		ab, err := dial(t, n, "a", "b")
		require.NoError(t, err)
		ba, err := dial(t, n, "b", "a")
		require.NoError(t, err)
		ac, err := dial(t, n, "a", "c")
		require.NoError(t, err)
		n.Reset("a", "b")
		requireReset(t, ab)
		requireReset(t, ba)
		requireEcho(t, ac)
		ab, err = dial(t, n, "a", "b")
		require.NoError(t, err)
		requireEcho(t, ab)
	})
}

func TestBytesAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := replicatortest.NewNetwork(1)
		a, b := pipe(t, n)
		write(t, a, "12345")
		write(t, b, "123")
		require.Equal(t, "12345", read(t, b))
		require.EqualValues(t, 8, n.Bytes())
		sent, received := n.Host("a").Bytes()
		require.Equal(t, []int64{5, 0}, []int64{sent, received})
		sent, received = n.Host("b").Bytes()
		require.Equal(t, []int64{3, 5}, []int64{sent, received})
	})
}

func TestDialersGiveUpWithTheirContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := replicatortest.NewNetwork(1)
		n.Delay(time.Second, time.Second)
		echo(t, n, "a")
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(1500*time.Millisecond, cancel)
		_, err := n.Host("b").Dial(ctx, "tcp", "a:1") // a has accepted it by then
		require.ErrorIs(t, err, context.Canceled)
		// By then a has heard of it. If not, its goroutine stays, and synctest panics.
		time.Sleep(time.Second)
	})
}
