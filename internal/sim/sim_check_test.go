package sim

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
)

// simRecords is what a disk holds, sorted by what the records are.
type simRecords struct {
	raw        map[string][]byte
	index      map[string]store.Siblings
	entries    map[string][]store.Entry // by user key
	logKeys    map[causal.Dot]string
	tombstones map[string]bool
	conflicts  map[string]bool
}

func (n *simNode) records() (*simRecords, error) {
	rs := &simRecords{map[string][]byte{}, map[string]store.Siblings{}, map[string][]store.Entry{}, map[causal.Dot]string{}, map[string]bool{}, map[string]bool{}}
	for _, p := range n.disk.now {
		if !store.Reserved([]byte(p.key)) {
			rs.raw[p.key] = p.value
			continue
		}
		rest := p.key[3:]
		switch p.key[2] {
		case store.KindIndex:
			s, err := store.DecodeIndex(p.value, n.r)
			if err != nil {
				return nil, err
			}
			rs.index[rest] = s
		case store.KindLog:
			e, err := store.DecodeEntry([]byte(p.key), p.value, n.r)
			if err != nil {
				return nil, err
			}
			rs.entries[string(e.Key)] = append(rs.entries[string(e.Key)], e)
			rs.logKeys[e.Dot] = p.key
		case store.KindTombstone:
			rs.tombstones[rest] = true
		case store.KindConflict:
			rs.conflicts[rest] = true
		}
	}
	return rs, nil
}

// check reads all that a running node has on its disk and in memory, and compares
// it with what the ghost says it should hold.
func (n *simNode) check() error {
	n.w.stats.checks++
	rs, err := n.records()
	if err != nil {
		return fmt.Errorf("n%d: %w", n.id, err)
	}
	for key, h := range n.holds {
		if len(h.live) != len(rs.index[key]) {
			return fmt.Errorf("n%d: index of key %s names %d versions, not %v", n.id, key, len(rs.index[key]), h)
		}
	}
	for _, w := range n.w.ghost.writes {
		if n.r.Above.Has(w.Dot) {
			if err := n.covered(w); err != nil {
				return fmt.Errorf("above the version vector: %w", err)
			}
		}
	}
	counts := countedBy(n.r)
	var digest causal.Sum
	var keys, tombstones, conflicts int64
	for key, s := range rs.index {
		if err := n.checkKey(rs, key, s); err != nil {
			return fmt.Errorf("n%d: key %s: %w", n.id, key, err)
		}
		if !counts(store.KindIndex, key) {
			n.w.stats.uncounted++
			continue
		}
		if !s.HasValue() {
			tombstones++
			continue
		}
		keys++
		for i := range s {
			digest = digest.Add(s[i].Hash())
		}
	}
	for key := range rs.conflicts {
		if len(rs.index[key]) < 2 {
			return fmt.Errorf("n%d: key %s is marked as in conflict", n.id, key)
		}
		conflicts += store.Btoi(counts(store.KindConflict, key))
	}
	for key := range rs.raw {
		if rs.index[key] == nil {
			return fmt.Errorf("n%d: key %s has a value and no index", n.id, key)
		}
	}
	if err := n.checkStale(rs); err != nil {
		return err
	}
	r := n.r
	if digest != r.Digest || keys != r.Keys || tombstones != r.Tombstones || conflicts != r.Conflicts {
		return fmt.Errorf("n%d: counts %d keys, %d tombstones, %d conflicts, digest %x; the store has %d, %d, %d, %x",
			n.id, r.Keys, r.Tombstones, r.Conflicts, r.Digest, keys, tombstones, conflicts, digest)
	}
	if err := n.checkShortened(); err != nil {
		return err
	}
	return n.checkKnowledge()
}

// checkShortened checks that all that the versions here have seen is named in their contexts, or
// known here to be left out (design.md: M11).
func (n *simNode) checkShortened() error {
	if n.r.Known.Seq(causal.Pruned, causal.Untold.Origin) > 0 {
		return nil
	}
	for _, h := range n.holds {
		for _, v := range h.live {
			for _, w := range h.key.writes {
				if v.past.has(w.nth) && !v.Context.Contains(w.Dot) && w.Seq > n.r.Known.Seq(causal.Pruned, w.Origin) && !h.key.forgotten.has(w.nth) && !h.key.hurt {
					return fmt.Errorf("n%d: the context of %v of key %s leaves out %v, and nothing here says so", n.id, v.Dot, h.key.name, w.Dot)
				}
			}
		}
	}
	return nil
}

func (n *simNode) checkKey(rs *simRecords, key string, s store.Siblings) error {
	h := n.holds[key]
	var vs []store.Version
	for i := range s {
		v := &s[i]
		w := n.w.ghost.writes[v.Dot]
		if h == nil || w == nil || !slices.Contains(h.live, w) {
			return fmt.Errorf("index names %v, the ghost knows %v", v.Dot, h)
		}
		if err := w.same(key, v, false); err != nil {
			return err
		}
		j := slices.IndexFunc(rs.entries[key], func(e store.Entry) bool { return e.Dot == v.Dot })
		if j < 0 {
			return fmt.Errorf("index names %v, the log lacks it", v.Dot)
		}
		e := rs.entries[key][j]
		if e.Inline != (len(s) > 1) || e.InDigest != s.HasValue() {
			return fmt.Errorf("log entry %v: inline %v, counted %v, of %d versions", v.Dot, e.Inline, e.InDigest, len(s))
		}
		if !e.Inline && !e.Deleted {
			e.Value = rs.raw[key]
			if store.Checksum(e.Value) != e.Check {
				return fmt.Errorf("log entry %v: the value at the raw key is another", v.Dot)
			}
		}
		if err := w.same(key, &e.Version, true); err != nil {
			return err
		}
		if !n.r.Known.Covers(v.Dot) && !n.r.Cloud.Contains(v.Dot) {
			return fmt.Errorf("%v is above the version vector and not in the dot cloud: it would never be served", v.Dot)
		}
		vs = append(vs, w.Version)
	}
	for i := range s {
		for j := range s {
			if i != j && s[i].HasSeen(s[j].Dot) {
				return fmt.Errorf("%v is held beside %v, which saw it", s[j].Dot, s[i].Dot)
			}
		}
	}
	if s.HasTombstone() && !rs.tombstones[key] {
		return fmt.Errorf("a tombstone without its mark")
	}
	differ := false
	for i := range vs {
		differ = differ || vs[i].Deleted != vs[0].Deleted || !bytes.Equal(vs[i].Value, vs[0].Value)
	}
	if differ != rs.conflicts[key] {
		return fmt.Errorf("in conflict %v, marked %v", differ, rs.conflicts[key])
	}
	raw, there := rs.raw[key]
	return n.resolves.check(key, vs, raw, there)
}

// checkStale allows log entries that no index names only if a crash left them, or a join staged them.
func (n *simNode) checkStale(rs *simRecords) error {
	first := n.stale == nil
	if first {
		n.stale = map[string]bool{}
	}
	for key, es := range rs.entries {
		for _, e := range es {
			if rs.index[key].Has(e.Dot) {
				continue
			}
			lk := rs.logKeys[e.Dot]
			if first && (n.crashed || n.r.MayHaveStale) {
				n.stale[lk] = true
			}
			if n.r.StagedAhead(e.Dot) {
				continue
			}
			if !n.stale[lk] {
				return fmt.Errorf("n%d: log entry %v of key %s is not named by the index %v", n.id, e.Dot, key, rs.index[key])
			}
		}
	}
	return nil
}

func (n *simNode) checkKnowledge() error {
	var sum causal.Sum
	for i, w := range n.r.Known.Rows {
		if i > 0 && n.r.Known.Rows[i-1].Origin.Compare(w.Origin) >= 0 {
			return fmt.Errorf("n%d: knowledge is out of order", n.id)
		}
		for c := range causal.Columns {
			if c != causal.Pruned && w.Seqs[c] > w.Seqs[causal.Covered] {
				return fmt.Errorf("n%d: column %d of origin %s is %d, above the version vector at %d", n.id, c, w.Origin.Short(), w.Seqs[c], w.Seqs[causal.Covered])
			}
		}
		if w.Seqs[causal.Covered] > 0 {
			sum = sum.Add(causal.Dot{Origin: w.Origin, Seq: w.Seqs[causal.Covered]}.Hash())
		}
		a, ok := n.r.Alias[w.Origin]
		if !ok {
			return fmt.Errorf("n%d: origin %s has no alias", n.id, w.Origin.Short())
		}
		rec := binary.BigEndian.AppendUint32([]byte{0xff, 0xff, store.KindOrigin}, a)
		if _, ok := n.disk.now.search(string(rec)); !ok {
			return fmt.Errorf("n%d: origin %s is not recorded", n.id, w.Origin.Short())
		}
	}
	if sum != n.r.Known.VectorSum {
		return fmt.Errorf("n%d: the sum of the version vector is not kept right", n.id)
	}
	return nil
}

// simOutcome is the independent model: which versions of a key must be live once all
// have heard of everything. Of the writes that count, those that no other had
// seen; a purge may have taken what it may take.
type simOutcome struct {
	must, may []*ghostWrite
}

func (w *simWorld) outcomes() map[string]simOutcome {
	os := map[string]simOutcome{}
	for name, k := range w.ghost.keys {
		var o simOutcome
		for _, v := range k.maximal(w.counts) {
			if k.forgotten.has(v.nth) {
				o.may = append(o.may, v)
			} else {
				o.must = append(o.must, v)
			}
		}
		os[name] = o
	}
	return os
}

// counts reports whether a write is still anywhere: somebody covers it or holds it.
// One that a power failure took from all who had it never was.
func (w *simWorld) counts(v *ghostWrite) bool {
	for _, n := range w.nodes {
		if n.r == nil {
			continue
		}
		if n.r.Known.Covers(v.Dot) {
			return true
		}
		if h := n.holds[v.key.name]; h != nil && slices.Contains(h.live, v) {
			return true
		}
	}
	return false
}

// checkOutcome compares what the nodes hold in the end with the model's verdict,
// and with each other. A write that counted before the nodes met must count still.
func (w *simWorld) checkOutcome(before map[*ghostWrite]bool) error {
	for v := range before {
		if !v.key.hurt && !w.counts(v) && !w.seenSomewhere(v) {
			return fmt.Errorf("write %v of key %s is lost", v.Dot, v.key.name)
		}
	}
	// What was superseded may be back beside what superseded it where that relied on
	// what replicas had said to have on disk, and they went back to older disks.
	mayReturn := w.conf.tombstoneTTL >= 0 || w.stats.restores > 0
	first := w.up()[0]
	for name, o := range w.outcomes() {
		for _, n := range w.up() {
			var live []*ghostWrite
			if h := n.holds[name]; h != nil {
				live = h.live
			}
			for _, v := range o.must {
				if v.key.hurt {
					continue // its only copy may have been on that disk
				}
				if !slices.Contains(live, v) {
					return fmt.Errorf("n%d lacks %v of key %s, which nothing superseded; it holds %v", n.id, v.Dot, name, n.holds[name])
				}
			}
			for _, v := range live {
				if !mayReturn && !v.key.hurt && !slices.Contains(o.must, v) && !slices.Contains(o.may, v) {
					return fmt.Errorf("n%d holds %v of key %s, which %v superseded: %v", n.id, v.Dot, name, w.superseding(v), n.holds[name])
				}
			}
			if err := w.sameAs(first, n, name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *simWorld) superseding(v *ghostWrite) (by []causal.Dot) {
	for _, e := range v.key.writes {
		if e.past.has(v.nth) && w.counts(e) {
			by = append(by, e.Dot)
		}
	}
	return by
}

func (w *simWorld) seenSomewhere(v *ghostWrite) bool {
	for _, n := range w.up() {
		if h := n.holds[v.key.name]; h != nil && h.seen.has(v.nth) {
			return true
		}
	}
	return v.key.forgotten.has(v.nth)
}

// sameAs compares what two nodes hold and show of a key.
func (w *simWorld) sameAs(a, b *simNode, name string) error {
	values := func(n *simNode) []*ghostWrite {
		h := n.holds[name]
		if h == nil || !slices.ContainsFunc(h.live, func(v *ghostWrite) bool { return !v.Deleted }) {
			return nil
		}
		return h.live
	}
	va, vb := values(a), values(b)
	if len(va) != len(vb) || slices.ContainsFunc(va, func(v *ghostWrite) bool { return !slices.Contains(vb, v) }) {
		return fmt.Errorf("n%d and n%d differ on key %s: %v and %v", a.id, b.id, name, a.holds[name], b.holds[name])
	}
	if a.resolves.name != b.resolves.name || !a.resolves.deterministic {
		return nil
	}
	i, inA := a.disk.now.search(name)
	j, inB := b.disk.now.search(name)
	if inA != inB || inA && !bytes.Equal(a.disk.now[i].value, b.disk.now[j].value) {
		return fmt.Errorf("n%d and n%d show different values of key %s", a.id, b.id, name)
	}
	return nil
}
