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
	c := Comparison{Peer: addr}
	known := slices.Contains(db.peers.all(), addr)
	if !known {
		db.AddPeer(addr)
		defer db.RemovePeer(addr)
	}
	if err := db.syncOne(ctx, addr, purpose{compare: &c}); err != nil {
		return c, err
	}
	if c.Name == "" && c.Theirs == (Digest{}) && c.Digest == (Digest{}) {
		return c, fmt.Errorf("replicator: %s was not compared: it is this server itself, or was removed meanwhile", addr)
	}
	return c, nil
}

// startCompare begins the comparison, once both know the same.
func (s *session) startCompare() error {
	c := s.params.compare
	c.Name, c.Theirs, c.Differences, c.More = s.theirs.name, s.theirs.digest.digest(), nil, 0
	s.host.at(func(r *replica) { c.Digest = r.digest.digest() })
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
		d := Difference{
			Key:   k.key,
			Here:  lacking(ours, k.versions, &s.peer),
			There: lacking(k.versions, ours, &known),
		}
		switch {
		case len(d.Here)+len(d.There) == 0:
		case len(c.Differences) >= maxFaults:
			c.More++
		default:
			c.Differences = append(c.Differences, d)
		}
	}
	return nil
}

// lacking gives the versions that are held on one side, and that the other claims
// and yet has neither them nor anything in their place.
func lacking(held, other state, known *knowledge) (vs []Version) {
	for i := range held {
		v := held[i]
		seen := slices.ContainsFunc(other, func(y version) bool { return y.dot == v.dot || y.saw(v.dot) })
		if !known.covers(v.dot) || seen || len(other) > 0 && known.proves(v.dot) {
			continue
		}
		v.value = nil
		vs = append(vs, v.public())
	}
	return vs
}
