package replicator

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// checkLocal refuses other local ranges than those of the last opening. A database of
// a release that did not keep them takes what it is given.
func checkLocal(db *leveldb.DB, given []*util.Range) error {
	rec, err := db.Get(store.MetaLocal, nil)
	if err == leveldb.ErrNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	kept, err := store.DecodeRanges(rec)
	if err != nil {
		return fmt.Errorf("replicator: record of the local ranges: %w", err)
	}
	same := func(a, b *util.Range) bool { return bytes.Equal(a.Start, b.Start) && bytes.Equal(a.Limit, b.Limit) }
	if !slices.EqualFunc(kept, given, same) {
		return fmt.Errorf("replicator: Options.LocalRanges: %s, want %s, as when the database was first opened: keys of a range that changes would be logged in part; to change them, begin with new directories, see docs/operations.md", describeRanges(given), describeRanges(kept))
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
