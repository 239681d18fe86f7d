package sim

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// condStats counts what became of writes on conditions.
type condStats struct {
	held, refused, overtaken, elsewhere, absent int
}

func (s *condStats) fields() []*int {
	return []*int{&s.held, &s.refused, &s.overtaken, &s.elsewhere, &s.absent}
}

func (s *condStats) missing() (names []string) {
	all := []string{"conditions that hold", "conditions that do not hold", "conditions that another write of the same batch ends", "conditions read at another replica", "conditions on keys without a value"}
	for i, n := range s.fields() {
		if *n == 0 {
			names = append(names, all[i])
		}
	}
	return names
}

// simThinker is a client that has read a key and thinks about it.
type simThinker struct {
	replica.Cond
	at int // the node
}

// clientThinks has a client read, or one that has read write on the condition of what it saw, at any node. It
// reports whether it did. In the meantime there were pulls, pushes, power failures, purges …
func (w *simWorld) clientThinks(n *simNode) bool {
	if !w.conf.conditions || w.thoughts.IntN(3) > 0 {
		return false
	}
	if len(w.thinkers) == 0 || len(w.thinkers) < 5 && w.thoughts.IntN(2) == 0 {
		w.clientReads(n)
	} else {
		w.clientWritesOn(n)
	}
	return true
}

func (w *simWorld) clientReads(n *simNode) {
	key := fmt.Appendf(nil, "k%d", w.thoughts.IntN(w.conf.keys))
	s, err := n.r.Lookup(key)
	if err != nil {
		w.ignore(err)
		return
	}
	c := replica.Cond{Key: key}
	if s.HasValue() {
		for i := range s {
			c.Seen = append(c.Seen, s[i].Dot)
		}
	}
	w.thoughts.Shuffle(len(c.Seen), func(i, j int) { c.Seen[i], c.Seen[j] = c.Seen[j], c.Seen[i] })
	w.thinkers = append(w.thinkers, simThinker{c, n.id})
}

// clientWritesOn writes on the conditions of one or two clients that have read, and perhaps behind other
// writes in the same batch.
func (w *simWorld) clientWritesOn(n *simNode) {
	var conds []replica.Cond
	for range 1 + w.thoughts.IntN(2) {
		if len(w.thinkers) == 0 {
			break
		}
		i := w.thoughts.IntN(len(w.thinkers))
		conds = append(conds, w.thinkers[i].Cond)
		w.stats.elsewhere += int(store.Btoi(w.thinkers[i].at != n.id))
		w.thinkers = slices.Delete(w.thinkers, i, i+1)
	}
	ws := w.someWrites(n)
	if w.thoughts.IntN(4) > 0 {
		ws[0].Key = bytes.Clone(conds[0].Key)
	}
	var before []store.Write
	if w.thoughts.IntN(3) == 0 {
		if before = w.someWrites(n); w.thoughts.IntN(2) == 0 {
			before[0].Key = bytes.Clone(conds[0].Key)
		}
	}
	want, alone := w.shouldHold(n, conds, before), w.shouldHold(n, conds, nil)
	held := false
	joined := w.conf.joinWrites
	w.conf.joinWrites = false
	err := n.commitWith(func(t *replica.Txn) error {
		if err := t.Put(before); err != nil {
			return err
		}
		i, err := t.Unmet(conds)
		if held = i < 0; err != nil || !held {
			return err
		}
		return t.Put(ws)
	}, n.syncWrites)
	if w.conf.joinWrites = joined; err != nil {
		w.ignore(err)
		return
	}
	for _, c := range conds {
		w.stats.absent += int(store.Btoi(len(c.Seen) == 0))
	}
	w.logf("n%d: on conditions %v: %v", n.id, conds, held)
	if held != want {
		w.fail(fmt.Errorf("n%d: conditions %v, behind the writes %v: held %v, want %v", n.id, conds, before, held, want))
	}
	if held {
		w.stats.held++
		w.fail(n.shows(ws))
	} else if w.stats.refused++; alone {
		w.stats.overtaken++
	}
	w.tell(n)
}

// shouldHold is what the ghost says of conditions on the state of a node, after some writes.
func (w *simWorld) shouldHold(n *simNode, conds []replica.Cond, before []store.Write) bool {
	return !slices.ContainsFunc(conds, func(c replica.Cond) bool { return !n.shouldHold(c, before) })
}

func (n *simNode) shouldHold(c replica.Cond, before []store.Write) bool {
	for _, b := range slices.Backward(before) {
		if bytes.Equal(b.Key, c.Key) { // a dot that nobody can have seen, or no value
			return b.Deleted && len(c.Seen) == 0
		}
	}
	var dots []causal.Dot
	value := false
	if h := n.holds[string(c.Key)]; h != nil {
		for _, w := range h.live {
			dots, value = append(dots, w.Dot), value || !w.Deleted
		}
	}
	if len(c.Seen) == 0 {
		return !value
	}
	slices.SortFunc(dots, causal.Dot.Compare)
	return slices.Equal(dots, slices.SortedFunc(slices.Values(c.Seen), causal.Dot.Compare))
}
