package replicator

import (
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// decide asks the resolver for all that is open, with the queue free.
func (db *DB) decide(ds *replica.Decisions) error {
	if ds.Made == nil {
		ds.Made = map[replica.Question]replica.Decision{}
	}
	ds.Rounds++
	for _, o := range ds.Open {
		if db.isClosing() {
			return leveldb.ErrClosed
		}
		ds.Made[replica.Question{Key: string(o.Key), Names: store.Siblings(o.Vs).DotSum()}] = replica.Decide(db.decider.resolve, o.Key, o.Vs)
	}
	ds.Open = nil
	return nil
}

// decider calls the resolver, from one goroutine at a time.
type decider struct {
	resolver Resolver
	quick    bool          // it is one of this package, and may be called with the queue's slot held
	turn     chan struct{} // capacity 1: holds a place while the resolver is called
}

func newDecider(r Resolver) decider {
	return decider{resolver: r, quick: r.quick(), turn: make(chan struct{}, 1)}
}

func (d *decider) resolve(key []byte, a, b *store.Version) store.Version {
	d.turn <- struct{}{}
	defer func() { <-d.turn }()
	return d.resolver.internal()(key, a, b)
}
