package replicator

import (
	"errors"
	"slices"

	"github.com/syndtr/goleveldb/leveldb"
)

// A resolver of the caller's may take long, and everybody waits for whoever holds the
// queue. So it is not called while a transaction is staged: what it would have to decide
// is collected, the transaction given up, the resolver asked with the queue free, and the
// transaction staged again with its answers. Only a key whose siblings change again and
// again meanwhile is decided while staging.

// decisions are what a resolver was asked for one request.
type decisions struct {
	made   map[question]decision
	open   []openConflict // to be asked
	rounds int            // in which it was
}

// question is a key with certain siblings. Versions never change, so neither does it.
type question struct {
	key   string
	names sum
}

type decision struct {
	shown    version
	panicked any
}

type openConflict struct {
	key []byte
	vs  []version
}

// decisionRounds is how often a request may be given up for what changed meanwhile.
const decisionRounds = 8

// errUndecided ends the staging of a request that a resolver has to be asked for.
var errUndecided = errors.New("replicator: a resolver has to be asked first")

// resolve gives what a key with several siblings shows. The answer may be one to go on
// with only: then the request is given up in the end.
func (t *txn) resolve(key []byte, vs []version) (shown version, panicked any) {
	ds := t.decisions
	if ds == nil || !disputed(vs) {
		return resolveAll(t.r.resolve, key, vs)
	}
	q := question{string(key), state(vs).names()}
	if d, ok := ds.made[q]; ok {
		return d.shown, d.panicked
	}
	if ds.rounds >= decisionRounds {
		ds.made[q] = decide(t.r.resolve, key, vs)
		return ds.made[q].shown, ds.made[q].panicked
	}
	ds.open = append(ds.open, openConflict{slices.Clone(key), slices.Clone(vs)})
	return resolveAll(highestClock, key, vs)
}

// decide asks a resolver. What it returns may be its own.
func decide(resolve resolveFunc, key []byte, vs []version) decision {
	shown, panicked := resolveAll(resolve, key, vs)
	shown.value = slices.Clone(shown.value)
	return decision{shown, panicked}
}

// decide asks the resolver for all that is open, with the queue free.
func (db *DB) decide(ds *decisions) error {
	if ds.made == nil {
		ds.made = map[question]decision{}
	}
	ds.rounds++
	for _, o := range ds.open {
		if db.isClosing() {
			return leveldb.ErrClosed
		}
		ds.made[question{string(o.key), state(o.vs).names()}] = decide(db.resolve, o.key, o.vs)
	}
	ds.open = nil
	return nil
}

// resolve calls the resolver, which is called by one goroutine at a time.
func (db *DB) resolve(key []byte, a, b *version) version {
	db.resolving <- struct{}{}
	defer func() { <-db.resolving }()
	return db.opts.Resolver.internal()(key, a, b)
}
