package replicator

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// storeRecords is all that a store holds.
type storeRecords struct {
	values          map[string][]byte
	index           map[string]state
	log             map[dot]entry
	tombs, disputed map[string]bool
}

func readStore(db *leveldb.DB, r *replica) (*storeRecords, error) {
	rs := &storeRecords{map[string][]byte{}, map[string]state{}, map[dot]entry{}, map[string]bool{}, map[string]bool{}}
	it := db.NewIterator(nil, nil)
	defer it.Release()
	for it.Next() {
		key, value := slices.Clone(it.Key()), slices.Clone(it.Value())
		if !reserved(key) {
			rs.values[string(key)] = value
			continue
		}
		switch rest := string(key[3:]); key[2] {
		case kindIndex:
			s, err := decodeIndex(value, r)
			if err != nil {
				return nil, fmt.Errorf("index of %q: %w", rest, err)
			}
			rs.index[rest] = s
		case kindLog:
			e, err := decodeEntry(key, value, r)
			if err != nil {
				return nil, fmt.Errorf("log entry %x: %w", rest, err)
			}
			rs.log[e.dot] = e
		case kindTombstone:
			rs.tombs[rest] = true
		case kindConflict:
			rs.disputed[rest] = true
		}
	}
	return rs, it.Error()
}

// checkStore reads everything: log, index, values, marks and figures must agree.
func checkStore(db *leveldb.DB, r *replica) error {
	rs, err := readStore(db, r)
	if err != nil {
		return err
	}
	var digest sum
	var keys, tombstones int64
	for key, s := range rs.index {
		if err := rs.checkKey(key, s, r); err != nil {
			return fmt.Errorf("key %q: %w", key, err)
		}
		if s.counted() {
			keys++
			digest = digest.add(s.hash())
		} else {
			tombstones++
		}
	}
	for key := range rs.values {
		if rs.index[key] == nil {
			return fmt.Errorf("key %q has a value and no log-index", key)
		}
	}
	for d, e := range rs.log {
		if s := rs.index[string(e.key)]; !s.has(d) {
			return fmt.Errorf("log entry %v of key %q: its log-index does not name it", d, e.key)
		}
	}
	if digest != r.digest || keys != r.keys || tombstones != r.tombstones || int64(len(rs.disputed)) != r.disputed {
		return fmt.Errorf("the replica counts %d keys, %d tombstones, %d conflicts, digest %x; the store has %d, %d, %d, %x",
			r.keys, r.tombstones, r.disputed, r.digest, keys, tombstones, len(rs.disputed), digest)
	}
	for _, w := range r.known.rows {
		if m := max(w.at[durable], w.at[pruned], w.at[purged]); m > w.at[claimed] {
			return fmt.Errorf("origin %v: %v, and only the first may be the greatest", w.origin.Short(), w.at)
		}
	}
	return nil
}

func (rs *storeRecords) checkKey(key string, s state, r *replica) error {
	var vs []version
	for i := range s {
		e, ok := rs.log[s[i].dot]
		switch {
		case !ok:
			return fmt.Errorf("the log lacks version %v", s[i].dot)
		case string(e.key) != key || e.deleted != s[i].deleted || e.clock != s[i].clock || !slices.Equal(e.vv, s[i].vv):
			return fmt.Errorf("log and log-index tell different things of version %v", s[i].dot)
		case e.inline != (len(s) > 1) || e.counted != s.counted():
			return fmt.Errorf("version %v: inline %v, counted %v, of %d versions", s[i].dot, e.inline, e.counted, len(s))
		}
		for j := range s {
			if s[j].saw(s[i].dot) {
				return fmt.Errorf("version %v is held beside %v, which saw it", s[i].dot, s[j].dot)
			}
		}
		if !e.inline && !e.deleted {
			if e.value = rs.values[key]; checksum(e.value) != e.check {
				return fmt.Errorf("the value of version %v is not the one that was logged", s[i].dot)
			}
		}
		if !r.known.covers(e.dot) && !r.loose.has(e.dot) {
			return fmt.Errorf("version %v is above the claim and would not be served", e.dot)
		}
		vs = append(vs, e.version)
	}
	shown := vs[0]
	if len(vs) > 1 {
		shown, _ = resolveAll(r.resolve, []byte(key), vs)
	}
	value, there := rs.values[key]
	if there == shown.deleted || !bytes.Equal(value, shown.value) {
		return fmt.Errorf("shows %.20q (%v), must show %.20q (%v)", value, there, shown.value, !shown.deleted)
	}
	if s.buried() && !rs.tombs[key] {
		return fmt.Errorf("a tombstone has no mark")
	}
	if disputed(vs) != rs.disputed[key] {
		return fmt.Errorf("in conflict: %v, marked so: %v", disputed(vs), rs.disputed[key])
	}
	return nil
}

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
	if err := checkStore(n.db, n.r); err != nil {
		return err
	}
	held, err := n.surviving()
	if err != nil {
		return err
	}
	here := func(g *crashWrite) bool { return heldOrSeen(held, g) || n.w.forgotten(g) }
	for _, g := range n.w.writes {
		for _, d := range g.dots {
			if n.r.known.covers(d) && !here(g) {
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
	for _, w := range n.r.known.rows {
		if w.at[claimed] != w.at[durable] {
			return fmt.Errorf("claims %d of origin %v after the opening, %d is its checkpoint", w.at[claimed], w.origin.Short(), w.at[durable])
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
			if slices.ContainsFunc(g.dots, n.r.known.covers) {
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
		if err := checkStore(n.db, n.r); err != nil {
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
		it := n.db.NewIterator(&util.Range{Limit: reservedStart}, nil)
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
