package sim

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// storeRecords is all that a store holds.
type storeRecords struct {
	values                 map[string][]byte
	index                  map[string]store.Siblings
	log                    map[causal.Dot]store.Entry
	tombstones, inConflict map[string]bool
}

func readStore(db *leveldb.DB, r *replica.Replica) (*storeRecords, error) {
	rs := &storeRecords{map[string][]byte{}, map[string]store.Siblings{}, map[causal.Dot]store.Entry{}, map[string]bool{}, map[string]bool{}}
	it := db.NewIterator(nil, nil)
	defer it.Release()
	for it.Next() {
		key, value := slices.Clone(it.Key()), slices.Clone(it.Value())
		if !store.Reserved(key) {
			rs.values[string(key)] = value
			continue
		}
		switch rest := string(key[3:]); key[2] {
		case store.KindIndex:
			s, err := store.DecodeIndex(value, r)
			if err != nil {
				return nil, fmt.Errorf("index of %q: %w", rest, err)
			}
			rs.index[rest] = s
		case store.KindLog:
			e, err := store.DecodeEntry(key, value, r)
			if err != nil {
				return nil, fmt.Errorf("log entry %x: %w", rest, err)
			}
			rs.log[e.Dot] = e
		case store.KindTombstone:
			rs.tombstones[rest] = true
		case store.KindConflict:
			rs.inConflict[rest] = true
		}
	}
	return rs, it.Error()
}

// CheckStore reads everything: log, index, values, marks and figures must agree.
func CheckStore(db *leveldb.DB, r *replica.Replica) error {
	rs, err := readStore(db, r)
	if err != nil {
		return err
	}
	counts := countedBy(r)
	var digest causal.Sum
	var keys, tombstones, conflicts int64
	for key, s := range rs.index {
		if err := rs.checkKey(key, s, r); err != nil {
			return fmt.Errorf("key %q: %w", key, err)
		}
		if !counts(store.KindIndex, key) {
			continue
		}
		if s.HasValue() {
			keys++
			digest = digest.Add(s.Hash())
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
		if s := rs.index[string(e.Key)]; !s.Has(d) && !r.MayHaveStale {
			return fmt.Errorf("log entry %v of key %q: its log-index does not name it", d, e.Key)
		}
	}
	for key := range rs.inConflict {
		conflicts += store.Btoi(counts(store.KindConflict, key))
	}
	if digest != r.Digest || keys != r.Keys || tombstones != r.Tombstones || conflicts != r.Conflicts {
		return fmt.Errorf("the replica counts %d keys, %d tombstones, %d conflicts, digest %x; the store has %d, %d, %d, %x",
			r.Keys, r.Tombstones, r.Conflicts, r.Digest, keys, tombstones, conflicts, digest)
	}
	for _, w := range r.Known.Rows {
		if m := max(w.Seqs[causal.Durable], w.Seqs[causal.Purged]); m > w.Seqs[causal.Covered] {
			return fmt.Errorf("origin %v: %v, and only the third may be above the first", w.Origin.Short(), w.Seqs)
		}
	}
	return nil
}

// countedBy reports which records a replica has counted: all, unless it is still at it.
func countedBy(r *replica.Replica) func(kind byte, key string) bool {
	below, counting := r.Counting()
	return func(kind byte, key string) bool {
		return !counting || string(store.KindKey(kind, []byte(key))) < string(below)
	}
}

func (rs *storeRecords) checkKey(key string, s store.Siblings, r *replica.Replica) error {
	var vs []store.Version
	for i := range s {
		e, ok := rs.log[s[i].Dot]
		switch {
		case !ok:
			return fmt.Errorf("the log lacks version %v", s[i].Dot)
		case string(e.Key) != key || e.Deleted != s[i].Deleted || e.Clock != s[i].Clock || !slices.Equal(e.Context, s[i].Context):
			return fmt.Errorf("log and log-index differ about version %v", s[i].Dot)
		case e.Inline != (len(s) > 1) || e.InDigest != s.HasValue():
			return fmt.Errorf("version %v: inline %v, counted %v, of %d versions", s[i].Dot, e.Inline, e.InDigest, len(s))
		}
		for j := range s {
			if s[j].HasSeen(s[i].Dot) {
				return fmt.Errorf("version %v is held beside %v, which saw it", s[i].Dot, s[j].Dot)
			}
		}
		if !e.Inline && !e.Deleted {
			if e.Value = rs.values[key]; store.Checksum(e.Value) != e.Check {
				return fmt.Errorf("the value of version %v is not the one that was logged", s[i].Dot)
			}
		}
		if !r.Known.Covers(e.Dot) && !r.Cloud.Contains(e.Dot) {
			return fmt.Errorf("version %v is above the version vector and would not be served", e.Dot)
		}
		vs = append(vs, e.Version)
	}
	resolved := vs[0]
	if len(vs) > 1 {
		resolved, _ = replica.Resolve(r.Resolve, []byte(key), vs)
	}
	value, there := rs.values[key]
	if there == resolved.Deleted || !bytes.Equal(value, resolved.Value) {
		return fmt.Errorf("holds %.20q (%v), its resolved value is %.20q (%v)", value, there, resolved.Value, !resolved.Deleted)
	}
	if s.HasTombstone() && !rs.tombstones[key] {
		return fmt.Errorf("a tombstone has no mark")
	}
	if replica.InConflict(vs) != rs.inConflict[key] {
		return fmt.Errorf("in conflict: %v, marked so: %v", replica.InConflict(vs), rs.inConflict[key])
	}
	return nil
}
