package replicator

import "context"

// Self is what a Discoverer may tell others about this server.
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

// Discover calls f.
func (f DiscovererFunc) Discover(ctx context.Context, self Self, found func(addr string)) error {
	return f(ctx, self, found)
}
