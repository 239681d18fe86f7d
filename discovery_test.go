package replicator

import (
	"context"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/testdns"
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
		n, resolver := testdns.Start(t, "127.0.0.1:0")
		n.Set(t, "db.example.org. 60 A 10.0.0.1", "db.example.org. 60 AAAA fd00::1")
		d := DNS("db.example.org:9000", &DNSOptions{Resolver: resolver, Interval: 5 * time.Millisecond})
		finds, ended, stop := discover(t, d, Self{Addr: "10.0.0.3:9000"})
		waitFor(t, finds, ended, "10.0.0.1:9000", "[fd00::1]:9000")
		n.Set(t, "db.example.org. 60 A 10.0.0.2", "db.example.org. 60 A 10.0.0.3")
		require.NotContains(t, waitFor(t, finds, ended, "10.0.0.2:9000"), "10.0.0.3:9000", "found itself")
		stop()
		require.NoError(t, <-ended)
	})
}

func TestServiceRecordsAreFollowedToAddresses(t *testing.T) {
	n, resolver := testdns.Start(t, "127.0.0.1:0")
	n.Set(t, "_replicator._tcp.example.org. 60 SRV 10 1 9001 a.example.org.",
		"_replicator._tcp.example.org. 60 SRV 20 1 9002 b.example.org.",
		"_replicator._tcp.example.org. 60 SRV 20 1 9003 gone.example.org.",
		"a.example.org. 60 A 10.0.0.1", "b.example.org. 60 AAAA fd00::2")
	d := DNS("_replicator._tcp.example.org", &DNSOptions{Resolver: resolver, Interval: 5 * time.Millisecond})
	finds, ended, _ := discover(t, d, Self{})
	waitFor(t, finds, ended, "10.0.0.1:9001", "[fd00::2]:9002")
	n.Set(t, "_replicator._tcp.example.org. 60 SRV 10 1 9009 a.example.org.", "a.example.org. 60 A 10.0.0.1")
	waitFor(t, finds, ended, "10.0.0.1:9009")
}

func TestFailedLookupIsReturnedWithTheName(t *testing.T) {
	n, resolver := testdns.Start(t, "127.0.0.1:0")
	n.Set(t, "_absent._tcp.example.org. 60 SRV 0 0 0 .")
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
