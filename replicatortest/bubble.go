package replicatortest

import (
	"errors"
	"fmt"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// drainTime is longer than what goleveldb leaves running after Close (1 s).
const drainTime = 2 * time.Second

// Bubble runs f as [synctest.Test] does, in virtual time. After f and the cleanups
// that it registered, two more virtual seconds pass for what closed databases leave
// running. If all this takes longer than limit, in real time, the bubble is stuck:
// the program ends with a panic that prints where every goroutine stands. Zero is
// three minutes.
func Bubble(t *testing.T, limit time.Duration, f func(t *testing.T)) {
	t.Helper()
	if limit == 0 {
		limit = 3 * time.Minute
	}
	watchdog := time.AfterFunc(limit, func() {
		debug.SetTraceback("all")
		panic(fmt.Sprintf("replicatortest: the bubble of %s is stuck: not done after %v", t.Name(), limit))
	})
	defer watchdog.Stop()
	synctest.Test(t, func(t *testing.T) {
		// The first cleanup to be registered is the last to run.
		t.Cleanup(func() { time.Sleep(drainTime) })
		f(t)
	})
}

// MemDB opens an empty database in memory. A cleanup closes it, unless the test or a
// replicator did; in a bubble it then waits two virtual seconds for what goleveldb
// leaves running, so it suits [Bubble] and a plain synctest.Test alike.
func MemDB(tb testing.TB) *leveldb.DB {
	tb.Helper()
	db, err := leveldb.Open(storage.NewMemStorage(), nil)
	if err != nil {
		tb.Fatalf("replicatortest: MemDB: open: %v", err)
	}
	tb.Cleanup(func() {
		if err := db.Close(); err != nil && !errors.Is(err, leveldb.ErrClosed) {
			tb.Errorf("replicatortest: MemDB: close: %v", err)
		}
		// The clock of a bubble starts in the year 2000, and nothing else tells
		// that we are in one without disturbing it. Guessing wrong only costs time.
		if time.Now().Year() < 2020 {
			time.Sleep(drainTime)
		}
	})
	return db
}
