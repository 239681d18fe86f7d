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
	f             resolveFunc
	deterministic bool
}

func simResolvers(r *rand.Rand) []simResolve {
	return []simResolve{
		{"HighestClock", highestClock, true},
		{"LastWriteWins", func(key []byte, a, b *version) version {
			switch cmp.Compare(a.stamp, b.stamp) {
			case 1:
				return *a
			case -1:
				return *b
			}
			return highestClock(key, a, b)
		}, true},
		{"concatenate", func(_ []byte, a, b *version) version {
			v := append(append(bytes.Clone(a.value), '|'), b.value...)
			return version{value: v[:min(len(v), 40)]}
		}, true},
		{"first", func(_ []byte, a, _ *version) version { return *a }, true},
		{"least checksum, not associative", func(_ []byte, a, b *version) version {
			if checksum(a.value)%3 <= checksum(b.value)%3 {
				return *a
			}
			return *b
		}, true},
		{"delete", func(_ []byte, a, b *version) version { return version{deleted: true, value: a.value} }, true},
		{"panics at times", func(_ []byte, a, b *version) version {
			if len(a.value)%2 == 0 {
				panic("simulated: the resolver panics")
			}
			return *b
		}, true},
		{"coin", func(_ []byte, a, b *version) version {
			if r.IntN(2) == 0 {
				return *a
			}
			return *b
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
	if want.deleted == there || there && !bytes.Equal(want.value, raw) {
		return fmt.Errorf("shows %q (%v), should be %q (deleted %v)", raw, there, want.value, want.deleted)
	}
	return nil
}

// shown folds the resolver over the versions by clock, time, origin and seq, of
// equal ones the last.
func (s *simResolve) shown(key string, vs []version) (v version) {
	var sorted []version
	for i := range vs {
		w := &vs[i]
		sorted = append(sorted, *w)
	}
	slices.SortFunc(sorted, func(a, b version) int {
		return cmp.Or(cmp.Compare(a.clock, b.clock), cmp.Compare(a.stamp, b.stamp), bytes.Compare(a.origin[:], b.origin[:]), cmp.Compare(a.seq, b.seq))
	})
	var distinct []version
	for i, a := range sorted {
		later := slices.ContainsFunc(sorted[i+1:], func(b version) bool { return a.deleted == b.deleted && bytes.Equal(a.value, b.value) })
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
		if c.deleted {
			c.value = nil
		}
		if c.origin == (Origin{}) { // merged
			m := b
			m.value, m.deleted = c.value, c.deleted
			c = m
		}
		v = c
	}
	return v
}
