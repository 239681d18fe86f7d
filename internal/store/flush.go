package store

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

const quiesceTime = 2 * time.Millisecond

// Sizes of what fills the memtable in the end.
const (
	leastFiller = 16 << 10
	mostFiller  = 512 << 10
)

var (
	MetaFormat = KindKey(KindMeta, []byte("format"))
	MetaClean  = KindKey(KindMeta, []byte("clean"))
	MetaResume = KindKey(KindMeta, []byte("resume")) // what an unfinished pull brought
	MetaFlush  = KindKey(KindMeta, []byte("flush"))
	MetaAdopt  = KindKey(KindMeta, []byte("adopt")) // what was found at the first opening is not all logged yet
	MetaLocal  = KindKey(KindMeta, []byte("local")) // the ranges that are neither logged nor sent
	MetaOrder  = KindKey(KindMeta, []byte("order")) // and what follows: see checkOrder
)

// MemtableFlushes returns how often goleveldb has flushed its memtable since it was opened.
func MemtableFlushes(db *leveldb.DB) (uint64, error) {
	s, err := db.GetProperty("leveldb.compcount")
	if err != nil {
		return 0, err
	}
	for _, f := range strings.Fields(s) {
		if v, ok := strings.CutPrefix(f, "MemComp:"); ok {
			return strconv.ParseUint(v, 10, 64)
		}
	}
	return 0, fmt.Errorf("replicator: goleveldb tells no count of memtable flushes in %q", s)
}

// Flush brings all that was acknowledged before it to disk. It overwrites one key
// until goleveldb has flushed its memtable twice: it has one frozen memtable at
// most, so the second flush is of writes after the call. CompactRange would be
// no barrier if its memtable happened to be just full, and rewrites tables.
func Flush(db *leveldb.DB) error {
	start, err := MemtableFlushes(db)
	if err != nil {
		return err
	}
	filler := make([]byte, mostFiller)
	size := leastFiller
	for n := 0; ; n++ {
		// While goleveldb is behind with its compactions it delays each write by 1 ms, so a
		// large write buffer had better be filled by few.
		if err := db.Put(MetaFlush, filler[:size], nil); err != nil {
			return err
		}
		size = min(2*size, mostFiller)
		now, err := MemtableFlushes(db)
		if err != nil {
			return err
		}
		if now >= start+2 {
			return db.Delete(MetaFlush, nil)
		}
		if n > 1<<20 {
			return errors.New("replicator: goleveldb does not flush its memtable")
		}
	}
}

// Quiesce waits until goleveldb flushes nothing. Its Close closes a channel that
// the end of a flush may just be sending on, and panics then.
func Quiesce(db *leveldb.DB) {
	// No key of ours or of a user lies here, so nothing is compacted; but the
	// command is taken only between compactions, and a flush bars those.
	beyond := []byte{0xff, 0xff, 0xff, 0xff}
	done := make(chan struct{})
	go func() {
		defer close(done)
		db.CompactRange(util.Range{Start: beyond, Limit: beyond})
	}()
	timeout := time.NewTimer(time.Second)
	defer timeout.Stop()
	select {
	case <-done:
	case <-timeout.C:
		return
	}
	// The flush may have a few instructions left to do.
	timeout.Reset(quiesceTime)
	<-timeout.C
}
