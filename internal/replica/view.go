package replica

import (
	"bytes"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// View is one state of the database.
type View struct {
	store.Snapshot
	aliases      store.AliasTable
	index        map[causal.Origin]uint32
	Rows         []causal.Row // news for the peer
	Rev          uint64
	Cloud        causal.Vector
	Keys         int64           // that hold a value
	MayHaveStale bool            // log entries may be stale
	sorted       []causal.Origin // the known origins, in order; nil until asked for
}

// TakeView takes a state of the database. with calls a function while nothing else uses the
// replica; of a database that is closed it calls none. note, which may be nil, is called in the
// moment of that state.
func TakeView(with func(func(r *Replica)), note func(r *Replica)) (*View, error) {
	v, err := View{}, leveldb.ErrClosed
	with(func(r *Replica) {
		if v, err = r.Look(); err == nil && note != nil {
			note(r)
		}
	})
	return &v, err
}

// Look takes a state of the database.
func (r *Replica) Look() (v View, err error) {
	v.aliases, v.index, r.aliasShared = r.aliases, r.Alias, true
	v.Snapshot, err = r.Store.Snapshot()
	return v, err
}

func (v *View) Origin(n uint64) (causal.Origin, bool) { return v.aliases.Origin(n) }

func (v *View) Number(o causal.Origin) uint64 { return v.aliases.Number(o) }

func (v *View) AliasOf(o causal.Origin) (uint32, bool) {
	a, ok := v.index[o]
	return a, ok
}

// Logged is a log entry with the value that belongs to it.
type Logged struct {
	store.Entry
	Read bool // the value is there, wherever it was
}

const sortedFrom = 64 // fewer values are looked up one by one

// ReadValues reads the values of versions that are alone at their keys, in key order, until they come to some bytes.
// keep returns a copy of a value. What is left, is not what was logged, or cannot be read, is not Read: it is to be
// looked up.
func (v *View) ReadValues(due []*Logged, most int, keep func(value []byte) []byte) {
	if len(due) < sortedFrom {
		return
	}
	slices.SortFunc(due, func(a, b *Logged) int { return bytes.Compare(a.Key, b.Key) })
	f := store.NewFinder(v, store.Visible(nil))
	defer f.Release()
	for _, e := range due {
		value, ok, err := f.Find(e.Key, keep)
		if err != nil {
			return
		}
		if ok {
			e.Value = value
			e.Read = e.CheckValue() == nil
		}
		if most -= len(value); most < 0 {
			return
		}
	}
}

// indexOf looks a key up. One whose log-index is corrupted, which Verify names, is not
// readable; that the store cannot be read is an error.
func (v *View) indexOf(key []byte) (s store.Siblings, readable bool, err error) {
	rec, err := v.Get(store.KindKey(store.KindIndex, key), nil)
	switch {
	case err == leveldb.ErrNotFound:
		return nil, true, nil
	case err != nil:
		return nil, false, err
	}
	s, err = store.DecodeIndex(rec, v)
	return s, err == nil, nil
}
