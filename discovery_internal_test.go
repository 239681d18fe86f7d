package replicator

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
	"time"

	library "github.com/hashicorp/mdns"
	"github.com/level-replicator/replicator/internal/mdns"
	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

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

// nameServer is a real DNS server on loopback whose records can be changed.
type nameServer struct {
	mu      sync.Mutex
	records []dns.RR
}

func startNameServer(t *testing.T) (*nameServer, *net.Resolver) {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	require.NoError(t, err)
	n := &nameServer{}
	started := make(chan struct{})
	s := &dns.Server{PacketConn: conn, Handler: n, NotifyStartedFunc: func() { close(started) }}
	ended := make(chan error, 1)
	go func() { ended <- s.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		require.NoError(t, s.Shutdown())
		require.NoError(t, <-ended)
	})
	return n, &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp4", conn.LocalAddr().String())
	}}
}

func (n *nameServer) set(t *testing.T, records ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.records = nil
	for _, r := range records {
		rr, err := dns.NewRR(r)
		require.NoError(t, err)
		n.records = append(n.records, rr)
	}
}

func (n *nameServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := new(dns.Msg).SetRcode(q, dns.RcodeNameError)
	for _, rr := range n.records {
		if h := rr.Header(); dns.CanonicalName(h.Name) == dns.CanonicalName(q.Question[0].Name) {
			m.Rcode = dns.RcodeSuccess
			if h.Rrtype == q.Question[0].Qtype {
				m.Answer = append(m.Answer, rr)
			}
		}
	}
	w.WriteMsg(m)
}

// discover runs d and returns what it finds, until the test or stop ends it.
func discover(t *testing.T, d Discoverer, self Self) (finds <-chan string, ended <-chan error, stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	f, e := make(chan string), make(chan error, 1)
	go func() {
		e <- d.Discover(ctx, self, func(a string) {
			select {
			case f <- a:
			case <-ctx.Done():
			}
		})
	}()
	t.Cleanup(cancel)
	return f, e, cancel
}

// waitFor takes finds until all of want have come.
func waitFor(t *testing.T, finds <-chan string, ended <-chan error, want ...string) (all []string) {
	t.Helper()
	missing := make(map[string]bool)
	for _, w := range want {
		missing[w] = true
	}
	for timeout := time.After(10 * time.Second); len(missing) > 0; {
		select {
		case a := <-finds:
			all = append(all, a)
			delete(missing, a)
		case err := <-ended:
			t.Fatalf("ended with %v", err)
		case <-timeout:
			t.Fatalf("missing %v", missing)
		}
	}
	return all
}

func TestChangedDNSNameIsNoticed(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("", func(t *testing.T) {
		n, resolver := startNameServer(t)
		n.set(t, "db.example.org. 60 A 10.0.0.1", "db.example.org. 60 AAAA fd00::1")
		d := DNS("db.example.org:9000", &DNSOptions{Resolver: resolver, Interval: 5 * time.Millisecond})
		finds, ended, stop := discover(t, d, Self{Addr: "10.0.0.3:9000"})
		waitFor(t, finds, ended, "10.0.0.1:9000", "[fd00::1]:9000")
		n.set(t, "db.example.org. 60 A 10.0.0.2", "db.example.org. 60 A 10.0.0.3")
		require.NotContains(t, waitFor(t, finds, ended, "10.0.0.2:9000"), "10.0.0.3:9000", "found itself")
		stop()
		require.NoError(t, <-ended)
	})
}

func TestServiceRecordsAreFollowedToAddresses(t *testing.T) {
	n, resolver := startNameServer(t)
	n.set(t, "_replicator._tcp.example.org. 60 SRV 10 1 9001 a.example.org.",
		"_replicator._tcp.example.org. 60 SRV 20 1 9002 b.example.org.",
		"_replicator._tcp.example.org. 60 SRV 20 1 9003 gone.example.org.",
		"a.example.org. 60 A 10.0.0.1", "b.example.org. 60 AAAA fd00::2")
	d := DNS("_replicator._tcp.example.org", &DNSOptions{Resolver: resolver, Interval: 5 * time.Millisecond})
	finds, ended, _ := discover(t, d, Self{})
	waitFor(t, finds, ended, "10.0.0.1:9001", "[fd00::2]:9002")
	n.set(t, "_replicator._tcp.example.org. 60 SRV 10 1 9009 a.example.org.", "a.example.org. 60 A 10.0.0.1")
	waitFor(t, finds, ended, "10.0.0.1:9009")
}

func TestFailedLookupIsReturnedWithTheName(t *testing.T) {
	n, resolver := startNameServer(t)
	n.set(t, "_absent._tcp.example.org. 60 SRV 0 0 0 .")
	for _, name := range []string{"db.example.org:9000", "_replicator._tcp.example.org", "_absent._tcp.example.org"} {
		err := DNS(name, &DNSOptions{Resolver: resolver}).Discover(t.Context(), Self{}, nil)
		require.ErrorContains(t, err, "replicator: look up "+name+": ")
	}
}

func TestBadDNSNamesAreRefused(t *testing.T) {
	for _, name := range []string{"", "db", ":9000", "db:0", "db:http", "d b:9000", "_", "_x._tcp", "_x._tcp.example.org:9000", "_x. y.org.z"} {
		err := DNS(name, nil).Discover(t.Context(), Self{}, nil)
		require.ErrorContains(t, err, "want \"host:port\" or \"_service._proto.domain\"", name)
	}
	err := DNS("db:9000", &DNSOptions{Interval: -1}).Discover(t.Context(), Self{}, nil)
	require.ErrorContains(t, err, "Interval")
	for _, name := range []string{"db:9000", "[fd00::1]:9000", "10.0.0.1:9000", "_x._tcp.example.org."} {
		require.NoError(t, checkDNSName(name), name)
	}
}
