package replica

import (
	"fmt"

	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

// MarkClean closes the store cleanly (O3). It flushes what was not written with Sync; and the memtable as well if goleveldb has
// flushed any in this opening, so that the mark can name something that the table of the last
// flush holds.
func MarkClean(raw *leveldb.DB, r *Replica) error {
	flushes, err := store.MemtableFlushes(raw)
	if err == nil && (r.unsynced || flushes > 0) {
		b := new(leveldb.Batch)
		r.stageFlushed(b)
		if err = raw.Write(b, nil); err == nil {
			err = store.Flush(raw)
		}
	}
	if err != nil {
		return fmt.Errorf("replicator: cannot bring to disk what was written without Sync: %w", err)
	}
	b := new(leveldb.Batch)
	if err := r.StageClean(b); err != nil {
		return fmt.Errorf("replicator: cannot mark the database as cleanly closed: %w", err)
	}
	if err := raw.Write(b, &opt.WriteOptions{Sync: true}); err != nil {
		return fmt.Errorf("replicator: cannot mark the database as cleanly closed: %w", err)
	}
	return nil
}
