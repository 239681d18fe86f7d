package replicator

import (
	"context"
	"time"

	"github.com/level-replicator/replicator/internal/replica"
)

// What the replica does on its own account for many keys it commits in slices, as
// whoever writes meanwhile has to wait for one of them. How many keys that are is
// found out: they differ by a factor of a thousand, and so do machines.
const (
	holdTime   = 2 * time.Millisecond // to stage and write a slice may take about so long
	firstSlice = 16                   // keys
	mostSlice  = 128                  // what was quick for these may not be for the next
)

// background makes a DB a keeper, until ctx ends.
type background struct {
	db  *DB
	ctx context.Context // of the one task that this belongs to
}

func (b background) With(f func(r *replica.Replica)) { b.db.with(f) }

func (b background) Commit(stage func(t *replica.Txn) error) error { return b.db.commit(stage) }

func (b background) Each(keys [][]byte, stage replica.Stager) error {
	return b.db.inSlices(b.ctx, keys, stage)
}

// inSlices has something staged for each of some keys, and committed.
func (db *DB) inSlices(ctx context.Context, keys [][]byte, stage replica.Stager) error {
	n := firstSlice
	for len(keys) > 0 && ctx.Err() == nil {
		slice := keys[:min(n, len(keys))]
		var began time.Time
		var took time.Duration
		var done int
		synced := false
		err := db.commit(func(t *replica.Txn) (err error) {
			began = time.Now()
			done, err = stage(t, slice)
			took, synced = time.Since(began), t.Sync
			return err
		})
		if err != nil {
			return err
		}
		if !synced { // how long a disk takes says nothing of the number of keys
			took = time.Since(began)
		}
		keys = keys[done:]
		n = nextSlice(done, took)
	}
	return ctx.Err()
}

// nextSlice is how many keys the next slice should have, if those of the last took
// so long. One that took long by accident does not count for much, nor for long.
func nextSlice(n int, took time.Duration) int {
	want := 2 * n
	if took > 0 {
		want = int(min(int64(n)*int64(holdTime)/int64(took), int64(want)))
	}
	return min(max(want, n/2, 1), mostSlice)
}
