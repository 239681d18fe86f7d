package mdns

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestHintSurvivesItsTXTRecord(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := Record{Cluster: ClusterHash(rapid.String().Draw(t, "cluster")), tls: rapid.Bool().Draw(t, "tls")}
		copy(h.origin[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "origin"))
		for i := range rapid.IntRange(1, 12).Draw(t, "addrs") {
			h.Addrs = append(h.Addrs, fmt.Sprintf("10.0.0.%d:9000", i))
		}
		got, ok := ParseRecord(h.Txt())
		require.True(t, ok)
		require.Equal(t, h, got)
	})
}

func TestHintFitsASmallPacket(t *testing.T) {
	h := Record{Cluster: ClusterHash("c"), Addrs: make([]string, 40)}
	for i := range h.Addrs {
		h.Addrs[i] = fmt.Sprintf("[2001:db8:1111:2222:3333:4444:5555:%d]:9000", 1000+i)
	}
	size := 0
	for _, s := range h.Txt() {
		require.LessOrEqual(t, len(s), 255)
		size += 1 + len(s)
	}
	require.LessOrEqual(t, size, maxTXT)
	got, ok := ParseRecord(h.Txt())
	require.True(t, ok)
	require.Greater(t, len(got.Addrs), 4)
}

func TestHintsThatAreNotOursAreDropped(t *testing.T) {
	self := Announced{Cluster: "blue", Origin: causal.Origin{1}}
	name := causal.Origin{2}.String() + "." + mdnsService + ".local."
	edit := func(old, new string) []string {
		txt := Record{Cluster: ClusterHash("blue"), origin: causal.Origin{2}, Addrs: []string{"10.0.0.2:9000"}}.Txt()
		return strings.Split(strings.Replace(strings.Join(txt, "\n"), old, new, 1), "\n")
	}
	pid := causal.Origin{2}.String()
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
		{"other cluster", answer{name: name, txt: edit(ClusterHash("blue"), ClusterHash("red"))}, false, nil},
		{"ourselves", answer{name: name, txt: edit(pid, self.Origin.String())}, false, nil},
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
		require.Equal(t, c.want, appendFound(nil, []answer{c.answer, c.answer}, self, c.local), c.why)
	}
}

func TestFloodOfHintsIsCapped(t *testing.T) {
	var flood []answer
	for i := range 10 * MaxFound {
		h := Record{Cluster: ClusterHash(""), origin: causal.Origin{9}, Addrs: []string{fmt.Sprintf("10.0.0.2:%d", 1+i)}}
		flood = append(flood, answer{name: "x." + mdnsService + ".local.", txt: h.Txt()})
	}
	require.Len(t, appendFound(nil, flood, Announced{}, false), MaxFound)
}

func TestClusterHashTellsNamesApart(t *testing.T) {
	require.Equal(t, ClusterHash("a"), ClusterHash("a"))
	require.NotEqual(t, ClusterHash("a"), ClusterHash("b"))
	require.NotContains(t, ClusterHash("secret-project"), "secret")
	require.Len(t, ClusterHash(""), 16)
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
	lan := Link{addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fe80::1")}}
	lo := Link{addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, loopback: true}
	both := []string{"10.0.0.1:9000", "[fd00::1]:9000"}
	require.Equal(t, both, advertised("[::]:9000", []Link{lo, lan}))
	require.Equal(t, both, advertised(":9000", []Link{lan}))
	require.Equal(t, both[:1], advertised("0.0.0.0:9000", []Link{lan}))
	require.Equal(t, []string{"127.0.0.1:9000"}, advertised(":9000", []Link{lo}))
	bare := Link{addrs: []netip.Addr{netip.MustParseAddr("fe80::1%eth0")}}
	require.Equal(t, []string{"[fe80::1]:9000"}, advertised("[::]:9000", []Link{lo, bare}), "there is nothing else")
	require.Equal(t, []string{"[fe80::1]:9000"}, advertised("[fe80::1%eth0]:9000", []Link{lan}), "the zone means nothing elsewhere")
	require.Empty(t, advertised("0.0.0.0:9000", []Link{bare}))
	require.Equal(t, []string{"192.0.2.7:9000"}, advertised("192.0.2.7:9000", []Link{lan}))
	require.Equal(t, []string{"db.example.org:9000"}, advertised("db.example.org:9000", []Link{lan}))
}

func TestInterfacesAreChosenByFlagsUnlessNamed(t *testing.T) {
	up := net.FlagUp | net.FlagMulticast
	for _, c := range []struct {
		o     Config
		local bool
		name  string
		flags net.Flags
		want  bool
	}{
		{name: "eth0", flags: up, want: true},
		{name: "eth0", flags: net.FlagMulticast},
		{name: "eth0", flags: net.FlagUp},
		{name: "tun0", flags: up | net.FlagPointToPoint},
		{o: Config{Interfaces: []string{"tun0"}}, name: "tun0", flags: up | net.FlagPointToPoint, want: true},
		{o: Config{Interfaces: []string{"tun0"}}, name: "eth0", flags: up},
		{name: "lo", flags: net.FlagUp | net.FlagLoopback},
		{o: Config{Loopback: true}, name: "lo", flags: net.FlagUp | net.FlagLoopback, want: true},
		{o: Config{Loopback: true}, name: "eth0", flags: up, want: true},
		{local: true, name: "lo", flags: net.FlagUp | net.FlagLoopback, want: true},
		{local: true, o: Config{Interfaces: []string{"eth0"}}, name: "eth0", flags: up},
	} {
		require.Equal(t, c.want, wantsInterface(c.o, c.local, c.name, c.flags), "%+v", c)
	}
}
