package session

import (
	"fmt"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// A long pull reads much of the log, and for each entry the value at the raw key,
// which lies elsewhere. To look up one after the other is what takes the time. So the
// entries of a part of the log are read first, then their values in key order, and
// then both are sent in the order of the log, in which no batch is torn.

const (
	WindowSize    = 16 << 20 // bytes, about, that a long pull sends of one state of the database
	windowGrowth  = 64       // times as much as of the state before
	slowGrowth    = 4        // the same after a session that broke off
	windowLeast   = 16       // entries that are read together
	windowMost    = 1 << 17
	loggedAtLeast = 100 // bytes, about, that an entry comes to on the wire, before one was seen
)

// readLog reads the end of a region, which is where a pull begins, about as many
// entries as come to some bytes. It reports whether that was all.
func (v *serving) readLog(st *replica.View, g causal.Region, bytes int) (entries []replica.Logged, all bool, err error) {
	n := min(max(bytes/max(v.average, loggedAtLeast), windowLeast), windowMost)
	it := st.NewIterator(store.LogRange(g.Alias, g.From, g.To), nil)
	defer it.Release()
	entries = make([]replica.Logged, 0, min(uint64(n), g.To-g.From+1))
	var room []byte // of keys and values, shared
	for ok := it.Last(); ok; ok = it.Prev() {
		e, err := store.DecodeEntry(it.Key(), it.Value(), st)
		if err != nil {
			return nil, false, fmt.Errorf("log entry %x: %w", it.Key(), err)
		}
		room, e.Key = keep(room, e.Key)
		e.Value = nil // of siblings: they are read with their key
		entries = append(entries, replica.Logged{Entry: e, Read: e.Inline || e.Deleted})
		if e.Seq == g.From {
			return entries, true, it.Error()
		}
		if len(entries) >= n {
			return entries, false, it.Error()
		}
	}
	return entries, true, it.Error()
}

// keep appends pieces, as one, to others, and returns where they are now.
func keep(room []byte, pieces ...[]byte) (_, kept []byte) {
	n := 0
	for _, p := range pieces {
		n += len(p)
	}
	if n == 0 {
		return room, []byte{}
	}
	if cap(room)-len(room) < n {
		room = make([]byte, 0, max(min(2*cap(room), 1<<16), n, 1<<10))
	}
	from := len(room)
	for _, p := range pieces {
		room = append(room, p...)
	}
	return room, room[from:len(room):len(room)]
}

// readValues reads the values of versions that are alone, until they come to some bytes. What it leaves is looked up
// when it is sent, and if that is an error, what comes before it is sent first.
func readValues(st *replica.View, entries []replica.Logged, most int) {
	if st.MayHaveStale {
		return
	}
	var due []*replica.Logged
	for i := range entries {
		if !entries[i].Read {
			due = append(due, &entries[i])
		}
	}
	var room []byte
	st.ReadValues(due, most, func(value []byte) (kept []byte) {
		room, kept = keep(room, value)
		return kept
	})
}

// readValue looks up the value of a version that is alone.
func readValue(st *replica.View, e *replica.Logged) (err error) {
	if e.Read {
		return nil
	}
	e.Read = true
	return e.Entry.ReadValue(st)
}
