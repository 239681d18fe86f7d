package replicator

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/mdns"
	"github.com/level-replicator/replicator/internal/netaddr"
	"github.com/level-replicator/replicator/internal/schedule"
	"github.com/level-replicator/replicator/internal/session"
)

// Self is what a Discoverer may tell others about this replica.
type Self struct {
	Name    string
	Cluster string
	Origin  Origin
	Addr    string // what peers should dial: "host:port"; the host may be unspecified ("[::]:9000")
	TLS     bool
}

// Discoverer is a source of peers. Discover runs until ctx ends, calls found
// with every address it learns of ("host:port"; repetitions do no harm), and
// makes self known where that is its way. It is called once, in a goroutine of
// its own; found may be called from any goroutine until Discover has returned.
//
// If it returns an error before ctx ends, the error is logged and it is called
// again later, with growing pauses; if it returns nil it is done.
type Discoverer interface {
	Discover(ctx context.Context, self Self, found func(addr string)) error
}

// DiscovererFunc makes a function a Discoverer.
type DiscovererFunc func(ctx context.Context, self Self, found func(addr string)) error

// MulticastOptions configures [Multicast]. Zero values are defaults.
type MulticastOptions struct {
	// Interfaces names those to use. Default: all that are up, can multicast
	// and are neither loopback nor point-to-point; looked up in each round.
	Interfaces []string

	// Loopback adds the loopback interface. A replica whose own address is a
	// loopback address uses that interface and no other, whatever is set here.
	Loopback bool

	// Interval is the pause between two questions, ±20 %, once the first
	// four are asked (at 0, 0.5, 1 and 2 s). Default: 30 s.
	Interval time.Duration

	// Logger gets one warning when questions cannot be sent, or not answered, and
	// the noise of the mDNS library at debug level. Default: slog.Default().
	Logger *slog.Logger
}

// Discover calls f.
func (f DiscovererFunc) Discover(ctx context.Context, self Self, found func(addr string)) error {
	return f(ctx, self, found)
}

// Multicast finds replicas of the same cluster on the local network by DNS-SD
// over multicast DNS, and answers when they ask. o may be nil; it is copied.
//
// Where machines have nothing but link-local IPv6 addresses, these are found with the
// interface as their zone.
//
// What it finds are unauthenticated hints, at most 256 addresses a round; the
// handshake decides. Where multicast is blocked it finds nothing, silently
// if only what comes in is dropped: give Peers, or DNS, as well. Discover
// returns an error if there is no interface it could use at all, or none on
// which it can ask or answer; and within half a second of ctx's end.
func Multicast(o *MulticastOptions) Discoverer {
	var c MulticastOptions
	if o != nil {
		c = *o
	}
	c.Interfaces = slices.Clone(c.Interfaces)
	c.Interval = min(cmp.Or(c.Interval, 30*time.Second), longest)
	return DiscovererFunc(func(ctx context.Context, self Self, found func(addr string)) error {
		if c.Interval < 0 {
			return fmt.Errorf("replicator: MulticastOptions.Interval: %v, want no negative duration", c.Interval)
		}
		return mdns.Run(ctx, mdns.Config(c), mdns.Announced{Cluster: self.Cluster, Origin: causal.Origin(self.Origin), Addr: self.Addr, TLS: self.TLS}, found)
	})
}

// discover runs one source of peers, again with growing pauses if it fails.
func (db *DB) discover(ctx context.Context, d Discoverer) {
	const lasting = time.Minute // who worked that long starts afresh
	wait := time.Second
	self := Self{Name: db.opts.Name, Cluster: db.opts.Cluster, Origin: Origin(db.self), Addr: db.advertised(), TLS: db.network.security.Enabled()}
	for failures := 0; ; failures++ {
		began := time.Now()
		err := d.Discover(ctx, self, func(addr string) {
			if netaddr.CheckAddr(addr) == nil && addr != self.Addr {
				db.peers.add(addr, fromDiscovery, time.Now())
			}
		})
		if err == nil || ctx.Err() != nil {
			return
		}
		if time.Since(began) >= lasting {
			failures, wait = 0, time.Second
		}
		if failures == 0 {
			db.opts.Logger.Warn("replicator: a source of peers failed; it is tried again", "error", session.PrintableError(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(schedule.Jitter(wait)):
		}
		wait = min(2*wait, time.Minute)
	}
}
