package replicator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
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

// TestPeerReadsWhyAnOpenConnectionIsClosed has it send much meanwhile: if the connection were closed at once it would
// be reset, and the peer might never read why.
func TestPeerReadsWhyAnOpenConnectionIsClosed(t *testing.T) {
	for range 5 {
		var ahead atomic.Int64
		ended := make(chan error, 10)
		noDial := func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("b dials") }
		a := serve(t, Options{Dial: noDial, IdleTimeout: time.Minute, Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }, Events: &Events{Session: func(e SessionEvent) {
			if e.Live && e.Err != nil {
				ended <- e.Err
			}
		}}})
		b := serve(t, Options{IdleTimeout: time.Minute, Peers: []string{a.Addr().String()}})
		require.NoError(t, b.Put([]byte("k"), []byte("v"), nil)) // it dials at once
		agree(t, a, b)
		require.Eventually(t, func() bool { return len(a.links.all()) == 1 && len(b.links.all()) == 1 }, 20*time.Second, time.Millisecond)
		ahead.Store(int64(time.Hour))
		batch := new(leveldb.Batch)
		for i := range 20 {
			batch.Put(fmt.Append(nil, i), make([]byte, 1<<20))
		}
		require.NoError(t, a.Write(batch, nil))
		select {
		case err := <-ended:
			require.ErrorContains(t, err, "refused by the peer")
		case <-time.After(20 * time.Second):
			require.Fail(t, "the connection stays open")
		}
	}
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

func TestOfTwoOpenConnectionsWithAPeerOneStays(t *testing.T) {
	lesser, greater := causal.Origin{1}, causal.Origin{2}
	between := func(self, peer causal.Origin, dialed bool) *liveLink {
		l := &liveLink{origin: peer, dialer: peer, dialed: dialed, wake: newSignal()}
		if dialed {
			l.dialer = self
		}
		return l
	}
	room := func([]*liveLink) bool { return true }
	for _, first := range []bool{true, false} {
		var at, over links // the lesser and the greater one
		one, other := between(lesser, greater, first), between(lesser, greater, !first)
		require.True(t, at.enter(one, room))
		require.Equal(t, !first, at.enter(other, room), "that which the lesser one dialed")
		require.Equal(t, !first, one.leaving.Load())
		one, other = between(greater, lesser, first), between(greater, lesser, !first)
		require.True(t, over.enter(one, room))
		require.Equal(t, first, over.enter(other, room))
		require.Equal(t, first, one.leaving.Load())
	}
	// Two that the same one dialed may come in another order here than there.
	var at, over links
	require.True(t, at.enter(between(lesser, greater, true), room))
	require.False(t, at.enter(between(lesser, greater, true), room))
	require.True(t, over.enter(between(greater, lesser, false), room))
	require.True(t, over.enter(between(greater, lesser, false), room), "the dialer closes one")
	require.False(t, over.all()[0].leaving.Load())
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
