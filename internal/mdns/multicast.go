// Package mdns finds replicas of the same cluster on the local network by DNS-SD over multicast
// DNS, and answers when they ask. What it finds are unauthenticated addresses.
package mdns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/mdns"
	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/netaddr"
	"github.com/miekg/dns"
)

// Config says where and how often to ask.
type Config struct {
	Interfaces []string
	Loopback   bool
	Interval   time.Duration
	Logger     *slog.Logger
}

// Announced is what is said of this replica.
type Announced struct {
	Cluster string
	Origin  causal.Origin
	Addr    string
	TLS     bool
}

const (
	mdnsService = "_leveldb-repl._tcp"
	// mdnsTimeout is how long answers are waited for. QueryContext does not
	// return before it, whatever becomes of its context, so it bounds our end too.
	mdnsTimeout = 300 * time.Millisecond
	// mdnsBackoff is for a socket that could not join: each try leaks the other
	// socket until the garbage collector finds it.
	mdnsBackoff = time.Minute
	MaxFound    = 256
)

// Run asks and answers until ctx ends.
func Run(ctx context.Context, o Config, self Announced, found func(addr string)) error {
	if err := netaddr.CheckPort(self.Addr); err != nil {
		return err
	}
	logger := cmp.Or(o.Logger, slog.Default())
	r := &multicastRun{
		o: o, self: self, logger: logger,
		noise:   slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		servers: make(map[serverKey]*mdns.Server),
		blocked: make(map[path]time.Time),

		sending:   trouble{begins: "multicast questions cannot be sent; others may still find this replica", ends: "multicast questions can be sent again"},
		answering: trouble{begins: "multicast questions cannot be answered; this replica may find others and is not found", ends: "multicast questions can be answered again"},
	}
	defer r.close()
	for round := 0; ctx.Err() == nil; round++ {
		next := time.NewTimer(multicastPause(round, o.Interval, rand.Float64()))
		if err := r.round(ctx, found); err != nil {
			next.Stop()
			return err
		}
		select {
		case <-ctx.Done():
			next.Stop()
		case <-next.C:
		}
	}
	return nil
}

// multicastPause is the time from the start of a round to that of the next.
// The library never announces a start, so two replicas that start together see
// each other only by asking again soon. r is random in [0,1).
func multicastPause(round int, interval time.Duration, r float64) time.Duration {
	if early := [...]time.Duration{500 * time.Millisecond, 500 * time.Millisecond, time.Second}; round < len(early) {
		return min(early[round], interval)
	}
	return SpreadInterval(interval, r)
}

// SpreadInterval is d ±20 %, so that replicas started together do not ask together.
func SpreadInterval(d time.Duration, r float64) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*r))
}

// multicastRun is one call of Discover.
type multicastRun struct {
	o       Config
	self    Announced
	logger  *slog.Logger
	noise   *log.Logger
	zone    mdnsZone
	servers map[serverKey]*mdns.Server
	blocked map[path]time.Time // not asked before

	sending, answering trouble
}

// serverKey names an mDNS server, which must be started again when its interface was replaced by one
// of the same name, or has gained or lost a family, since it joins only once.
type serverKey struct {
	index  int
	name   string
	v4, v6 bool
}

// path is what questions take: an interface and a family.
type path struct {
	name string
	v6   bool
}

// round looks at the interfaces, answers on them, and asks once.
func (r *multicastRun) round(ctx context.Context, found func(addr string)) error {
	links, err := ChooseLinks(r.o, netaddr.IsLoopbackAddr(r.self.Addr))
	if err != nil {
		return fmt.Errorf("replicator: no multicast: %w", err)
	}
	serveErr := r.serve(links)
	addrs, askErr := r.ask(ctx, links)
	for _, a := range addrs {
		found(a)
	}
	if ctx.Err() != nil {
		return nil
	}
	if askErr != nil && len(r.servers) == 0 {
		return fmt.Errorf("replicator: no multicast: cannot ask (%v) and cannot answer (%v)", askErr, serveErr)
	}
	r.sending.log(r.logger, askErr != nil, askErr)
	r.answering.log(r.logger, len(r.servers) == 0, serveErr)
	return nil
}

// trouble is something that may fail for a while. It is logged when it begins and when it ends.
type trouble struct {
	begins, ends string
	on           bool
}

func (x *trouble) log(logger *slog.Logger, on bool, err error) {
	switch {
	case on && !x.on:
		logger.Warn(x.begins, "err", err)
	case !on && x.on:
		logger.Info(x.ends)
	}
	x.on = on
}

// serve keeps one mDNS server for each link. All share one zone: on Linux a
// socket bound to the group gets what arrives on any interface, so which
// server answers says nothing about the interface.
func (r *multicastRun) serve(links []Link) error {
	h := Record{Cluster: ClusterHash(r.self.Cluster), origin: r.self.Origin, tls: r.self.TLS}
	h.Addrs = advertised(r.self.Addr, links)
	err := fmt.Errorf("no interface has an address that %s could be dialed at", r.self.Addr)
	wanted := make(map[serverKey]bool)
	if len(h.Addrs) > 0 {
		if err = r.zone.set(h, links); err != nil {
			return err
		}
		for i := range links {
			key := serverKey{links[i].Iface.Index, links[i].Iface.Name, links[i].v4, links[i].v6}
			wanted[key] = true
			if r.servers[key] != nil {
				continue
			}
			s, e := mdns.NewServer(&mdns.Config{Zone: &r.zone, Iface: &links[i].Iface, Logger: r.noise})
			if e != nil {
				err = fmt.Errorf("%s: %w", key.name, e)
				continue
			}
			r.servers[key] = s
		}
	}
	for key, s := range r.servers {
		if !wanted[key] {
			s.Shutdown()
			delete(r.servers, key)
		}
	}
	return err
}

func (r *multicastRun) close() {
	for _, s := range r.servers {
		s.Shutdown()
	}
}

// ask puts the question on every path at once and returns what passed the
// filter. The error is nil if any path worked.
func (r *multicastRun) ask(ctx context.Context, links []Link) ([]string, error) {
	type result struct {
		path    path
		answers []answer
		local   bool
		err     error
	}
	var (
		wg      sync.WaitGroup
		results = make(chan result, 2*len(links))
		worked  bool
		failure = errors.New("every way of asking has failed lately")
	)
	// IPv4 and IPv6 apart: if either cannot join or send, the library gives up
	// on both (hashicorp/mdns#35, #121) and leaks a socket.
	for _, l := range links {
		for _, p := range l.paths() {
			if time.Now().Before(r.blocked[p]) {
				continue
			}
			wg.Go(func() {
				res := result{path: p, local: l.loopback}
				if l.loopback {
					res.answers, res.err = askLoopback(ctx, l)
				} else {
					res.answers, res.err = askLink(ctx, l.Iface, p.v6, r.noise)
				}
				results <- res
			})
		}
	}
	wg.Wait()
	close(results)
	var addrs []string
	for res := range results {
		if res.err == nil {
			worked = true
		} else {
			r.logger.Debug("multicast question failed", "interface", res.path.name, "ipv6", res.path.v6, "err", res.err)
			failure = fmt.Errorf("%s: %w", res.path.name, res.err)
			if strings.Contains(res.err.Error(), "failed to bind") {
				r.blocked[res.path] = time.Now().Add(mdnsBackoff)
			}
		}
		addrs = appendFound(addrs, res.answers, r.self, res.local)
	}
	if worked {
		return addrs, nil
	}
	return addrs, failure
}

// askLink asks by the library.
func askLink(ctx context.Context, iface net.Interface, v6 bool, noise *log.Logger) ([]answer, error) {
	// What finds the channel full is dropped silently, and what is sent is
	// still written to while the query runs (hashicorp/mdns#75): so the channel
	// is roomy, and read only after QueryContext has returned.
	entries := make(chan *mdns.ServiceEntry, MaxFound)
	err := mdns.QueryContext(ctx, &mdns.QueryParam{
		Service: mdnsService, Domain: "local", Timeout: mdnsTimeout,
		Interface: &iface, // hashicorp/mdns#80: Windows needs it even with one
		Entries:   entries, DisableIPv4: v6, DisableIPv6: !v6, Logger: noise,
	})
	close(entries)
	var answers []answer
	for e := range entries {
		zone := iface.Name
		if ip := e.AddrV6IPAddr; ip != nil && ip.Zone != "" {
			zone = ip.Zone // others may have been heard on the way
		}
		answers = append(answers, answer{name: e.Name, txt: e.InfoFields, zone: zone})
	}
	return answers, err
}

// mdnsZone is what the servers of one run answer from.
type mdnsZone struct {
	current atomic.Pointer[mdns.MDNSService]
}

// Records implements mdns.Zone.
func (z *mdnsZone) Records(q dns.Question) []dns.RR { return z.current.Load().Records(q) }

// set puts h into the zone. Instance and host are the origin: 32 hex digits, as
// the library neither escapes dots nor folds case, and as the name of the
// machine belongs to its own mDNS responder.
func (z *mdnsZone) set(h Record, links []Link) error {
	ips := hostIPs(h.Addrs)
	if len(ips) == 0 { // a host name; without an address the library would look one up
		for _, l := range links {
			for _, a := range l.addrs {
				ips = append(ips, a.AsSlice())
			}
		}
	}
	id := h.origin.String()
	s, err := mdns.NewMDNSService(id, mdnsService, "local.", id+".local.", netaddr.PortOf(h.Addrs[0]), ips, h.Txt())
	if err == nil {
		z.current.Store(s)
	}
	return err
}
