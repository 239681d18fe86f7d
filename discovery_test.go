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
	links, err := mdns.ChooseLinks(mdns.MulticastConfig{}, true)
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
