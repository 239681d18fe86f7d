package sim

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
)

// ghost is what no replica can know: every write that was ever made, with all that
// its writer had seen. It shares no code with merge, pull and repair; versions are
// told apart by their dots alone.
type ghost struct {
	writes map[causal.Dot]*ghostWrite
	keys   map[string]*ghostKey
}

type ghostKey struct {
	name      string
	writes    []*ghostWrite
	hurt      bool     // some disk lost it
	forgotten writeSet // writes that a purge let go somewhere, and what they had seen
}

type ghostWrite struct {
	store.Version
	key  *ghostKey
	nth  int      // among the writes of its key
	past writeSet // the writes of its key that its writer had seen
}

// held is what a node has of one key: its versions, and all that they saw.
type held struct {
	key  *ghostKey
	live []*ghostWrite
	seen writeSet
}

// writeSet is a set of writes of one key.
type writeSet []uint64

func (b writeSet) has(i int) bool { return i/64 < len(b) && b[i/64]>>(i%64)&1 != 0 }

func (b writeSet) set(i int) writeSet {
	for len(b) <= i/64 {
		b = append(b, 0)
	}
	b[i/64] |= 1 << (i % 64)
	return b
}

// or returns b, changed, with all of c.
func (b writeSet) or(c writeSet) writeSet {
	for len(b) < len(c) {
		b = append(b, 0)
	}
	for i := range c {
		b[i] |= c[i]
	}
	return b
}

// without returns one member of b that is in neither c nor d, or -1.
func (b writeSet) without(c, d writeSet) int {
	for i, x := range b {
		if i < len(c) {
			x &^= c[i]
		}
		if i < len(d) {
			x &^= d[i]
		}
		for j := range 64 {
			if x>>j&1 != 0 {
				return i*64 + j
			}
		}
	}
	return -1
}

func newGhost() *ghost { return &ghost{map[causal.Dot]*ghostWrite{}, map[string]*ghostKey{}} }

func (g *ghost) key(name string) *ghostKey {
	k := g.keys[name]
	if k == nil {
		k = &ghostKey{name: name}
		g.keys[name] = k
	}
	return k
}

// hold makes what a node holds of a key out of writes.
func (k *ghostKey) hold(live []*ghostWrite) *held {
	h := &held{key: k, live: live}
	for _, w := range live {
		h.seen = h.seen.or(w.past).set(w.nth)
	}
	return h
}

// wrote records a write that was just made, by somebody who held what is given
// and covered what is given: what it covers and does not hold it has seen as well.
func (g *ghost) wrote(v store.Version, k *ghostKey, past writeSet, covers func(causal.Dot) bool) (*ghostWrite, error) {
	w := &ghostWrite{Version: v, key: k, nth: len(k.writes), past: slices.Clone(past)}
	w.Value, w.Context = bytes.Clone(v.Value), v.Context.Clone()
	for _, e := range k.writes {
		if k.forgotten.has(e.nth) && covers(e.Dot) {
			w.past = w.past.set(e.nth)
		}
		seen := w.past.has(e.nth)
		switch {
		case e.Origin == v.Origin && e.Seq > v.Seq:
			return nil, fmt.Errorf("write %v of key %s after %v", v.Dot, k.name, e.Dot)
		case k.hurt: // a disk that lost a version makes others forget it
		case e.Origin == v.Origin && !seen:
			return nil, fmt.Errorf("chain rule: write %v of key %s had not seen %v of its own origin", v.Dot, k.name, e.Dot)
		case v.Context.Contains(e.Dot) && !seen:
			return nil, fmt.Errorf("context %v of write %v of key %s covers %v, which its writer had not seen", v.Context, v.Dot, k.name, e.Dot)
		}
	}
	if g.writes[v.Dot] != nil {
		return nil, fmt.Errorf("dot %v was used twice", v.Dot)
	}
	g.writes[v.Dot] = w
	k.writes = append(k.writes, w)
	return w, nil
}

// same tells how a version differs from what was written under its name.
func (w *ghostWrite) same(key string, v *store.Version, withValue bool) error {
	switch {
	case key != w.key.name:
		return fmt.Errorf("version %v of key %s turned up at key %s", v.Dot, w.key.name, key)
	case v.Deleted != w.Deleted || v.Clock != w.Clock || !slices.Equal(v.Context, w.Context):
		return fmt.Errorf("version %v of key %s is not what was written: clock %d context %v deleted %v, want %d %v %v", v.Dot, key, v.Clock, v.Context, v.Deleted, w.Clock, w.Context, w.Deleted)
	case withValue && (v.Stamp != w.Stamp || v.Offset != w.Offset || v.Count != w.Count || !bytes.Equal(v.Value, w.Value)):
		return fmt.Errorf("version %v of key %s is not what was written: value %q stamp %d, want %q %d", v.Dot, key, v.Value, v.Stamp, w.Value, w.Stamp)
	}
	return nil
}

// maximal returns the writes, among some of one key, that no other of them had seen.
func (k *ghostKey) maximal(among func(w *ghostWrite) bool) []*ghostWrite {
	var seen writeSet
	var ws []*ghostWrite
	for _, w := range k.writes {
		if among(w) {
			ws = append(ws, w)
			seen = seen.or(w.past)
		}
	}
	return slices.DeleteFunc(ws, func(w *ghostWrite) bool { return seen.has(w.nth) })
}
