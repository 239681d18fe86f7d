package replica

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// identity is who the replica is, and the origins that its store knows.
type identity struct {
	Self causal.Origin          // of this incarnation
	Seq  uint64                 // of the last write logged under it
	Own  map[causal.Origin]bool // incarnations of this database

	// Overwritten is the last write of Self, or any after it, that is no longer held though no write of Self has seen
	// it: up to there the own log does not say what became of the own writes.
	Overwritten uint64

	aliases     store.AliasTable
	Alias       map[causal.Origin]uint32
	aliasShared bool // sessions may be reading Alias: it is replaced when it grows
	// recorded counts the aliases in the store. A transaction that failed assigned those beyond,
	// and the next one must write them.
	recorded int
}

// OriginStep bounds the new origins that one batch adds to the version vector.
const OriginStep = 1024

// assign assigns an origin the next alias.
func (r *Replica) assign(o causal.Origin) uint32 {
	a := uint32(len(r.aliases))
	r.aliases = append(r.aliases, o)
	now := r.aliases
	r.outside.aliases.Store(&now)
	if r.aliasShared {
		r.Alias, r.aliasShared = maps.Clone(r.Alias), false
	}
	r.Alias[o] = a
	return a
}

// stageOrigin writes what is stored of an origin. The version vector itself is not (O2): after
// a crash only the checkpoint may be believed, and after a clean close the two
// are the same.
func (r *Replica) stageOrigin(b leveldb.BatchReplay, o causal.Origin, w causal.Row) {
	rec := append(make([]byte, 0, 48), store.FormatVersion, 0)
	if r.Own[o] {
		rec[1] = 1
	}
	rec = append(rec, o[:]...)
	for _, c := range []causal.Column{causal.Durable, causal.Pruned, causal.Purged} {
		rec = binary.AppendUvarint(rec, w.Seqs[c])
	}
	b.Put(store.KindKey(store.KindOrigin, binary.BigEndian.AppendUint32(nil, r.Alias[o])), rec)
}

// stageOrigins writes the new origin and, unless all was known to be on disk, those
// that were read. A record may stem from a batch whose Sync failed: what was read
// can still be lost, and what this opening writes builds on its aliases and watermarks.
func (r *Replica) stageOrigins(b leveldb.BatchReplay, clean bool) {
	os := r.aliases
	if clean {
		os = os[len(os)-1:]
	}
	for _, o := range os {
		w := causal.Row{Origin: o}
		if i, ok := r.Known.Find(o); ok {
			w = r.Known.Rows[i]
		}
		r.stageOrigin(b, o, w)
	}
}

func (r *Replica) readOrigins() error {
	it := r.Store.NewIterator(store.KindRange(store.KindOrigin), nil)
	defer it.Release()
	var rows []causal.Row
	for it.Next() {
		if a := store.UserKey(it.Key()); len(a) != 4 || binary.BigEndian.Uint32(a) != uint32(len(r.aliases)) {
			return fmt.Errorf("replicator: origin record %d is missing; the database is corrupted", len(r.aliases))
		}
		d := store.Decoder{B: it.Value()}
		if err := d.Format(); err != nil {
			return err
		}
		own := d.Byte()&1 != 0
		w := causal.Row{Origin: d.Origin()}
		for _, c := range []causal.Column{causal.Durable, causal.Pruned, causal.Purged} {
			w.Seqs[c] = d.Seq()
		}
		if err := d.End(); err != nil {
			return fmt.Errorf("origin record %d: %w", len(r.aliases), err)
		}
		r.assign(w.Origin)
		if own {
			r.Own[w.Origin] = true
		}
		// O2: what lies above the checkpoint may be lost, so nothing above it is
		// covered, and that it is absent says nothing. What is there may have seen
		// more than its contexts say all the same: Pruned stays.
		w.Seqs[causal.Covered] = w.Seqs[causal.Durable]
		w.Seqs[causal.Purged] = min(w.Seqs[causal.Purged], w.Seqs[causal.Covered])
		rows = append(rows, w)
	}
	// In order, and at once: else each would move those behind it.
	slices.SortFunc(rows, func(a, b causal.Row) int { return a.Origin.Compare(b.Origin) })
	r.Known.Take(rows)
	return it.Error()
}

// Number and origin make the replica the origins of what it stores.
func (r *Replica) Number(o causal.Origin) uint64 {
	if a, ok := r.Alias[o]; ok {
		return uint64(a)
	}
	return uint64(r.assign(o))
}

func (r *Replica) Origin(n uint64) (causal.Origin, bool) { return r.aliases.Origin(n) }

func (r *Replica) AliasOf(o causal.Origin) (uint32, bool) {
	a, ok := r.Alias[o]
	return a, ok
}

// noteOverwritten notes which own writes a change made disappear, unless with an own write that has seen them.
func (r *Replica) noteOverwritten(c *Change) {
	for i := range c.Versions {
		if d := c.Versions[i].Dot; d.Origin == r.Self && !c.Old.Has(d) {
			return
		}
	}
	for i := range c.Old {
		if d := c.Old[i].Dot; d.Origin == r.Self && d.Seq > r.Overwritten && !c.Versions.Has(d) {
			r.Overwritten = d.Seq
		}
	}
}
