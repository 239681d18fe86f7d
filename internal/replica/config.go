package replica

import (
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/indexcache"
	"github.com/level-replicator/replicator/internal/store"
)

// Config is what a replica needs.
type Config struct {
	Store   store.Store
	Draw    func() causal.Origin
	Now     func() time.Time
	Resolve ResolveFunc
	Local   func(key []byte) bool // keys that are neither logged nor taken from peers; may be nil

	MaxKey, MaxValue int
	MaxSkew          time.Duration
	TombstoneTTL     time.Duration // negative: deletions are never purged by age
	PeerTTL          time.Duration
	CacheSize        int // bytes for log-indexes that were read or written lately; 0 for none
	MostCache        int // up to which that grows with the number of keys; 0: it does not
	FilterSize       int // bytes for the filter that knows which keys are new; 0 for none
}

// New returns a replica. It must be opened before anything else.
func New(c Config) *Replica {
	return &Replica{
		Config:     c,
		identity:   identity{Own: map[causal.Origin]bool{}, Alias: map[causal.Origin]uint32{}},
		membership: membership{Members: map[causal.Origin]*Member{}, Succeeded: map[causal.Origin]bool{}},
		caches:     caches{Cache: indexcache.Cache{Limit: c.CacheSize}, Filter: indexcache.Filter{Limit: c.FilterSize}},
		outside:    new(outside),
	}
}
