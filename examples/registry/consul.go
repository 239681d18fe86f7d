package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/level-replicator/replicator"
)

// catalogueWait is how long Consul may withhold an answer while nothing changes.
const catalogueWait = 5 * time.Minute

// fromConsul finds peers in the catalogue of the Consul agent at base
// ("http://127.0.0.1:8500"): all healthy instances of a service. It registers nothing;
// that is the job of the agent's service definition, which has the health check, too.
//
// It uses blocking queries: Consul answers when the list has changed.
func fromConsul(base, service string) replicator.Discoverer {
	return replicator.DiscovererFunc(func(ctx context.Context, self replicator.Self, found func(string)) error {
		c := catalogue{url: base + "/v1/health/service/" + url.PathEscape(service)}
		for {
			addrs, err := c.next(ctx)
			if err != nil {
				return fmt.Errorf("consul: %w", err)
			}
			for _, addr := range addrs {
				if addr != self.Addr {
					found(addr)
				}
			}
		}
	})
}

// catalogue reads the instances of one service, again each time they change.
type catalogue struct {
	url   string
	index uint64 // of the last answer, 0 before the first
}

// instance is the part of an entry of /v1/health/service that has its address.
type instance struct {
	Node    struct{ Address string }
	Service struct {
		Address string // empty: the node's
		Port    int
	}
}

func (i instance) addr() string {
	host := i.Service.Address
	if host == "" {
		host = i.Node.Address
	}
	return net.JoinHostPort(host, strconv.Itoa(i.Service.Port))
}

// next waits until the list has changed since the last call and returns it.
func (c *catalogue) next(ctx context.Context) ([]string, error) {
	query := url.Values{"passing": {"1"}}
	if c.index > 0 {
		query.Set("index", strconv.FormatUint(c.index, 10))
		query.Set("wait", catalogueWait.String())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+"?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		return nil, fmt.Errorf("%q: %q", resp.Status, text)
	}
	if err := c.advance(resp.Header.Get("X-Consul-Index")); err != nil {
		return nil, err
	}
	var instances []instance
	if err := json.NewDecoder(resp.Body).Decode(&instances); err != nil {
		return nil, err
	}
	var addrs []string
	for _, i := range instances {
		addrs = append(addrs, i.addr())
	}
	return addrs, nil
}

// advance stores the index of an answer by the rules of Consul's manual: start over if it
// went back, and never ask with 0, which would not block.
func (c *catalogue) advance(header string) error {
	index, err := strconv.ParseUint(header, 10, 64)
	switch {
	case err != nil:
		return fmt.Errorf("answer has X-Consul-Index %q, want a number", header)
	case index < c.index:
		c.index = 0
	default:
		c.index = max(index, 1)
	}
	return nil
}
