package replicator

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

// queue is the one place that commits. Every writer joins it, and the one that
// gets the slot first commits for all that wait, in one batch, so that
// writers with Sync share an fsync as they do in goleveldb itself.
type queue struct {
	raw     *leveldb.DB
	replica *replica.Replica     // guarded by the slot
	slot    chan struct{}        // capacity 1
	commits func(t *replica.Txn) // called with the slot held, after each commit
	failed  func(error)          // called with the slot held, once the store failed to write
	starved func(error)          // called with the slot held, when file handles are wanting; with nil when they no longer are

	shortage shortage            // guarded by the slot
	guards   map[*guard]struct{} // of checked transactions that are being committed; guarded by the slot

	// Commits that have begun, and the last of these that the replica has taken in: while the two are equal
	// and do not change, store and cache say the same. Written with the slot held.
	begun, taken atomic.Uint64

	requests sync.Pool     // of *request; one for each database, as a channel of one bubble is no good in another
	over     chan struct{} // closed when Close is through or has given up: nobody waits any more

	mu      sync.Mutex
	waiting []*request
	err     error // once set, nothing is committed any more
}

// request returns one that was used before, or a new one.
func (q *queue) request() *request {
	if r, ok := q.requests.Get().(*request); ok {
		return r
	}
	return &request{done: make(chan error, 1)}
}

// request is something to be staged and committed.
type request struct {
	writes  []store.Write              // of a caller, or
	stage   func(t *replica.Txn) error // of the replica itself
	check   func(t *replica.Txn) error // an error refuses the writes; nil: they are made in any case
	sync    bool
	refused error            // what check returned when it was called last
	notable []replica.Change // of what it did, for the caller to report

	decisions *replica.Decisions // nil: the resolver is asked while the request is staged
	done      chan error
	// answered reports whether an answer was taken from done. If not, the queue may
	// still hold the request.
	answered bool
}

// size estimates, from above, what a caller's writes come to with log and index,
// unless they meet versions of others.
func (req *request) size() int { return store.SizeOf(req.writes) }

// acquire waits for the slot and reports whether it got it. It does not if Close gave up on
// the store: whoever holds the slot then may never release it.
func (q *queue) acquire() bool {
	if q.tryAcquire() {
		return true
	}
	select {
	case q.slot <- struct{}{}:
		return true
	case <-q.over:
		return false
	}
}

func (q *queue) tryAcquire() bool {
	select {
	case q.slot <- struct{}{}:
		return true
	default:
		return false
	}
}

func (q *queue) release() { <-q.slot }

// with calls f with the slot held, or not at all: see acquire.
func (q *queue) with(f func(r *replica.Replica)) {
	if q.acquire() {
		defer q.release()
		f(q.replica)
	}
}

// do has a request committed.
func (q *queue) do(req *request) error {
	q.mu.Lock()
	q.waiting = append(q.waiting, req)
	q.mu.Unlock()
	if q.tryAcquire() { // it is free more often than not
		q.lead()
		q.release()
	}
	for {
		if given, err := req.answer(); given {
			return err
		}
		select {
		case err := <-req.done:
			req.answered = true
			return err
		case q.slot <- struct{}{}: // acquire cannot wait for an answer as well
			q.lead()
			q.release()
		case <-q.over:
			if given, err := req.answer(); given {
				return err
			}
			return leveldb.ErrClosed
		}
	}
}

// answer takes the answer, if there is one.
func (req *request) answer() (given bool, err error) {
	select {
	case err := <-req.done:
		req.answered = true
		return true, err
	default:
		return false, nil
	}
}

// lead commits for those that wait, as many as fit into one batch at a time.
func (q *queue) lead() {
	group, err := q.next()
	for len(group) > 0 && err == nil {
		var n int
		n, err = q.commit(group)
		group = group[n:]
	}
	for _, req := range group {
		req.done <- err
	}
}

// next takes the requests to commit: all small ones that wait, and one large one
// behind them. Further large ones stay, each with a goroutine that will lead, so that a
// small one waits for one of them at most.
func (q *queue) next() (group []*request, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var large []*request
	group = q.waiting[:0]
	for _, req := range q.waiting {
		if req.size() > store.GroupSize {
			large = append(large, req)
		} else {
			group = append(group, req)
		}
	}
	q.waiting = nil
	if len(large) > 0 {
		group, q.waiting = append(group, large[0]), large[1:]
	}
	return group, q.err
}

// commit stages and commits the first requests of a group, and returns how many
// were answered. An error is one that refuses all others, too.
func (q *queue) commit(group []*request) (int, error) {
	t, staged, bad, badErr := q.stageGroup(group)
	if badErr != nil {
		if staged == 0 { // the first: nothing else was staged
			group[bad].done <- badErr
			return 1, nil
		}
		// It may have left something in the batch: once more, without it.
		if t, staged, _, badErr = q.stageGroup(group[:bad]); badErr != nil {
			group[0].done <- badErr
			return 1, nil
		}
	}
	if err := q.write(t); err != nil {
		for _, req := range group[:staged] {
			req.done <- err
		}
		return staged, err
	}
	for _, req := range group[:staged] {
		req.done <- req.refused // also if that rests on others of the group: they are committed
	}
	return staged, nil
}

func (q *queue) stageGroup(group []*request) (t *replica.Txn, staged, bad int, err error) {
	t = q.replica.Begin()
	for i, req := range group {
		if i > 0 && !joins(t, group[i-1], req) {
			break
		}
		if req.refused = nil; req.check != nil {
			req.refused = req.check(t) // W6: after all that will be committed before it
		}
		if req.refused != nil {
			staged++
			continue
		}
		before := len(t.Changes)
		if t.Decisions = req.decisions; req.stage != nil {
			err = req.stage(t)
		} else {
			err = t.Put(req.writes)
		}
		if err == nil && t.Decisions.Undecided() {
			err = errUndecided
		}
		if err != nil {
			return t, staged, i, err
		}
		req.notable = notable(t.Changes[before:])
		t.Sync = t.Sync || req.sync
		staged++
	}
	return t, staged, 0, nil
}

// notable returns the changes that there are events for, with memory of their own.
func notable(changes []replica.Change) (list []replica.Change) {
	for _, c := range changes {
		if c.Panicked != nil || !c.Same && (c.Conflict || c.WasConflict) {
			c.Versions = slices.Clone(c.Versions)
			list = append(list, c)
		}
	}
	return list
}

// joins reports whether a request may go into the batch of those before it.
func joins(t *replica.Txn, before, req *request) bool {
	if t.Alone {
		return false
	}
	if before.stage != nil || req.stage != nil {
		return t.Size() <= replica.GroupSlack && req.size() <= replica.GroupSlack
	}
	return t.Size()+req.size() <= store.GroupSize
}

// write commits a transaction. After the first write that fails none is tried:
// goleveldb keeps the failed record in its journal and may let it replace a later
// one at the next opening. One that fails for want of a file handle is no such write:
// see store.
func (q *queue) write(t *replica.Txn) error {
	if t.Empty() {
		return nil
	}
	batch := t.Finish()
	if t.Batch.Size() > store.KeptBatch { // it may be long until the next begins
		defer t.Clear()
	}
	q.begun.Add(1)
	if batch.Len() > 0 {
		if err := q.store(batch, &opt.WriteOptions{Sync: t.Sync}); err != nil {
			t.Batch.All = nil // it may be in doubt, or goleveldb still at it
			return err
		}
	}
	q.replica.Apply(t, t.Sync)
	q.taken.Store(q.begun.Load())
	for g := range q.guards {
		g.note(t)
	}
	q.commits(t)
	return nil
}

// fail refuses everything from now on, with an error that says why.
func (q *queue) fail(cause error) error {
	err := fmt.Errorf("%w: %w", ErrFailed, cause)
	q.close(err)
	q.failed(cause)
	return err
}

// close answers all that is still to be committed with an error.
func (q *queue) close(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil {
		q.err = err
	}
}

// broken is why nothing is committed any more, or nil.
func (q *queue) broken() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}
