package system_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	library "github.com/hashicorp/mdns"
	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/mdns"
	"github.com/level-replicator/replicator/internal/netaddr"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// skipWithoutLoopbackMulticast uses loopback only: the mDNS server joins there by its
// address, and asking joins nothing.
func skipWithoutLoopbackMulticast(t *testing.T) mdns.Link {
	links, err := mdns.ChooseLinks(mdns.Config{}, true)
	if err != nil {
		t.Skip("no multicast on loopback: ", err)
	}
	s, err := library.NewServer(&library.Config{Zone: &library.MDNSService{}, Iface: &links[0].Iface})
	if err != nil {
		t.Skip("no multicast on loopback: ", err)
	}
	require.NoError(t, s.Shutdown())
	return links[0]
}

func openFiles(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0") // the poller's own files come with the first
	require.NoError(t, err)
	require.NoError(t, l.Close())
	files, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(files)
}

func TestThreeReplicasOnLoopbackFindEachOtherAndLeaveNothing(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("counts open files in /proc")
	}
	lo := skipWithoutLoopbackMulticast(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // finalizers would hide leaks
	fds := openFiles(t)
	var logs bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&logs, nil)) // handlers lock

	foreign, err := library.NewMDNSService("tv", "_googlecast._tcp", "", "tv.local.", 8009, []net.IP{{127, 0, 0, 1}}, []string{"a=127.0.0.1:8009"})
	require.NoError(t, err)
	tv, err := library.NewServer(&library.Config{Zone: foreign, Iface: &lo.Iface})
	require.NoError(t, err)
	defer tv.Shutdown()

	// Clusters of this process alone: other tests may share the machine.
	cluster := fmt.Sprint("test ", os.Getpid())
	const rounds = 20
	type find struct{ who, addr string }
	finds := make(chan find, 4*rounds*100)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running sync.WaitGroup
	for i := range 4 {
		self := replicator.Self{Cluster: cluster, Origin: replicator.Origin{byte(i + 1)}, Addr: fmt.Sprintf("127.0.0.1:%d", 9000+i)}
		if i == 3 {
			self.Cluster += " other"
		}
		running.Go(func() {
			d := replicator.Multicast(&replicator.MulticastOptions{Interval: time.Millisecond, Logger: logger})
			if err := d.Discover(ctx, self, func(a string) { finds <- find{self.Addr, a} }); err != nil {
				t.Error(err)
			}
		})
	}
	seen := make(map[find]int)
	var during []int
	enough := time.After(30 * time.Second)
	for done := 0; done < 6; {
		select {
		case f := <-finds:
			require.NotEqual(t, f.who, f.addr, "found itself")
			require.NotContains(t, f.addr, "9003", "found another cluster")
			require.NotEqual(t, "127.0.0.1:9003", f.who, "was found by another cluster")
			require.NotContains(t, f.addr, "8009", "found a foreign service")
			if seen[f]++; seen[f] == rounds {
				done++
			}
			during = append(during, openFiles(t))
		case <-enough:
			t.Fatalf("found only %v", seen)
		}
	}
	require.LessOrEqual(t, during[len(during)-1], fds+16, "files pile up from round to round: %v", during)
	cancel()
	end := time.Now()
	running.Wait()
	require.Less(t, time.Since(end), time.Second)
	tv.Shutdown()
	require.Eventually(t, func() bool { return openFiles(t) <= fds }, time.Second, time.Millisecond)
	require.Empty(t, logs.String(), "nothing above debug level is to be said")
}

// TestNamespaceDiscovery is a replica in a namespace, for the tests below.
func TestNamespaceDiscovery(t *testing.T) {
	addr := os.Getenv(namespaceChild)
	if addr == "" {
		t.Skip("runs only as a child of other tests")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // finalizers would hide leaks
	fds := openFiles(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	self := replicator.Self{Cluster: "ns", Origin: replicator.Origin{byte(len(addr)), byte(netaddr.PortOf(addr))}, Addr: addr}
	fmt.Println("ready")
	go func() {
		o := replicator.MulticastOptions{Logger: slog.New(slog.NewTextHandler(printed{}, &slog.HandlerOptions{Level: slog.LevelWarn}))}
		ended <- replicator.Multicast(&o).Discover(ctx, self, func(a string) { fmt.Println("found", a) })
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

// findEachOther starts a replica in each namespace and waits until each has
// found want(i) of each other one i.
func findEachOther(t *testing.T, ns []string, self func(int) string, want func(int) string) {
	var children []*inside
	for i, n := range ns {
		children = append(children, startInside(t, n, "TestNamespaceDiscovery", self(i)))
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
		require.Empty(t, missing, "replica %d", i)
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

func TestLoopbackReplicasFindEachOtherOffTheNetwork(t *testing.T) {
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
func TestMulticastSaysThatAReplicaIsNotFound(t *testing.T) {
	ns := linked(t, 1)[0]
	c := startInside(t, ns, "TestNamespaceDiscovery", "0.0.0.0:9000")
	for c.lines.Scan() && !strings.HasPrefix(c.lines.Text(), "log ") {
	}
	require.Contains(t, c.lines.Text(), "multicast questions cannot be answered; this replica may find others and is not found")
	require.Contains(t, c.lines.Text(), "no interface has an address that 0.0.0.0:9000 could be dialed at")
	c.end(t)
}

func TestMulticastSaysWhyItCannotWork(t *testing.T) {
	ns := namespaces(t, "none")[0]
	for addr, why := range map[string]string{
		"127.0.0.1:9000": "the loopback interface is down",
		"[::]:9000":      "no interface but loopback is up",
	} {
		c := startInside(t, ns, "TestNamespaceDiscovery", addr)
		for c.lines.Scan() && !strings.HasPrefix(c.lines.Text(), "failed") {
		}
		require.Contains(t, c.lines.Text(), "failed replicator: no multicast: "+why)
		c.end(t)
	}
}
