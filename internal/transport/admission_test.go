package transport

import (
	"fmt"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

func remote(ip string, port int) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: port} }

func TestPendingConnectionsAreBoundedInAllAndByAddress(t *testing.T) {
	a := NewAdmission(6, 10)
	var tickets []*Ticket
	for port := range 4 {
		tk, err := a.Admit(remote("192.0.2.1", 1000+port), nil)
		require.NoError(t, err)
		tickets = append(tickets, tk)
	}
	_, err := a.Admit(named("[::ffff:192.0.2.1]:2000"), nil)
	require.ErrorContains(t, err, "4 connections of 192.0.2.1")
	for i := range 2 {
		_, err = a.Admit(remote(fmt.Sprintf("192.0.2.%d", 2+i), 1), nil)
		require.NoError(t, err)
	}
	_, err = a.Admit(remote("192.0.2.9", 1), nil)
	require.ErrorContains(t, err, "MaxPending")

	tickets[0].Release()
	tickets[0].Release() // does nothing
	_, err = a.Admit(remote("192.0.2.1", 3000), nil)
	require.NoError(t, err)
	_, err = a.Admit(remote("192.0.2.9", 1), nil)
	require.Error(t, err, "the second release freed nothing")
}

func TestLoopbackAndLocalConnectionsHaveNoBoundByAddress(t *testing.T) {
	a := NewAdmission(15, 1)
	for _, addr := range []net.Addr{remote("127.0.0.1", 1), remote("::1", 1), &net.UnixAddr{Net: "unix"}} {
		for range 5 {
			_, err := a.Admit(addr, nil)
			require.NoError(t, err)
		}
	}
	_, err := a.Admit(remote("127.0.0.1", 1), nil)
	require.ErrorContains(t, err, "MaxPending", "the bound in all holds")
}

func TestPromotionFreesThePendingPlaceAndCountsAgainstMaxConns(t *testing.T) {
	a := NewAdmission(1, 1)
	first, err := a.Admit(remote("192.0.2.1", 1), nil)
	require.NoError(t, err)
	require.NoError(t, first.Promote())
	require.NoError(t, first.Promote(), "again changes nothing")

	second, err := a.Admit(remote("192.0.2.1", 2), nil)
	require.NoError(t, err)
	require.ErrorContains(t, second.Promote(), "MaxConns")
	_, err = a.Admit(remote("192.0.2.1", 3), nil)
	require.Error(t, err, "it is still pending")

	first.Release()
	require.Error(t, first.Promote())
	require.NoError(t, second.Promote())
	second.Release()
	require.Zero(t, a.pending)
	require.Zero(t, a.conns)
	require.Empty(t, a.perIP)
}
