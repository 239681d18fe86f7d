package store

import (
	"bytes"
	"slices"

	"github.com/syndtr/goleveldb/leveldb/util"
)

// NormalRanges returns ranges that hold the same keys, sorted, apart and without
// empty ones; the reserved range ends the last. They share no bytes with those given.
func NormalRanges(ranges []*util.Range) []*util.Range {
	var all []util.Range
	for _, g := range ranges {
		v := Visible(g)
		all = append(all, util.Range{Start: slices.Clone(v.Start), Limit: slices.Clone(v.Limit)})
	}
	var apart []*util.Range
	for _, g := range JoinRanges(all) {
		apart = append(apart, &g)
	}
	return apart
}

// JoinRanges sorts ranges, joins those that meet, and leaves out empty ones. It uses the same memory.
func JoinRanges(ranges []util.Range) []util.Range {
	ranges = slices.DeleteFunc(ranges, func(g util.Range) bool { return bytes.Compare(g.Start, g.Limit) >= 0 })
	slices.SortFunc(ranges, func(a, b util.Range) int { return bytes.Compare(a.Start, b.Start) })
	kept := ranges[:0]
	for _, g := range ranges {
		if n := len(kept); n > 0 && bytes.Compare(g.Start, kept[n-1].Limit) <= 0 {
			if bytes.Compare(g.Limit, kept[n-1].Limit) > 0 {
				kept[n-1].Limit = g.Limit
			}
			continue
		}
		kept = append(kept, g)
	}
	clear(ranges[len(kept):])
	return kept
}

// InRanges reports whether a key lies in one of a few normal ranges.
func InRanges(ranges []*util.Range, key []byte) bool {
	return slices.ContainsFunc(ranges, func(g *util.Range) bool {
		return string(key) >= string(g.Start) && string(key) < string(g.Limit)
	})
}

// AppendRanges writes the record of the local ranges, which are normal.
func AppendRanges(b []byte, ranges []*util.Range) []byte {
	b = append(b, FormatVersion)
	for _, g := range ranges {
		b = AppendBytes(AppendBytes(b, g.Start), g.Limit)
	}
	return b
}

func DecodeRanges(rec []byte) ([]*util.Range, error) {
	d := Decoder{B: rec}
	if err := d.Format(); err != nil {
		return nil, err
	}
	var ranges []*util.Range
	for d.Err == nil && len(d.B) > 0 {
		ranges = append(ranges, &util.Range{Start: d.Bytes(len(d.B)), Limit: d.Bytes(len(d.B))})
	}
	return ranges, d.End()
}
