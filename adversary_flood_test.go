package replicator

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/sim"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/level-replicator/replicator/internal/testca"
	"github.com/level-replicator/replicator/internal/testdb"
	"github.com/level-replicator/replicator/internal/transport"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// besieged is a replica with one honest peer, and what is to hold while others
// attack it: writes go both ways, memory stays bounded, nothing else is stored.
type besieged struct {
	t              testing.TB
	victim, honest *DB
	rounds         int
}

func besiege(t *testing.T, o Options) *besieged {
	honest := serve(t, Options{})
	o.Peers = []string{honest.Addr().String()}
	return &besieged{t: t, victim: serve(t, o), honest: honest}
}

// holds checks all of it. Call it while the attack is under way.
func (b *besieged) holds() {
	b.t.Helper()
	for range 10 {
		b.rounds++
		k := []byte(fmt.Sprintf("%04d", b.rounds))
		require.NoError(b.t, b.victim.Put(append([]byte("victim"), k...), k, nil))
		require.NoError(b.t, b.honest.Put(append([]byte("honest"), k...), k, nil))
		agree(b.t, b.victim, b.honest)
	}
	require.Len(b.t, testdb.Contents(b.t, b.victim), 20*(b.rounds/10))
	require.Len(b.t, b.victim.Status().VersionVector, 2, "of the two honest replicas")
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	require.Less(b.t, m.HeapInuse+m.StackInuse, uint64(256<<20))
	require.NoError(b.t, b.victim.commit(func(t *replica.Txn) error { t.StageMembers(); return nil }))
	for key := range testdb.Contents(b.t, b.victim.raw) {
		if name, ok := strings.CutPrefix(key, string(store.KindKey(store.KindMember, nil))); ok {
			require.Equal(b.t, string(b.honest.self[:]), name, "no member but the honest one")
		}
	}
}

// connect opens n connections at once and calls f with each.
func (b *besieged) connect(n int, f func(i int, conn net.Conn)) (conns []net.Conn) {
	b.t.Helper()
	var wg sync.WaitGroup
	conns = make([]net.Conn, n)
	for i := range n {
		conn, err := net.Dial("tcp", b.victim.Addr().String())
		require.NoError(b.t, err)
		b.t.Cleanup(func() { conn.Close() })
		conns[i] = conn
		wg.Go(func() { f(i, conn) })
	}
	wg.Wait()
	return conns
}

// requireCut waits until the replica has hung up on everybody.
func requireCut(t testing.TB, conns []net.Conn) {
	t.Helper()
	for _, c := range conns {
		c.SetDeadline(time.Now().Add(15 * time.Second)) // fails if it is closed here already
		_, err := io.Copy(io.Discard, c)
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "still connected")
	}
}

func TestGarbageOnTwoHundredConnectionsDisturbsNobody(t *testing.T) {
	b := besiege(t, Options{})
	conns := b.connect(200, func(i int, conn net.Conn) {
		noise := rand.New(rand.NewPCG(1, uint64(i)))
		junk := make([]byte, 1+noise.IntN(1<<15))
		for j := range junk {
			junk[j] = byte(noise.Uint32())
		}
		switch i % 4 {
		case 1: // what looks like a hello, of any content
			junk = sim.AppendFrame(nil, session.FrameHello, junk)
		case 2: // a hello cut short or with bits turned over
			h := session.Hello{Min: 1, Max: 1, Origin: drawnOrigin(), Name: "x"}
			junk = h.Append(nil)
			junk[noise.IntN(len(junk)-60)] ^= 1 << noise.IntN(8)
			junk = sim.AppendFrame(nil, session.FrameHello, junk[:noise.IntN(len(junk))])
		case 3:
			junk = []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		}
		conn.Write(junk)
	})
	b.holds()
	requireCut(t, conns)
	b.holds()
	require.NotEmpty(t, b.victim.Status().Refusals)
	require.LessOrEqual(t, len(b.victim.Status().Refusals), maxRefusals+1)
}

func TestAThousandHalfOpenConnectionsKeepNobodyOut(t *testing.T) {
	b := besiege(t, Options{})
	before := runtime.NumGoroutine()
	conns := b.connect(1000, func(int, net.Conn) {})
	require.Less(t, runtime.NumGoroutine(), before+200, "those beyond MaxPending have none")
	b.holds()
	requireCut(t, conns)
}

func TestClaimsOfHugeFramesCostNoMemory(t *testing.T) {
	b := besiege(t, Options{})
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before := m.HeapInuse
	conns := b.connect(15, func(_ int, conn net.Conn) {
		conn.Write([]byte{0xff, 0xff, 0xff, 0xff, byte(session.FrameHello)})
	})
	requireCut(t, conns)
	for range 15 {
		r := greetAsMember(t, b.victim)
		r.conn.Write(binary.BigEndian.AppendUint32(nil, session.FrameCap)) // and no more
		r.conn.Write([]byte{byte(session.FrameVectors), 0})
	}
	runtime.ReadMemStats(&m)
	require.Less(t, int64(m.HeapInuse)-int64(before), int64(32<<20), "15 times 4 MiB were announced and 1 byte sent")
	b.holds()
}

// As an int of 32 bits half of these lengths are negative.
func TestLengthsAtEveryBoundaryOfAnIntAreRefused(t *testing.T) {
	b := besiege(t, Options{})
	lengths := []uint32{0, session.HelloCap + 2, math.MaxInt32 - 4, math.MaxInt32, math.MaxInt32 + 1, math.MaxInt32 + 2, math.MaxUint32 - 4, math.MaxUint32 - 3, math.MaxUint32}
	conns := b.connect(len(lengths), func(i int, conn net.Conn) {
		conn.Write(append(binary.BigEndian.AppendUint32(nil, lengths[i]), byte(session.FrameHello)))
	})
	requireCut(t, conns)
	for _, n := range lengths {
		r := greetAsMember(t, b.victim)
		r.conn.Write(append(binary.BigEndian.AppendUint32(nil, max(n, session.FrameCap+2)), byte(session.FramePage)))
	}
	b.holds()
}

func TestReplicasWithTLSAreAsHardToDisturb(t *testing.T) {
	honest := serve(t, Options{Secret: testca.SecretA})
	b := &besieged{t: t, honest: honest, victim: serve(t, Options{Secret: testca.SecretA, Peers: []string{honest.Addr().String()}})}
	conns := b.connect(200, func(i int, conn net.Conn) {
		switch i % 3 {
		case 0:
			h := session.Hello{Min: 1, Max: 1, Origin: drawnOrigin()}
			conn.Write(sim.AppendFrame(nil, session.FrameHello, h.Append(nil)))
		case 1:
			conn.Write([]byte{22, 3, 1, 0xff, 0xff, 1, 0, 0xff, 0xff})
		case 2:
			// A TLS client with another secret.
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			other, err := transport.NewSecurity(transport.Credentials{Cluster: "one", Secret: testca.SecretB})
			if assert.NoError(t, err) {
				other.ClientTo(ctx, conn, conn.RemoteAddr().String())
			}
		}
	})
	b.holds()
	requireCut(t, conns)
	require.NotEmpty(t, b.victim.Status().Refusals)
}

func TestReplicaThatIsItsOwnPeerNoticesAndRests(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	self := l.Addr().String()
	db := serve(t, Options{Listener: l, Peers: []string{self}})
	require.NoError(t, db.Put([]byte("k"), []byte("v"), nil))
	require.ErrorContains(t, db.Sync(t.Context()), "every address that is known ("+self+") leads to this replica itself")
	s := db.Status()
	require.True(t, s.Alone)
	require.Len(t, s.Peers, 1)
	require.Equal(t, PeerSelf, s.Peers[0].State)
	require.Less(t, time.Until(s.Peers[0].Next), 15*time.Second, "seconds, not an hour")
	require.Empty(t, s.Refusals, "it does not complain of itself")
	require.Len(t, s.VersionVector, 1)
}
