package main

import (
	"bytes"
	"context"
	"iter"
	"slices"
)

// compareKeys goes through the keys of two nodes side by side and tells of each that
// differs. It counts the keys of both.
func (a *app) compareKeys(ctx context.Context, left, right node, versions bool, nl, nr *int64, found func(key []byte, how string)) error {
	bar := a.newBar()
	defer bar.end()
	total := max(*nl, *nr)
	s := span{limit: pageEntries, sums: true, versions: versions}
	l, r := newCursor(each(ctx, left, s)), newCursor(each(ctx, right, s))
	defer l.stop()
	defer r.stop()
	*nl, *nr = 0, 0
	for l.more || r.more {
		if l.err != nil {
			return l.err
		}
		if r.err != nil {
			return r.err
		}
		order := l.compare(r)
		switch {
		case order < 0:
			found(l.Key, "only in a")
		case order > 0:
			found(r.Key, "only in b")
		case !slices.EqualFunc(l.Versions, r.Versions, sameWrite):
			found(l.Key, "other versions")
		case !bytes.Equal(l.Sum, r.Sum):
			found(l.Key, "other value")
		}
		if order <= 0 {
			l.next()
			*nl++
		}
		if order >= 0 {
			r.next()
			*nr++
		}
		bar.at("compare", max(*nl, *nr), total)
	}
	return nil
}

func sameWrite(v, w version) bool { return v.Origin == w.Origin && v.Seq == w.Seq }

// cursor stands at an entry of a listing.
type cursor struct {
	entry
	err  error
	more bool
	pull func() (entry, error, bool)
	stop func()
}

func newCursor(list iter.Seq2[entry, error]) *cursor {
	c := &cursor{}
	c.pull, c.stop = iter.Pull2(list)
	c.next()
	return c
}

func (c *cursor) next() { c.entry, c.err, c.more = c.pull() }

// compare orders two cursors by key; one at the end comes last.
func (c *cursor) compare(d *cursor) int {
	switch {
	case !c.more:
		return 1
	case !d.more:
		return -1
	}
	return bytes.Compare(c.Key, d.Key)
}
