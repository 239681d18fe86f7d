package replicator

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/mdns"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestHintSurvivesItsTXTRecord(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := hint{cluster: clusterHash(rapid.String().Draw(t, "cluster")), tls: rapid.Bool().Draw(t, "tls")}
		copy(h.origin[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "origin"))
		for i := range rapid.IntRange(1, 12).Draw(t, "addrs") {
			h.addrs = append(h.addrs, fmt.Sprintf("10.0.0.%d:9000", i))
		}
		got, ok := parseHint(h.txt())
		require.True(t, ok)
		require.Equal(t, h, got)
	})
}

func TestHintFitsASmallPacket(t *testing.T) {
	h := hint{cluster: clusterHash("c"), addrs: make([]string, 40)}
	for i := range h.addrs {
		h.addrs[i] = fmt.Sprintf("[2001:db8:1111:2222:3333:4444:5555:%d]:9000", 1000+i)
	}
	size := 0
	for _, s := range h.txt() {
		require.LessOrEqual(t, len(s), 255)
		size += 1 + len(s)
	}
	require.LessOrEqual(t, size, maxTXT)
	got, ok := parseHint(h.txt())
	require.True(t, ok)
	require.Greater(t, len(got.addrs), 4)
}

func TestHintsThatAreNotOursAreDropped(t *testing.T) {
	self := announced{cluster: "blue", origin: Origin{1}}
	name := Origin{2}.String() + "." + mdnsService + ".local."
	edit := func(old, new string) []string {
		txt := hint{cluster: clusterHash("blue"), origin: Origin{2}, addrs: []string{"10.0.0.2:9000"}}.txt()
		return strings.Split(strings.Replace(strings.Join(txt, "\n"), old, new, 1), "\n")
	}
	pid := Origin{2}.String()
	for _, c := range []struct {
		why    string
		answer answer
		local  bool
		want   []string
	}{
		{"a peer", answer{name: name, txt: edit("", "")}, false, []string{"10.0.0.2:9000"}},
		{"other letter case", answer{name: strings.ToUpper(name), txt: edit("", "")}, false, []string{"10.0.0.2:9000"}},
		{"unknown key", answer{name: name, txt: edit("v=1", "v=1\nnew=thing\nflag")}, false, []string{"10.0.0.2:9000"}},
		{"a later v", answer{name: name, txt: edit("v=1", "v=1\nv=2")}, false, []string{"10.0.0.2:9000"}},
		{"foreign service", answer{name: "tv._googlecast._tcp.local.", txt: edit("", "")}, false, nil},
		{"no TXT", answer{name: name, txt: nil}, false, nil},
		{"other version", answer{name: name, txt: edit("v=1", "v=2")}, false, nil},
		{"other cluster", answer{name: name, txt: edit(clusterHash("blue"), clusterHash("red"))}, false, nil},
		{"ourselves", answer{name: name, txt: edit(pid, self.origin.String())}, false, nil},
		{"short origin", answer{name: name, txt: edit(pid, pid[2:])}, false, nil},
		{"no port", answer{name: name, txt: edit(":9000", "")}, false, nil},
		{"port 0", answer{name: name, txt: edit(":9000", ":0")}, false, nil},
		{"unspecified", answer{name: name, txt: edit("10.0.0.2", "0.0.0.0")}, false, nil},
		{"group", answer{name: name, txt: edit("10.0.0.2", "224.0.0.251")}, false, nil},
		{"foreign zone", answer{name: name, txt: edit("10.0.0.2", "[fe80::1%eth0]")}, false, nil},
		{"control characters", answer{name: name, txt: edit("10.0.0.2", "a\x1b[2J")}, false, nil},
		{"of the same link", answer{name: name, txt: edit("10.0.0.2", "[fe80::1]"), zone: "eth0"}, false, []string{"[fe80::1%eth0]:9000"}},
		{"of a link that is not known", answer{name: name, txt: edit("10.0.0.2", "[fe80::1]")}, false, nil},
		{"of the same link, with their zone", answer{name: name, txt: edit("10.0.0.2", "[fe80::1%eth7]"), zone: "eth0"}, false, nil},
		{"of the same link, port 0", answer{name: name, txt: edit("10.0.0.2:9000", "[fe80::1]:0"), zone: "eth0"}, false, nil},
		{"their loopback", answer{name: name, txt: edit("10.0.0.2", "127.0.0.1")}, false, nil},
		{"our loopback", answer{name: name, txt: edit("10.0.0.2", "127.0.0.1")}, true, []string{"127.0.0.1:9000"}},
	} {
		require.Equal(t, c.want, appendHints(nil, []answer{c.answer, c.answer}, self, c.local), c.why)
	}
}

func TestFloodOfHintsIsCapped(t *testing.T) {
	var flood []answer
	for i := range 10 * maxHints {
		h := hint{cluster: clusterHash(""), origin: Origin{9}, addrs: []string{fmt.Sprintf("10.0.0.2:%d", 1+i)}}
		flood = append(flood, answer{name: "x." + mdnsService + ".local.", txt: h.txt()})
	}
	require.Len(t, appendHints(nil, flood, announced{}, false), maxHints)
}

func TestClusterHashTellsNamesApart(t *testing.T) {
	require.Equal(t, clusterHash("a"), clusterHash("a"))
	require.NotEqual(t, clusterHash("a"), clusterHash("b"))
	require.NotContains(t, clusterHash("secret-project"), "secret")
	require.Len(t, clusterHash(""), 16)
}

func TestQuestionsAreFrequentAtFirstThenRare(t *testing.T) {
	var at []time.Duration
	var sum time.Duration
	for round := range 4 {
		at = append(at, sum)
		sum += multicastPause(round, 30*time.Second, 0.5)
	}
	require.Equal(t, []time.Duration{0, 500 * time.Millisecond, time.Second, 2 * time.Second}, at)
	require.Equal(t, 24*time.Second, multicastPause(3, 30*time.Second, 0))
	require.Equal(t, 36*time.Second, multicastPause(99, 30*time.Second, 1))
	require.Equal(t, time.Millisecond, multicastPause(0, time.Millisecond, 0))
}

func TestAdvertisedAddressesAreWhatOthersCanDial(t *testing.T) {
	lan := link{addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fe80::1")}}
	lo := link{addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, loopback: true}
	both := []string{"10.0.0.1:9000", "[fd00::1]:9000"}
	require.Equal(t, both, advertised("[::]:9000", []link{lo, lan}))
	require.Equal(t, both, advertised(":9000", []link{lan}))
	require.Equal(t, both[:1], advertised("0.0.0.0:9000", []link{lan}))
	require.Equal(t, []string{"127.0.0.1:9000"}, advertised(":9000", []link{lo}))
	bare := link{addrs: []netip.Addr{netip.MustParseAddr("fe80::1%eth0")}}
	require.Equal(t, []string{"[fe80::1]:9000"}, advertised("[::]:9000", []link{lo, bare}), "there is nothing else")
	require.Equal(t, []string{"[fe80::1]:9000"}, advertised("[fe80::1%eth0]:9000", []link{lan}), "the zone means nothing elsewhere")
	require.Empty(t, advertised("0.0.0.0:9000", []link{bare}))
	require.Equal(t, []string{"192.0.2.7:9000"}, advertised("192.0.2.7:9000", []link{lan}))
	require.Equal(t, []string{"db.example.org:9000"}, advertised("db.example.org:9000", []link{lan}))
}

func TestInterfacesAreChosenByFlagsUnlessNamed(t *testing.T) {
	up := net.FlagUp | net.FlagMulticast
	for _, c := range []struct {
		o     multicastConfig
		local bool
		name  string
		flags net.Flags
		want  bool
	}{
		{name: "eth0", flags: up, want: true},
		{name: "eth0", flags: net.FlagMulticast},
		{name: "eth0", flags: net.FlagUp},
		{name: "tun0", flags: up | net.FlagPointToPoint},
		{o: multicastConfig{Interfaces: []string{"tun0"}}, name: "tun0", flags: up | net.FlagPointToPoint, want: true},
		{o: multicastConfig{Interfaces: []string{"tun0"}}, name: "eth0", flags: up},
		{name: "lo", flags: net.FlagUp | net.FlagLoopback},
		{o: multicastConfig{Loopback: true}, name: "lo", flags: net.FlagUp | net.FlagLoopback, want: true},
		{o: multicastConfig{Loopback: true}, name: "eth0", flags: up, want: true},
		{local: true, name: "lo", flags: net.FlagUp | net.FlagLoopback, want: true},
		{local: true, o: multicastConfig{Interfaces: []string{"eth0"}}, name: "eth0", flags: up},
	} {
		require.Equal(t, c.want, wantsInterface(c.o, c.local, c.name, c.flags), "%+v", c)
	}
}

func TestMulticastRefusesWhatCannotBeDialed(t *testing.T) {
	for _, addr := range []string{"", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:http", "127.0.0.1:65536"} {
		err := Multicast(nil).Discover(t.Context(), Self{Addr: addr}, nil)
		require.ErrorContains(t, err, "want \"host:port\"", addr)
	}
	err := Multicast(&MulticastOptions{Interval: -1}).Discover(t.Context(), Self{Addr: "127.0.0.1:1"}, nil)
	require.ErrorContains(t, err, "Interval")
}

// skipWithoutLoopbackMulticast uses loopback only: the server joins there by its
// address, and asking joins nothing.
func skipWithoutLoopbackMulticast(t *testing.T) link {
	links, err := chooseLinks(multicastConfig{}, true)
	if err != nil {
		t.Skip("no multicast on loopback: ", err)
	}
	s, err := mdns.NewServer(&mdns.Config{Zone: &mdns.MDNSService{}, Iface: &links[0].iface})
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

func TestThreeServersOnLoopbackFindEachOtherAndLeaveNothing(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("counts open files in /proc")
	}
	lo := skipWithoutLoopbackMulticast(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // finalizers would hide leaks
	fds := openFiles(t)
	var logs bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&logs, nil)) // handlers lock

	foreign, err := mdns.NewMDNSService("tv", "_googlecast._tcp", "", "tv.local.", 8009, []net.IP{{127, 0, 0, 1}}, []string{"a=127.0.0.1:8009"})
	require.NoError(t, err)
	tv, err := mdns.NewServer(&mdns.Config{Zone: foreign, Iface: &lo.iface})
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
		self := Self{Cluster: cluster, Origin: Origin{byte(i + 1)}, Addr: fmt.Sprintf("127.0.0.1:%d", 9000+i)}
		if i == 3 {
			self.Cluster += " other"
		}
		running.Go(func() {
			d := Multicast(&MulticastOptions{Interval: time.Millisecond, Logger: logger})
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
