package replicator

import (
	"fmt"
	"maps"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/sim"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// forgotten tells whether a write may be gone because a deletion that saw it was
// forgotten.
func (w *crashWorld) forgotten(g *crashWrite) bool {
	return w.purged[g.key] && slices.ContainsFunc(w.writes, func(d *crashWrite) bool {
		return d.deleted && (d == g || d.saw[g])
	})
}

// surviving are the held writes of every key.
func (n *crashNode) surviving() (map[*crashWrite]bool, error) {
	held := map[*crashWrite]bool{}
	keys := map[string]bool{}
	for _, g := range n.w.writes {
		keys[g.key] = true
	}
	for key := range keys {
		ws, err := n.held(key)
		if err != nil {
			return nil, err
		}
		for _, g := range ws {
			held[g] = true
		}
	}
	return held, nil
}

// disputed tells whether a write was ever in conflict. Whoever adds a version beside it
// writes it again, with its value: a power failure can keep that and lose the batch that
// it was first in.
func (w *crashWorld) disputed(g *crashWrite) bool {
	return slices.ContainsFunc(w.writes, func(h *crashWrite) bool {
		return h != g && h.key == g.key && !h.saw[g] && !g.saw[h]
	})
}

func heldOrSeen(held map[*crashWrite]bool, g *crashWrite) bool {
	if held[g] {
		return true
	}
	for h := range held {
		if h.saw[g] {
			return true
		}
	}
	return false
}

// checkCrash judges a server that was opened on an image: what it holds is whole,
// what it claims is true, and what was acknowledged with Sync is there.
// A batch that came back from a peer after an earlier crash may have come in several
// steps, so whole asks for whole batches only where that cannot be.
func (n *crashNode) checkCrash(op int, all, whole bool) error {
	if err := sim.CheckStore(n.db, n.r); err != nil {
		return err
	}
	held, err := n.surviving()
	if err != nil {
		return err
	}
	here := func(g *crashWrite) bool { return heldOrSeen(held, g) || n.w.forgotten(g) }
	for _, g := range n.w.writes {
		for _, d := range g.dots {
			if n.r.Known.Covers(d) && !here(g) {
				return fmt.Errorf("claims %v of key %s and holds nothing that saw it", d, g.key)
			}
		}
		if g.acked >= 0 && g.acked <= op && (g.synced || all) && !here(g) {
			return fmt.Errorf("lost %v of key %s, which was acknowledged at operation %d, synced: %v", g.dots, g.key, g.acked, g.synced)
		}
		for _, other := range g.batch {
			if whole && held[g] && !here(other) && !n.w.disputed(g) {
				return fmt.Errorf("tore a batch: holds %v of key %s, lacks %v of key %s", g.dots, g.key, other.dots, other.key)
			}
		}
	}
	for _, w := range n.r.Known.Rows {
		if w.Seqs[causal.Covered] != w.Seqs[causal.Durable] {
			return fmt.Errorf("claims %d of origin %v after the opening, %d is its checkpoint", w.Seqs[causal.Covered], w.Origin.Short(), w.Seqs[causal.Durable])
		}
	}
	return nil
}

// expectation is what a cluster must hold in the end: of all that one of its
// servers holds or claims, what none of the rest saw.
func (w *crashWorld) expectation(nodes ...*crashNode) (map[*crashWrite]bool, error) {
	known := map[*crashWrite]bool{}
	for _, n := range nodes {
		held, err := n.surviving()
		if err != nil {
			return nil, err
		}
		maps.Copy(known, held)
		for _, g := range w.writes {
			if slices.ContainsFunc(g.dots, n.r.Known.Covers) {
				known[g] = true
			}
		}
	}
	live := maps.Clone(known)
	for g := range known {
		maps.DeleteFunc(live, func(o *crashWrite, _ bool) bool { return g.saw[o] })
	}
	return live, nil
}

// checkAgreement compares servers byte by byte, and with what is expected.
func (w *crashWorld) checkAgreement(live map[*crashWrite]bool, nodes ...*crashNode) error {
	var first map[string]string
	for i, n := range nodes {
		if err := sim.CheckStore(n.db, n.r); err != nil {
			return fmt.Errorf("server %d: %w", i, err)
		}
		held, err := n.surviving()
		if err != nil {
			return fmt.Errorf("server %d: %w", i, err)
		}
		for g := range live {
			if !g.deleted && !held[g] {
				return fmt.Errorf("server %d lacks %v of key %s", i, g.dots, g.key)
			}
		}
		for g := range held {
			if !live[g] {
				return fmt.Errorf("server %d holds %v of key %s, which is superseded", i, g.dots, g.key)
			}
		}
		values := map[string]string{}
		it := n.db.NewIterator(&util.Range{Limit: store.ReservedStart}, nil)
		for it.Next() {
			values[string(it.Key())] = string(it.Value())
		}
		it.Release()
		if err := it.Error(); err != nil {
			return err
		}
		if i == 0 {
			first = values
		} else if !maps.Equal(first, values) {
			return fmt.Errorf("server %d shows other values than server 0", i)
		}
	}
	return nil
}
