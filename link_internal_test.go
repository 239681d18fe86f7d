package replicator

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

func TestBrokenConnectionIsNoFaultOfThePeer(t *testing.T) {
	reset := &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", syscall.ECONNRESET)}
	for _, err := range []error{io.EOF, io.ErrUnexpectedEOF, reset, errors.Join(nil, reset), os.ErrDeadlineExceeded, net.ErrClosed, errNoBye} {
		require.True(t, broken(err), "%v", err)
	}
	for _, err := range []error{
		nil, &session.RefusedError{}, replica.ErrClockSkew, replica.ProtocolErrorf("nonsense"), tls.AlertError(1),
		fmt.Errorf("%w: %w", ErrFailed, syscall.ENOSPC), fmt.Errorf("%w: %w", ErrFailed, &os.PathError{Op: "write", Err: syscall.EIO}),
	} {
		require.False(t, broken(err), "%v", err)
	}
	require.True(t, ownFault(fmt.Errorf("%w: %w", ErrFailed, syscall.ENOSPC)))
	require.True(t, ownFault(leveldb.ErrReadOnly))
	require.False(t, ownFault(&session.RefusedError{}))
}

// TestLinkOfACallerEndsWithClose has a caller's session, which Close does not wait for, end as Close begins.
func TestLinkOfACallerEndsWithClose(t *testing.T) {
	l := newLifecycle()
	ran := make(chan struct{})
	require.True(t, l.spawnBeforeClose(func() { <-ran }))
	close(l.ending)
	require.False(t, l.spawnBeforeClose(func() { t.Error("it runs on a closed database") }))
	close(ran)
	l.tasks.Wait()
}

func TestOpenConnectionsLeavePlacesForSessions(t *testing.T) {
	list := func(accepted, dialed int) (ls []*liveLink) {
		for range accepted {
			ls = append(ls, &liveLink{})
		}
		for range dialed {
			ls = append(ls, &liveLink{dialed: true})
		}
		return ls
	}
	room := func(fanout, conns, accepted, dialed int) (forAccepted, forDialed bool) {
		db := &DB{opts: Options{Fanout: fanout, Limits: Limits{MaxConns: conns}}}
		ls := list(accepted, dialed)
		return db.roomForLink(ls, false), db.roomForLink(ls, true)
	}
	for _, c := range []struct {
		fanout, conns, accepted, dialed int
		forAccepted, forDialed          bool
	}{
		{4, 128, 0, 0, true, true},
		{4, 128, 7, 0, true, true},
		{4, 128, 4, 4, false, false},
		{4, 10, 4, 3, true, true},
		{4, 8, 4, 0, false, true},
		{4, 1, 0, 0, false, true},
		{100, 128, 64, 0, false, true},
	} {
		accepted, dialed := room(c.fanout, c.conns, c.accepted, c.dialed)
		require.Equal(t, []bool{c.forAccepted, c.forDialed}, []bool{accepted, dialed}, "%+v", c)
	}
}

func TestLinkCarriesChangesToAllAddressesOfItsPeer(t *testing.T) {
	now := time.Now()
	ps := newPeers(time.Second, time.Minute, time.Minute)
	o := causal.Origin{1}
	for _, addr := range []string{"192.0.2.1:9000", "b.example:9000"} {
		ps.add(addr, fromList, now)
		p, _ := ps.take(addr)
		ps.answered(p, o, "b", addr)
		p.carried = true
		require.True(t, p.candidate(now, causal.Sum{}).Linked)
	}
	p, _ := ps.search("b.example:9000")
	ps.answered(ps.list[p], causal.Origin{2}, "c", "")
	require.False(t, ps.list[p].candidate(now, causal.Sum{}).Linked, "another one is there now")
	require.True(t, ps.list[0].candidate(now, causal.Sum{}).Linked)
}
