package feed

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// builder makes a page of one state.
type builder struct {
	*Reader
	view   *replica.View
	page   Page
	size   int
	passed int                    // log entries
	dots   store.Slab[causal.Dot] // for records
}

func (b *builder) full() bool {
	return len(b.page.Records) >= b.config.PageKeys || b.size >= b.config.PageBytes
}

func (b *builder) add(rec Record) {
	if b.config.KeysOnly {
		rec.Value, rec.Version.Value = nil, nil
	}
	b.page.Records = append(b.page.Records, rec)
	b.size += len(rec.Key) + len(rec.Value) + 64
	delete(b.recent, string(rec.Key))
	delete(b.notes, string(rec.Key))
}

// build fills the page: first with keys that the log does not show, then with what it does.
func (b *builder) build() error {
	if err := b.noted(); err != nil || b.full() {
		return err
	}
	if b.mode == scanning {
		return b.scan()
	}
	if b.again {
		if err := b.conflicts(); err != nil || b.full() {
			return err
		}
	}
	return b.log()
}

// noted delivers keys as they are.
func (b *builder) noted() error {
	for _, key := range slices.Sorted(maps.Keys(b.notes)) {
		if b.full() {
			return nil
		}
		if err := b.lookUp([]byte(key), false); err != nil {
			return err
		}
	}
	return nil
}

// lookUp delivers a key as it is in this state.
func (b *builder) lookUp(key []byte, resolver bool) error {
	s, err := store.ReadIndex(b.view, key, b.view)
	if err != nil {
		return err
	}
	rec, err := b.current(key, s)
	if err == nil {
		rec.Resolver = resolver
		b.add(rec)
	}
	return err
}

// current returns what a key holds in this state.
func (b *builder) current(key []byte, s store.Siblings) (rec Record, err error) {
	rec = Record{Key: slices.Clone(key), Deleted: true}
	if len(s) == 0 { // deleted, and purged
		rec.Version.Deleted = true
		return rec, nil
	}
	vs, err := store.ReadVersions(b.view, key, s, b.view)
	if err != nil {
		return rec, err
	}
	for i := range vs {
		rec.Dots = append(rec.Dots, vs[i].Dot)
	}
	rec.Version = vs[0]
	if len(vs) > 1 {
		if rec.Version, err = b.winner(key, vs); err != nil {
			return rec, err
		}
		rec.Conflict = replica.InConflict(vs)
	}
	rec.Version.Context = nil
	rec.Value, rec.Deleted = rec.Version.Value, rec.Version.Deleted
	rec.Local = b.own[rec.Version.Origin]
	return rec, nil
}

// winner returns what reads return of a key with several siblings: it is what the resolver made of
// them, which is not asked again.
func (b *builder) winner(key []byte, vs []store.Version) (v store.Version, err error) {
	raw, err := b.view.Get(key, nil)
	absent := err == leveldb.ErrNotFound
	if err != nil && !absent {
		return v, err
	}
	if kept, known, err := store.ReadResolved(b.view, key); err != nil {
		return v, err
	} else if known && kept != store.FingerprintOf(raw, absent) {
		return v, store.Corrupted(key, "its value is not what its versions were resolved to; if it was written past the wrapper and is to stay, run Adopt")
	}
	sorted := replica.Canonical(vs)
	v = sorted[len(sorted)-1]
	for _, x := range slices.Backward(sorted) {
		if x.Deleted == absent && bytes.Equal(x.Value, raw) {
			v = x
			break
		}
	}
	v.Deleted, v.Value = absent, raw
	return v, nil
}

// conflicts delivers the keys in conflict whose versions the consumer has all been delivered: what they
// resolve to may be another value here (F5).
func (b *builder) conflicts() error {
	it := b.view.NewIterator(store.KindRangeFrom(store.KindConflict, b.conflict), nil)
	defer it.Release()
	for it.Next() {
		key := slices.Clone(store.UserKey(it.Key()))
		if b.full() {
			b.conflict = key
			return it.Error()
		}
		if !b.wanted(key) {
			continue
		}
		s, err := store.ReadIndex(b.view, key, b.view)
		if err != nil {
			return err
		}
		if len(s) == 0 || slices.ContainsFunc(s, func(v store.Version) bool { return !b.base.Contains(v.Dot) }) {
			continue // only the hint is left, or the log has it
		}
		rec, err := b.current(key, s)
		if err != nil {
			return err
		}
		rec.Resolver = true
		b.add(rec)
	}
	b.again = false
	return it.Error()
}

// finish ends the phase, as all was delivered that its first state has. If what has changed since has
// room in this page, the consumer has all of this state, and goes on with what is committed after it.
// Otherwise another phase follows.
func (b *builder) finish() error {
	if !b.many && len(b.page.Records)+len(b.recent) <= max(b.config.PageKeys, 1) {
		for _, key := range slices.Sorted(maps.Keys(b.recent)) {
			if err := b.lookUp([]byte(key), false); err != nil {
				return err
			}
		}
		b.base, b.delta, b.mode = b.now, nil, live
		b.window = window{}
		b.moved(Position{Root: b.now}, b.seen)
	} else {
		b.base = b.first
		b.moved(Position{Root: b.first}, b.firstAt)
	}
	b.first, b.read, b.recent = nil, nil, nil
	return nil
}

// scan delivers keys in key order, each as it is in the state that its page is of.
func (b *builder) scan() error {
	ranges := b.config.Ranges
	if ranges == nil {
		ranges = []*util.Range{{Limit: store.ReservedStart}}
	}
	for _, g := range ranges {
		if g.Limit != nil && b.from != nil && bytes.Compare(b.from, g.Limit) >= 0 {
			continue
		}
		from := g.Start
		if bytes.Compare(b.from, from) > 0 {
			from = b.from
		}
		for row, err := range store.Rows(b.view, from) {
			if err != nil {
				return err
			}
			if g.Limit != nil && bytes.Compare(row.Key, g.Limit) >= 0 {
				break
			}
			if b.full() {
				b.from = slices.Clone(row.Key)
				b.moved(Position{Root: b.first, Scanning: true, Key: b.from}, b.firstAt)
				return nil
			}
			if err := b.row(&row); err != nil {
				return err
			}
		}
	}
	b.base, b.first, b.mode = b.first, nil, logging
	b.moved(Position{Root: b.base}, b.firstAt)
	return nil
}

// row delivers a key that a scan meets, if it has a value. Deletions are not told: a consumer has nothing of
// them after a reset.
func (b *builder) row(row *store.Row) error {
	if !row.Indexed { // it was never logged
		return nil
	}
	s, err := store.DecodeIndex(row.Index, b.view)
	if err != nil {
		return fmt.Errorf("log-index of key %q: %w", row.Key, err)
	}
	switch {
	case len(s) > 1:
		rec, err := b.current(row.Key, s)
		if err != nil || rec.Deleted {
			return err
		}
		b.add(rec)
	case s[0].Deleted:
	case !row.HasValue:
		return store.Corrupted(row.Key, "its value is missing")
	default:
		v := s[0]
		v.Context, v.Value = nil, slices.Clone(row.Value)
		b.add(Record{Key: slices.Clone(row.Key), Value: v.Value, Local: b.own[v.Origin], Version: v, Dots: []causal.Dot{v.Dot}})
	}
	return nil
}
