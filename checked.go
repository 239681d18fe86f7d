package replicator

import (
	"bytes"
	"errors"

	"github.com/level-replicator/replicator/internal/overlay"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// OpenCheckedTransaction opens a transaction that remembers what is read through it, and whose Commit
// fails with [ErrChanged] if any of that has changed since it was opened, by a write here or one that was pulled
// in: a key that Get or Has was asked for, whether it was there or not, or one anywhere in a range that an
// iterator has passed, new ones included. How far an iterator went is what counts, not how far it could have
// gone; what the transaction itself has written it has not read. So its effect is as if all of it had been
// done at Commit. Of other replicas this says as little as [DB.PutIf] does.
//
// A key has changed when its siblings have (see [Cond]); one in Options.LocalRanges, when its value is
// another.
//
// Any number of checked transactions may be open at once, and they wait for no other transaction. Each remembers
// every key that was looked up, and two keys for each range: one pass over a million keys takes no more memory
// than one over two. Commit reads the index of what was read again, twice, while other writers go on, unless
// nothing has been written since the transaction was opened. It checks a transaction without writes, too.
func (db *DB) OpenCheckedTransaction() (*Transaction, error) {
	if err := db.admit(nil); err != nil {
		return nil, err
	}
	if err := db.queue.broken(); err != nil {
		return nil, err
	}
	c := &checked{since: db.queue.taken.Load()}
	c.still = db.queue.begun.Load() == c.since
	base, err := db.raw.GetSnapshot()
	if err != nil {
		return nil, err
	}
	c.still = c.still && db.queue.begun.Load() == c.since
	return db.newTransaction(base, c)
}

// checked is what a checked transaction has read.
type checked struct {
	reads overlay.Reads
	still bool   // its state is the one after the commit since
	since uint64 // queue.taken
}

func (c *checked) note(key []byte) {
	if c != nil {
		c.reads.Note(key)
	}
}

// commit has the writes of a transaction committed if nothing has changed that it read of base. What it read is
// compared with the present state outside of the queue, and a guard notices what changes from then on (W8).
func (c *checked) commit(db *DB, base *leveldb.Snapshot, ws []store.Write, wo *opt.WriteOptions) error {
	g := &guard{spans: c.reads.Spans()}
	var same bool
	var now *replica.View
	err := leveldb.ErrClosed
	db.with(func(r *replica.Replica) {
		if same, err = c.still && db.queue.begun.Load() == c.since, nil; !same {
			var v replica.View
			v, err = r.Look()
			now = &v
		}
		db.queue.watch(g)
	})
	if err != nil {
		return err
	}
	defer db.with(func(*replica.Replica) { db.queue.unwatch(g) })
	if !same {
		err := g.compare(base, now, db.opts.LocalRanges)
		now.Release()
		if err != nil {
			return err
		}
	}
	return db.writeIf(ws, g.check, wo)
}

// guard is what a transaction has read, and what has changed of it.
type guard struct {
	spans overlay.Spans
	moved error // nil: nothing; the queue's slot guards it
}

func (q *queue) watch(g *guard) {
	if q.guards == nil {
		q.guards = map[*guard]struct{}{}
	}
	q.guards[g] = struct{}{}
}

func (q *queue) unwatch(g *guard) { delete(q.guards, g) }

// note notes what a transaction of the replica changes. The queue's slot is held.
func (g *guard) note(t *replica.Txn) {
	if g.moved == nil {
		g.moved = g.movedBy(t)
	}
}

// check returns ErrChanged if anything has changed, or will have with what is staged already.
func (g *guard) check(t *replica.Txn) error {
	if g.moved != nil {
		return g.moved
	}
	return g.movedBy(t)
}

func (g *guard) movedBy(t *replica.Txn) error {
	for i := range t.Changes {
		if c := &t.Changes[i]; g.spans.Contains(c.Key) && !replica.SameTo(c.Old, c.Versions) {
			return changed(c.Key)
		}
	}
	for _, key := range t.Beside {
		if g.spans.Contains(key) {
			return changed(key)
		}
	}
	return nil
}

// compare returns ErrChanged if two states differ in what was read.
func (g *guard) compare(was store.Reader, now *replica.View, local []*util.Range) error {
	for i := range g.spans {
		span := &g.spans[i]
		index := &util.Range{Start: store.KindKey(store.KindIndex, span.Start), Limit: store.KindKey(store.KindIndex, span.Limit)}
		err := differs(was, now, index, overlay.IsKey(span), func(key, a, b []byte) error {
			s, err := siblingsOf(a, now)
			if err != nil {
				return err
			}
			t, err := siblingsOf(b, now)
			if err == nil && !replica.SameTo(s, t) {
				err = changed(store.UserKey(key))
			}
			return err
		})
		if err != nil {
			return err
		}
		for _, l := range local {
			err := differs(was, now, common(span, l), false, func(key, _, _ []byte) error { return changed(key) })
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// common returns what two ranges have in common; nil limits are none.
func common(a, b *util.Range) *util.Range {
	r := *a
	if bytes.Compare(b.Start, r.Start) > 0 {
		r.Start = b.Start
	}
	if r.Limit == nil || b.Limit != nil && bytes.Compare(b.Limit, r.Limit) < 0 {
		r.Limit = b.Limit
	}
	if r.Limit != nil && bytes.Compare(r.Start, r.Limit) > 0 {
		r.Start = r.Limit
	}
	return &r
}

// siblingsOf decodes a log-index, which may be none.
func siblingsOf(rec []byte, v *replica.View) (store.Siblings, error) {
	if len(rec) == 0 {
		return nil, nil
	}
	return store.DecodeIndex(rec, v)
}

// differs calls f for each key of a range whose values in two states are not the same, nil standing for none,
// and ends with the first error. If one reports that it begins with the only key that counts, no other is read.
func differs(was, now store.Reader, r *util.Range, one bool, f func(key, a, b []byte) error) error {
	if one {
		return differsAt(was, now, r.Start, f)
	}
	a, b := was.NewIterator(r, nil), now.NewIterator(r, nil)
	defer a.Release()
	defer b.Release()
	inA, inB := a.Next(), b.Next()
	for inA || inB {
		order := 0
		switch {
		case !inB:
			order = -1
		case !inA:
			order = 1
		default:
			order = bytes.Compare(a.Key(), b.Key())
		}
		var err error
		switch {
		case order < 0:
			err = f(a.Key(), a.Value(), nil)
		case order > 0:
			err = f(b.Key(), nil, b.Value())
		case !bytes.Equal(a.Value(), b.Value()):
			err = f(a.Key(), a.Value(), b.Value())
		}
		if err != nil {
			return err
		}
		if order <= 0 {
			inA = a.Next()
		}
		if order >= 0 {
			inB = b.Next()
		}
	}
	return errors.Join(a.Error(), b.Error())
}

// differsAt is differs for one key.
func differsAt(was, now store.Reader, key []byte, f func(key, a, b []byte) error) error {
	a, inA := was.Get(key, nil)
	b, inB := now.Get(key, nil)
	for _, err := range []error{inA, inB} {
		if err != nil && err != leveldb.ErrNotFound {
			return err
		}
	}
	if inA == inB && bytes.Equal(a, b) {
		return nil
	}
	return f(key, a, b)
}
