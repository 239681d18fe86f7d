package replica

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

// Tidying makes good what a crash left undone: it counts what the store holds, and deletes stale log
// entries if there are any (O10, O4). It reads with the queue free, goes on where it was, and holds up nothing: until it
// is done whoever reads the log checks each entry, and nothing is said of what was not counted.
type Tidying struct {
	Done  bool
	Step  int    // records that are read in one state; 0: as many as is usual
	Swept int64  // log entries that were looked at, of a sweep
	from  []byte // the log key at which it goes on
}

// Next goes on with some more.
func (p *Tidying) Next(h keeper) error {
	var counting, stale bool
	h.With(func(r *Replica) { counting, stale = r.census != nil, r.MayHaveStale })
	switch {
	case counting:
		return countOn(h, p.Step)
	case stale:
		return p.sweep(h)
	}
	p.Done = true
	return nil
}
