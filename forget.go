package replicator

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
)

// counted are the members, sorted by origin.
func (r *replica) counted() []*member {
	now := r.now()
	var ms []*member
	for _, o := range slices.SortedFunc(maps.Keys(r.members), Origin.compare) {
		if m := r.members[o]; m.unseenFor(now) <= r.peerTTL {
			ms = append(ms, m)
		}
	}
	return ms
}

// unseenFor returns how long ago a member was last seen. One that was seen later than now
// was seen while this replica's clock was ahead, and would count for as long: its time
// starts anew.
func (m *member) unseenFor(now time.Time) time.Duration {
	if m.seen.After(now) {
		m.seen = now
	}
	return now.Sub(m.seen)
}

// heard notes that a peer was heard, and gives what is known of it.
func (r *replica) heard(o Origin, name string) *member {
	m := r.members[o]
	if m == nil {
		m = &member{origin: o}
		r.members[o] = m
		r.stableVec = nil
	}
	m.name, m.seen, m.replaced = name, r.now(), false
	delete(r.succeeded, o) // it still runs: what succeeded it is a copy
	return m
}

// replaced notes that somebody else answers where a member did. It may have lost
// its disk, and would count twice.
func (r *replica) replaced(o Origin) {
	if m := r.members[o]; m != nil {
		m.replaced = true
	}
}

// succeeds drops the members that a peer says were itself, opened earlier.
func (r *replica) succeeds(now Origin, earlier []Origin) {
	for _, o := range earlier {
		if o != now && r.members[o] != nil {
			r.members[o].seen = time.Time{}
			r.succeeded[o] = true
			r.stableVec = nil
		}
	}
	if m := r.members[now]; m != nil && len(earlier) > 0 {
		m.earlier = slices.Clone(earlier[:min(len(earlier), lineageLimit)])
	}
}

// ended reports whether an opening writes no more, as far as is known: it is an earlier
// one of this database, or a peer said that it was its own, and nobody has answered
// under it since.
func (r *replica) ended(o Origin) bool {
	if m := r.members[o]; m != nil && !m.seen.IsZero() {
		return false
	}
	if r.own[o] {
		return o != r.self
	}
	for _, m := range r.members {
		if m.met && slices.Contains(m.earlier, o) {
			return true
		}
	}
	return false
}

// lost reports whether a write that is not claimed here never will be, under this name,
// as far as the peers that were heard know: its opening has ended, none of them claims
// it, and nothing of it is held here. If something is, it may still be claimed, or it
// is an orphan that is to be issued again.
func (r *replica) lost(d dot) (bool, error) {
	if !r.ended(d.origin) {
		return false, nil
	}
	for _, m := range r.members {
		if m.known.covers(d) {
			return false, nil
		}
	}
	a, ok := r.alias[d.origin]
	if !ok {
		return true, nil
	}
	it := r.store.NewIterator(logRange(a, r.known.at(claimed, d.origin)+1, maxSeq), nil)
	defer it.Release()
	held := it.Next()
	return !held, it.Error()
}

// lineageLimit is how many of its earlier origins a replica names to its peers.
const lineageLimit = 64

// lineage are the latest origins of this database: who knew it by one of them
// knows it still.
func (r *replica) lineage(limit int) []Origin {
	var os []Origin
	for i := len(r.aliases) - 1; i >= 0 && len(os) < limit; i-- {
		if o := r.aliases[i]; r.own[o] && o != r.self {
			os = append(os, o)
		}
	}
	return os
}

// dismiss drops a member that broke the rules before a session with it had ever
// ended well.
func (r *replica) dismiss(o Origin) {
	if m := r.members[o]; m != nil && !m.met {
		delete(r.members, o)
		r.stableVec = nil
	}
}

const (
	memberSaveInterval = time.Hour   // how far the stored time of a member may lag
	strangerTTL        = time.Minute // who has not held a whole session counts no longer
)

// stageMembers writes who was seen since it was last written, and drops whom
// nobody has seen for long. Their reports are not stored: until a member was
// heard again it holds everything back. Whoever only introduced itself is not
// written at all: it may be anybody, under a new name each time.
func (r *replica) stageMembers(b leveldb.BatchReplay) {
	now := r.now()
	for _, o := range slices.SortedFunc(maps.Keys(r.members), Origin.compare) {
		m := r.members[o]
		key := kindKey(kindMember, o[:])
		switch {
		case !m.met:
			if m.unseenFor(now) > strangerTTL {
				delete(r.members, o)
				r.stableVec = nil
			}
		case m.unseenFor(now) > r.peerTTL:
			b.Delete(key)
			delete(r.members, o)
			r.stableVec = nil
		case m.seen.Sub(m.saved).Abs() >= memberSaveInterval:
			rec := binary.BigEndian.AppendUint64([]byte{formatVersion}, uint64(m.seen.UnixMilli()))
			b.Put(key, append(rec, m.name...))
			m.saved = m.seen
		}
	}
}

func (t *txn) stageMembers() { t.r.stageMembers(&t.batch) }

func (r *replica) readMembers() error {
	it := r.store.NewIterator(kindRange(kindMember), nil)
	defer it.Release()
	for it.Next() {
		d := decoder{b: it.Value()}
		if len(it.Key()) != 3+16 || len(d.b) < 9 || d.byte() != formatVersion {
			return fmt.Errorf("replicator: member record %x is damaged or of a later release", it.Key())
		}
		seen := time.UnixMilli(int64(d.uint64()))
		o := Origin(it.Key()[3:])
		r.members[o] = &member{origin: o, name: printable(string(d.b)), seen: seen, saved: seen, met: true}
	}
	return it.Error()
}

// orphans tells whether there are writes of earlier openings that nobody turned
// out to claim.
func (r *replica) orphans() bool {
	return slices.ContainsFunc(r.loose, func(d dot) bool { return r.own[d.origin] && !r.known.covers(d) })
}

// reissue gives at most limit orphans a new name, so that they can be claimed:
// same content, clock and time, and the old dot seen. On one key a later dot of
// an origin must have seen the earlier ones, so they get an origin drawn for the
// purpose, and a further one for each further orphan of one key.
func (t *txn) reissue(limit int) error {
	var drawn []dot
	n := 0
	for _, l := range t.r.loose {
		if !t.r.own[l.origin] || t.r.known.covers(l) {
			continue
		}
		keys, garbage, err := t.r.orphanKeys(l, limit-n)
		if err != nil {
			return err
		}
		for _, d := range garbage {
			t.batch.Delete(appendLogKey(nil, t.r.alias[d.origin], d.seq))
		}
		for _, key := range keys {
			if drawn, err = t.reissueKey(key, drawn); err != nil || t.large() {
				return err
			}
		}
		if n += len(keys) + len(garbage); n >= limit {
			break
		}
		t.gone = append(t.gone, l)
	}
	return nil
}

// orphanKeys reads the log of an own origin above the claim. An entry that its
// key's log-index does not name is garbage.
func (r *replica) orphanKeys(l dot, limit int) (keys [][]byte, garbage []dot, err error) {
	it := r.store.NewIterator(logRange(r.alias[l.origin], r.known.at(claimed, l.origin)+1, maxSeq), nil)
	defer it.Release()
	for it.Next() && len(keys)+len(garbage) < limit {
		e, err := decodeEntry(it.Key(), it.Value(), r)
		if err != nil {
			return nil, nil, err
		}
		s, err := r.lookup(e.key)
		if err != nil {
			return nil, nil, err
		}
		if s.has(e.dot) {
			keys = append(keys, slices.Clone(e.key))
		} else {
			garbage = append(garbage, e.dot)
		}
	}
	return keys, garbage, it.Error()
}

func (t *txn) reissueKey(key []byte, drawn []dot) ([]dot, error) {
	old, k, err := t.lookup(key)
	if err != nil || k != nil { // two orphans of one key: done with the first
		return drawn, err
	}
	vs, err := t.full(key, old, k)
	if err != nil {
		return drawn, err
	}
	now := slices.Clone(vs)
	nth := 0
	for i := range now {
		v := &now[i]
		if !t.r.own[v.origin] || t.covers(v.dot) {
			continue
		}
		if nth == len(drawn) {
			o := t.r.draw()
			t.r.assign(o)
			t.r.own[o] = true
			drawn = append(drawn, dot{o, 0})
		}
		d := &drawn[nth]
		d.seq++
		nth++
		v.vv = v.vv.clone().raise(v.dot)
		v.dot, v.offset, v.count = *d, 0, 1
		t.claim(v.dot)
	}
	return drawn, t.replaceQuietly(key, old, k, now)
}

// replaceQuietly stages a state that differs from the old one in nothing that
// those who watch would call a change.
func (t *txn) replaceQuietly(key []byte, old state, k *stagedKey, now state) error {
	n := len(t.changes)
	err := t.replace(key, old, k, now, false)
	for i := range t.changes[n:] {
		t.changes[n+i].quiet = true
	}
	return err
}
