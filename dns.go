package replicator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/level-replicator/replicator/internal/mdns"
	"github.com/level-replicator/replicator/internal/netaddr"
)

// DNSOptions configures [DNS]. Zero values are defaults.
type DNSOptions struct {
	// Resolver does the lookups. Default: net.DefaultResolver.
	Resolver *net.Resolver

	// Interval is the pause between two lookups, ±20 %. Default: 30 s.
	Interval time.Duration
}

// DNS looks up replicas by name, again and again, as a name's addresses change.
// name is "host:port", whose A and AAAA records are taken, or begins with "_" and
// has SRV records: "_replicator._tcp.example.org". o may be nil; it is copied.
//
// A lookup that fails ends Discover with its error, as does a name that is
// neither; what was found before stays found.
func DNS(name string, o *DNSOptions) Discoverer {
	var c DNSOptions
	if o != nil {
		c = *o
	}
	c.Resolver = cmp.Or(c.Resolver, net.DefaultResolver)
	c.Interval = cmp.Or(c.Interval, 30*time.Second)
	return &dnsName{name, c}
}

// lookupTimeout is for one lookup with all its servers and retries.
const lookupTimeout = 10 * time.Second

type dnsName struct {
	name string
	o    DNSOptions
}

func (d *dnsName) Discover(ctx context.Context, self Self, found func(addr string)) error {
	if d.o.Interval < 0 {
		return fmt.Errorf("replicator: DNSOptions.Interval: %v, want no negative duration", d.o.Interval)
	}
	if err := checkDNSName(d.name); err != nil {
		return err
	}
	for ctx.Err() == nil {
		addrs, err := d.lookup(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("replicator: look up %s: %w", d.name, err)
		}
		for _, a := range addrs[:min(len(addrs), mdns.MaxFound)] {
			if a != self.Addr {
				found(a)
			}
		}
		next := time.NewTimer(mdns.SpreadInterval(d.o.Interval, rand.Float64()))
		select {
		case <-ctx.Done():
			next.Stop()
		case <-next.C:
		}
	}
	return nil
}

func checkDNSName(name string) error {
	host := name
	if srv := strings.HasPrefix(name, "_"); srv && strings.Count(strings.Trim(name, "."), ".") < 2 || !srv && netaddr.CheckPort(name) != nil {
		host = ""
	} else if !srv {
		host, _, _ = net.SplitHostPort(name)
	}
	if net.ParseIP(host) == nil && !netaddr.IsHostName(host) {
		return fmt.Errorf("replicator: DNS name %q, want \"host:port\" or \"_service._proto.domain\"", name)
	}
	return nil
}

func (d *dnsName) lookup(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	if strings.HasPrefix(d.name, "_") {
		return d.lookupSRV(ctx)
	}
	host, port, _ := net.SplitHostPort(d.name)
	return d.lookupHost(ctx, host, port)
}

func (d *dnsName) lookupHost(ctx context.Context, host, port string) ([]string, error) {
	ips, err := d.o.Resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	var addrs []string
	for _, ip := range ips {
		addrs = append(addrs, net.JoinHostPort(ip.Unmap().String(), port))
	}
	return addrs, nil
}

// lookupSRV takes all records alike, whatever their priority: every replica of
// a cluster counts. Targets are resolved here, since whoever dials does not
// know of our Resolver. It fails if no target has an address.
func (d *dnsName) lookupSRV(ctx context.Context) ([]string, error) {
	// With records that have bad targets the good ones come beside an error.
	_, records, err := d.o.Resolver.LookupSRV(ctx, "", "", d.name)
	errs := []error{err}
	var addrs []string
	for _, rec := range records[:min(len(records), mdns.MaxFound)] {
		if rec.Target == "." || rec.Port == 0 {
			errs = append(errs, errors.New("the service is declared absent (SRV target \".\" or port 0)"))
			continue
		}
		more, err := d.lookupHost(ctx, rec.Target, strconv.Itoa(int(rec.Port)))
		errs = append(errs, err)
		addrs = append(addrs, more...)
	}
	if len(addrs) > 0 {
		slices.Sort(addrs)
		return slices.Compact(addrs), nil
	}
	return nil, errors.Join(errs...)
}
