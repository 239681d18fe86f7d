package session

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// A long pull reads much of the log, and for each entry the value at the raw key,
// which lies elsewhere. To look up one after the other is what takes the time. So the
// entries of a part of the log are read first, then their values in key order, and
// then both are sent in the order of the log, in which no batch is torn.

// logged is a log entry with the value that belongs to it.
type logged struct {
	store.Entry
	read bool // the value is there, wherever it was
}

const (
	WindowSize    = 16 << 20 // bytes, about, that a long pull sends of one state of the database
	windowGrowth  = 64       // times as much as of the state before
	slowGrowth    = 4        // the same after a session that broke off
	windowLeast   = 16       // entries that are read together
	windowMost    = 1 << 17
	sortedFrom    = 64  // fewer values are looked up one by one
	seekThreshold = 32  // keys that are passed over rather than sought
	loggedAtLeast = 100 // bytes, about, that an entry comes to on the wire, before one was seen
)

// readLog reads the end of a region, which is where a pull begins, about as many
// entries as come to some bytes. It reports whether that was all.
func (v *serving) readLog(st *replica.View, g causal.Region, bytes int) (entries []logged, all bool, err error) {
	n := min(max(bytes/max(v.average, loggedAtLeast), windowLeast), windowMost)
	it := st.NewIterator(store.LogRange(g.Alias, g.From, g.To), nil)
	defer it.Release()
	entries = make([]logged, 0, min(uint64(n), g.To-g.From+1))
	var room []byte // of keys and values, shared
	for ok := it.Last(); ok; ok = it.Prev() {
		e, err := store.DecodeEntry(it.Key(), it.Value(), st)
		if err != nil {
			return nil, false, fmt.Errorf("log entry %x: %w", it.Key(), err)
		}
		room, e.Key = keep(room, e.Key)
		e.Value = nil // of siblings: they are read with their key
		entries = append(entries, logged{Entry: e, read: e.Inline || e.Deleted})
		if e.Seq == g.From {
			return entries, true, it.Error()
		}
		if len(entries) >= n {
			return entries, false, it.Error()
		}
	}
	return entries, true, it.Error()
}

// keep appends bytes to others and returns where they are now.
func keep(room, b []byte) ([]byte, []byte) {
	if len(b) == 0 {
		return room, b
	}
	if cap(room)-len(room) < len(b) {
		room = make([]byte, 0, max(2*cap(room), len(b), 1<<10))
	}
	n := len(room)
	room = append(room, b...)
	return room, room[n:len(room):len(room)]
}

// readValues reads the values of versions that are alone, in key order, until they
// come to some bytes. What it leaves is looked up when it is sent.
func readValues(st *replica.View, entries []logged, most int) error {
	var due []*logged
	for i := range entries {
		if !entries[i].read {
			due = append(due, &entries[i])
		}
	}
	// Where keys lie far apart a lookup is as good, and better for values that were
	// written just now: it ends in the memtable, while an iterator moves in all tables.
	if st.MayHaveStale || len(due) < sortedFrom || st.Keys/int64(len(due)) > seekThreshold {
		return nil
	}
	slices.SortFunc(due, func(a, b *logged) int { return bytes.Compare(a.Key, b.Key) })
	it := st.NewIterator(&util.Range{Limit: store.ReservedStart}, &opt.ReadOptions{DontFillCache: true})
	defer it.Release()
	var room []byte
	at := false
	for _, e := range due {
		for i := 0; at && i < seekThreshold && bytes.Compare(it.Key(), e.Key) < 0; i++ {
			at = it.Next()
		}
		if !at || bytes.Compare(it.Key(), e.Key) < 0 {
			at = it.Seek(e.Key)
		}
		if at && bytes.Equal(it.Key(), e.Key) {
			room, e.Value = keep(room, it.Value())
			e.read = e.CheckValue() == nil // else what comes before it is sent, and then the error
		}
		if most -= len(e.Value); most < 0 {
			break
		}
	}
	return it.Error()
}

// readValue looks up the value of a version that is alone.
func readValue(st *replica.View, e *logged) (err error) {
	if e.read {
		return nil
	}
	e.read = true
	return e.Entry.ReadValue(st)
}
