package session

import (
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// Comparison is what a session found that was held to compare.
type Comparison struct {
	Begun        bool
	Counting     bool       // the peer does not know its digest yet
	Name         string     // of the peer
	Ours, Theirs causal.Sum // digests
	List         []difference
	More         int64 // keys that differ beyond those listed
}

// difference is a key of which one side holds versions that the other should hold, too.
type difference struct {
	Key         []byte
	Here, There []store.Version // without values
}

// maxDifferences bounds what is listed.
const maxDifferences = 1000

// startCompare begins the comparison, once both know the same.
func (p *pulling) startCompare() error {
	s := p.session
	c := s.params.Compare
	*c = Comparison{Begun: true, Name: s.theirs.Name, Counting: s.theirs.Counting, Theirs: s.theirs.digest}
	if c.Counting {
		return s.pulled()
	}
	s.host.With(func(r *replica.Replica) { c.Ours = r.Digest })
	return p.startRepair(forCompare)
}

// compareKeys notes what differs in keys as they are at the peer.
func (r *repair) compareKeys(keys []replica.RemoteKey) error {
	s := r.pulling.session
	var known causal.Knowledge
	state, err := s.view(func(r *replica.Replica) { known = r.Known.Clone() })
	if err != nil {
		return err
	}
	defer state.Release()
	c := s.params.Compare
	for _, k := range keys {
		ours, err := store.ReadIndex(&state, k.Key, &state)
		if err != nil {
			return err
		}
		d := difference{
			Key:   k.Key,
			Here:  lacking(ours, k.Versions, &s.known),
			There: lacking(k.Versions, ours, &known),
		}
		switch {
		case len(d.Here)+len(d.There) == 0:
		case len(c.List) >= maxDifferences:
			c.More++
		default:
			c.List = append(c.List, d)
		}
	}
	return nil
}

// lacking returns the versions that are held on one side, and that the other covers
// and yet has neither them nor anything in their place.
func lacking(held, other store.Siblings, known *causal.Knowledge) (vs []store.Version) {
	for i := range held {
		v := held[i]
		seen := slices.ContainsFunc(other, func(y store.Version) bool { return y.Dot == v.Dot || y.HasSeen(v.Dot) })
		if !known.Covers(v.Dot) || seen || len(other) > 0 && known.Superseded(v.Dot) {
			continue
		}
		v.Value = nil
		vs = append(vs, v)
	}
	return vs
}
