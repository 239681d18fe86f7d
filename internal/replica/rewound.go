package replica

import (
	"bytes"
	"fmt"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// A store can be opened at an older state than it was closed in: goleveldb takes a
// MANIFEST that was cut off for a shorter one. The tables that were added since are
// missing then, while the latest journal, and with it the mark of the clean close, is
// there. So a close has one record flushed to a table, and its mark names it.
var (
	metaFlushed = store.KindKey(store.KindMeta, []byte("flushed")) // the last opening whose close flushed the memtable
	metaClosed  = store.KindKey(store.KindMeta, []byte("closed"))  // the same, as it was when the mark was written
)

// rewound is a store as it was when it was closed, and as it was found.
type rewound struct {
	covered causal.Vector // when it was closed
	closed  store.Counters
	found   *store.Counters // nil: not counted yet
}

func (w *rewound) String() string {
	closed := fmt.Sprintf("the store is older than its clean mark: it held %d keys with a value and %d deleted ones when it was closed", w.closed.Keys, w.closed.Tombstones)
	if w.found == nil {
		return closed
	}
	return fmt.Sprintf("%s, and %d and %d when it was opened again", closed, w.found.Keys, w.found.Tombstones)
}

// stageFlushed writes the record that is to be flushed to a table.
func (r *Replica) stageFlushed(b leveldb.BatchReplay) {
	b.Put(metaFlushed, append([]byte{store.FormatVersion}, r.Self[:]...))
}

// stageClosed names, beside the mark of a clean close, the record that was flushed, and
// writes once more what an opening needs of an older state.
func (r *Replica) stageClosed(b leveldb.BatchReplay) error {
	for _, c := range []struct{ key, from []byte }{
		{metaClosed, metaFlushed}, {store.MetaFormat, store.MetaFormat}, {store.MetaLocal, store.MetaLocal}, {store.MetaAdopt, store.MetaAdopt},
	} {
		switch rec, err := r.Store.Get(c.from, nil); err {
		case nil:
			b.Put(c.key, rec)
		case leveldb.ErrNotFound:
			b.Delete(c.key)
		default:
			return err
		}
	}
	return nil
}

// checkFlushed reports whether the store has what its clean mark names. If not, nobody
// knows what is missing: nothing is covered, by the version vector or a watermark, any more, and the peers send
// whatever is not held, as to a directory that was restored from a backup.
func (r *Replica) checkFlushed() (bool, error) {
	closed, err := r.Store.Get(metaClosed, nil)
	if err == leveldb.ErrNotFound { // no close has flushed, or it was one of an earlier release
		return true, nil
	}
	if err != nil {
		return false, err
	}
	flushed, err := r.Store.Get(metaFlushed, nil)
	if err != nil && err != leveldb.ErrNotFound {
		return false, err
	}
	if bytes.Equal(closed, flushed) {
		return true, nil
	}
	r.rewound = &rewound{covered: r.Known.Vector(causal.Covered), closed: r.Counters}
	shortened := r.Known.Vector(causal.Pruned) // of what is held: that stays true
	r.Known, r.Counters, r.Cloud = causal.Knowledge{}, store.Counters{}, nil
	for _, d := range shortened {
		r.Known.Raise(causal.Pruned, d)
	}
	return false, nil
}

// Rewound returns how the store was found at the opening: older than it was closed. It is "" if
// the store was found as it was closed, or if all that it covered then is covered again.
func (r *Replica) Rewound() string {
	if r.rewound != nil && r.rewound.covered.Within(r.Known.Vector(causal.Covered)) {
		r.rewound = nil
	}
	if r.rewound == nil {
		return ""
	}
	return r.rewound.String()
}
