package replicator

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Comparison is what [DB.Compare] found.
type Comparison struct {
	Peer        string       `json:"peer"` // its address
	Name        string       `json:"name"` // and what it calls itself
	Digest      Digest       `json:"digest"`
	Theirs      Digest       `json:"theirs"`      // the peer's digest, before the session brought both up to date
	Differences []Difference `json:"differences"` // the first 1,000
	More        int64        `json:"more"`        // keys that differ beyond those
}

// OK tells whether both hold the same, apart from writes that are on their way.
func (c *Comparison) OK() bool { return len(c.Differences) == 0 }

// Difference is a key of which one side holds versions that the other should hold,
// too: it claims to know them, and holds nothing that saw them. Values are left out.
type Difference struct {
	Key   []byte    `json:"key"`
	Here  []Version `json:"here"`  // that only this server holds
	There []Version `json:"there"` // that only the peer holds
}

// Compare holds a session with the peer at addr, "host:port", and then compares all
// that the two hold, key by key where they differ. Writes that are still on their
// way are no difference. If nothing differs it costs one round trip beyond the
// session; both sides read their logs once. It changes nothing: what differs is
// brought to terms in the usual sessions, whose digests tell, or by [DB.Repair].
// Values are not compared, but every server can [DB.Verify] its own.
//
// The error is a [*PeerError] if the peer could not be reached or the session failed.
func (db *DB) Compare(ctx context.Context, addr string) (Comparison, error) {
	if err := checkAddr(addr); err != nil {
		return Comparison{}, err
	}
	if err := errors.Join(db.admit(nil), db.queue.broken()); err != nil {
		return Comparison{}, err
	}
	var found comparison
	known := slices.Contains(db.peers.all(), addr)
	if !known {
		db.AddPeer(addr)
		defer db.RemovePeer(addr)
	}
	if _, err := db.syncOne(ctx, addr, purpose{compare: &found}); err != nil && !isSelf(err) {
		return Comparison{Peer: addr}, err
	}
	if !found.begun {
		return Comparison{Peer: addr}, fmt.Errorf("replicator: %s was not compared: it is this server itself, or was removed meanwhile", addr)
	}
	c := Comparison{Peer: addr, Name: found.name, Digest: found.ours.digest(), Theirs: found.theirs.digest(), More: found.more}
	for _, d := range found.list {
		c.Differences = append(c.Differences, Difference{d.key, publicVersions(d.here), publicVersions(d.there)})
	}
	return c, nil
}

// comparison is what a session found that was held to compare.
type comparison struct {
	begun        bool
	name         string // of the peer
	ours, theirs sum    // digests
	list         []difference
	more         int64 // keys that differ beyond those listed
}

// difference is a key of which one side holds versions that the other should hold, too.
type difference struct {
	key         []byte
	here, there []version // without values
}

// maxDifferences bounds what is listed.
const maxDifferences = 1000

// startCompare begins the comparison, once both know the same.
func (s *session) startCompare() error {
	c := s.params.compare
	*c = comparison{begun: true, name: s.theirs.name, theirs: s.theirs.digest}
	s.host.at(func(r *replica) { c.ours = r.digest })
	return s.startRepair(toCompare)
}

// compareKeys notes what differs in keys as they are at the peer.
func (s *session) compareKeys(keys []heldKey) error {
	var known knowledge
	state, err := s.view(func(r *replica) { known = r.known.clone() })
	if err != nil {
		return err
	}
	defer state.Release()
	c := s.params.compare
	for _, k := range keys {
		ours, err := readIndex(&state, k.key, &state)
		if err != nil {
			return err
		}
		d := difference{
			key:   k.key,
			here:  lacking(ours, k.versions, &s.peer),
			there: lacking(k.versions, ours, &known),
		}
		switch {
		case len(d.here)+len(d.there) == 0:
		case len(c.list) >= maxDifferences:
			c.more++
		default:
			c.list = append(c.list, d)
		}
	}
	return nil
}

// lacking gives the versions that are held on one side, and that the other claims
// and yet has neither them nor anything in their place.
func lacking(held, other state, known *knowledge) (vs []version) {
	for i := range held {
		v := held[i]
		seen := slices.ContainsFunc(other, func(y version) bool { return y.dot == v.dot || y.saw(v.dot) })
		if !known.covers(v.dot) || seen || len(other) > 0 && known.proves(v.dot) {
			continue
		}
		v.value = nil
		vs = append(vs, v)
	}
	return vs
}
