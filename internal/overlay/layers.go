// Package overlay lays the staged writes of a transaction over a snapshot of the database.
package overlay

import (
	"slices"

	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb/comparer"
	"github.com/syndtr/goleveldb/leveldb/memdb"
)

// Layers are the writes of a transaction, oldest first. Writes go to the last; the others are
// immutable, so iterators need no copy.
type Layers []*memdb.DB

// maxLayers is the number at which they are joined.
const maxLayers = 8

// NewLayer returns an empty layer.
func NewLayer() *memdb.DB { return memdb.New(comparer.DefaultComparer, layerSize) }

// Put stages a write. It copies key and value.
func (ls Layers) Put(w *store.Write) error {
	v := append(make([]byte, 0, 1+len(w.Value)), stagedPut)
	if w.Deleted {
		v[0] = stagedGone
	}
	return ls[len(ls)-1].Put(w.Key, append(v, w.Value...))
}

// Get returns the staged write of a key. The value must not be kept.
func (ls Layers) Get(key []byte) (w store.Write, ok bool) {
	for _, l := range slices.Backward(ls) {
		if v, err := l.Get(key); err == nil {
			return store.Write{Key: key, Value: v[1:], Deleted: v[0] == stagedGone}, true
		}
	}
	return w, false
}

// Freeze returns the layers as they are now. Later writes go to a new one.
func (ls *Layers) Freeze() Layers {
	if (*ls)[len(*ls)-1].Len() == 0 {
		return slices.Clone((*ls)[:len(*ls)-1])
	}
	if len(*ls) >= maxLayers {
		ls.join()
	}
	frozen := slices.Clone(*ls)
	*ls = append(*ls, NewLayer())
	return frozen
}

// join merges the layers into one.
func (ls *Layers) join() {
	if len(*ls) == 1 {
		return
	}
	one := NewLayer()
	for _, l := range *ls {
		for it := l.NewIterator(nil); it.Next(); {
			one.Put(it.Key(), it.Value())
		}
	}
	*ls = Layers{one}
}

// Writes returns the last staged write of each key, in key order. They are valid until more
// is staged.
func (ls *Layers) Writes() (ws []store.Write) {
	ls.join()
	l := (*ls)[0]
	ws = make([]store.Write, 0, l.Len())
	it := l.NewIterator(nil)
	defer it.Release()
	for it.Next() {
		v := it.Value()
		ws = append(ws, store.Write{Key: it.Key(), Value: v[1:], Deleted: v[0] == stagedGone})
	}
	return ws
}
