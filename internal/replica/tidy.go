package replica

import (
	"cmp"
)

// keeper is what maintenance needs of whoever owns the replica.
type keeper interface {
	// With calls f while nothing else uses the replica. f must not wait.
	With(f func(r *Replica))
	// Commit stages a transaction and commits it.
	Commit(stage func(t *Txn) error) error
	// Each has something staged and committed for all of some keys, a few at a time, so
	// that nobody waits long. Its first error is the last.
	Each(keys [][]byte, stage Stager) error
}

// Stager stages something for the first of some keys, for one at least, and returns for
// how many.
type Stager func(t *Txn, keys [][]byte) (done int, err error)

// OneByOne makes a stager of what is staged for one key.
func OneByOne(stage func(t *Txn, key []byte) error) Stager {
	return func(t *Txn, keys [][]byte) (done int, err error) {
		for done < len(keys) && (done == 0 || !t.Large()) {
			if err := stage(t, keys[done]); err != nil {
				return done, err
			}
			done++
		}
		return done, nil
	}
}

// Tidying does what every opening has to: it clears away what a crash left in the log, and
// has the resolver, which may be another one than last time, resolve keys in conflict
// again. Both are read with the queue free, go on where they were, and hold up
// nothing: while the log may hold such entries, whoever reads it checks each one.
type Tidying struct {
	Began, Swept, Done bool
	from               []byte // where to go on
	Step               int    // log entries, or keys in conflict, that are read in one state; 0: as many as is usual
}

const (
	sweepStep   = 4096
	resolveStep = 256
)

// Next goes on with some more. It ends early, but not without having done something, when
// enough says so.
func (p *Tidying) Next(h keeper, resolve ResolveFunc, enough func() bool) error {
	if !p.Began {
		h.With(func(r *Replica) { p.Swept = !r.MayHaveStale })
		p.Began = true
	}
	v, err := TakeView(h.With, nil)
	if err != nil {
		return err
	}
	if !p.Swept {
		return p.sweep(h, v)
	}
	return p.resolve(h, v, resolve, enough)
}

// sweep deletes log entries that a crash left and that no log-index names.
func (p *Tidying) sweep(h keeper, v *View) error {
	stale, next, err := v.stale(p.from, cmp.Or(p.Step, sweepStep))
	v.Release()
	if err == nil && len(stale) > 0 {
		err = h.Each(stale, OneByOne((*Txn).sweep))
	}
	if err == nil && next == nil {
		err = h.Commit(func(t *Txn) error { t.swept = true; return nil })
		p.Swept = err == nil
	}
	if err == nil {
		p.from = next
	}
	return err
}

// resolve has keys in conflict resolved again, and stages those that come out differently.
func (p *Tidying) resolve(h keeper, v *View, resolve ResolveFunc, enough func() bool) error {
	keys, next, err := v.unresolved(p.from, cmp.Or(p.Step, resolveStep), resolve, enough)
	v.Release()
	if err == nil && len(keys) > 0 {
		err = h.Each(keys, OneByOne((*Txn).resolveConflicts))
	}
	if err == nil {
		p.from, p.Done = next, next == nil
	}
	return err
}
