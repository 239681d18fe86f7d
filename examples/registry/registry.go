package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/level-replicator/replicator"
)

// registry is a service registry of the smallest kind, an http.Handler:
//
//	PUT /services/NAME?addr=host:port   registers for ttl; repeat it to stay
//	GET /services/NAME                  returns the addresses as a JSON list
type registry struct {
	ttl time.Duration
	now func() time.Time

	mux *http.ServeMux

	mu      sync.Mutex
	expires map[string]map[string]time.Time // by name and address
}

func newRegistry(ttl time.Duration) *registry {
	r := &registry{ttl: ttl, now: time.Now, mux: http.NewServeMux(), expires: map[string]map[string]time.Time{}}
	r.mux.HandleFunc("PUT /services/{name}", r.register)
	r.mux.HandleFunc("GET /services/{name}", r.list)
	return r
}

func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) { r.mux.ServeHTTP(w, req) }

func (r *registry) register(w http.ResponseWriter, req *http.Request) {
	addr := req.FormValue("addr")
	if addr == "" {
		http.Error(w, "no addr, want host:port", http.StatusBadRequest)
		return
	}
	name := req.PathValue("name")
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.expires[name] == nil {
		r.expires[name] = map[string]time.Time{}
	}
	r.expires[name][addr] = r.now().Add(r.ttl)
	w.WriteHeader(http.StatusNoContent)
}

func (r *registry) list(w http.ResponseWriter, req *http.Request) {
	json.NewEncoder(w).Encode(r.addrs(req.PathValue("name")))
}

// addrs returns the unexpired addresses of a name, sorted.
func (r *registry) addrs(name string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	addrs := []string{}
	for addr, expires := range r.expires[name] {
		if r.now().After(expires) {
			delete(r.expires[name], addr)
			continue
		}
		addrs = append(addrs, addr)
	}
	slices.Sort(addrs)
	return addrs
}

// fromRegistry registers this replica at a registry at every interval and finds the others
// there.
//
// If the registry fails, Discover returns the error: replicator logs it, goes on
// replicating with the peers that it knows, and calls again after growing pauses.
func fromRegistry(base string, every time.Duration) replicator.Discoverer {
	return replicator.DiscovererFunc(func(ctx context.Context, self replicator.Self, found func(string)) error {
		service := base + "/services/" + url.PathEscape(self.Cluster)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			if err := call(ctx, http.MethodPut, service+"?addr="+url.QueryEscape(self.Addr), nil); err != nil {
				return fmt.Errorf("register: %w", err)
			}
			var addrs []string
			if err := call(ctx, http.MethodGet, service, &addrs); err != nil {
				return fmt.Errorf("list: %w", err)
			}
			for _, addr := range addrs {
				if addr != self.Addr {
					found(addr)
				}
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
		}
	})
}

// call makes a request and decodes the answer into result, unless it is nil.
func call(ctx context.Context, method, url string, result any) error {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s", method, url, resp.Status)
	}
	if result == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(result)
}
