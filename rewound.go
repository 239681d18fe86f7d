package replicator

import (
	"bytes"
	"fmt"

	"github.com/syndtr/goleveldb/leveldb"
)

// A store can be opened at an older state than it was closed in: goleveldb takes a
// MANIFEST that was cut off for a shorter one. The tables that were added since are
// missing then, while the latest journal, and with it the mark of the clean close, is
// there. So a close has one record flushed to a table, and its mark names it.
var (
	metaFlushed = kindKey(kindMeta, []byte("flushed")) // the last opening whose close flushed the memtable
	metaClosed  = kindKey(kindMeta, []byte("closed"))  // the same, as it was when the mark was written
)

// rewound is a store as it was when it was closed, and as it was found.
type rewound struct {
	claim         vector
	closed, found figures
}

func (w *rewound) String() string {
	return fmt.Sprintf("the store is older than its clean mark: it held %d keys with a value and %d deleted ones when it was closed, and %d and %d when it was opened again",
		w.closed.keys, w.closed.tombstones, w.found.keys, w.found.tombstones)
}

// stageFlushed writes the record that is to be flushed to a table.
func (r *replica) stageFlushed(b leveldb.BatchReplay) {
	b.Put(metaFlushed, append([]byte{formatVersion}, r.self[:]...))
}

// stageClosed names, beside the mark of a clean close, the record that was flushed, and
// writes once more what an opening needs of an older state.
func (r *replica) stageClosed(b leveldb.BatchReplay) error {
	for key, from := range map[string][]byte{
		string(metaClosed): metaFlushed, string(metaFormat): metaFormat, string(metaLocal): metaLocal, string(metaAdopt): metaAdopt,
	} {
		switch rec, err := r.store.Get(from, nil); err {
		case nil:
			b.Put([]byte(key), rec)
		case leveldb.ErrNotFound:
			b.Delete([]byte(key))
		default:
			return err
		}
	}
	return nil
}

// checkFlushed reports whether the store has what its clean mark names. If not, nobody
// knows what is missing: nothing is claimed or proved any more, and the peers send
// whatever is not held, as to a directory that was restored from a backup.
func (r *replica) checkFlushed() (bool, error) {
	closed, err := r.store.Get(metaClosed, nil)
	if err == leveldb.ErrNotFound { // no close has flushed, or it was one of an earlier release
		return true, nil
	}
	if err != nil {
		return false, err
	}
	flushed, err := r.store.Get(metaFlushed, nil)
	if err != nil && err != leveldb.ErrNotFound {
		return false, err
	}
	if bytes.Equal(closed, flushed) {
		return true, nil
	}
	r.rewound = &rewound{claim: r.known.vector(claimed), closed: r.figures}
	r.known, r.figures, r.loose = knowledge{}, figures{}, nil
	return false, nil
}

// stillRewound is how the store was found at the opening, or nil if it was found as it had
// been closed, or if all that it knew of then is known again.
func (r *replica) stillRewound() *rewound {
	if r.rewound != nil && r.rewound.claim.within(r.known.vector(claimed)) {
		r.rewound = nil
	}
	return r.rewound
}
