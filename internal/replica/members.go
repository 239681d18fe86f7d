package replica

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/printable"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

const (
	memberSaveInterval = time.Hour   // how far the stored time of a member may lag
	strangerTTL        = time.Minute // who has not held a whole session counts no longer
)

// membership is whose reports count before anything is purged.
type membership struct {
	Members   map[causal.Origin]*Member
	Succeeded map[causal.Origin]bool // members that were opened again since they were last heard
}

// Member is a replica whose reports count before anything is purged: one that was heard within
// PeerTTL.
type Member struct {
	Origin        causal.Origin
	Name          string
	Seen          time.Time
	saved         time.Time        // seen as last written to the store
	Met           bool             // a session with it has ended well, now or before it was written
	Known         causal.Knowledge // what it last told us of its knowledge
	Rev           uint64           // its revision then
	AddrHash      uint32           // sum of the addresses it last told us
	VectorSum     causal.Sum       // of its version vector, when last asked,
	Digest        causal.Sum       // and of what it held then,
	Counting      bool             // unless it was still counting that
	Agreed        time.Time        // when it last held what we did
	BlockingSince time.Time        // since when it is seen to hold back purging; zero: it does not
	earlier       []causal.Origin  // its earlier incarnations, the latest first, at most LineageLimit
	Replaced      bool             // somebody else answered where it did: it counts no more until it is heard again
}

// ActiveMembers are the members, sorted by origin.
func (r *Replica) ActiveMembers() []*Member {
	now := r.Now()
	var ms []*Member
	for _, o := range slices.SortedFunc(maps.Keys(r.Members), causal.Origin.Compare) {
		if m := r.Members[o]; m.unseenFor(now) <= r.PeerTTL {
			ms = append(ms, m)
		}
	}
	return ms
}

// NoteSeen notes that a peer was heard, and returns what is known of it.
func (r *Replica) NoteSeen(o causal.Origin, name string) *Member {
	m := r.Members[o]
	if m == nil {
		m = &Member{Origin: o}
		r.Members[o] = m
		r.StableCache = nil
	}
	m.Name, m.Seen, m.Replaced = name, r.Now(), false
	delete(r.Succeeded, o) // it still runs: what succeeded it is a copy
	return m
}

// NoteReplaced notes that somebody else answers where a member did. It may have lost
// its disk, and would count twice.
func (r *Replica) NoteReplaced(o causal.Origin) {
	if m := r.Members[o]; m != nil {
		m.Replaced = true
	}
}

// Dismiss drops a member that broke the rules before a session with it had ever
// ended well.
func (r *Replica) Dismiss(o causal.Origin) {
	if m := r.Members[o]; m != nil && !m.Met {
		delete(r.Members, o)
		r.StableCache = nil
	}
}

// stageMembers writes who was seen since it was last written, and drops whom
// nobody has seen for long. Their reports are not stored: until a member was
// heard again it holds everything back. Whoever only introduced itself is not
// written at all: it may be anybody, under a new name each time.
func (r *Replica) stageMembers(b leveldb.BatchReplay) {
	now := r.Now()
	for _, o := range slices.SortedFunc(maps.Keys(r.Members), causal.Origin.Compare) {
		m := r.Members[o]
		key := store.KindKey(store.KindMember, o[:])
		switch {
		case !m.Met:
			if m.unseenFor(now) > strangerTTL {
				delete(r.Members, o)
				r.StableCache = nil
			}
		case r.Succeeded[o] && !r.hasMetSuccessor(o):
			// Its record goes with the batch that has the successor's. A crash between the two would leave nobody to wait for.
		case m.unseenFor(now) > r.PeerTTL:
			b.Delete(key)
			delete(r.Members, o)
			r.StableCache = nil
		case m.Seen.Sub(m.saved).Abs() >= memberSaveInterval:
			m.stage(b)
			m.saved = m.Seen
		}
	}
}

func (m *Member) stage(b leveldb.BatchReplay) {
	rec := binary.BigEndian.AppendUint64([]byte{store.FormatVersion}, uint64(m.Seen.UnixMilli()))
	b.Put(store.KindKey(store.KindMember, m.Origin[:]), append(rec, m.Name...))
}

func (t *Txn) StageMembers() { t.R.stageMembers(&t.Batch) }

func (r *Replica) readMembers() error {
	it := r.Store.NewIterator(store.KindRange(store.KindMember), nil)
	defer it.Release()
	for it.Next() {
		d := store.Decoder{B: it.Value()}
		if len(store.UserKey(it.Key())) != len(causal.Origin{}) || len(d.B) < 9 || d.Format() != nil {
			return fmt.Errorf("replicator: member record %x is corrupted or of a later release", it.Key())
		}
		seen := time.UnixMilli(int64(d.Uint64()))
		o := causal.Origin(store.UserKey(it.Key()))
		r.Members[o] = &Member{Origin: o, Name: printable.Printable(string(d.B)), Seen: seen, saved: seen, Met: true}
	}
	return it.Error()
}

// unclear reports whether nothing can be said of what a member may still come up
// with. What it wrote before it knew of a deletion may still be on its way, unless
// all that it has on disk is covered here.
func (r *Replica) unclear(m *Member) bool {
	return m.Rev == 0 || !m.Known.Within(causal.Durable, &r.Known, causal.Covered)
}

// Blockers returns the members that hold back purging, and notes
// since when: those that are unclear, and those that have not reported to have on
// disk what the deletions need that are held since the last look. What is not on disk here is no fault of theirs:
// what a crash took is nowhere (O5).
func (r *Replica) Blockers() []*Member {
	if len(r.left.seen) == 0 {
		return nil
	}
	now := r.Now()
	var ms []*Member
	for _, m := range r.ActiveMembers() {
		lacks := func(d causal.Dot) bool {
			return m.Known.Seq(causal.Durable, d.Origin) < min(d.Seq, r.Known.Seq(causal.Durable, d.Origin))
		}
		if !r.unclear(m) && !slices.ContainsFunc(r.left.seen, lacks) {
			m.BlockingSince = time.Time{}
			continue
		}
		if m.BlockingSince.IsZero() {
			m.BlockingSince = now
			if m.Rev == 0 { // not heard since the opening
				m.BlockingSince = m.Seen
			}
		}
		ms = append(ms, m)
	}
	return ms
}

// unseenFor returns how long ago a member was last seen. One that was seen later than now
// was seen while this replica's clock was ahead, and would count for as long: its time
// starts again.
func (m *Member) unseenFor(now time.Time) time.Duration {
	if m.Seen.After(now) {
		m.Seen = now
	}
	return now.Sub(m.Seen)
}
