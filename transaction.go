package replicator

import (
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/level-replicator/replicator/internal/overlay"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// goleveldb does not export its own, so only the text can be the same.
var errTransactionDone = errors.New("leveldb: transaction already closed")

// Transaction collects writes and applies them as one. It has the methods of
// *leveldb.Transaction and is safe for concurrent use.
//
// It reads a snapshot taken when it was opened, under its own writes, which are
// kept in memory until Commit. Unlike goleveldb's it does not block
// other writers and replication meanwhile, however long it is open: only other
// transactions wait. So what was read in it may be out of date at Commit, and
// Commit replaces what others wrote to the same keys since, as a Put would.
//
// [DB.OpenCheckedTransaction] opens one whose Commit refuses to do that if anything that was read in it has
// changed.
//
// Nor does it share two faults of goleveldb's: there, after a transaction that had
// come to tables is discarded, what the next one commits can be invisible; and an
// iterator of a discarded transaction shows what is written later.
type Transaction struct {
	db   *DB
	base *leveldb.Snapshot

	mu     sync.RWMutex
	closed bool
	layers overlay.Layers // the last takes writes, the others are frozen

	checked *checked // nil: Commit checks nothing
}

// OpenTransaction opens a transaction. There is one at a time: while another is
// open it waits, until that is committed or discarded or the database is closed
// (leveldb.ErrClosed). It fails as [DB.Put] does where nothing may be written.
//
// It must be committed or discarded; Close discards it.
func (db *DB) OpenTransaction() (*Transaction, error) {
	if err := db.admit(nil); err != nil {
		return nil, err
	}
	if err := db.queue.broken(); err != nil {
		return nil, err
	}
	select {
	case db.transactions.turn <- struct{}{}:
	case <-db.ending:
		return nil, leveldb.ErrClosed
	}
	base, err := db.raw.GetSnapshot()
	if err != nil {
		<-db.transactions.turn
		return nil, err
	}
	return db.newTransaction(base, nil)
}

func (db *DB) newTransaction(base *leveldb.Snapshot, c *checked) (*Transaction, error) {
	tr := &Transaction{db: db, base: base, layers: overlay.Layers{overlay.NewLayer()}, checked: c}
	db.transactions.add(tr)
	if db.isClosing() { // and Close may not have seen it
		tr.Discard()
		return nil, leveldb.ErrClosed
	}
	return tr, nil
}

// transactions lets one transaction be open at a time, beside those that are checked.
type transactions struct {
	turn chan struct{} // capacity 1: holds a place while one is open that is not checked

	mu   sync.Mutex
	open map[*Transaction]struct{}
}

func (ts *transactions) add(tr *Transaction) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.open == nil {
		ts.open = map[*Transaction]struct{}{}
	}
	ts.open[tr] = struct{}{}
}

func (ts *transactions) remove(tr *Transaction) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	delete(ts.open, tr)
}

// discard discards the transactions that are open.
func (ts *transactions) discard() {
	ts.mu.Lock()
	open := slices.Collect(maps.Keys(ts.open))
	ts.mu.Unlock()
	for _, tr := range open {
		tr.Discard()
	}
}

// Get gets the value of a key as the transaction has it, or leveldb.ErrNotFound.
// The caller owns the slice.
func (tr *Transaction) Get(key []byte, ro *opt.ReadOptions) ([]byte, error) {
	tr.mu.RLock()
	defer tr.mu.RUnlock()
	if tr.over() {
		return nil, errTransactionDone
	}
	if w, ok := tr.layers.Get(key); ok {
		if w.Deleted {
			return nil, leveldb.ErrNotFound
		}
		return slices.Clone(w.Value), nil
	}
	tr.checked.note(key)
	return get(tr.base, key, ro)
}

// Has reports whether the transaction has a value for a key.
func (tr *Transaction) Has(key []byte, ro *opt.ReadOptions) (bool, error) {
	tr.mu.RLock()
	defer tr.mu.RUnlock()
	if tr.over() {
		return false, errTransactionDone
	}
	if w, ok := tr.layers.Get(key); ok {
		return !w.Deleted, nil
	}
	tr.checked.note(key)
	return has(tr.base, key, ro)
}

// NewIterator returns an iterator over the keys in a range, or over all if it is nil,
// as the transaction has them now. It must be released, and may outlive the
// transaction.
func (tr *Transaction) NewIterator(slice *util.Range, ro *opt.ReadOptions) iterator.Iterator {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.over() {
		return iterator.NewEmptyIterator(errTransactionDone)
	}
	slice = store.Visible(slice)
	sources := []iterator.Iterator{}
	for _, l := range slices.Backward(tr.layers.Freeze()) {
		sources = append(sources, l.NewIterator(slice))
	}
	it := &overlay.Iterator{Sources: append(sources, tr.base.NewIterator(slice, ro))}
	if tr.checked != nil {
		return tr.checked.reads.Record(it, slice)
	}
	return it
}

// Put sets the value of a key. The write options count for nothing: Commit always
// writes with Sync. It is safe to modify key and value after Put returns.
func (tr *Transaction) Put(key, value []byte, wo *opt.WriteOptions) error {
	return tr.stage([]store.Write{{Key: key, Value: value}})
}

// Delete deletes the value of a key. It is no error if there is none.
func (tr *Transaction) Delete(key []byte, wo *opt.WriteOptions) error {
	return tr.stage([]store.Write{{Key: key, Deleted: true}})
}

// Write applies a batch to the transaction, in order: all of it or, on an error,
// nothing.
func (tr *Transaction) Write(b *leveldb.Batch, wo *opt.WriteOptions) error {
	if b == nil || b.Len() == 0 {
		return nil
	}
	ws := writes{make([]store.Write, 0, b.Len())}
	if err := b.Replay(&ws); err != nil {
		return err
	}
	return tr.stage(ws.list)
}

func (tr *Transaction) stage(ws []store.Write) error {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.over() {
		return errTransactionDone
	}
	for i := range ws {
		if err := tr.db.queue.replica.CheckUser(ws[i].Key, ws[i].Value); err != nil {
			return err
		}
	}
	for i := range ws {
		if err := tr.layers.Put(&ws[i]); err != nil {
			return err
		}
	}
	return nil
}

// Commit applies the transaction, in one batch that is on disk when Commit returns.
// If it returns an error nothing was applied, unless it is ErrFailed; the
// transaction is still open and can be committed again or discarded. That of a checked
// transaction which returned [ErrChanged] can only be discarded: what has changed has
// changed.
//
// The batch is logged like any other: other replicas see all of it at once if it
// is within the bound that [DB.Write] names. A large one holds up other writers
// while it is committed.
func (tr *Transaction) Commit() error {
	if tr.db.isClosing() {
		return leveldb.ErrClosed
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.over() {
		return errTransactionDone
	}
	ws := tr.layers.Writes()
	var err error
	switch wo := (&opt.WriteOptions{Sync: true}); {
	case tr.checked != nil:
		err = tr.checked.commit(tr.db, tr.base, ws, wo)
	case len(ws) > 0:
		err = tr.db.write(ws, wo)
	}
	if err != nil {
		return err
	}
	tr.close()
	return nil
}

// Discard ends the transaction and drops its writes. It does nothing if the transaction has ended.
func (tr *Transaction) Discard() {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if !tr.closed {
		tr.close()
	}
}

// over reports whether nothing can be done any more: Close ends a transaction at
// once, also while it still waits to discard it. mu is held.
func (tr *Transaction) over() bool { return tr.closed || tr.db.isClosing() }

// close lets the next one open. mu is held.
func (tr *Transaction) close() {
	tr.closed, tr.layers = true, nil
	tr.base.Release()
	tr.db.transactions.remove(tr)
	if tr.checked == nil {
		<-tr.db.transactions.turn
	}
}
