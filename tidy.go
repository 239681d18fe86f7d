package replicator

import (
	"cmp"
	"errors"
	"slices"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// keeper is what looking after a store needs of the server that it belongs to.
type keeper interface {
	// at calls f while nothing else uses the replica. f must not wait.
	at(f func(r *replica))
	// commit stages a transaction and commits it.
	commit(stage func(t *txn) error) error
	// each has something staged and committed for all of some keys, a few at a time, so
	// that nobody waits long. Its first error is the last.
	each(keys [][]byte, stage stager) error
}

// stager stages something for the first of some keys, for one at least, and returns for
// how many.
type stager func(t *txn, keys [][]byte) (done int, err error)

// oneByOne makes a stager of what is staged for one key.
func oneByOne(stage func(t *txn, key []byte) error) stager {
	return func(t *txn, keys [][]byte) (done int, err error) {
		for done < len(keys) && (done == 0 || !t.large()) {
			if err := stage(t, keys[done]); err != nil {
				return done, err
			}
			done++
		}
		return done, nil
	}
}

// look takes a state of a keeper's database.
func look(h keeper) (v view, err error) {
	err = leveldb.ErrClosed // of a database that is closed nothing is called
	h.at(func(r *replica) { v, err = r.look() })
	return v, err
}

// tidying does what an opening has to: it clears away what a crash left in the log, and
// has the resolver, which may be another one than last time, decide again what keys in
// conflict show. Both are read with the queue free, go on where they were, and hold up
// nothing: while the log may hold such entries, whoever reads it checks each one.
type tidying struct {
	began, swept, done bool
	from               []byte // where to go on
	step               int    // log entries, or keys in conflict, that are read in one state; 0: as many as is usual
}

const (
	sweepStep   = 4096
	resolveStep = 256
)

// next goes on with some more. It ends early, but not without having done something, when
// enough says so.
func (p *tidying) next(h keeper, resolve resolveFunc, enough func() bool) error {
	if !p.began {
		h.at(func(r *replica) { p.swept = !r.littered })
		p.began = true
	}
	v, err := look(h)
	if err != nil {
		return err
	}
	if !p.swept {
		return p.sweep(h, &v)
	}
	return p.resolve(h, &v, resolve, enough)
}

// sweep deletes log entries that a crash left and that no log-index names.
func (p *tidying) sweep(h keeper, v *view) error {
	garbage, next, err := v.garbage(p.from, cmp.Or(p.step, sweepStep))
	v.Release()
	if err == nil && len(garbage) > 0 {
		err = h.each(garbage, oneByOne((*txn).sweep))
	}
	if err == nil && next == nil {
		err = h.commit(func(t *txn) error { t.swept = true; return nil })
		p.swept = err == nil
	}
	if err == nil {
		p.from = next
	}
	return err
}

// garbage gives the log keys of entries that no log-index names, of those from a log
// key on, and where to go on, or nil at the end.
func (v *view) garbage(from []byte, limit int) (keys [][]byte, next []byte, err error) {
	rg := kindRange(kindLog)
	if from != nil {
		rg.Start = from
	}
	it := v.NewIterator(rg, nil)
	defer it.Release()
	for n := 0; it.Next(); n++ {
		if n >= limit {
			return keys, slices.Clone(it.Key()), it.Error()
		}
		e, err := decodeEntry(it.Key(), it.Value(), v)
		if err != nil {
			continue // Verify names it
		}
		s, readable, err := v.indexOf(e.key)
		if err != nil {
			return nil, nil, err
		}
		if readable && !s.has(e.dot) {
			keys = append(keys, slices.Clone(it.Key()))
		}
	}
	return keys, nil, it.Error()
}

// indexOf looks a key up. One whose log-index is damaged, which Verify names, is not
// readable; that the store cannot be read is an error.
func (v *view) indexOf(key []byte) (s state, readable bool, err error) {
	rec, err := v.Get(kindKey(kindIndex, key), nil)
	switch {
	case err == leveldb.ErrNotFound:
		return nil, true, nil
	case err != nil:
		return nil, false, err
	}
	s, err = decodeIndex(rec, v)
	return s, err == nil, nil
}

// sweep deletes a log entry, if still no log-index names it.
func (t *txn) sweep(logKey []byte) error {
	rec, err := t.r.store.Get(logKey, nil)
	if err == leveldb.ErrNotFound {
		return nil
	} else if err != nil {
		return err
	}
	e, err := decodeEntry(logKey, rec, t.r)
	if err != nil {
		return err
	}
	s, _, err := t.lookup(e.key)
	if err == nil && !s.has(e.dot) {
		t.batch.Delete(logKey)
	}
	return err
}

// resolve has keys in conflict decided again, and stages those that show something else.
func (p *tidying) resolve(h keeper, v *view, resolve resolveFunc, enough func() bool) error {
	keys, next, err := v.unresolved(p.from, cmp.Or(p.step, resolveStep), resolve, enough)
	v.Release()
	if err == nil && len(keys) > 0 {
		err = h.each(keys, oneByOne((*txn).resolveAgain))
	}
	if err == nil {
		p.from, p.done = next, next == nil
	}
	return err
}

// unresolved gives keys in conflict, from one on, that do not show what the resolver
// makes of them, and those of which only the mark is left; and where to go on, or nil at
// the end.
func (v *view) unresolved(from []byte, limit int, resolve resolveFunc, enough func() bool) (keys [][]byte, next []byte, err error) {
	it := v.NewIterator(&util.Range{Start: kindKey(kindConflict, from), Limit: kindRange(kindConflict).Limit}, nil)
	defer it.Release()
	for n := 0; it.Next(); n++ {
		key := slices.Clone(it.Key()[3:])
		if n >= limit || n > 0 && enough() {
			return keys, key, it.Error()
		}
		s, readable, err := v.indexOf(key)
		if err != nil {
			return nil, nil, err
		}
		if !readable {
			continue
		}
		vs, err := readVersions(v, key, s, v)
		if errors.Is(err, ErrDamaged) {
			continue
		} else if err != nil {
			return nil, nil, err
		}
		odd, err := showsOther(v, key, vs, func(key []byte, vs []version) version {
			shown, _ := resolveAll(resolve, key, vs)
			return shown
		})
		if err != nil {
			return nil, nil, err
		}
		if odd || !disputed(vs) {
			keys = append(keys, key)
		}
	}
	return keys, nil, it.Error()
}

// showsOther reports whether a key in conflict shows something else than what resolve
// makes of it. What was written past the wrapper is for Adopt, and is left alone.
func showsOther(rd reader, key []byte, vs []version, resolve func(key []byte, vs []version) version) (bool, error) {
	if len(vs) < 2 || !disputed(vs) {
		return false, nil
	}
	raw, err := rd.Get(key, nil)
	if err != nil && err != leveldb.ErrNotFound {
		return false, err
	}
	now := shownOf(raw, err == leveldb.ErrNotFound)
	kept, known, err := readShown(rd, key)
	if err != nil || known && kept != now {
		return false, err
	}
	shown := resolve(key, vs)
	return shownOf(shown.value, shown.deleted) != now, nil
}

// resolveAgain stages what a key in conflict shows, if that is something else, with all
// its state, as ever.
func (t *txn) resolveAgain(key []byte) error {
	s, k, err := t.lookup(key)
	if err != nil || k != nil { // just written: resolved
		return err
	}
	vs, err := t.full(key, s, k)
	if err != nil {
		return err
	}
	if len(vs) < 2 || !disputed(vs) {
		has, err := t.hasKey(kindConflict, key)
		if has { // left behind by a crash
			t.batch.Delete(kindKey(kindConflict, key))
			t.disputed--
		}
		return err
	}
	odd, err := showsOther(t.r.store, key, vs, func(key []byte, vs []version) version {
		shown, _ := t.resolve(key, vs)
		return shown
	})
	if err != nil || !odd {
		return err
	}
	return t.replace(key, s, nil, vs, false)
}
