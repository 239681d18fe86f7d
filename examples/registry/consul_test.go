package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
)

// agent is a Consul agent that replies with what a test puts into answers, and not before.
type agent struct {
	*httptest.Server
	answers chan answer
	asked   chan string
}

type answer struct {
	index, body string
	status      int
}

func newAgent(t *testing.T) *agent {
	a := &agent{answers: make(chan answer, 10), asked: make(chan string, 10)}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.asked <- r.URL.Path + "?" + r.URL.RawQuery
		select {
		case next := <-a.answers:
			w.Header().Set("X-Consul-Index", next.index)
			w.WriteHeader(next.status)
			fmt.Fprint(w, next.body)
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(a.Close)
	return a
}

// Entries as GET /v1/health/service/shop returns them, shortened.
const (
	ownAddress = `{"Node":{"Node":"a","Address":"10.1.0.1"},"Service":{"ID":"shop-1","Service":"shop","Address":"10.2.0.1","Port":9000},"Checks":[{"Status":"passing"}]}`
	ofTheNode  = `{"Node":{"Node":"b","Address":"10.1.0.2"},"Service":{"ID":"shop-2","Service":"shop","Address":"","Port":9000},"Checks":[{"Status":"passing"}]}`
	ofVersion6 = `{"Node":{"Node":"c","Address":"10.1.0.3"},"Service":{"ID":"shop-3","Service":"shop","Address":"fd00::3","Port":9001},"Checks":[]}`
)

func TestConsulIsAskedAgainWithItsIndex(t *testing.T) {
	a := newAgent(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	found := make(chan string, 10)
	ended := make(chan error, 1)
	go func() {
		d := fromConsul(a.URL, "shop")
		ended <- d.Discover(ctx, replicator.Self{Addr: "10.2.0.1:9000"}, func(addr string) { found <- addr })
	}()

	require.Equal(t, "/v1/health/service/shop?passing=1", <-a.asked)
	a.answers <- answer{"17", "[" + ownAddress + "," + ofTheNode + "]", http.StatusOK}
	require.Equal(t, "10.1.0.2:9000", <-found, "our own address is left out")

	require.Equal(t, "/v1/health/service/shop?index=17&passing=1&wait=5m0s", <-a.asked)
	a.answers <- answer{"18", "[" + ofVersion6 + "]", http.StatusOK}
	require.Equal(t, "[fd00::3]:9001", <-found)

	require.Equal(t, "/v1/health/service/shop?index=18&passing=1&wait=5m0s", <-a.asked)
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
}

func TestConsulIndexThatWentBackStartsOver(t *testing.T) {
	c := catalogue{index: 17}
	require.NoError(t, c.advance("5"))
	require.Zero(t, c.index)
	require.NoError(t, c.advance("0"))
	require.Equal(t, uint64(1), c.index, "asking with 0 would not block")
	require.ErrorContains(t, c.advance(""), `X-Consul-Index ""`)
}

func TestConsulThatFailsIsReported(t *testing.T) {
	a := newAgent(t)
	a.answers <- answer{"0", "No cluster leader", http.StatusInternalServerError}
	err := fromConsul(a.URL, "shop").Discover(t.Context(), replicator.Self{}, nil)
	require.ErrorContains(t, err, `"500 Internal Server Error": "No cluster leader"`)
}

func TestConsulKeepsTheContractOfDiscoverers(t *testing.T) {
	a := newAgent(t)
	a.answers <- answer{"17", "[" + ofTheNode + "," + ofVersion6 + "]", http.StatusOK}
	replicatortest.TestDiscoverer(t, replicatortest.DiscovererTest{
		New:  func() replicator.Discoverer { return fromConsul(a.URL, "shop") },
		Self: replicator.Self{Addr: "10.2.0.1:9000"},
		Want: []string{"10.1.0.2:9000", "[fd00::3]:9001"},
	})
}
