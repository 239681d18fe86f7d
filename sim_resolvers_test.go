package replicator

import (
	"bytes"
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
)

// simResolve is a resolver, most of them such as nobody should write.
type simResolve struct {
	name          string
	f             Resolver
	deterministic bool
}

func simResolvers(r *rand.Rand) []simResolve {
	return []simResolve{
		{"HighestClock", HighestClock, true},
		{"LastWriteWins", LastWriteWins, true},
		{"concatenate", func(_ []byte, a, b Version) Version {
			v := append(append(bytes.Clone(a.Value), '|'), b.Value...)
			return Version{Value: v[:min(len(v), 40)]}
		}, true},
		{"first", func(_ []byte, a, _ Version) Version { return a }, true},
		{"least checksum, not associative", func(_ []byte, a, b Version) Version {
			if checksum(a.Value)%3 <= checksum(b.Value)%3 {
				return a
			}
			return b
		}, true},
		{"delete", func(_ []byte, a, b Version) Version { return Version{Deleted: true, Value: a.Value} }, true},
		{"panics at times", func(_ []byte, a, b Version) Version {
			if len(a.Value)%2 == 0 {
				panic("simulated: the resolver panics")
			}
			return b
		}, true},
		{"coin", func(_ []byte, a, b Version) Version {
			if r.IntN(2) == 0 {
				return a
			}
			return b
		}, false},
	}
}

// check tells whether a raw key shows what the resolver makes of the versions.
func (s *simResolve) check(key string, vs []version, raw []byte, there bool) error {
	if !s.deterministic {
		for i := range vs {
			if vs[i].deleted == !there && bytes.Equal(vs[i].value, raw) {
				return nil
			}
		}
		return fmt.Errorf("shows %q, which is none of its versions", raw)
	}
	want := s.shown(key, vs)
	if want.Deleted == there || there && !bytes.Equal(want.Value, raw) {
		return fmt.Errorf("shows %q (%v), should be %q (deleted %v)", raw, there, want.Value, want.Deleted)
	}
	return nil
}

// shown folds the resolver over the versions by clock, time, origin and seq, of
// equal ones the last.
func (s *simResolve) shown(key string, vs []version) (v Version) {
	var sorted []Version
	for i := range vs {
		w := &vs[i]
		sorted = append(sorted, Version{w.value, w.deleted, w.clock, w.stamp.time(), w.origin, w.seq, w.stamp})
	}
	slices.SortFunc(sorted, func(a, b Version) int {
		return cmp.Or(cmp.Compare(a.Clock, b.Clock), cmp.Compare(a.stamp, b.stamp), bytes.Compare(a.Origin[:], b.Origin[:]), cmp.Compare(a.Seq, b.Seq))
	})
	var distinct []Version
	for i, a := range sorted {
		later := slices.ContainsFunc(sorted[i+1:], func(b Version) bool { return a.Deleted == b.Deleted && bytes.Equal(a.Value, b.Value) })
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
		c := s.f([]byte(key), v, b)
		if c.Deleted {
			c.Value = nil
		}
		if c.Origin == (Origin{}) { // merged
			m := b
			m.Value, m.Deleted = c.Value, c.Deleted
			c = m
		}
		v = c
	}
	return v
}
