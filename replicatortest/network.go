package replicatortest

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Network connects hosts in memory. All methods may be called at any time from
// any goroutine; it holds no goroutine and no timer of its own and needs no Close.
type Network struct {
	seed  uint64
	bytes atomic.Int64

	// mu guards what follows, and the listeners. It may be taken while holding a
	// link's lock, never the other way round, and is never held over a wait.
	mu       sync.Mutex
	hosts    map[string]*Host
	links    map[*link]struct{} // the established ones that are still of use
	dials    map[route]uint64   // attempts so far
	groups   []map[string]bool  // empty: no partition
	blocked  map[route]bool
	min, max time.Duration
	cutAfter int
	linkIDs  uint64
}

// route is the pair of the host that dials and the host that listens.
type route struct{ from, to string }

// NewNetwork makes a network without hosts, delays or faults. The seed decides
// latencies and cuts, see the package's documentation.
func NewNetwork(seed uint64) *Network {
	return &Network{
		seed:    seed,
		hosts:   make(map[string]*Host),
		links:   make(map[*link]struct{}),
		dials:   make(map[route]uint64),
		blocked: make(map[route]bool),
	}
}

// Host returns the host of that name and makes it at the first call. The name is
// the host in addresses: host "a" listens on "a:9000". It panics on an empty name.
func (n *Network) Host(name string) *Host {
	if name == "" {
		panic("replicatortest: Host: empty name")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.hosts[name]
	if h == nil {
		h = &Host{net: n, name: name, port: firstPort, listeners: make(map[string]*listener)}
		n.hosts[name] = h
	}
	return h
}

// Partition splits the network: two hosts reach each other only if some group
// names both. Hosts that no group names form one more group, so
// Partition([]string{"c"}) cuts off c alone; a host in two groups bridges them.
// It replaces an earlier partition, and without groups it ends it.
//
// Connections across the split are reset at once, with the bytes in flight lost.
// Dialing across it times out, see [Host.Dial].
func (n *Network) Partition(groups ...[]string) {
	n.mu.Lock()
	n.groups = nil
	for _, names := range groups {
		group := make(map[string]bool, len(names))
		for _, name := range names {
			group[name] = true
		}
		n.groups = append(n.groups, group)
	}
	n.mu.Unlock()
	n.cut(func(l *link) bool { return !n.reaches(l.from.name, l.to.name) })
}

// Block stops one host from opening connections to another, as a firewall would:
// dialing times out and connections opened that way are reset at once. The other
// direction works, and what it opens carries bytes both ways. Blocks add up.
func (n *Network) Block(from, to string) {
	n.mu.Lock()
	n.blocked[route{from, to}] = true
	n.mu.Unlock()
	n.cut(func(l *link) bool { return !n.reaches(l.from.name, l.to.name) })
}

// Heal ends the partition and all blocks. Connections that were reset stay so;
// a Dial that already waits for its timeout goes on waiting.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.groups = nil
	clear(n.blocked)
}

// Delay sets the latency of what is sent from now on: each Write, the end of a
// connection, and either half of the handshake in Dial take between min and max.
// Order is kept: what would overtake waits. Bytes under way count against the
// buffer of [BufferSize], so latency bounds throughput as on a real network.
// It panics unless 0 ≤ min ≤ max.
func (n *Network) Delay(min, max time.Duration) {
	if min < 0 || max < min {
		panic(fmt.Sprintf("replicatortest: Delay(%v, %v), want 0 ≤ min ≤ max", min, max))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.min, n.max = min, max
}

// CutAfter has every connection reset once about the given number of bytes went in one
// direction: between half and one and a half times as many, drawn for each
// direction of each connection. Existing connections count from now. Zero or
// less: never.
//
// The receiver still gets the bytes before the cut, then the reset; the sender's
// Write returns how many it took.
func (n *Network) CutAfter(bytes int) {
	n.mu.Lock()
	n.cutAfter = bytes
	links := n.sortedLinks()
	n.mu.Unlock()
	for _, l := range links {
		l.setBudget(bytes)
	}
}

// Reset cuts the connections that exist between two hosts, whoever opened them.
// New ones can be opened at once.
func (n *Network) Reset(a, b string) {
	n.cut(func(l *link) bool {
		return l.from.name == a && l.to.name == b || l.from.name == b && l.to.name == a
	})
}

// Bytes returns how many bytes all hosts have sent, also those that were lost.
func (n *Network) Bytes() int64 { return n.bytes.Load() }

// cut resets the links that match. The lock is released first: a link's lock may
// not be taken under it.
func (n *Network) cut(match func(*link) bool) {
	n.mu.Lock()
	links := slices.DeleteFunc(n.sortedLinks(), func(l *link) bool { return !match(l) })
	n.mu.Unlock()
	for _, l := range links {
		l.reset()
	}
}

// sortedLinks lists the links in the order of their making, so that faults do
// not hit them in the random order of a map.
func (n *Network) sortedLinks() []*link {
	return slices.SortedFunc(maps.Keys(n.links), func(a, b *link) int { return cmp.Compare(a.id, b.id) })
}

func (n *Network) forget(l *link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.links, l)
}

func (n *Network) latency() (min, max time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.min, n.max
}

// reaches reports whether one host may hold connections that it opened to another.
// The caller holds n.mu.
func (n *Network) reaches(from, to string) bool {
	switch {
	case n.blocked[route{from, to}]:
		return false
	case len(n.groups) == 0:
		return true
	}
	strays := true // neither is named by a group
	for _, group := range n.groups {
		if group[from] && group[to] {
			return true
		}
		strays = strays && !group[from] && !group[to]
	}
	return strays
}
