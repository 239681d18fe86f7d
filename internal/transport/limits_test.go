package transport

import (
	"context"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func Remote(ip string, port int) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: port} }

func TestPendingConnectionsAreBoundedInAllAndByAddress(t *testing.T) {
	a := NewAdmission(6, 10)
	var tickets []*Ticket
	for port := range 4 {
		tk, err := a.Admit(Remote("192.0.2.1", 1000+port), nil)
		require.NoError(t, err)
		tickets = append(tickets, tk)
	}
	_, err := a.Admit(named("[::ffff:192.0.2.1]:2000"), nil)
	require.ErrorContains(t, err, "4 connections of 192.0.2.1")
	for i := range 2 {
		_, err = a.Admit(Remote(fmt.Sprintf("192.0.2.%d", 2+i), 1), nil)
		require.NoError(t, err)
	}
	_, err = a.Admit(Remote("192.0.2.9", 1), nil)
	require.ErrorContains(t, err, "MaxPending")

	tickets[0].Release()
	tickets[0].Release() // does nothing
	_, err = a.Admit(Remote("192.0.2.1", 3000), nil)
	require.NoError(t, err)
	_, err = a.Admit(Remote("192.0.2.9", 1), nil)
	require.Error(t, err, "the second release freed nothing")
}

func TestLoopbackAndLocalConnectionsHaveNoBoundByAddress(t *testing.T) {
	a := NewAdmission(15, 1)
	for _, addr := range []net.Addr{Remote("127.0.0.1", 1), Remote("::1", 1), &net.UnixAddr{Net: "unix"}} {
		for range 5 {
			_, err := a.Admit(addr, nil)
			require.NoError(t, err)
		}
	}
	_, err := a.Admit(Remote("127.0.0.1", 1), nil)
	require.ErrorContains(t, err, "MaxPending", "the bound in all holds")
}

func TestPromotionFreesThePendingPlaceAndCountsAgainstMaxConns(t *testing.T) {
	a := NewAdmission(1, 1)
	first, err := a.Admit(Remote("192.0.2.1", 1), nil)
	require.NoError(t, err)
	require.NoError(t, first.Promote())
	require.NoError(t, first.Promote(), "again changes nothing")

	second, err := a.Admit(Remote("192.0.2.1", 2), nil)
	require.NoError(t, err)
	require.ErrorContains(t, second.Promote(), "MaxConns")
	_, err = a.Admit(Remote("192.0.2.1", 3), nil)
	require.Error(t, err, "it is still pending")

	first.Release()
	require.Error(t, first.Promote())
	require.NoError(t, second.Promote())
	second.Release()
	require.Zero(t, a.pending)
	require.Zero(t, a.conns)
	require.Empty(t, a.perIP)
}

func TestInflightServesInOrderAndWakesEverybody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewInflight(100)
		require.NoError(t, f.Acquire(t.Context(), 100))
		order := make(chan int, 4)
		for i, n := range []int{100, 1, 50, 49} {
			go func() {
				if f.Acquire(context.Background(), n) == nil {
					order <- i
					if n == 100 {
						time.Sleep(time.Second)
						f.Release(n)
					}
				}
			}()
			synctest.Wait()
		}
		f.Release(99)
		synctest.Wait()
		require.Empty(t, order, "small ones do not overtake")
		f.Release(1)
		synctest.Wait()
		require.Len(t, order, 1)
		require.Equal(t, 0, <-order)
		time.Sleep(2 * time.Second)
		require.ElementsMatch(t, []int{1, 2, 3}, []int{<-order, <-order, <-order})
	})
}

func TestInflightGivesUpWithTheContextAndLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewInflight(100)
		require.NoError(t, f.Acquire(t.Context(), 60))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		small := make(chan error, 1)
		go func() {
			time.Sleep(time.Millisecond)
			small <- f.Acquire(context.Background(), 40)
		}()
		require.ErrorIs(t, f.Acquire(ctx, 50), context.DeadlineExceeded)
		require.NoError(t, <-small, "who queued behind goes on")
		f.Release(60)
		f.Release(40)
		require.NoError(t, f.Acquire(t.Context(), 100))
	})
}

func TestMoreThanTheWholeBoundIsAnErrorAtOnce(t *testing.T) {
	err := NewInflight(100).Acquire(context.Background(), 101)
	require.ErrorContains(t, err, "101 bytes at once, want at most MaxInFlight, which is 100")
}
