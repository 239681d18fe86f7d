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
		ds.Made[replica.Question{Key: string(o.Key), Names: store.Siblings(o.Vs).DotSum()}] = replica.Decide(db.resolve, o.Key, o.Vs)
	}
	ds.Open = nil
	return nil
}

// resolve calls the resolver, which is called by one goroutine at a time.
func (db *DB) resolve(key []byte, a, b *store.Version) store.Version {
	db.resolving <- struct{}{}
	defer func() { <-db.resolving }()
	return db.opts.Resolver.internal()(key, a, b)
}
