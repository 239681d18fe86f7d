package replica

import (
	"errors"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
)

// A resolver of the caller's may take long, and everybody waits for whoever holds the
// queue. So it is not called while a transaction is staged: what it would have to decide
// is collected, the transaction given up, the resolver asked with the queue free, and the
// transaction staged again with its answers. Only a key whose siblings change again and
// again meanwhile is decided while staging.

// Decisions are what a resolver was asked for one request.
type Decisions struct {
	Made   map[Question]Decision
	Open   []openConflict // to be asked
	Rounds int            // in which it was
}

// Question is a key with certain siblings. Versions never change, so neither does it.
type Question struct {
	Key   string
	Names causal.Sum
}

// Decision is what a resolver answered.
type Decision struct {
	Shown    store.Version
	panicked any
}

type openConflict struct {
	Key []byte
	Vs  []store.Version
}

// DecisionRounds is how often a request may be given up for what changed meanwhile.
const DecisionRounds = 8

// ErrUndecided ends the staging of a request that a resolver has to be asked for.
var ErrUndecided = errors.New("replicator: a resolver has to be asked first")

// resolve returns what a key with several siblings shows. The answer may be one to go on
// with only: then the request is given up in the end.
func (t *Txn) resolve(key []byte, vs []store.Version) (shown store.Version, panicked any) {
	ds := t.Decisions
	if ds == nil || !InConflict(vs) {
		return Resolve(t.R.Resolve, key, vs)
	}
	q := Question{string(key), store.Siblings(vs).DotSum()}
	if d, ok := ds.Made[q]; ok {
		return d.Shown, d.panicked
	}
	if ds.Rounds >= DecisionRounds {
		ds.Made[q] = Decide(t.R.Resolve, key, vs)
		return ds.Made[q].Shown, ds.Made[q].panicked
	}
	ds.Open = append(ds.Open, openConflict{slices.Clone(key), slices.Clone(vs)})
	return Resolve(HighestClock, key, vs)
}

// Decide asks a resolver. What it returns may be its own.
func Decide(resolve ResolveFunc, key []byte, vs []store.Version) Decision {
	shown, panicked := Resolve(resolve, key, vs)
	shown.Value = slices.Clone(shown.Value)
	return Decision{shown, panicked}
}
