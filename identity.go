package replicator

import (
	"cmp"
	"net"
	"slices"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
)

// identity is what is known of who is behind an address. An address proves nothing of who
// comes from there: behind one that translates addresses (NAT) there may be several, and two
// in networks of their own may name the same one. Only who answered when it was dialed is there,
// and even so it may be one of several: a name, or a virtual address, leads now to this
// one and now to that.
type identity struct {
	guest  bool            // it is known by its origin alone
	proven bool            // it answered when the address was dialed
	at     string          // where the connection led then
	past   []causal.Origin // others that answered there before, the latest last
	shared bool            // one came back after another had answered: there are several
}

// maxPast bounds the origins that are remembered of one address.
const maxPast = 8

// becomesLocked notes which replica is there.
func (p *peer) becomesLocked(o causal.Origin, name string, now time.Time) {
	if p.origin != o {
		p.origin, p.has, p.vectorSum, p.covered, p.carried = o, nil, causal.Sum{}, now, false
	}
	p.name = name
}

// answered notes who answered when p was dialed, and where the connection led. If another
// one answered at that place until now, and is not known to be anywhere else, it returns
// that one's origin, which counts no more until it is heard again.
func (ps *peers) answered(p *peer, o causal.Origin, name, at string) (gone []causal.Origin) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	now := time.Now()
	w := &p.who
	if before := p.origin; w.proven && before != o {
		w.shared = w.shared || slices.Contains(w.past, o)
		w.past = append(w.past, before)
		w.past = w.past[max(0, len(w.past)-maxPast):]
		if !w.shared && w.at == at && !ps.elsewhereLocked(p, before, now) {
			gone = append(gone, before)
		}
	}
	p.becomesLocked(o, name, now)
	w.proven, w.at = true, at
	ps.absorbLocked(p)
	return gone
}

// elsewhereLocked reports whether an origin has been there lately, other than as p.
func (ps *peers) elsewhereLocked(p *peer, o causal.Origin, now time.Time) bool {
	there := func(q *peer) bool { return q != p && q.origin == o && !q.who.shared && ps.thereLocked(q, now) }
	return ps.guests[o] != nil && there(ps.guests[o]) || slices.ContainsFunc(ps.list, there)
}

// thereLocked reports whether a peer has had a good session lately, or has one now.
func (ps *peers) thereLocked(p *peer, now time.Time) bool {
	return p.answering > 0 || !p.last.IsZero() && now.Sub(p.last) < ps.lately
}

// absorbLocked adds to a peer what is known of it as a guest.
func (ps *peers) absorbLocked(p *peer) {
	g := ps.guests[p.origin]
	if g == nil || g.answering > 0 || g.linked > 0 || p.who.shared {
		return
	}
	delete(ps.guests, p.origin)
	p.pulled, p.served, p.in, p.out = p.pulled+g.pulled, p.served+g.served, p.in+g.in, p.out+g.out
	if g.last.After(p.last) {
		p.last, p.vectorSum, p.has, p.covered = g.last, g.vectorSum, g.has, g.covered
	}
	if g.came.After(p.came) {
		p.came = g.came
	}
	p.asked = max(p.asked, g.asked)
}

// holder returns the origin thought to be behind an address.
func (ps *peers) holder(addr string) (o causal.Origin) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if i, ok := ps.search(addr); ok {
		o = ps.list[i].origin
	}
	return o
}

// came notes that a peer has dialed us, from an address and, as it says or as we see it,
// to be dialed at addr, which is empty if that cannot be said. over says that who was
// behind addr has been reopened since. It is nil if there are too many peers. With it
// come the origins of those that were thought to be behind addr until now, at its first
// coming: it may be one of them with a new disk, so they count no more until they are
// heard again.
func (ps *peers) came(o causal.Origin, name, addr, from string, over bool, now time.Time) (p *peer, gone []causal.Origin) {
	if addr != "" {
		ps.add(addr, fromIncoming, now)
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p = ps.whereLocked(o, addr, over, now); p == nil {
		if ps.guests[o] == nil {
			gone = ps.behindLocked(addr, now)
		}
		if p = ps.guestLocked(o, addr, from, now); p == nil {
			return nil, gone
		}
	} else if before := p.origin; before != (causal.Origin{}) && before != o && !ps.elsewhereLocked(p, before, now) {
		gone = append(gone, before)
	}
	if p.origin != o {
		p.who = identity{guest: p.who.guest, at: p.who.at}
	}
	p.becomesLocked(o, name, now)
	p.seen = now
	p.answering++
	if !p.who.guest {
		ps.absorbLocked(p)
	}
	return p, gone
}

// whereLocked finds the address that a peer is behind: where it answered when it was dialed,
// or else addr, unless another one is there.
func (ps *peers) whereLocked(o causal.Origin, addr string, over bool, now time.Time) (found *peer) {
	for _, p := range ps.list {
		if p.origin == o && p.who.proven && !p.who.shared && (found == nil || p.addr == addr || p.reached.After(found.reached)) {
			if found = p; p.addr == addr {
				return p
			}
		}
	}
	if found != nil {
		return found
	}
	i, ok := ps.search(addr)
	if !ok || ps.list[i].state == PeerSelf || ps.list[i].who.shared {
		return nil
	}
	p := ps.list[i]
	if p.origin == o || p.origin == (causal.Origin{}) || over || !p.busy && !ps.thereLocked(p, now) {
		return p
	}
	return nil
}

// behindLocked lists the origins that are thought to be behind an address and nowhere else.
func (ps *peers) behindLocked(addr string, now time.Time) (os []causal.Origin) {
	for o, g := range ps.guests {
		if g.addr == addr && addr != "" {
			os = append(os, o)
		}
	}
	if i, ok := ps.search(addr); ok && ps.list[i].origin != (causal.Origin{}) && !ps.elsewhereLocked(ps.list[i], ps.list[i].origin, now) {
		os = append(os, ps.list[i].origin)
	}
	return os
}

// guestLocked finds or adds a peer that is known by who it is.
func (ps *peers) guestLocked(o causal.Origin, addr, from string, now time.Time) *peer {
	g := ps.guests[o]
	if g == nil {
		if ps.forgetLocked(now); len(ps.guests) >= maxPeers {
			return nil
		}
		g = ps.newPeer(addr, fromIncoming, now)
		g.who.guest, g.tried = true, true
		ps.guests[o] = g
	}
	if g.addr = addr; addr == "" {
		host, _, _ := net.SplitHostPort(from)
		g.addr = cmp.Or(host, from)
	}
	return g
}
