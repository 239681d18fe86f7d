package replicator

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/testca"
	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// machine is what a server in a namespace is started with.
type machine struct {
	Name      string
	Listen    string
	Peers     []string
	Multicast bool
	DNS       string   // name to look up
	Server    string   // name server to ask
	Records   []string // to serve there
	Resolve   bool     // names of peers, too, by that name server
}

// TestNamespaceReplica is a whole server in a namespace, for the tests below. It
// does what the lines of its input say, and answers each.
func TestNamespaceReplica(t *testing.T) {
	var m machine
	if json.Unmarshal([]byte(os.Getenv(namespaceChild)), &m) != nil {
		t.Skip("runs only as a child of other tests")
	}
	raw, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(t, err)
	o := Options{
		Name: m.Name, Listen: m.Listen, Peers: m.Peers, Secret: testca.SecretA, Logger: slog.New(slog.DiscardHandler),
		ReadyTimeout: 50 * time.Millisecond, MaxInterval: 2 * time.Second,
	}
	if m.Multicast {
		o.Discover = append(o.Discover, Multicast(&MulticastOptions{Logger: o.Logger}))
	}
	if m.DNS != "" {
		o.Discover = append(o.Discover, DNS(m.DNS, &DNSOptions{Interval: 200 * time.Millisecond, Resolver: nameServerAt(m.Server)}))
	}
	if len(m.Records) > 0 {
		serveRecords(t, m.Server, m.Records)
	}
	if m.Resolve {
		net.DefaultResolver = nameServerAt(m.Server)
	}
	db, err := Replicate(raw, &o)
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		obey(t, db, strings.Fields(in.Text()))
	}
}

// nameServerAt asks one name server and no other.
func nameServerAt(addr string) *net.Resolver {
	return &net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "udp", addr)
		},
	}
}

func obey(t *testing.T, db *DB, f []string) {
	switch f[0] {
	case "put":
		require.NoError(t, db.Put([]byte(f[1]), []byte(f[2]), nil))
		fmt.Println("put", f[1])
	case "has":
		require.Eventually(t, func() bool {
			_, err := db.Get([]byte(f[1]), nil)
			return err == nil
		}, 15*time.Second, time.Millisecond, "%s is not here; %+v", f[1], db.Status().Peers)
		fmt.Println("has", f[1])
	case "replicated":
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		defer cancel()
		n, err := strconv.Atoi(f[1])
		require.NoError(t, err)
		require.NoError(t, db.WaitReplicated(ctx, n), "%+v", db.Status().Peers)
		fmt.Println("replicated")
	case "peers":
		var list []string
		for _, p := range db.Status().Peers {
			if p.State != PeerSelf {
				list = append(list, p.Name+"="+string(p.State))
			}
		}
		slices.Sort(list)
		fmt.Println("peers", strings.Join(list, " "))
	case "sync":
		fmt.Println("sync", db.Sync(t.Context()), db.Status().Alone)
	case "state":
		s := db.Status()
		fmt.Println("state", s.Digest, s.Keys)
	}
}

func serveRecords(t *testing.T, addr string, records []string) {
	conn, err := net.ListenPacket("udp", addr)
	require.NoError(t, err)
	n := &nameServer{}
	n.set(t, records...)
	s := &dns.Server{PacketConn: conn, Handler: n}
	go s.ActivateAndServe()
	t.Cleanup(func() { s.Shutdown() })
}

// machines starts a server in each namespace.
func machines(t *testing.T, ns []string, ms ...machine) (cs []*inside) {
	for i, m := range ms {
		arg, err := json.Marshal(m)
		require.NoError(t, err)
		cs = append(cs, startInside(t, ns[i], "TestNamespaceReplica", string(arg)))
	}
	for _, c := range cs {
		c.await(t, "ready")
	}
	return cs
}

// await reads lines until one that begins so.
func (c *inside) await(t *testing.T, start string) string {
	t.Helper()
	for c.lines.Scan() {
		if strings.HasPrefix(c.lines.Text(), start) {
			return c.lines.Text()
		}
		require.NotContains(t, c.lines.Text(), "FAIL")
	}
	c.cmd.Wait() // and what it wrote to stderr is all there
	t.Fatalf("the server ended before it said %q: %s", start, c.errs.String())
	return ""
}

func (c *inside) ask(t *testing.T, line string) {
	t.Helper()
	_, err := io.WriteString(c.stdin, line+"\n")
	require.NoError(t, err)
}

// spread has each server write, and requires that all have all of it.
func spread(t *testing.T, cs []*inside, name string, count int) time.Duration {
	t.Helper()
	start := time.Now()
	for i, c := range cs {
		for j := range count {
			c.ask(t, fmt.Sprintf("put %s-%d-%d %s", name, i, j, strings.Repeat("v", 100)))
		}
	}
	for i := range cs {
		for k, c := range cs {
			if k != i {
				c.ask(t, fmt.Sprintf("has %s-%d-%d", name, i, count-1))
			}
		}
	}
	for _, c := range cs {
		for range count {
			c.await(t, "put")
		}
		for range len(cs) - 1 {
			c.await(t, "has")
		}
	}
	return time.Since(start)
}

func requireSameState(t *testing.T, cs []*inside) {
	t.Helper()
	for start := time.Now(); ; {
		var states []string
		for _, c := range cs {
			c.ask(t, "state")
			states = append(states, c.await(t, "state"))
		}
		if slices.Equal(states[1:], slices.Repeat(states[:1], len(cs)-1)) {
			return
		}
		require.Less(t, time.Since(start), 15*time.Second, "they differ: %v", states)
	}
}

func endAll(t *testing.T, cs []*inside) {
	for _, c := range cs {
		c.stdin.Close()
	}
	for _, c := range cs {
		c.end(t)
	}
}

// nft loads rules into a namespace, in a table of ours.
func nft(t *testing.T, ns, rules string) {
	t.Helper()
	c := exec.Command("ip", "netns", "exec", ns, "nft", "-f", "-")
	c.Stdin = strings.NewReader(rules)
	out, err := c.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func needNft(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft, of the package nftables")
	}
}

func TestThreeMachinesReplicateByMulticastAlone(t *testing.T) {
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			ns := bridged(t, 3, !v6, v6, !v6)
			var ms []machine
			for i := range 3 {
				ms = append(ms, machine{Name: fmt.Sprint("m", i), Listen: "[::]:9000", Multicast: true})
			}
			cs := machines(t, ns, ms...)
			took := spread(t, cs, "first", 1)
			t.Logf("all writes were on all three %v after the last had started", took)
			// Two seconds by the questions at 0, 0.5 and 1 s; a busy machine may
			// start the three apart from each other.
			require.Less(t, took, 4*time.Second)
			requireSameState(t, cs)
			endAll(t, cs)
		})
	}
}

func TestMachinesWithLinkLocalAddressesAloneReplicate(t *testing.T) {
	ns := linked(t, 3)
	var ms []machine
	for i := range 3 {
		ms = append(ms, machine{Name: fmt.Sprint("m", i), Listen: "[::]:9000", Multicast: true})
	}
	cs := machines(t, ns, ms...)
	t.Log(spread(t, cs, "linked", 3))
	requireSameState(t, cs)
	endAll(t, cs)
}

func at(i int) string { return fmt.Sprintf("10.77.0.%d:9000", i+1) }

func TestMachinesBehindBadNetworksAgree(t *testing.T) {
	needNft(t)
	ns := bridged(t, 3, true, false, true)
	listed := func(peers ...[]string) (ms []machine) {
		for i, p := range peers {
			ms = append(ms, machine{Name: fmt.Sprint("m", i), Listen: at(i), Peers: p})
		}
		return ms
	}
	t.Run("one was cut off and is healed", func(t *testing.T) {
		cs := machines(t, ns, listed([]string{at(1), at(2)}, []string{at(0)}, []string{at(0)})...)
		spread(t, cs, "before", 3)
		nft(t, ns[2], `table inet cut {
			chain in { type filter hook input priority 0; drop; }
			chain out { type filter hook output priority 0; drop; }
		}`)
		spread(t, cs[:2], "meanwhile", 20)
		for j := range 20 {
			cs[2].ask(t, fmt.Sprintf("put alone-%d v", j))
			cs[2].ask(t, fmt.Sprintf("put meanwhile-0-%d conflict", j))
		}
		nft(t, ns[2], "delete table inet cut")
		start := time.Now()
		cs[2].ask(t, "has meanwhile-1-19")
		cs[2].await(t, "has")
		requireSameState(t, cs)
		t.Logf("agreed %v after the cut was healed", time.Since(start))
		endAll(t, cs)
	})
	t.Run("one can only dial", func(t *testing.T) {
		nft(t, ns[1], `table inet cut { chain in { type filter hook input priority 0;
			tcp flags & (syn | ack) == syn drop
		}
		}`)
		defer nft(t, ns[1], "delete table inet cut")
		cs := machines(t, ns[:2], listed([]string{at(1)}, []string{at(0)})...)
		spread(t, cs, "one-way", 10)
		requireSameState(t, cs)
		endAll(t, cs)
	})
	t.Run("they know a name only", func(t *testing.T) {
		var records []string
		for i := range 3 {
			records = append(records, fmt.Sprintf("_repl._tcp.cluster.test. 1 IN SRV 0 0 9000 m%d.cluster.test.", i),
				fmt.Sprintf("m%d.cluster.test. 1 IN A 10.77.0.%d", i, i+1))
		}
		ms := listed(nil, nil, nil)
		for i := range ms {
			ms[i].DNS, ms[i].Server = "_repl._tcp.cluster.test.", "10.77.0.1:5300"
		}
		ms[0].Records = records
		cs := machines(t, ns, ms...)
		t.Log(spread(t, cs, "named", 3))
		requireSameState(t, cs)
		endAll(t, cs)
	})
	t.Run("one packet in twenty is lost", func(t *testing.T) {
		for _, n := range ns {
			nft(t, n, `table inet loss { chain in { type filter hook input priority 0;
				numgen random mod 100 < 5 drop
			}
			}`)
			defer nft(t, n, "delete table inet loss")
		}
		cs := machines(t, ns, listed(nil, []string{at(0)}, []string{at(0)})...)
		t.Log(spread(t, cs, "lossy", 50))
		requireSameState(t, cs)
		endAll(t, cs)
	})
}

// badProxy passes connections on with a delay each way, and resets each after some
// bytes.
func badProxy(t *testing.T, to string, delay time.Duration, resetAfter int) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				out, err := net.Dial("tcp", to)
				if err != nil {
					in.Close()
					return
				}
				budget := resetAfter/2 + rand.IntN(resetAfter)
				go delayed(out, in, delay, budget)
				delayed(in, out, delay, budget)
			}()
		}
	}()
	return l.Addr().String()
}

func delayed(to, from net.Conn, delay time.Duration, budget int) {
	type part struct {
		b   []byte
		due time.Time
	}
	parts := make(chan part, 1024)
	go func() {
		for p := range parts {
			<-time.After(time.Until(p.due))
			if budget -= len(p.b); budget < 0 {
				to.(*net.TCPConn).SetLinger(0)
				from.(*net.TCPConn).SetLinger(0)
				to.Close()
				from.Close()
			}
			to.Write(p.b)
		}
		to.Close()
	}()
	for {
		b := make([]byte, 16<<10)
		n, err := from.Read(b)
		if n > 0 {
			parts <- part{b[:n], time.Now().Add(delay)}
		}
		if err != nil {
			close(parts)
			return
		}
	}
}

func TestServersBehindASlowProxyThatResetsAgree(t *testing.T) {
	var dbs [2]*DB
	var listeners [2]net.Listener
	var proxies [2]string
	for i := range listeners {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		listeners[i] = l
		proxies[i] = badProxy(t, l.Addr().String(), 100*time.Millisecond, 600<<10) // more than a page, which is what a pull keeps
	}
	for i, l := range listeners {
		dbs[i] = serve(t, Options{Listener: l, Advertise: proxies[i], Peers: []string{proxies[1-i]}, MaxInterval: time.Second})
	}
	value := make([]byte, 4000)
	for i := range 300 {
		for k, db := range dbs {
			rand.NewChaCha8([32]byte{byte(i), byte(k)}).Read(value)
			require.NoError(t, db.Put(fmt.Appendf(nil, "%d-%d", k, i), value, nil))
		}
	}
	start := time.Now()
	for dbs[0].Digest() != dbs[1].Digest() || dbs[0].Status().Keys != 600 {
		if time.Since(start) > 45*time.Second {
			t.Fatalf("no agreement: %+v\n%+v", dbs[0].Status(), dbs[1].Status())
		}
		<-time.After(10 * time.Millisecond)
	}
	t.Logf("agreed after %v and %d sessions", time.Since(start), dbs[0].Status().Sessions)
}
