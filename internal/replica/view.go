package replica

import (
	"bytes"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
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

const (
	sortedFrom    = 64 // fewer values are looked up one by one
	seekThreshold = 32 // keys that are passed over rather than sought
)

// ReadValues reads the values of versions that are alone at their keys, in key order, until they come to some bytes.
// keep returns a copy of a value. What is left, or is not what was logged, is not Read: it is to be looked up.
func (v *View) ReadValues(due []*Logged, most int, keep func(value []byte) []byte) error {
	// Where keys lie far apart a lookup is as good, and better for values that were
	// written just now: it ends in the memtable, while an iterator moves in all tables.
	if v.MayHaveStale || len(due) < sortedFrom || v.Keys/int64(len(due)) > seekThreshold {
		return nil
	}
	slices.SortFunc(due, func(a, b *Logged) int { return bytes.Compare(a.Key, b.Key) })
	it := v.NewIterator(&util.Range{Limit: store.ReservedStart}, &opt.ReadOptions{DontFillCache: true})
	defer it.Release()
	at := false
	for _, e := range due {
		for i := 0; at && i < seekThreshold && bytes.Compare(it.Key(), e.Key) < 0; i++ {
			at = it.Next()
		}
		if !at || bytes.Compare(it.Key(), e.Key) < 0 {
			at = it.Seek(e.Key)
		}
		if at && bytes.Equal(it.Key(), e.Key) {
			e.Value = keep(it.Value())
			e.Read = e.CheckValue() == nil
		}
		if most -= len(e.Value); most < 0 {
			break
		}
	}
	return it.Error()
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
