package replica

import (
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
	made   map[question]decision
	open   []openConflict // to be asked
	rounds int            // in which it was
}

// question is a key with certain siblings. Versions never change, so neither does it.
type question struct {
	key   string
	names causal.Sum
}

// decision is what a resolver answered.
type decision struct {
	resolved store.Version
	panicked any
}

type openConflict struct {
	key []byte
	vs  []store.Version
}

// decisionRounds is how often a request may be given up for what changed meanwhile.
const decisionRounds = 8

// Undecided reports whether a resolver has to be asked before the request can be committed.
func (ds *Decisions) Undecided() bool { return ds != nil && len(ds.open) > 0 }

// Decide asks a resolver for all that is undecided, so that the request can be staged again. It
// reports whether it was not stopped.
func (ds *Decisions) Decide(resolve ResolveFunc, stop func() bool) bool {
	ds.rounds++
	for _, o := range ds.open {
		if stop() {
			return false
		}
		ds.decide(resolve, o.key, o.vs)
	}
	ds.open = nil
	return true
}

// decide asks a resolver. What it returns may be its own.
func (ds *Decisions) decide(resolve ResolveFunc, key []byte, vs []store.Version) decision {
	resolved, panicked := Resolve(resolve, key, vs)
	resolved.Value = slices.Clone(resolved.Value)
	if ds.made == nil {
		ds.made = map[question]decision{}
	}
	d := decision{resolved, panicked}
	ds.made[questionOf(key, vs)] = d
	return d
}

func questionOf(key []byte, vs []store.Version) question {
	return question{string(key), store.Siblings(vs).DotSum()}
}

// resolve returns the resolved value of a key with several siblings. The answer may be one to
// go on with only: then the request is given up in the end.
func (t *Txn) resolve(key []byte, vs []store.Version) (resolved store.Version, panicked any) {
	ds := t.Decisions
	if ds == nil || !InConflict(vs) {
		return Resolve(t.R.Resolve, key, vs)
	}
	d, ok := ds.made[questionOf(key, vs)]
	if !ok && ds.rounds < decisionRounds {
		ds.open = append(ds.open, openConflict{slices.Clone(key), slices.Clone(vs)})
		return Resolve(HighestClock, key, vs)
	}
	if !ok {
		d = ds.decide(t.R.Resolve, key, vs)
	}
	return d.resolved, d.panicked
}
