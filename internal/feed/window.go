package feed

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

// The log is read in windows, each about what a page has room for. Its entries are read first, and then what belongs
// to them in key order: where keys that have changed lie near one another that costs little more than a scan. They
// are delivered in the order of the log.

const (
	windowLeast = 64  // entries
	sizeAtFirst = 256 // bytes, about, that a record comes to before one was seen
)

// window is a part of the log, and memory for the next.
type window struct {
	entries []entry // those that are wanted
	parts   []part
	records []Record               // of the page that it belongs to
	average int                    // bytes that a record comes to
	keys    []byte                 // of entries
	dots    store.Slab[causal.Dot] // for contexts
	due     []*replica.Logged
}

// entry is a log entry in a window.
type entry struct {
	replica.Logged
	alone bool // it is the only version of its key
}

// part is what a window has of the log of one origin: all that is wanted of it up to a seq, in the entries before end.
type part struct {
	origin causal.Origin
	to     uint64
	end    int
}

// log delivers what the log has, of each origin in the order in which it was written.
func (b *builder) log() error {
	for !b.full() && b.passed < maxPassed {
		if err := b.collect(); err != nil {
			return err
		}
		if len(b.window.parts) == 0 {
			return b.finish()
		}
		b.complete()
		if err := b.deliver(); err != nil {
			return err
		}
	}
	return nil
}

// collect reads as much of the log as there is room for.
func (b *builder) collect() error {
	w := &b.window
	w.entries, w.parts, w.keys = w.entries[:0], w.parts[:0], w.keys[:0]
	if w.average == 0 {
		w.average = sizeAtFirst
	}
	most := min(b.config.PageKeys-len(b.page.Records), max((b.config.PageBytes-b.size)/w.average, windowLeast))
	var it iterator.Iterator
	for _, top := range b.tops {
		from := b.read.Seq(top.Origin) + 1
		if from > top.Seq {
			continue
		}
		if len(w.entries) >= most || b.passed >= maxPassed {
			break
		}
		p := part{origin: top.Origin, to: top.Seq}
		w.entries = slices.Grow(w.entries, int(min(uint64(most-len(w.entries)), top.Seq-from+1)))
		if alias, ok := b.view.AliasOf(top.Origin); ok {
			if it == nil {
				it = b.view.NewIterator(store.KindRange(store.KindLog), &opt.ReadOptions{DontFillCache: true})
				defer it.Release()
			}
			var err error
			if p.to, err = b.entries(it, alias, from, top.Seq, most); err != nil {
				return err
			}
		}
		p.end = len(w.entries)
		w.parts = append(w.parts, p)
	}
	return nil
}

// entries reads a part of the log of an origin, as much as there is room for, and returns up to where that goes.
func (b *builder) entries(it iterator.Iterator, alias uint32, from, to uint64, most int) (end uint64, err error) {
	w, last := &b.window, store.AppendLogKey(nil, alias, to)
	for ok := it.Seek(store.AppendLogKey(nil, alias, from)); ok && bytes.Compare(it.Key(), last) <= 0; ok = it.Next() {
		w.dots.Reset()
		e, err := store.DecodeEntryInto(it.Key(), it.Value(), b.view, &w.dots)
		if err != nil {
			return 0, fmt.Errorf("log entry %x: %w", it.Key(), err)
		}
		if len(w.entries) >= most || b.passed >= maxPassed {
			return e.Seq - 1, nil
		}
		b.passed++
		if !b.wanted(e.Key) {
			continue
		}
		n := len(w.keys)
		w.keys = append(w.keys, e.Key...) // where it grows, the keys so far stay where they are
		e.Key, e.Value, e.Context = w.keys[n:len(w.keys):len(w.keys)], nil, nil
		w.entries = append(w.entries, entry{
			Logged: replica.Logged{Entry: e, Read: e.Deleted || b.config.KeysOnly},
			alone:  !e.Inline && !b.view.MayHaveStale, // the log has one entry for each version
		})
	}
	return to, it.Error()
}

// complete reads what belongs to the entries, in key order: the values of versions that are alone, as many as come to
// what a page holds. What it leaves is looked up when it is delivered.
func (b *builder) complete() {
	w := &b.window
	if b.view.MayHaveStale {
		b.check()
	}
	w.due = w.due[:0]
	for i := range w.entries {
		if e := &w.entries[i]; e.alone && !e.Read {
			w.due = append(w.due, &e.Logged)
		}
	}
	b.view.ReadValues(w.due, b.config.PageBytes, slices.Clone[[]byte])
	clear(w.due)
}

// check finds out by the log-index which entries are of versions that are alone, where a crash may have left others
// beside them.
func (b *builder) check() {
	var order []*entry
	for i := range b.window.entries {
		if e := &b.window.entries[i]; !e.Inline {
			order = append(order, e)
		}
	}
	slices.SortFunc(order, func(a, b *entry) int { return bytes.Compare(a.Key, b.Key) })
	f := store.NewFinder(b.view, store.KindRange(store.KindIndex))
	defer f.Release()
	var key []byte
	var dots []causal.Dot
	for _, e := range order {
		key = store.AppendKey(key[:0], store.KindIndex, e.Key)
		record, found, err := f.Find(key, func(record []byte) []byte { return record })
		if err != nil {
			return
		}
		readable := false
		if dots, _, readable = store.AppendDots(dots[:0], record, b.view); found && readable {
			e.alone = len(dots) == 1 && dots[0] == e.Dot
		}
	}
}

// deliver delivers a window, or as much of it as there is room for.
func (b *builder) deliver() error {
	w, i := &b.window, 0
	b.page.Records = slices.Grow(b.page.Records, len(w.entries))
	defer func() {
		if n := len(b.page.Records); n > 0 {
			w.average = b.size / n
		}
		clear(w.entries)
	}()
	for _, p := range w.parts {
		for ; i < p.end; i++ {
			if i > 0 && b.full() {
				b.read = b.read.Raise(causal.Dot{Origin: p.origin, Seq: w.entries[i].Seq - 1})
				return nil
			}
			if err := b.entry(&w.entries[i]); err != nil {
				return err
			}
		}
		b.read = b.read.Raise(causal.Dot{Origin: p.origin, Seq: p.to})
	}
	return nil
}

// entry delivers the key of a log entry.
func (b *builder) entry(e *entry) error {
	if e.alone {
		dots := append(b.dots.Take(1), e.Dot)
		if !b.first.Contains(e.Dot) && b.give(dots, b.first.Contains) {
			return nil
		}
		if !e.Read {
			if err := e.ReadValue(b.view); err != nil {
				return err
			}
		}
		b.add(Record{Key: slices.Clone(e.Key), Value: e.Value, Deleted: e.Deleted, Local: b.own[e.Origin], Version: e.Version, Dots: dots})
		return nil
	}
	s, err := store.ReadIndex(b.view, e.Key, b.view)
	if err != nil {
		return err
	}
	if !s.Has(e.Dot) {
		return nil // a stale entry that a crash left (O4)
	}
	rec, err := b.current(e.Key, s)
	if err == nil && !b.give(rec.Dots, b.first.Contains) {
		b.add(rec)
	}
	return err
}
