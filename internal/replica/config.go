package replica

import (
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/indexcache"
	"github.com/level-replicator/replicator/internal/store"
)

// ReplicaConfig is what a replica is given when it is made.
type ReplicaConfig struct {
	Store   store.Store
	Draw    func() causal.Origin
	Now     func() time.Time
	Resolve ResolveFunc
	Local   func(key []byte) bool // keys that are neither logged nor taken from peers; may be nil

	MaxKey, MaxValue int
	MaxSkew          time.Duration
	TombstoneTTL     time.Duration // negative: deletions are never forgotten by age
	PeerTTL          time.Duration
	CacheSize        int // bytes for log-indexes that were read or written lately; 0 for none
	FilterSize       int // bytes for the filter that knows which keys are new; 0 for none
}

// NewReplica makes a replica. It must be opened before anything else.
func NewReplica(c ReplicaConfig) *Replica {
	return &Replica{ReplicaConfig: c, Cache: indexcache.Cache{Limit: c.CacheSize}, Filter: indexcache.Filter{Limit: c.FilterSize}}
}
