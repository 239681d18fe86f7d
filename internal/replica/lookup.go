package replica

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/indexcache"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// caches save reads of log-indexes.
type caches struct {
	Cache  indexcache.Cache
	Filter indexcache.Filter
}

// outside is what goroutines may use that do not hold the replica.
type outside struct {
	cache   sync.RWMutex // held by them, and by whoever changes the cache
	aliases atomic.Pointer[store.AliasTable]
}

// Peek appends the log-index record of a key to b if it is cached, nothing if the key is known to have
// none. Any goroutine may call it at any time; a commit that is under way may not have reached the cache.
func (r *Replica) Peek(b, key []byte) (rec []byte, cached bool) {
	r.outside.cache.RLock()
	defer r.outside.cache.RUnlock()
	rec, cached = r.Cache.Peek(key)
	return append(b, rec...), cached
}

// Aliases returns the aliases of all that is committed, and perhaps more. Any goroutine may call it at
// any time.
func (r *Replica) Aliases() *store.AliasTable { return r.outside.aliases.Load() }

// remember caches what a change made of a log-index.
func (r *Replica) remember(c *Change) {
	r.outside.cache.Lock()
	defer r.outside.cache.Unlock()
	if c.Local {
		r.Cache.Put(c.Key, c.index)
	} else {
		r.Cache.Update(c.Key, c.index)
	}
}

// cacheRecord caches a log-index that was read.
func (r *Replica) cacheRecord(key, rec []byte) {
	r.outside.cache.Lock()
	defer r.outside.cache.Unlock()
	r.Cache.Put(key, rec)
}

// forgetCached empties the cache.
func (r *Replica) forgetCached() {
	r.outside.cache.Lock()
	defer r.outside.cache.Unlock()
	r.Cache = indexcache.Cache{Limit: r.Cache.Limit}
}

// cachePerKey is how many bytes of cache there are for each key at least, up to MostCache: enough
// for a third of the keys, if they have 16 bytes.
const cachePerKey = 16

// fitCache has the cache grow with the database.
func (r *Replica) fitCache() {
	if keys := r.Keys + r.Tombstones; keys > int64(r.Cache.Limit/cachePerKey) && r.Cache.Limit < r.MostCache {
		r.outside.cache.Lock()
		defer r.outside.cache.Unlock()
		r.Cache.Limit = int(min(keys*cachePerKey, int64(r.MostCache)))
	}
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
	r.outside.cache.Lock()
	rec, ok := r.Cache.Get(key)
	r.outside.cache.Unlock()
	if ok {
		return rec, nil
	}
	rec, err := r.Store.Get(store.KindKey(store.KindIndex, key), nil)
	if err != nil && err != leveldb.ErrNotFound {
		return nil, err
	}
	r.cacheRecord(key, rec)
	return rec, nil
}

func (r *Replica) decodeState(key, rec []byte, versions *store.Slab[store.Version], dots *store.Slab[causal.Dot]) (store.Siblings, error) {
	s, err := store.DecodeIndexInto(rec, r, versions, dots)
	if err != nil {
		return nil, fmt.Errorf("log-index of key %q: %w", key, err)
	}
	return s, nil
}
