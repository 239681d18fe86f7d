package system_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/testca"
	"github.com/level-replicator/replicator/internal/testdns"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// machine is what a replica in a namespace is started with.
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

// TestNamespaceReplica is a whole replica in a namespace, for the tests below. It
// does what the lines of its input say, and answers each.
func TestNamespaceReplica(t *testing.T) {
	var m machine
	if json.Unmarshal([]byte(os.Getenv(namespaceChild)), &m) != nil {
		t.Skip("runs only as a child of other tests")
	}
	raw, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(t, err)
	o := replicator.Options{
		Name: m.Name, Listen: m.Listen, Peers: m.Peers, Secret: testca.SecretA, Logger: slog.New(slog.DiscardHandler),
		ReadyTimeout: 50 * time.Millisecond, MaxInterval: 2 * time.Second,
	}
	if m.Multicast {
		o.Discover = append(o.Discover, replicator.Multicast(&replicator.MulticastOptions{Logger: o.Logger}))
	}
	if m.DNS != "" {
		o.Discover = append(o.Discover, replicator.DNS(m.DNS, &replicator.DNSOptions{Interval: 200 * time.Millisecond, Resolver: testdns.Resolver(m.Server)}))
	}
	if len(m.Records) > 0 {
		names, _ := testdns.Start(t, m.Server)
		names.Set(t, m.Records...)
	}
	if m.Resolve {
		net.DefaultResolver = testdns.Resolver(m.Server)
	}
	db, err := replicator.Replicate(raw, &o)
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		obey(t, db, strings.Fields(in.Text()))
	}
}

func obey(t *testing.T, db *replicator.DB, f []string) {
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
			if p.State != replicator.PeerSelf {
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

// machines starts a replica in each namespace.
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
	t.Fatalf("the replica ended before it said %q: %s", start, c.errs.String())
	return ""
}

func (c *inside) ask(t *testing.T, line string) {
	t.Helper()
	_, err := io.WriteString(c.stdin, line+"\n")
	require.NoError(t, err)
}

// spread has each replica write, and requires that all have all of it.
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

// TestMachinesThatKnowOnlyTheNameOfAllReplicate has each resolve the name to its own address
// first, by a name server of its own.
func TestMachinesThatKnowOnlyTheNameOfAllReplicate(t *testing.T) {
	ns := bridged(t, 3, true, false, true)
	var ms []machine
	for i := range 3 {
		m := machine{Name: fmt.Sprint("m", i), Listen: "0.0.0.0:9000", Peers: []string{"app.test:9000"}, Server: fmt.Sprintf("10.77.0.%d:5300", i+1), Resolve: true}
		for j := range 3 {
			m.Records = append(m.Records, fmt.Sprintf("app.test. 0 IN A 10.77.0.%d", (i+j)%3+1))
		}
		ms = append(ms, m)
	}
	cs := machines(t, ns, ms...)
	t.Log(spread(t, cs, "named", 3))
	requireSameState(t, cs)
	for _, c := range cs {
		c.ask(t, "sync")
		require.Equal(t, "sync <nil> false", c.await(t, "sync"))
	}
	endAll(t, cs)
}

func TestMachineWhoseNameIsItsOwnSaysSo(t *testing.T) {
	ns := bridged(t, 1, true, false, true)
	cs := machines(t, ns, machine{Name: "m", Listen: "0.0.0.0:9000", Peers: []string{"app.test:9000"}, Server: "10.77.0.1:5300", Resolve: true,
		Records: []string{"app.test. 0 IN A 10.77.0.1"}})
	cs[0].ask(t, "sync")
	require.Equal(t, "sync replicator: nothing was replicated: every address that is known (app.test:9000) leads to this replica itself true", cs[0].await(t, "sync"))
	endAll(t, cs)
}

// TestMachinesBehindOneAddressAreToldApart has three behind a router that translates their
// addresses to its own.
func TestMachinesBehindOneAddressAreToldApart(t *testing.T) {
	needNft(t)
	ns := namespaces(t, "hub", "rt", "h0", "h1", "h2")
	hub, rt, hidden := ns[0], ns[1], ns[2:]
	r := strings.NewReplacer("HUB", hub, "RT", rt)
	ip(t, r.Replace(`-n HUB link set lo up
		-n RT link add up0 type veth peer name eth0 netns HUB
		-n HUB addr add 10.78.0.1/24 dev eth0
		-n HUB link set eth0 up
		-n RT addr add 10.78.0.2/24 dev up0
		-n RT link set up0 up`))
	for i, n := range hidden {
		r := strings.NewReplacer("NS", n, "RT", rt, "#", fmt.Sprint(i))
		ip(t, r.Replace(`-n NS link set lo up
			-n RT link add down# type veth peer name eth0 netns NS
			-n RT addr add 10.79.#.1/24 dev down#
			-n RT link set down# up
			-n NS addr add 10.79.#.2/24 dev eth0
			-n NS link set eth0 up
			-n NS route add default via 10.79.#.1`))
	}
	out, err := exec.Command("ip", "netns", "exec", rt, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward").CombinedOutput()
	require.NoError(t, err, "%s", out)
	nft(t, rt, "table ip nat {\nchain post {\ntype nat hook postrouting priority 100\noifname up0 masquerade\n}\n}\n")

	ms := []machine{{Name: "hub", Listen: "0.0.0.0:9000"}}
	for i := range hidden {
		ms = append(ms, machine{Name: fmt.Sprint("h", i), Listen: "0.0.0.0:9000", Peers: []string{"10.78.0.1:9000"}})
	}
	cs := machines(t, append([]string{hub}, hidden...), ms...)
	for round := range 3 {
		spread(t, cs, fmt.Sprint("round", round), 2)
		cs[0].ask(t, "replicated 3")
		cs[0].await(t, "replicated")
		cs[0].ask(t, "peers")
		require.Equal(t, "peers h0=ok h1=ok h2=ok", cs[0].await(t, "peers"))
	}
	requireSameState(t, cs)
	endAll(t, cs)
}
