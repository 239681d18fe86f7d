package replicator

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/netaddr"
	"github.com/stretchr/testify/require"
)

const namespaceChild = "REPLICATOR_TEST_NAMESPACE"

// namespaces makes network namespaces, removed when the test ends. All multicast
// that is not for loopback stays in there: tests never touch a real network.
func namespaces(t *testing.T, names ...string) []string {
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		t.Skip("needs Linux and root to make network namespaces")
	}
	var made []string
	for _, n := range names {
		ns := fmt.Sprintf("repl%d%s", os.Getpid(), n)
		if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
			t.Skipf("cannot make network namespaces: %v %s", err, bytes.TrimSpace(out))
		}
		t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
		made = append(made, ns)
	}
	return made
}

// ip runs lines of ip(8) commands.
func ip(t *testing.T, lines string) {
	t.Helper()
	for line := range strings.Lines(lines) {
		if args := strings.Fields(line); len(args) > 0 {
			out, err := exec.Command("ip", args...).CombinedOutput()
			require.NoError(t, err, "ip %s: %s", line, out)
		}
	}
}

// bridged makes namespaces "1", "2" … with an eth0 each, joined by a bridge.
func bridged(t *testing.T, count int, v4, v6, route bool) []string {
	names := []string{"sw"}
	for i := range count {
		names = append(names, fmt.Sprint(i+1))
	}
	ns := namespaces(t, names...)
	sw, ns := ns[0], ns[1:]
	// No snooping: the bridge would hold back what nobody has asked for yet.
	ip(t, "-n "+sw+" link add br0 type bridge mcast_snooping 0\n-n "+sw+" link set br0 up")
	for i, n := range ns {
		if !v6 {
			out, err := exec.Command("ip", "netns", "exec", n, "sh", "-c",
				"echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6").CombinedOutput()
			require.NoError(t, err, string(out))
		}
		r := strings.NewReplacer("SW", sw, "NS", n, "#", fmt.Sprint(i+1))
		ip(t, r.Replace(`-n NS link set lo up
			-n SW link add p# type veth peer name eth0 netns NS
			-n SW link set p# master br0 up`))
		if v6 {
			ip(t, r.Replace(`-n NS addr add fd77::#/64 dev eth0 nodad`))
		}
		if v4 {
			ip(t, r.Replace(`-n NS addr add 10.77.0.#/24 dev eth0`))
		}
		ip(t, r.Replace(`-n NS link set eth0 addrgenmode none
			-n NS link set eth0 up`))
		if route {
			ip(t, r.Replace(`-n NS route add 224.0.0.0/4 dev eth0`))
		}
	}
	return ns
}

// linked makes bridged namespaces that have nothing but link-local IPv6 addresses.
func linked(t *testing.T, count int) []string {
	ns := bridged(t, count, false, true, false)
	for i, n := range ns {
		r := strings.NewReplacer("NS", n, "#", fmt.Sprint(i+1))
		ip(t, r.Replace(`-n NS addr del fd77::#/64 dev eth0
			-n NS addr add fe80::#/64 dev eth0 nodad`))
	}
	return ns
}

// inside runs one test of this binary in a namespace. It gives the lines the
// child prints; closing stdin tells it to end.
type inside struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Scanner
	errs  bytes.Buffer
}

func startInside(t *testing.T, ns, test, arg string) *inside {
	c := &inside{cmd: exec.Command("ip", "netns", "exec", ns, os.Args[0], "-test.run=^"+test+"$", "-test.v", "-test.timeout=40s")}
	c.cmd.Env = append(os.Environ(), namespaceChild+"="+arg)
	c.cmd.Stderr = &c.errs
	var err error
	c.stdin, err = c.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := c.cmd.StdoutPipe()
	require.NoError(t, err)
	c.lines = bufio.NewScanner(out)
	require.NoError(t, c.cmd.Start())
	t.Cleanup(func() { c.stdin.Close(); c.cmd.Process.Kill(); c.cmd.Wait() })
	return c
}

// end has the child end and wants it to have passed.
func (c *inside) end(t *testing.T) {
	t.Helper()
	c.stdin.Close()
	var rest strings.Builder
	for c.lines.Scan() {
		rest.WriteString(c.lines.Text() + "\n")
	}
	require.NoError(t, c.cmd.Wait(), "%s%s", rest.String(), c.errs.String())
	require.Contains(t, rest.String(), "PASS")
	require.NotContains(t, c.errs.String(), "[ERR] mdns", "the library logs to the default logger")
	require.NotContains(t, c.errs.String(), "[INFO] mdns", "the library logs to the default logger")
}

// TestNamespaceServer is a server in a namespace, for the tests below.
func TestNamespaceServer(t *testing.T) {
	addr := os.Getenv(namespaceChild)
	if addr == "" {
		t.Skip("runs only as a child of other tests")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // finalizers would hide leaks
	fds := openFiles(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	self := Self{Cluster: "ns", Origin: Origin{byte(len(addr)), byte(netaddr.PortOf(addr))}, Addr: addr}
	fmt.Println("ready")
	go func() {
		o := MulticastOptions{Logger: slog.New(slog.NewTextHandler(printed{}, &slog.HandlerOptions{Level: slog.LevelWarn}))}
		ended <- Multicast(&o).Discover(ctx, self, func(a string) { fmt.Println("found", a) })
	}()
	go func() { io.Copy(io.Discard, os.Stdin); cancel() }()
	select {
	case <-ctx.Done():
	case err := <-ended:
		fmt.Println("failed", err)
		return
	}
	select {
	case err := <-ended:
		require.NoError(t, err)
	case <-time.After(time.Second):
		t.Fatal("Discover outlived its context by a second")
	}
	// One that could not join leaks a socket in the library; then it rests.
	require.Eventually(t, func() bool { return openFiles(t) <= fds+1 }, time.Second, time.Millisecond)
}

// printed prints what is logged, for the parent to read.
type printed struct{}

func (printed) Write(p []byte) (int, error) {
	fmt.Print("log ", string(p))
	return len(p), nil
}

// findEachOther starts a server in each namespace and waits until each has
// found want(i) of each other one i.
func findEachOther(t *testing.T, ns []string, self func(int) string, want func(int) string) {
	var children []*inside
	for i, n := range ns {
		children = append(children, startInside(t, n, "TestNamespaceServer", self(i)))
	}
	for _, c := range children {
		for c.lines.Scan() && c.lines.Text() != "ready" {
		}
	}
	// Who is not found by the four early questions is not for half a minute:
	// five seconds tell the two apart, on a busy machine as well.
	start := time.Now()
	watchdog := time.AfterFunc(5*time.Second, func() {
		for _, c := range children {
			c.cmd.Process.Kill()
		}
	})
	for i, c := range children {
		missing := make(map[string]bool)
		for j := range ns {
			if j != i {
				missing["found "+want(j)] = true
			}
		}
		for len(missing) > 0 && c.lines.Scan() {
			delete(missing, c.lines.Text())
			require.NotContains(t, c.lines.Text(), "failed ")
			require.NotEqual(t, "found "+want(i), c.lines.Text(), "found itself")
		}
		require.Empty(t, missing, "server %d", i)
	}
	watchdog.Stop()
	t.Logf("all found after %v", time.Since(start))
	for _, c := range children {
		c.stdin.Close() // all at once: a binary with the race detector ends slowly
	}
	for _, c := range children {
		c.end(t)
	}
}

func TestThreeMachinesFindEachOther(t *testing.T) {
	v4 := func(i int) string { return fmt.Sprintf("10.77.0.%d:900%d", i+1, i) }
	v6 := func(i int) string { return fmt.Sprintf("[fd77::%d]:900%d", i+1, i) }
	self := func(i int) string { return fmt.Sprintf("[::]:900%d", i) }
	t.Run("by IPv4 alone", func(t *testing.T) { // hashicorp/mdns#35, #121
		findEachOther(t, bridged(t, 3, true, false, true), self, v4)
	})
	t.Run("by IPv6 alone", func(t *testing.T) {
		findEachOther(t, bridged(t, 3, false, true, false), self, v6)
	})
	t.Run("with both, every address in TXT", func(t *testing.T) {
		ns := bridged(t, 3, true, true, true)
		findEachOther(t, ns, self, v6)
		findEachOther(t, ns, self, v4)
	})
	t.Run("by link-local IPv6 addresses alone", func(t *testing.T) {
		findEachOther(t, linked(t, 3), self, func(i int) string { return fmt.Sprintf("[fe80::%d%%eth0]:900%d", i+1, i) })
	})
	t.Run("where IPv4 has no route to the group", func(t *testing.T) {
		findEachOther(t, bridged(t, 3, true, true, false), self, v4)
	})
}

func TestLoopbackServersFindEachOtherOffTheNetwork(t *testing.T) {
	self := func(i int) string { return fmt.Sprintf("127.0.0.1:900%d", i) }
	t.Run("loopback only", func(t *testing.T) {
		ns := namespaces(t, "lo")[0]
		ip(t, "-n "+ns+" link set lo up")
		findEachOther(t, []string{ns, ns, ns}, self, self)
	})
	t.Run("beside a network, of which they leave no trace", func(t *testing.T) {
		ns := bridged(t, 1, true, false, true)[0]
		before := sentPackets(t, ns)
		findEachOther(t, []string{ns, ns, ns}, self, self)
		// The library's client would have sent IGMP reports from eth0.
		require.Equal(t, before, sentPackets(t, ns))
	})
}

func sentPackets(t *testing.T, ns string) string {
	out, err := exec.Command("ip", "netns", "exec", ns, "cat", "/proc/net/dev").Output()
	require.NoError(t, err)
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); f[0] == "eth0:" {
			return f[10]
		}
	}
	t.Fatal("no eth0")
	return ""
}

// It hears of others and could dial them; but nobody can find it.
func TestMulticastSaysThatAServerIsNotFound(t *testing.T) {
	ns := linked(t, 1)[0]
	c := startInside(t, ns, "TestNamespaceServer", "0.0.0.0:9000")
	for c.lines.Scan() && !strings.HasPrefix(c.lines.Text(), "log ") {
	}
	require.Contains(t, c.lines.Text(), "multicast questions cannot be answered; this server may find others and is not found")
	require.Contains(t, c.lines.Text(), "no interface has an address that 0.0.0.0:9000 could be dialed at")
	c.end(t)
}

func TestMulticastSaysWhyItCannotWork(t *testing.T) {
	ns := namespaces(t, "none")[0]
	for addr, why := range map[string]string{
		"127.0.0.1:9000": "the loopback interface is down",
		"[::]:9000":      "no interface but loopback is up",
	} {
		c := startInside(t, ns, "TestNamespaceServer", addr)
		for c.lines.Scan() && !strings.HasPrefix(c.lines.Text(), "failed") {
		}
		require.Contains(t, c.lines.Text(), "failed replicator: no multicast: "+why)
		c.end(t)
	}
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
