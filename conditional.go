package replicator

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

// VersionID names one write: the origin that it was made under, and its position in that origin's log,
// from 1. No two writes of a cluster have the same. VersionIDs are compared with ==.
type VersionID struct {
	Origin Origin
	Seq    uint64
}

// ID returns the name of the version.
func (v Version) ID() VersionID { return VersionID{v.Origin, v.Seq} }

// Value is what [DB.Read] returns of a key.
type Value struct {
	// Bytes is the resolved value, as Get returns it: nil if there is none, and never nil if there is one,
	// even if it is empty. The caller owns it.
	Bytes []byte
	// Seen are the key's siblings, in no order. A write of the key on the condition of Seen ([DB.PutIf])
	// replaces these and no others. It is nil if none of them holds a value: if the key was never written,
	// or is deleted.
	Seen []VersionID
	// Conflict reports whether the siblings differ in content, so that Bytes is what the resolver makes
	// of them.
	Conflict bool
}

// Cond is a condition of [DB.WriteIf]: it holds as long as the siblings of Key are exactly those in Seen,
// which is what [DB.Read] returned. If Seen is empty it holds as long as the key has no value, and it is all
// the same whether the key was never written or has been deleted, and whether the deletion has been purged.
//
// What counts are the siblings, not the value that reads return. If the resolver decides for the deletion
// between a deletion and a concurrent Put, reads return leveldb.ErrNotFound, and the Put is there all
// the same: only Seen of a Read, which names both, is a condition that holds.
type Cond struct {
	Key  []byte
	Seen []VersionID
}

// ErrChanged refuses a conditional write: a key is not as the caller saw it. Nothing was written. The
// error is a [*ChangedError]; use errors.Is.
var ErrChanged = errors.New("replicator: a key has changed since it was read")

// ErrLocalKey refuses a condition on a key in Options.LocalRanges: writes there have no names that it could be on. Use
// [DB.OpenCheckedTransaction].
var ErrLocalKey = errors.New("replicator: a key in Options.LocalRanges has no versions, on which a condition could be; use OpenCheckedTransaction")

// ChangedError says which key has changed. It wraps [ErrChanged].
type ChangedError struct{ Key []byte }

func (e *ChangedError) Error() string { return fmt.Sprintf("%v: %.40q", ErrChanged, e.Key) }

// Unwrap returns [ErrChanged].
func (e *ChangedError) Unwrap() error { return ErrChanged }

func changed(key []byte) error { return &ChangedError{bytes.Clone(key)} }

// PutIf is [DB.Put] on the condition that the key's siblings are exactly those in seen, as [DB.Read] returned
// them; with an empty seen, that the key has no value. Else it writes nothing and returns [ErrChanged].
//
// The condition is checked where writes are committed, so of several writers at this replica that saw the
// same, exactly one succeeds, and no write that was pulled in meanwhile is replaced unseen. It says nothing of
// other replicas: two writers at two of them may both succeed, and then the key is in conflict, with both
// values kept.
//
// After a crash a write may come back under another name, and then the condition does not hold.
func (db *DB) PutIf(key, value []byte, seen []VersionID, wo *opt.WriteOptions) error {
	return db.writeOn([]store.Write{{Key: key, Value: value}}, []Cond{{key, seen}}, wo)
}

// DeleteIf is [DB.Delete] on a condition, as [DB.PutIf] is Put.
func (db *DB) DeleteIf(key []byte, seen []VersionID, wo *opt.WriteOptions) error {
	return db.writeOn([]store.Write{{Key: key, Deleted: true}}, []Cond{{key, seen}}, wo)
}

// WriteIf is [DB.Write] on conditions, which may be of keys that are in the batch and of others. If one does not
// hold, it writes nothing and returns [ErrChanged] with the key of the first. All of them hold in
// the state that the batch is applied to, and none is of what the batch itself writes.
//
// A nil or empty batch only checks the conditions. Without conditions WriteIf is Write. A condition on a key in
// Options.LocalRanges is refused with [ErrLocalKey].
func (db *DB) WriteIf(batch *leveldb.Batch, conds []Cond, wo *opt.WriteOptions) error {
	if len(conds) == 0 {
		return db.Write(batch, wo)
	}
	ws := writes{}
	if batch != nil && batch.Len() > 0 {
		ws.list = make([]store.Write, 0, batch.Len())
		if err := batch.Replay(&ws); err != nil {
			return err
		}
	}
	return db.writeOn(ws.list, conds, wo)
}

// writeOn has writes committed if all conditions hold.
func (db *DB) writeOn(ws []store.Write, conds []Cond, wo *opt.WriteOptions) error {
	if db.isClosing() {
		return leveldb.ErrClosed
	}
	internal, err := db.conditions(conds)
	if err != nil {
		return err
	}
	return db.writeIf(ws, func(t *replica.Txn) error {
		i, err := t.Unmet(internal)
		if err == nil && i >= 0 {
			err = changed(internal[i].Key)
		}
		return err
	}, wo)
}

// conditions refuses what cannot be a condition, and returns the others as the core takes them.
func (db *DB) conditions(conds []Cond) ([]replica.Cond, error) {
	n := 0
	for i := range conds {
		c := &conds[i]
		if err := db.conditional(c.Key); err != nil {
			return nil, err
		}
		for _, id := range c.Seen {
			if id.Seq == 0 || id.Seq > causal.MaxSeq {
				return nil, fmt.Errorf("replicator: condition on key %.40q: %d is not the Seq of a version, want what Read or Version.ID returned", c.Key, id.Seq)
			}
		}
		n += len(c.Seen)
	}
	list, dots := make([]replica.Cond, len(conds)), make([]causal.Dot, 0, n)
	for i := range conds {
		from := len(dots)
		for _, id := range conds[i].Seen {
			dots = append(dots, causal.Dot{Origin: causal.Origin(id.Origin), Seq: id.Seq})
		}
		list[i] = replica.Cond{Key: conds[i].Key, Seen: dots[from:]}
	}
	return list, nil
}

// conditional refuses keys of which nothing can be a condition.
func (db *DB) conditional(key []byte) error {
	if store.Reserved(key) {
		return fmt.Errorf("%w: %.40q", ErrReservedKey, key)
	}
	if local := db.queue.replica.Local; local != nil && local(key) {
		return fmt.Errorf("%w: %.40q", ErrLocalKey, key)
	}
	return nil
}

// Read returns the value of a key together with the names of the siblings that it stands for, both of one
// state of the database: what a later write on condition of them, with [DB.PutIf], has seen. If the key has no
// value the error is leveldb.ErrNotFound, and the Value is valid all the same: its Seen is nil, or names a
// conflict that the resolver decides for the deletion.
//
// It costs a Get and a lookup in the index cache; if the key's entry is not there, or while writes are
// being committed, two or three Gets. It waits for no writer. A key in Options.LocalRanges has no Seen.
func (db *DB) Read(key []byte) (Value, error) {
	if store.Reserved(key) {
		return Value{}, leveldb.ErrNotFound
	}
	for range 4 {
		if v, ok, err := db.tryRead(key); ok || err != nil {
			return v, err
		}
	}
	// It is written all the time.
	s, err := db.raw.GetSnapshot()
	if err != nil {
		return Value{}, err
	}
	defer s.Release()
	rec, err := indexRecord(s, key)
	if err != nil {
		return Value{}, err
	}
	return db.readValue(s, key, rec)
}

// tryRead is Read, and reports whether all of it is of one state: if nothing was committed meanwhile, or if
// the log-index is what it was: no two states of a key name the same versions (W7).
func (db *DB) tryRead(key []byte) (v Value, ok bool, err error) {
	q := db.queue
	taken := q.taken.Load()
	still := q.begun.Load() == taken
	var buf [64]byte
	rec, cached := buf[:0], false
	if still {
		rec, cached = q.replica.Peek(rec, key)
	}
	if !cached {
		if rec, err = indexRecord(db.raw, key); err != nil {
			return v, false, err
		}
	}
	v, err = db.readValue(db.raw, key, rec)
	if still && q.begun.Load() == taken {
		return v, true, err
	}
	now, again := indexRecord(db.raw, key)
	if again != nil {
		return v, false, again
	}
	if !bytes.Equal(rec, now) {
		return v, false, nil
	}
	return v, true, err
}

// indexRecord reads the log-index of a key, empty if there is none.
func indexRecord(rd store.Reader, key []byte) ([]byte, error) {
	rec, err := rd.Get(store.KindKey(store.KindIndex, key), nil)
	if err == leveldb.ErrNotFound {
		return nil, nil
	}
	return rec, err
}

// readValue reads the value of a key that has a log-index.
func (db *DB) readValue(rd store.Reader, key, rec []byte) (v Value, err error) {
	v.Bytes, err = rd.Get(key, nil)
	if err != nil && err != leveldb.ErrNotFound {
		return v, err
	}
	found := err
	if found == nil && v.Bytes == nil {
		v.Bytes = []byte{}
	}
	if len(rec) == 0 {
		return v, found
	}
	var buf [8]causal.Dot
	dots, hasValue, ok := store.AppendDots(buf[:0], rec, db.queue.replica.Aliases())
	switch {
	case !ok:
		_, err := store.DecodeIndex(bytes.Clone(rec), db.queue.replica.Aliases())
		return v, fmt.Errorf("log-index of key %q: %w", key, cmp.Or(err, errors.New("it cannot be read")))
	case !hasValue:
		return v, found
	case found != nil && len(dots) == 1:
		return v, store.Corrupted(key, "its value is missing")
	}
	if v.Seen = make([]VersionID, len(dots)); len(dots) > 1 {
		_, err = rd.Get(store.KindKey(store.KindConflict, key), nil)
		if v.Conflict = err == nil; err != nil && err != leveldb.ErrNotFound {
			return v, err
		}
	}
	for i, d := range dots {
		v.Seen[i] = VersionID{Origin(d.Origin), d.Seq}
	}
	return v, found
}
