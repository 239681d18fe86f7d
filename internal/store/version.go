package store

import (
	"bytes"
	"cmp"
	"encoding/binary"

	"github.com/level-replicator/replicator/internal/causal"
)

// Version is one write of one key, as the log has it. Immutable once made.
type Version struct {
	causal.Dot
	Context causal.Vector // what its writer had seen of this key, its own dot left out
	Clock   uint64
	Stamp   causal.Stamp
	Deleted bool
	Value   []byte // nil if deleted, or if only the rest is known

	// The batch it was written in: its entries have the seqs from seq-offset
	// on, and there are count of them.
	Offset, Count uint64

	// Of the state of a peer: only the dot was sent,
	NameOnly bool   // as the rest is known here
	Apart    bool   // as the rest comes when it is asked for
	Large    uint64 // or all but the value, as it is larger than is taken here, of so many bytes
	Listed   bool   // it is known because we said so when we asked for the key
}

// Compare is the canonical order of the versions of one key.
func (v *Version) Compare(w *Version) int {
	return cmp.Or(
		cmp.Compare(v.Clock, w.Clock),
		cmp.Compare(v.Stamp, w.Stamp),
		v.Dot.Compare(w.Dot),
	)
}

func (v *Version) SameContent(w *Version) bool {
	return v.Deleted == w.Deleted && bytes.Equal(v.Value, w.Value)
}

// Whole reports whether all of a version is here: of some only the name was sent.
func (v *Version) Whole() bool { return !v.Apart && v.Large == 0 }

// HasSeen reports whether the writer of v had seen the write d of the same key.
func (v *Version) HasSeen(d causal.Dot) bool { return v.Context.Contains(d) }

// AppendBody writes what an entry has beside dot, key and value: the same bytes
// in the log and on the wire, but for the numbers of the origins.
func AppendBody(b []byte, v *Version, os numbering) []byte {
	b = binary.AppendUvarint(b, v.Clock)
	b = binary.BigEndian.AppendUint64(b, uint64(v.Stamp))
	b = binary.AppendUvarint(b, v.Offset)
	b = binary.AppendUvarint(b, v.Count)
	return AppendVector(b, v.Context, os)
}
