package sim

import "github.com/level-replicator/replicator/internal/replica"

// testHost is a replica without a shell.
type testHost interface {
	With(f func(r *replica.Replica))
	Commit(stage func(t *replica.Txn) error) error
}

// testKeeper looks after its store, with so many keys in one transaction.
type testKeeper struct {
	testHost
	step   int
	staged func(t *replica.Txn) // called for each transaction; may be nil
}

func (k testKeeper) Each(keys [][]byte, stage replica.Stager) error {
	for len(keys) > 0 {
		done := 0
		err := k.Commit(func(t *replica.Txn) (err error) {
			done, err = stage(t, keys[:min(k.step, len(keys))])
			if k.staged != nil {
				k.staged(t)
			}
			return err
		})
		if err != nil {
			return err
		}
		keys = keys[done:]
	}
	return nil
}

// LookOnce has a replica look at all its tombstones, some at a time, and forget those that
// may be.
func LookOnce(h testHost, step int) error {
	var p *replica.Purging
	h.With(func(r *replica.Replica) { p = r.BeginPurge() })
	for p.Step = step; !p.Done; {
		if err := p.Next(testKeeper{testHost: h, step: (step + 1) / 2}); err != nil {
			return err
		}
	}
	return nil
}

// TidyUp does the rest of an opening.
func TidyUp(h testHost, step int, enough func() bool) error {
	if err := ResolveAll(h, step, enough); err != nil {
		return err
	}
	for p := new(replica.Tidying); !p.Done; {
		if err := TidyOn(h, step, p); err != nil {
			return err
		}
	}
	return nil
}

// TidyOn does some of it.
func TidyOn(h testHost, step int, p *replica.Tidying) error {
	return p.Next(testKeeper{testHost: h, step: step})
}

// ReissueSome reissues at most so many orphans, and reports whether there were any.
func ReissueSome(h testHost, p *replica.Reissuing, limit int) (more bool, err error) {
	return p.Next(testKeeper{testHost: h}, limit)
}

// ResolveAll has keys in conflict resolved again.
func ResolveAll(h testHost, step int, enough func() bool) error {
	var resolve replica.ResolveFunc
	h.With(func(r *replica.Replica) { resolve = r.Resolve })
	for p := new(replica.Resolving); !p.Done; {
		if err := p.Next(testKeeper{testHost: h, step: step}, resolve, enough); err != nil {
			return err
		}
	}
	return nil
}

func Never() bool { return false }
