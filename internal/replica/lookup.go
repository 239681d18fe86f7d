package replica

import (
	"fmt"

	"github.com/level-replicator/replicator/internal/indexcache"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// caches save reads of log-indexes.
type caches struct {
	Cache  indexcache.Cache
	Filter indexcache.Filter
}

// Lookup returns the state of a key as committed.
func (r *Replica) Lookup(key []byte) (store.Siblings, error) {
	rec, err := r.indexRecord(key)
	if len(rec) == 0 || err != nil {
		return nil, err
	}
	return r.decodeState(key, rec, nil, nil)
}

// indexRecord returns the log-index of a key as committed, empty if it has none. It is
// valid until the next is asked for.
func (r *Replica) indexRecord(key []byte) ([]byte, error) {
	if r.Filter.Lacks(key) {
		return nil, nil
	}
	if rec, ok := r.Cache.Get(key); ok {
		return rec, nil
	}
	rec, err := r.Store.Get(store.KindKey(store.KindIndex, key), nil)
	if err != nil && err != leveldb.ErrNotFound {
		return nil, err
	}
	r.Cache.Put(key, rec)
	return rec, nil
}

func (r *Replica) decodeState(key, rec []byte, versions *store.Slab[store.Version], dots *store.Slab[causal.Dot]) (store.Siblings, error) {
	s, err := store.DecodeIndexInto(rec, r, versions, dots)
	if err != nil {
		return nil, fmt.Errorf("log-index of key %q: %w", key, err)
	}
	return s, nil
}
