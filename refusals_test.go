package replicator_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/testdb"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
)

// journal collects what a replica logs.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

func (j *journal) lines(about string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.buf.String(), about)
}

// logged opens a replica on the network whose log is kept.
func (c *cluster) logged(name string, o *replicator.Options) (*replicator.DB, *journal) {
	c.t.Helper()
	h := c.net.Host(name)
	l, err := h.Listen("9000")
	require.NoError(c.t, err)
	j := &journal{}
	o.Name, o.Listener, o.Dial, o.Insecure = name, l, h.Dial, true
	o.Logger = slog.New(slog.NewTextHandler(j, nil))
	db, err := replicator.Replicate(replicatortest.MemDB(c.t), o)
	require.NoError(c.t, err)
	c.t.Cleanup(func() { db.Close() })
	return db, j
}

func TestRefusalIsExplainedOnBothSidesAndLoggedOnce(t *testing.T) {
	secret := func(s string) []byte { return []byte(s + "-0123456789abcdef") }
	for name, c := range map[string]struct {
		dialer, acceptor replicator.Options
		told, noted      string // what the dialer and the acceptor say
		state            string
	}{
		"another cluster": {
			replicator.Options{Cluster: "red"}, replicator.Options{Cluster: "blue"},
			`another cluster than "red"`, `cluster "red", this replica of "blue"`, "refused",
		},
		"another secret": {
			replicator.Options{Secret: secret("one")}, replicator.Options{Secret: secret("two")},
			"another secret", "another secret", "failing",
		},
		"only the dialer uses TLS": {
			replicator.Options{Secret: secret("one")}, replicator.Options{},
			"only one side uses TLS", "speaks TLS and this replica does not", "failing",
		},
		"only the acceptor uses TLS": {
			replicator.Options{}, replicator.Options{Secret: secret("one")},
			"TLS", "does not speak TLS", "failing",
		},
	} {
		t.Run(name, func(t *testing.T) {
			replicatortest.Bubble(t, 0, func(t *testing.T) {
				cl := newCluster(t)
				c.dialer.Peers = []string{"b:9000"}
				b, bLog := cl.logged("b", &c.acceptor)
				a, aLog := cl.logged("a", &c.dialer)
				time.Sleep(5 * time.Minute)

				p := a.Status().Peers[0]
				require.Equal(t, c.state, string(p.State))
				require.Contains(t, p.Error, c.told)
				require.Greater(t, p.Failures, 10, "it is configured, so it is never given up")
				require.Equal(t, 1, aLog.lines("peer=b:9000"), "one line, not one for each attempt")

				r := b.Status().Refusals
				require.Len(t, r, 1)
				require.Contains(t, r[0].Reason, c.noted)
				require.Equal(t, "a", r[0].From)
				require.EqualValues(t, p.Failures, r[0].Count)
				require.Equal(t, 1, bLog.lines("turned away"))
				require.Empty(t, b.Status().Peers, "nothing of a stranger is kept")
			})
		})
	}
}

// stranger connects to a replica by hand.
func (c *cluster) stranger(to string) net.Conn {
	c.t.Helper()
	conn, err := c.net.Host("stranger").Dial(c.t.Context(), "tcp", to)
	require.NoError(c.t, err)
	c.t.Cleanup(func() { conn.Close() })
	return conn
}

// aHello is a hello of the first protocol version, as docs/format.md has it.
func aHello(min, max uint64, more ...byte) []byte {
	b := []byte("\x01lrep")
	b = binary.AppendUvarint(b, min)
	b = binary.AppendUvarint(b, max)
	b = append(b, 0, 8)
	b = append(b, "stranger"...)
	b = append(b, 0)
	b = append(b, bytes.Repeat([]byte{7}, 16)...)
	b = binary.BigEndian.AppendUint64(b, uint64(time.Now().UnixMilli()))
	b = append(b, 1)
	b = append(b, make([]byte, 32+16+1+1+8)...)
	b = append(b, more...)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

// readFrame reads one frame: its type and what is in it.
func readFrame(t testing.TB, r io.Reader) (byte, []byte) {
	t.Helper()
	var head [5]byte
	_, err := io.ReadFull(r, head[:])
	require.NoError(t, err)
	payload := make([]byte, binary.BigEndian.Uint32(head[:])-1)
	_, err = io.ReadFull(r, payload)
	require.NoError(t, err)
	return head[4], payload
}

func TestPeerOfOtherProtocolVersionsIsToldWhichAreSpoken(t *testing.T) {
	for _, versions := range [][2]uint64{{3, 4}, {0, 0}, {3, 2}} {
		replicatortest.Bubble(t, 0, func(t *testing.T) {
			c := newCluster(t)
			a := c.start("a")
			conn := c.stranger("a:9000")
			_, err := conn.Write(aHello(versions[0], versions[1]))
			require.NoError(t, err)
			kind, payload := readFrame(t, conn)
			require.EqualValues(t, 2, kind)
			require.EqualValues(t, 3, payload[0], "the code for a version")
			require.Contains(t, string(payload), "want one of 1 to 2")
			time.Sleep(3 * time.Second) // it lingers for the refusal to be read
			require.Contains(t, a.Status().Refusals[0].Reason, fmt.Sprintf("versions %d to %d, this replica 1 to 2", versions[0], versions[1]))
		})
	}
}

func TestEarlierAndLaterVersionsOfTheProtocolTalkToThisOne(t *testing.T) {
	for name, hello := range map[string][]byte{
		"the first": aHello(1, 1),
		"a later":   aHello(1, 9, []byte("fields of a later release")...),
	} {
		t.Run(name, func(t *testing.T) {
			replicatortest.Bubble(t, 0, func(t *testing.T) {
				c := newCluster(t)
				a := c.start("a")
				put(t, a, "k", "news, for which it would stay")
				conn := c.stranger("a:9000")
				_, err := conn.Write(hello)
				require.NoError(t, err)
				kind, payload := readFrame(t, conn)
				require.EqualValues(t, 1, kind, "its own hello")
				require.Equal(t, "lrep\x01\x02", string(payload[:6]), "versions 1 and 2")
				_, err = conn.Write([]byte{0, 0, 0, 1, 9}) // turn: we pull nothing, pull yourself
				require.NoError(t, err)
				for kind != 10 { // vectors and addresses may come before the bye; as we claim nothing, no pull
					kind, _ = readFrame(t, conn)
					require.NotEqualValues(t, 2, kind)
					require.Less(t, kind, byte(17), "no frame of version 2 to who does not stay")
				}
				time.Sleep(3 * time.Second)
				require.Empty(t, a.Status().Refusals)
			})
		})
	}
}

func TestPeerThatSendsOneByteASecondIsCut(t *testing.T) {
	for name, c := range map[string]struct {
		whole []byte
		drip  []byte
		after time.Duration
		why   string
	}{
		"before its hello": {nil, aHello(1, 1), 5 * time.Second, "did not say who it is in time"},
		"after its hello":  {aHello(1, 1), append([]byte{0, 1, 0, 1, 6}, make([]byte, 1<<16)...), 10 * time.Second, ""},
	} {
		t.Run(name, func(t *testing.T) {
			replicatortest.Bubble(t, 0, func(t *testing.T) {
				cl := newCluster(t)
				a, b := cl.start("a"), cl.start("b", "a:9000")
				conn := cl.stranger("a:9000")
				_, err := conn.Write(c.whole)
				require.NoError(t, err)
				cut := make(chan time.Duration, 1)
				begun := time.Now()
				go func() {
					io.Copy(io.Discard, conn)
					cut <- time.Since(begun)
				}()
				for i := 0; len(cut) == 0; i++ {
					conn.Write(c.drip[i : i+1])
					put(t, b, fmt.Sprint(i), "meanwhile")
					requireAgreement(t, a, b)
					time.Sleep(time.Second)
				}
				require.InDelta(t, c.after, <-cut, float64(2*time.Second))
				if c.why != "" {
					require.Contains(t, a.Status().Refusals[0].Reason, c.why)
				}
			})
		})
	}
}

func TestTwoReplicasWithOneAddressBothTakePart(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		hub := c.start("hub")
		// Both say that they can be dialed at the first one's address.
		one := c.open("one", replicatortest.MemDB(t), &replicator.Options{Advertise: "one:9000", Peers: []string{"hub:9000"}})
		two := c.open("two", replicatortest.MemDB(t), &replicator.Options{Advertise: "one:9000", Peers: []string{"hub:9000"}})
		for i := range 20 {
			put(t, hub, fmt.Sprint("hub", i), "v")
			put(t, one, fmt.Sprint("one", i), "v")
			put(t, two, fmt.Sprint("two", i), "v")
			time.Sleep(time.Second)
		}
		requireAgreement(t, hub, one, two)
		require.Len(t, testdb.Contents(t, hub), 60)
	})
}

func TestWriteFromAYearAheadIsNeitherTakenNorLostAndBothSidesSayWhy(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		const ahead = 365 * 24 * time.Hour
		var passed atomic.Int64
		a := c.open("a", replicatortest.MemDB(t), &replicator.Options{Now: func() time.Time { return time.Now().Add(time.Duration(passed.Load())) }})
		b := c.open("b", replicatortest.MemDB(t), &replicator.Options{Peers: []string{"a:9000"}, Now: func() time.Time { return time.Now().Add(ahead) }})
		put(t, b, "early", "b")
		put(t, a, "now", "a")
		time.Sleep(time.Minute)
		require.Equal(t, map[string]string{"now": "a"}, testdb.Contents(t, a))
		require.Equal(t, "a", value(t, b, "now"), "the other way goes on")
		require.Contains(t, b.Status().Peers[0].Error, "clocks")
		require.Contains(t, a.Status().Peers[0].Error, "clocks")

		passed.Store(int64(ahead - 30*time.Second))
		requireAgreement(t, a, b)
		require.Equal(t, "b", value(t, a, "early"), "when its time has come it is taken")
	})
}
