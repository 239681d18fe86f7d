package replicator

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// peer is an address, and what is known of who answers there.
type peer struct {
	addr      string
	source    source
	origin    Origin // who answered last
	name      string
	state     string
	err       error
	busy      bool          // a session that we dialed is under way
	over      chan struct{} // closed when it is over; nil if nobody waits
	tried     bool          // a session has ended, well or not
	answering int           // sessions that it dialed are under way
	last      time.Time     // end of the last good session
	came      time.Time     // end of the last good session that it dialed,
	reached   time.Time     // and of the last that we dialed
	next      time.Time     // not dialed before
	seen      time.Time     // when its address was last heard of
	failed    int           // sessions in a row
	claims    sum           // what it claimed at the end of the last good session
	has       vector        // that it is sure to claim; nil if nothing is
	covered   time.Time     // all that was known here then it has
	pulled    int64
	served    int64
	in, out   int64
	asked     uint64 // the latest call of those that wait that it was asked for
	backoff   *backoff.ExponentialBackOff
}

// source is where an address came from. What is configured is never given up.
type source int

const (
	fromList source = iota
	fromDiscovery
	fromPeer     // told by another peer
	fromIncoming // it dialed us
)

func (s source) String() string {
	return [...]string{"list", "discovered", "learnt", "incoming"}[s]
}

// peers are all addresses, by all sources.
type peers struct {
	mu    sync.Mutex
	list  []*peer // sorted by address
	found chan struct{}
	least time.Duration // first pause after a failure
	most  time.Duration
}

// forgetAfter is how long an address that was not configured is kept without
// being heard of or answering.
const forgetAfter = 10 * time.Minute

// maxPeers bounds the addresses that are kept, beside those configured.
const maxPeers = 4096

func newPeers(least, most time.Duration) *peers {
	return &peers{found: make(chan struct{}, 1), least: least, most: most}
}

func (ps *peers) search(addr string) (int, bool) {
	return slices.BinarySearchFunc(ps.list, addr, func(p *peer, addr string) int {
		switch {
		case p.addr < addr:
			return -1
		case p.addr > addr:
			return 1
		}
		return 0
	})
}

// add notes an address and tells whether it is new.
func (ps *peers) add(addr string, s source, now time.Time) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	i, ok := ps.search(addr)
	if ok {
		p := ps.list[i]
		p.seen, p.source = now, min(p.source, s)
		return false
	}
	if s != fromList && len(ps.list) >= maxPeers {
		return false
	}
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier, b.RandomizationFactor = ps.least, ps.most, 2, 0.3
	b.Reset()
	ps.list = slices.Insert(ps.list, i, &peer{addr: addr, source: s, state: "new", seen: now, covered: now, backoff: b})
	notify(ps.found)
	return true
}

// remove forgets an address.
func (ps *peers) remove(addr string) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if i, ok := ps.search(addr); ok {
		ps.list = slices.Delete(ps.list, i, i+1)
	}
}

// tellFor is how long an address is told to others after the last good session.
const tellFor = time.Hour

// addresses are those worth telling others: configured, or known to answer.
func (ps *peers) addresses() []string {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	now := time.Now()
	var addrs []string
	for _, p := range ps.list {
		if p.source == fromList || !p.last.IsZero() && now.Sub(p.last) < tellFor {
			addrs = append(addrs, p.addr)
		}
	}
	return addrs
}

// pick chooses up to n peers at random that are not resting after a failure, and
// marks them busy. Those that skip accepts are left out.
func (ps *peers) pick(n int, now time.Time, skip func(*peer) bool) []*peer {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	var able []*peer
	ps.list = slices.DeleteFunc(ps.list, func(p *peer) bool {
		return p.source != fromList && !p.busy && p.state != "ok" && now.Sub(p.seen) > forgetAfter
	})
	for _, p := range ps.list {
		if !p.busy && !now.Before(p.next) && (skip == nil || !skip(p)) {
			able = append(able, p)
		}
	}
	rand.Shuffle(len(able), func(i, j int) { able[i], able[j] = able[j], able[i] })
	slices.SortStableFunc(able, func(a, b *peer) int { return int(btoi(a.tried) - btoi(b.tried)) })
	able = able[:min(n, len(able))]
	for _, p := range able {
		p.busy = true
	}
	return able
}

// take marks a peer busy. If it is busy already, what it returns instead is closed
// when the session is over.
func (ps *peers) take(addr string) (*peer, <-chan struct{}) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	i, ok := ps.search(addr)
	if !ok || ps.list[i].state == "self" {
		return nil, nil
	}
	p := ps.list[i]
	if !p.busy {
		p.busy = true
		return p, nil
	}
	if p.over == nil {
		p.over = make(chan struct{})
	}
	return nil, p.over
}

// freeLocked marks a peer as no longer busy.
func (p *peer) freeLocked() {
	p.busy = false
	if p.over != nil {
		close(p.over)
		p.over = nil
	}
}

// broke tells whether the last session with a peer was cut off in the midst.
func (ps *peers) broke(p *peer) bool {
	if p == nil {
		return false
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	var step *PeerError
	return errors.As(p.err, &step) && step.Op != "dial" && step.Op != "handshake" && step.Op != "hello"
}

// free marks a peer as no longer busy.
func (ps *peers) free(p *peer) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p.freeLocked()
}

// came notes that a peer has dialed us, and gone that the session is over.
func (ps *peers) came(addr string, now time.Time) *peer {
	ps.add(addr, fromIncoming, now)
	ps.mu.Lock()
	defer ps.mu.Unlock()
	i, ok := ps.search(addr)
	if !ok {
		return nil // there are too many already
	}
	ps.list[i].answering++
	return ps.list[i]
}

func (ps *peers) gone(p *peer) {
	if p == nil {
		return
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p.answering--
}

// all gives every address.
func (ps *peers) all() []string {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	addrs := make([]string, len(ps.list))
	for i, p := range ps.list {
		addrs[i] = p.addr
	}
	return addrs
}

// tried tells whether a session has ended with every peer, and how many there are.
func (ps *peers) tried() (all bool, n int) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return !slices.ContainsFunc(ps.list, func(p *peer) bool { return !p.tried }), len(ps.list)
}

// met counts those who answer.
func (ps *peers) met() (n int) {
	ps.each(func(p *peer) { n += int(btoi(p.state == "ok")) })
	return n
}

// each calls f with every peer, with the lock held.
func (ps *peers) each(f func(*peer)) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.list {
		f(p)
	}
}
