package replicator

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/schedule"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
)

// peer is an address, and what is known of the replica that answers there; or a replica
// that dials us and whose address is not known, see peers.guests. Its addr is fixed; peers.mu guards the rest.
type peer struct {
	// Address, and who is there.
	addr   string
	source source
	origin causal.Origin // of the replica that answered, or came, last
	name   string
	who    identity
	avoid  avoided   // addresses that its name has, and that led nowhere lately
	seen   time.Time // when its address was last heard of

	// Sessions with it.
	state     PeerState
	err       error
	busy      bool          // a session that we dialed is under way
	over      chan struct{} // closed when it is over; nil if nobody waits
	tried     bool          // a session has ended, well or not
	answering int           // sessions that it dialed are under way
	linked    int           // connections to it that stay open,
	liveSince time.Time     // and since when there is one
	carried   bool          // there is a link with who is there, perhaps made at another address: see surveyLinks
	last      time.Time     // end of the last good session
	came      time.Time     // end of the last good session that it dialed,
	reached   time.Time     // and of the last that we dialed
	next      time.Time     // not dialed before
	failed    int           // sessions in a row
	backoff   *backoff.ExponentialBackOff
	asked     uint64 // the latest call of those that wait that it was asked for

	// What it has.
	vectorSum causal.Sum    // of its version vector, at the end of the last good session
	has       causal.Vector // that it is sure to cover; nil if none is
	covered   time.Time     // all that was known here then it has

	// Totals since the opening: versions, bytes, pushes, and versions that were known.
	pulled, served     int64
	in, out            int64
	pushes, duplicates int64
}

// source is where an address came from. What is configured is never given up.
type source int

const (
	fromList source = iota
	fromDiscovery
	fromPeer     // told by another peer
	fromIncoming // it dialed us
)

// public returns the source as Status reports it.
func (s source) public() PeerSource {
	return [...]PeerSource{SourceConfigured, SourceDiscovered, SourceLearnt, SourceIncoming}[s]
}

// peers are all addresses, by all sources.
type peers struct {
	mu         sync.Mutex
	list       []*peer                 // sorted by address
	guests     map[causal.Origin]*peer // they dial us, and their addresses are not known
	candidates []schedule.Candidate    // of list, in the last round; kept for its memory
	found      signal                  // an address is new, or may be tried again
	held       bool                    // as many are being dialed as may be: the next is tried when one of them is through
	least      time.Duration           // first pause after a failure
	most       time.Duration
	lately     time.Duration // a peer that came within it counts as there
	alone      bool          // it was said that all configured addresses are this replica's own
}

// live reports whether a peer answers when it is dialed, as far as is known.
func (p *peer) live() bool { return p.state == PeerOK && p.failed == 0 }

// answeredLately reports whether a session with it ended well within the last hour.
func (p *peer) answeredLately(now time.Time) bool {
	return !p.last.IsZero() && now.Sub(p.last) < tellFor
}

// forgetAfter is how long an address that was not configured is kept without
// being heard of or answering.
const forgetAfter = 10 * time.Minute

// maxPeers bounds the addresses that are kept, beside those configured.
const maxPeers = 4096

func newPeers(least, most, lately time.Duration) *peers {
	return &peers{found: newSignal(), guests: map[causal.Origin]*peer{}, least: least, most: most, lately: lately}
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

// add notes an address and reports whether it is new.
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
	ps.list = slices.Insert(ps.list, i, ps.newPeer(addr, s, now))
	ps.found.Set()
	return true
}

func (ps *peers) newPeer(addr string, s source, now time.Time) *peer {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier, b.RandomizationFactor = ps.least, ps.most, 2, 0.3
	b.Reset()
	return &peer{addr: addr, source: s, state: PeerNew, seen: now, covered: now, backoff: b}
}

// remove forgets an address, and reports whether it was known.
func (ps *peers) remove(addr string) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	i, ok := ps.search(addr)
	if ok {
		ps.list = slices.Delete(ps.list, i, i+1)
	}
	return ok
}

// tellFor is how long an address is told to others after the last good session.
const tellFor = time.Hour

// addresses are those worth telling others: those known to answer first, then those
// configured. One with a zone means nothing on another machine.
func (ps *peers) addresses() []string {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	now := time.Now()
	var known, configured []string
	for _, p := range ps.list {
		switch {
		case strings.Contains(p.addr, "%"):
		case p.answeredLately(now):
			known = append(known, p.addr)
		case p.source == fromList:
			configured = append(configured, p.addr)
		}
	}
	if len(known)+len(configured) <= session.MaxAddresses {
		known = append(known, configured...)
		slices.Sort(known)
		return known
	}
	return append(known, configured...)[:session.MaxAddresses]
}

// candidate returns what a round needs to know of a peer; vector is the sum of our version vector.
func (p *peer) candidate(now time.Time, vector causal.Sum) schedule.Candidate {
	return schedule.Candidate{
		Answers: p.live(), Busy: p.busy, Rests: p.next, Lately: p.answeredLately(now), Tried: p.tried,
		Current: p.vectorSum == vector, Calling: p.answering > 0, Linked: p.carried, Reached: p.reached, Came: p.came,
	}
}

// candidatesLocked returns those of the list, valid until the next call.
func (ps *peers) candidatesLocked(now time.Time, vector causal.Sum) []schedule.Candidate {
	ps.candidates = ps.candidates[:0]
	for _, p := range ps.list {
		ps.candidates = append(ps.candidates, p.candidate(now, vector))
	}
	return ps.candidates
}

// pick chooses peers to dial and marks them busy, see [schedule.Rounds.Pick].
func (ps *peers) pick(rounds *schedule.Rounds, n, probes int, now time.Time, vector causal.Sum, skip func(*peer, *schedule.Candidate) bool) (live, probed []*peer) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.forgetLocked(now)
	cs := ps.candidatesLocked(now, vector)
	picked, others := rounds.Pick(cs, n, probes, now, func(i int) bool { return skip(ps.list[i], &cs[i]) })
	take := func(indices []int) (list []*peer) {
		for _, i := range indices {
			ps.list[i].busy = true
			list = append(list, ps.list[i])
		}
		return list
	}
	return take(picked), take(others)
}

// awaken has an address that rests tried at once.
func (ps *peers) awaken(addr string) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if i, ok := ps.search(addr); ok {
		p := ps.list[i]
		p.next, p.avoid = time.Time{}, nil
		p.backoff.Reset()
		ps.found.Set()
	}
}

// aloneLocked reports whether addresses are configured, all of them lead to this replica
// itself, and nobody else is there.
func (ps *peers) aloneLocked(now time.Time) bool {
	configured := false
	for _, p := range ps.list {
		if p.source == fromList && p.state != PeerSelf || p.live() || ps.thereLocked(p, now) {
			return false
		}
		configured = configured || p.source == fromList
	}
	for _, g := range ps.guests {
		if ps.thereLocked(g, now) {
			return false
		}
	}
	return configured
}

// isAlone reports whether no address leads to anybody else.
func (ps *peers) isAlone(now time.Time) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.aloneLocked(now)
}

// noteAlone notes whether this replica is alone, and reports whether that is new.
func (ps *peers) noteAlone(now time.Time) (alone, changed bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	alone = ps.aloneLocked(now)
	changed = alone != ps.alone
	ps.alone = alone
	return alone, changed
}

// configured are the addresses that were configured.
func (ps *peers) configured() (addrs []string) {
	ps.each(func(p *peer) {
		if p.source == fromList {
			addrs = append(addrs, p.addr)
		}
	})
	return addrs
}

// nextProbe returns when an address that is not known to answer is due, see [schedule.NextProbe].
func (ps *peers) nextProbe(now time.Time) (next time.Time, ok bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	next, ok, ps.held = schedule.NextProbe(ps.candidatesLocked(now, causal.Sum{}))
	return next, ok
}

// forgetLocked drops peers that were not configured, and were neither heard of nor there for long.
func (ps *peers) forgetLocked(now time.Time) {
	ps.list = slices.DeleteFunc(ps.list, func(p *peer) bool {
		return p.source != fromList && !p.busy && p.answering == 0 && p.state != PeerOK && now.Sub(p.seen) > forgetAfter
	})
	maps.DeleteFunc(ps.guests, func(_ causal.Origin, p *peer) bool {
		return p.answering == 0 && now.Sub(p.seen) > forgetAfter
	})
}

// take marks a peer busy. If it is busy already, what it returns instead is closed
// when the session is over.
func (ps *peers) take(addr string) (*peer, <-chan struct{}) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	i, ok := ps.search(addr)
	if !ok {
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
func (ps *peers) freeLocked(p *peer) {
	if p.freeLocked(); ps.held {
		ps.held = false
		ps.found.Set()
	}
}

// freeLocked marks a peer as no longer busy, and says so to those that wait for it.
func (p *peer) freeLocked() {
	p.busy = false
	if p.over != nil {
		close(p.over)
		p.over = nil
	}
}

// broke reports whether the last session with a peer was cut off in the midst.
func (ps *peers) broke(p *peer) bool {
	if p == nil {
		return false
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	var step *PeerError
	return errors.As(p.err, &step) && step.Op != OpDial && step.Op != OpHandshake && step.Op != OpHello
}

// free marks a peer as no longer busy.
func (ps *peers) free(p *peer) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.freeLocked(p)
}

// linked notes that a link with a peer was made, or has ended.
func (ps *peers) linked(p *peer, n int) {
	if p == nil {
		return
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	switch p.linked += n; {
	case p.linked == 0:
		p.liveSince = time.Time{}
	case p.liveSince.IsZero():
		p.liveSince = time.Now()
	}
}

// moved notes what went over a link, and what the peer reported over it.
func (ps *peers) moved(p *peer, more counts, vector causal.Sum, now time.Time) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p.pulled, p.served, p.in, p.out = p.pulled+more.pulled, p.served+more.served, p.in+more.in, p.out+more.out
	p.pushes, p.duplicates = p.pushes+more.pushes, p.duplicates+more.duplicates
	p.last, p.seen, p.vectorSum = now, now, vector
}

// has returns what a peer is sure to cover, apart from what it reports.
func (ps *peers) has(p *peer) causal.Vector {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return p.has
}

// covered notes that a peer covers all that was known here at a time.
func (ps *peers) covered(p *peer, at time.Time) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if at.After(p.covered) {
		p.covered = at
	}
}

// gone notes that a session with a peer that dialed us is over.
func (ps *peers) gone(p *peer) {
	if p == nil {
		return
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p.answering--
}

// all returns every address, those that answer first.
func (ps *peers) all() []string {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	var live, others []string
	for _, p := range ps.list {
		if p.live() {
			live = append(live, p.addr)
		} else {
			others = append(others, p.addr)
		}
	}
	return append(live, others...)
}

// tried reports whether a session has ended with every peer, and how many there are.
func (ps *peers) tried() (all bool, n int) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return !slices.ContainsFunc(ps.list, func(p *peer) bool { return !p.tried }), len(ps.list)
}

// met returns how many peers answer.
func (ps *peers) met() (n int) {
	ps.each(func(p *peer) { n += int(store.Btoi(p.state == PeerOK)) })
	return n
}

// called reports whether a peer has dialed this replica lately.
func (ps *peers) called(now time.Time) (called bool) {
	ps.each(func(p *peer) { called = called || !p.came.IsZero() && now.Sub(p.came) < ps.lately })
	return called
}

// next returns the origin that comes after this replica's among those that answer, zero if none does.
func (ps *peers) next(self causal.Origin) causal.Origin {
	ring := causal.NewRing(self)
	ps.each(func(p *peer) {
		if p.live() {
			ring.Add(p.origin)
		}
	})
	return ring.Next()
}

// each calls f with every peer, with the lock held.
func (ps *peers) each(f func(*peer)) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.list {
		f(p)
	}
	for _, o := range slices.SortedFunc(maps.Keys(ps.guests), causal.Origin.Compare) {
		f(ps.guests[o])
	}
}
