package replicator

import (
	"bytes"
	"fmt"
	"log/slog"
	"math"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/testca"
	"github.com/stretchr/testify/require"
)

func TestValueLargerThanWhatMayBeInFlightArrives(t *testing.T) {
	a := serve(t, Options{Name: "a", MaxInFlight: 8 << 20})
	b := serve(t, Options{Name: "b", MaxInFlight: 8 << 20, Peers: []string{a.Addr().String()}})
	large := bytes.Repeat([]byte("0123456789abcdef"), 12<<20/16)
	require.NoError(t, a.Put([]byte("large"), large, nil))
	for i := range 10 {
		require.NoError(t, a.Put(fmt.Appendf(nil, "k%d", i), large[:1<<20], nil))
	}
	require.Eventually(t, func() bool { return b.Digest() == a.Digest() }, 40*time.Second, 10*time.Millisecond)
	got, err := b.Get([]byte("large"), nil)
	require.NoError(t, err)
	require.True(t, bytes.Equal(large, got))
	require.Eventually(t, func() bool { return len(b.large) == 0 }, 10*time.Second, time.Millisecond) // given back after the commit
	require.Eventually(t, func() bool { return b.inflight.Try(7<<20) && b.small.Try(1<<20) }, 10*time.Second, time.Millisecond, "all room is given back")
}

func TestOptionsThatCouldNotWorkAreNamed(t *testing.T) {
	for want, o := range map[string]Options{
		"Options.ReadRate: -1, want 0 for no bound or at least 65536":   {ReadRate: -1},
		"Options.WriteRate: 100, want 0 for no bound or at least 65536": {WriteRate: 100},
		"Options.MaxInFlight: 1000, want at least 8388608":              {MaxInFlight: 1000},
		"Options.MaxPending: -1":                                        {MaxPending: -1},
		"Options.MaxValue: 2147483647, want 1 to":                       {MaxValue: math.MaxInt32},
		"Options.Secret: 5 bytes":                                       {Secret: []byte("short")},
		"Options.OldSecrets: 3 bytes":                                   {Secret: testca.SecretA, OldSecrets: [][]byte{[]byte("old")}},
		"Options.MinInterval: 1m0s, want at most MaxInterval":           {MinInterval: time.Minute},
		`Options.Peers: address "nowhere"`:                              {Peers: []string{"nowhere"}},
	} {
		_, err := o.withDefaults()
		require.ErrorContains(t, err, want)
	}
}

func TestRefusalsAreBoundedAndLoggedOnce(t *testing.T) {
	var r refusals
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	for i := range 1000 {
		r.note(logger, &net.TCPAddr{IP: net.IPv4(192, 0, 2, byte(i%100)), Port: 1000 + i}, &session.RejectedError{Why: "another cluster"})
	}
	list := r.status()
	require.Len(t, list, maxRefusals+1)
	total := int64(0)
	for _, e := range list {
		total += e.Count
	}
	require.EqualValues(t, 1000, total)
	require.Equal(t, maxRefusals+1, strings.Count(log.String(), "\n"))
}

// Connections that are opened and left have had their time after a second: then a
// server that comes from outside gets in, although all places are taken again and
// again, and the victim does not know where to dial it.
func TestConnectionsThatAreLeftOpenKeepNoNewServerOut(t *testing.T) {
	db := serve(t, Options{})
	var open []net.Conn
	for range 100 {
		c, err := net.Dial("tcp", db.Addr().String())
		require.NoError(t, err)
		open = append(open, c)
	}
	late := serve(t, Options{Peers: []string{db.Addr().String()}, MinInterval: 10 * time.Millisecond, MaxInterval: 500 * time.Millisecond})
	start := time.Now()
	require.Eventually(t, func() bool { return late.Status().Peers[0].State == "ok" }, 10*time.Second, 10*time.Millisecond)
	require.Less(t, time.Since(start), session.HandshakeTimeout, "not only when theirs ran out")
	for _, c := range open {
		c.Close()
	}
}
