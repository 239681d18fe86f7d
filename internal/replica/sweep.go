package replica

import (
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// sweep deletes a log entry, if still no log-index names it.
func (t *Txn) sweep(logKey []byte) error {
	rec, err := t.R.Store.Get(logKey, nil)
	if err == leveldb.ErrNotFound {
		return nil
	} else if err != nil {
		return err
	}
	e, err := store.DecodeEntry(logKey, rec, t.R)
	if err != nil {
		return err
	}
	s, _, err := t.Lookup(e.Key)
	if err == nil && !s.Has(e.Dot) {
		t.Batch.Delete(logKey)
	}
	return err
}
