package main

import (
	"context"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
)

func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := run(ctx, os.Stdout); err != nil {
		log.Fatal(err)
	}
	// Output:
	// three replicas know only the registry
	// replica-2 reads: hello from replica-1
	// replica-3 reads: hello from replica-1
	// the registry lists 3 addresses
}

func TestRegistrationExpiresUnlessRepeated(t *testing.T) {
	now := time.Unix(1000, 0)
	r := newRegistry(10 * time.Second)
	r.now = func() time.Time { return now }
	web := httptest.NewServer(r)
	defer web.Close()
	register := func(addr string) {
		require.NoError(t, call(t.Context(), http.MethodPut, web.URL+"/services/shop?addr="+addr, nil))
	}
	register("10.0.0.1:9000")
	register("10.0.0.2:9000")
	now = now.Add(8 * time.Second)
	register("10.0.0.2:9000")
	require.Equal(t, []string{"10.0.0.1:9000", "10.0.0.2:9000"}, r.addrs("shop"))
	now = now.Add(8 * time.Second)
	require.Equal(t, []string{"10.0.0.2:9000"}, r.addrs("shop"))
	require.Empty(t, r.addrs("another"))
}

func TestRegistrationWithoutAddressIsRefused(t *testing.T) {
	web := httptest.NewServer(newRegistry(time.Second))
	defer web.Close()
	err := call(t.Context(), http.MethodPut, web.URL+"/services/shop", nil)
	require.ErrorContains(t, err, "400 Bad Request")
}

func TestDiscoverReportsARegistryThatIsDown(t *testing.T) {
	web := httptest.NewServer(nil)
	web.Close()
	err := fromRegistry(web.URL, time.Second).Discover(t.Context(), replicator.Self{Cluster: "shop", Addr: "10.0.0.1:9000"}, nil)
	require.ErrorContains(t, err, "register: ")
}

func TestRegistryKeepsTheContractOfDiscoverers(t *testing.T) {
	web := httptest.NewServer(newRegistry(time.Minute))
	defer web.Close()
	for _, addr := range []string{"10.0.0.1:9000", "[fd00::2]:9000"} {
		require.NoError(t, call(t.Context(), http.MethodPut, web.URL+"/services/shop?addr="+addr, nil))
	}
	replicatortest.TestDiscoverer(t, replicatortest.DiscovererTest{
		New:  func() replicator.Discoverer { return fromRegistry(web.URL, 10*time.Millisecond) },
		Self: replicator.Self{Cluster: "shop", Addr: "10.0.0.3:9000"},
		Want: []string{"10.0.0.1:9000", "[fd00::2]:9000"},
	})
}
