package replica

import (
	"fmt"
	"maps"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
)

// DotRange is a part of the log: first ≤ dot ≤ last.
type DotRange struct {
	First, Last causal.Dot
	Sum         causal.Sum
	Count       uint64
}

const (
	MaxRepairs  = 3       // repairs in one pull
	SplitInto   = 16      // parts of a range that differs
	MaxListed   = 256     // dots that are listed rather than split
	ProbeRanges = 1 << 12 // ranges in one question
	MaxProbes   = 1 << 12
	FetchKeys   = 1 << 10
)

// Each calls f with the live log entries of a range in order; counted leaves out
// those that are not in the digest.
func (v *View) Each(g DotRange, counted bool, f func(e *store.Entry) error) error {
	if v.sorted == nil {
		v.sorted = slices.SortedFunc(maps.Keys(v.index), causal.Origin.Compare)
	}
	i, _ := slices.BinarySearchFunc(v.sorted, g.First.Origin, causal.Origin.Compare)
	for ; i < len(v.sorted) && v.sorted[i].Compare(g.Last.Origin) <= 0; i++ {
		o := v.sorted[i]
		from, to := uint64(0), uint64(causal.MaxSeq)
		if o == g.First.Origin {
			from = g.First.Seq
		}
		if o == g.Last.Origin {
			to = g.Last.Seq
		}
		if from > to {
			continue
		}
		if err := v.eachOf(v.index[o], from, to, counted, f); err != nil {
			return err
		}
	}
	return nil
}

func (v *View) eachOf(alias uint32, from, to uint64, counted bool, f func(e *store.Entry) error) error {
	it := v.NewIterator(store.LogRange(alias, from, to), nil)
	defer it.Release()
	for it.Next() {
		e, err := store.DecodeEntry(it.Key(), it.Value(), v)
		if err != nil {
			return fmt.Errorf("log entry %x: %w", it.Key(), err)
		}
		if counted && !e.InDigest {
			continue
		}
		if v.MayHaveStale {
			if s, err := store.ReadIndex(v, e.Key, v); err != nil {
				return err
			} else if !s.Has(e.Dot) {
				continue
			}
		}
		if err := f(&e); err != nil {
			return err
		}
	}
	return it.Error()
}

// Measure fills in sum and count of ranges.
func (v *View) Measure(gs []DotRange, counted bool) error {
	for i := range gs {
		g := &gs[i]
		g.Sum, g.Count = causal.Sum{}, 0
		err := v.Each(*g, counted, func(e *store.Entry) error {
			g.Sum, g.Count = g.Sum.Add(e.Hash()), g.Count+1
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Split cuts a range that was measured into parts of as many dots.
func (v *View) Split(g DotRange, counted bool) ([]DotRange, error) {
	size := (g.Count + SplitInto - 1) / SplitInto
	parts := make([]DotRange, 0, SplitInto)
	part := DotRange{First: g.First}
	err := v.Each(g, counted, func(e *store.Entry) error {
		if part.Count == size {
			parts, part = append(parts, part), DotRange{First: part.Last.Next()}
		}
		part.Last, part.Sum, part.Count = e.Dot, part.Sum.Add(e.Hash()), part.Count+1
		return nil
	})
	part.Last = g.Last
	return append(parts, part), err
}
