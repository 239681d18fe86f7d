package replicator

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// normalRanges returns ranges that hold the same keys, sorted, apart and without
// empty ones; the reserved range ends the last. They share no bytes with those given.
func normalRanges(ranges []*util.Range) []*util.Range {
	var all []*util.Range
	for _, g := range ranges {
		v := visible(g)
		if string(v.Start) < string(v.Limit) {
			all = append(all, &util.Range{Start: slices.Clone(v.Start), Limit: slices.Clone(v.Limit)})
		}
	}
	slices.SortFunc(all, func(a, b *util.Range) int { return bytes.Compare(a.Start, b.Start) })
	var apart []*util.Range
	for _, g := range all {
		if n := len(apart); n > 0 && string(g.Start) <= string(apart[n-1].Limit) {
			if string(g.Limit) > string(apart[n-1].Limit) {
				apart[n-1].Limit = g.Limit
			}
			continue
		}
		apart = append(apart, g)
	}
	return apart
}

// inRanges reports whether a key lies in one of a few normal ranges.
func inRanges(ranges []*util.Range, key []byte) bool {
	return slices.ContainsFunc(ranges, func(g *util.Range) bool {
		return string(key) >= string(g.Start) && string(key) < string(g.Limit)
	})
}

// appendRanges writes the record of the local ranges, which are normal.
func appendRanges(b []byte, ranges []*util.Range) []byte {
	b = append(b, formatVersion)
	for _, g := range ranges {
		b = appendBytes(appendBytes(b, g.Start), g.Limit)
	}
	return b
}

func decodeRanges(rec []byte) ([]*util.Range, error) {
	d := decoder{b: rec}
	if d.byte() != formatVersion && d.err == nil {
		return nil, errVersion
	}
	var ranges []*util.Range
	for d.err == nil && len(d.b) > 0 {
		ranges = append(ranges, &util.Range{Start: d.bytes(len(d.b)), Limit: d.bytes(len(d.b))})
	}
	return ranges, d.end()
}

// checkLocal refuses other local ranges than those of the last opening. A database of
// a release that did not keep them takes what it is given.
func checkLocal(db *leveldb.DB, given []*util.Range) error {
	rec, err := db.Get(metaLocal, nil)
	if err == leveldb.ErrNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	kept, err := decodeRanges(rec)
	if err != nil {
		return fmt.Errorf("replicator: record of the local ranges: %w", err)
	}
	same := func(a, b *util.Range) bool { return bytes.Equal(a.Start, b.Start) && bytes.Equal(a.Limit, b.Limit) }
	if !slices.EqualFunc(kept, given, same) {
		return fmt.Errorf("replicator: Options.Local: %s, want %s, as when the database was first opened: keys of a range that changes would be logged in part; to change them, begin with new directories, see docs/operations.md", describeRanges(given), describeRanges(kept))
	}
	return nil
}

// describeRanges is for the errors of whoever chose the ranges.
func describeRanges(ranges []*util.Range) string {
	if len(ranges) == 0 {
		return "no ranges"
	}
	var all []string
	for _, g := range ranges {
		all = append(all, fmt.Sprintf("%.40q to %.40q", g.Start, g.Limit))
	}
	return strings.Join(all, ", ")
}
