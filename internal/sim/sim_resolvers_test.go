package sim

import (
	"bytes"
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// simResolve is a resolver, most of them such as nobody should write.
type simResolve struct {
	name          string
	f             replica.ResolveFunc
	deterministic bool
}

func simResolvers(r *rand.Rand) []simResolve {
	return []simResolve{
		{"HighestClock", replica.HighestClock, true},
		{"LastWriteWins", func(key []byte, a, b *store.Version) store.Version {
			switch cmp.Compare(a.Stamp, b.Stamp) {
			case 1:
				return *a
			case -1:
				return *b
			}
			return replica.HighestClock(key, a, b)
		}, true},
		{"concatenate", func(_ []byte, a, b *store.Version) store.Version {
			v := append(append(bytes.Clone(a.Value), '|'), b.Value...)
			return store.Version{Value: v[:min(len(v), 40)]}
		}, true},
		{"first", func(_ []byte, a, _ *store.Version) store.Version { return *a }, true},
		{"least checksum, not associative", func(_ []byte, a, b *store.Version) store.Version {
			if store.Checksum(a.Value)%3 <= store.Checksum(b.Value)%3 {
				return *a
			}
			return *b
		}, true},
		{"delete", func(_ []byte, a, b *store.Version) store.Version { return store.Version{Deleted: true, Value: a.Value} }, true},
		{"panics at times", func(_ []byte, a, b *store.Version) store.Version {
			if len(a.Value)%2 == 0 {
				panic("simulated: the resolver panics")
			}
			return *b
		}, true},
		{"coin", func(_ []byte, a, b *store.Version) store.Version {
			if r.IntN(2) == 0 {
				return *a
			}
			return *b
		}, false},
	}
}

// check reports whether a raw key shows what the resolver makes of the versions.
func (s *simResolve) check(key string, vs []store.Version, raw []byte, there bool) error {
	if !s.deterministic {
		for i := range vs {
			if vs[i].Deleted == !there && bytes.Equal(vs[i].Value, raw) {
				return nil
			}
		}
		return fmt.Errorf("shows %q, which is none of its versions", raw)
	}
	want := s.resolved(key, vs)
	if want.Deleted == there || there && !bytes.Equal(want.Value, raw) {
		return fmt.Errorf("shows %q (%v), should be %q (deleted %v)", raw, there, want.Value, want.Deleted)
	}
	return nil
}

// resolved folds the resolver over the versions by clock, time, origin and seq, of
// equal ones the last.
func (s *simResolve) resolved(key string, vs []store.Version) (v store.Version) {
	var sorted []store.Version
	for i := range vs {
		w := &vs[i]
		sorted = append(sorted, *w)
	}
	slices.SortFunc(sorted, func(a, b store.Version) int {
		return cmp.Or(cmp.Compare(a.Clock, b.Clock), cmp.Compare(a.Stamp, b.Stamp), bytes.Compare(a.Origin[:], b.Origin[:]), cmp.Compare(a.Seq, b.Seq))
	})
	var distinct []store.Version
	for i, a := range sorted {
		later := slices.ContainsFunc(sorted[i+1:], func(b store.Version) bool { return a.Deleted == b.Deleted && bytes.Equal(a.Value, b.Value) })
		if !later {
			distinct = append(distinct, a)
		}
	}
	defer func() {
		if recover() != nil {
			v = distinct[len(distinct)-1]
		}
	}()
	v = distinct[0]
	for _, b := range distinct[1:] {
		c := s.f([]byte(key), &v, &b)
		if c.Deleted {
			c.Value = nil
		}
		if c.Origin == (causal.Origin{}) { // merged
			m := b
			m.Value, m.Deleted = c.Value, c.Deleted
			c = m
		}
		v = c
	}
	return v
}
