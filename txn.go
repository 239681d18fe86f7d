package replicator

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/syndtr/goleveldb/leveldb"
)

// txn stages changes of a replica into one batch. The replica takes them in with
// apply once the batch is committed; a transaction that was not committed leaves
// no trace. Everything that the batch says of a key (value, log entries, log-index,
// marks) is the key's whole state: a power failure may lose any batch and keep a
// later one, and what is left must still fit together.
type txn struct {
	r     *replica
	batch batch
	sync  bool // must be committed with Sync

	staged  stagedKeys
	known   []row    // the columns that rise, sorted by origin
	seq     uint64   // of the last local write
	loose   vector   // dots that were merged
	gone    []dot    // loose dots of which nothing is left
	swept   bool     // the log holds no garbage any more
	aliases int      // that were recorded before
	saved   uint64   // revision up to which checkpoints were staged, or 0
	proofs  []Origin // of which proofs are along because versions may rest on them
	ownSafe bool     // it is synced, and all own writes are on disk with it
	beside  bool     // it writes local keys, which are nowhere logged
	secures bool     // all that was in doubt is written again

	savedFrom uint64 // revision from which checkpoints were staged
	resumed   uint64 // revision of the resume point that was staged, or 0

	figures // by how much they change

	decisions *decisions // of the request that is being staged; nil: its resolver is asked at once

	changes []change
	buf     []byte
	keyBuf  []byte

	versions slab[version] // of states
	dots     slab[dot]     // of vvs
	records  slab[byte]    // of log-indexes
	last     table         // of lastWrites
}

// stagedKey is a key as the transaction leaves it.
type stagedKey struct {
	key      []byte
	state    state // with values and times
	full     bool  // values and times are there
	disputed bool
}

// stagedKeys are the keys of a transaction. A few are compared one by one, many are
// found by their hash.
type stagedKeys struct {
	list  []stagedKey
	table table // of all, if they are more than a few
}

const stagedFew = 8

// find gives a key that was staged, or nil. It is valid until another key is added.
func (s *stagedKeys) find(key []byte) *stagedKey {
	if len(s.list) <= stagedFew {
		for i := range s.list {
			if bytes.Equal(s.list[i].key, key) {
				return &s.list[i]
			}
		}
		return nil
	}
	if at, ok := s.table.find(hashKey(key), s.is(key)); ok {
		return &s.list[at]
	}
	return nil
}

func (s *stagedKeys) is(key []byte) func(at uint32) bool {
	return func(at uint32) bool { return bytes.Equal(s.list[at].key, key) }
}

// add puts a key there that is not.
func (s *stagedKeys) add(k stagedKey) {
	s.list = append(s.list, k)
	from := len(s.list) - 1
	switch {
	case from < stagedFew:
		return
	case from == stagedFew:
		from = 0
	}
	for i := from; i < len(s.list); i++ {
		s.table.set(hashKey(s.list[i].key), uint32(i), s.is(s.list[i].key))
	}
}

func (s *stagedKeys) reset() {
	if len(s.list) > stagedFew {
		s.table.reset()
	}
	s.list = emptied(s.list)
}

// change is what a transaction did to one key, for those who watch.
type change struct {
	key      []byte
	old      state    // what the key held before; values may be missing
	versions state    // what it holds now
	resolved *version // what is shown if these are several
	index    []byte   // its record, nil for none
	local    bool
	conflict bool // it is in conflict now
	was      bool // it was in conflict before
	panicked any  // what the resolver panicked with
	quiet    bool // nobody wrote: something was forgotten or named anew
	same     bool // nothing is different: it was only written again
}

// observer is told of the changes that a replica takes in, while nobody else uses the
// replica. It must not keep c.
type observer interface{ note(c *change) }

// observe has an observer told of all changes from now on, until it is let go.
func (r *replica) observe(o observer) {
	if r.observers == nil {
		r.observers = map[observer]struct{}{}
	}
	r.observers[o] = struct{}{}
}

func (r *replica) letGo(o observer) { delete(r.observers, o) }

// shown is what the key shows now.
func (c *change) shown() version {
	switch {
	case c.resolved != nil:
		return *c.resolved
	case len(c.versions) == 0:
		return version{deleted: true}
	}
	return c.versions[0]
}

// begin starts a transaction. There is one at a time, and its batch and what it
// collected are valid until the next begins or it is cleared.
func (r *replica) begin() *txn {
	t := &r.txn
	t.clear()
	t.r, t.sync, t.seq, t.aliases = r, false, r.seq, r.recorded
	t.known = t.known[:0]
	t.loose, t.gone, t.proofs, t.saved, t.savedFrom, t.swept, t.resumed = nil, nil, nil, 0, 0, false, 0
	t.figures, t.decisions = figures{}, nil
	t.ownSafe, t.beside, t.secures = false, false, false
	return t
}

// clear empties what a transaction has collected of keys. It keeps the memory for the next, if
// it is not much.
func (t *txn) clear() {
	t.batch.reset()
	t.staged.reset()
	t.changes = emptied(t.changes)
	t.versions.reset()
	t.dots.reset()
	t.records.reset()
}

// empty tells whether there is nothing to commit.
func (t *txn) empty() bool {
	return t.batch.Len() == 0 && len(t.known) == 0 && len(t.gone) == 0 && !t.swept && !t.secures && t.figures == (figures{}) && len(t.r.aliases) == t.aliases
}

// at is one column of what will be known once this is committed.
func (t *txn) at(c column, o Origin) uint64 {
	n := t.r.known.at(c, o)
	if i, ok := findRow(t.known, o); ok {
		n = max(n, t.known[i].at[c])
	}
	return n
}

// raise lifts one column.
func (t *txn) raise(c column, d dot) {
	i, ok := findRow(t.known, d.origin)
	if !ok {
		t.known = slices.Insert(t.known, i, row{origin: d.origin})
	}
	t.known[i].at[c] = max(t.known[i].at[c], d.seq)
}

func (t *txn) covers(d dot) bool { return d.seq <= t.at(claimed, d.origin) }

// has tells whether a write is held, superseded or forgotten here.
func (t *txn) has(d dot) bool { return t.covers(d) || t.r.above.has(d) }

// prove raises a proof, but never above the claim.
func (t *txn) prove(c column, d dot) {
	if d.seq = min(d.seq, t.at(claimed, d.origin)); d.seq > t.r.known.at(c, d.origin) {
		t.raise(c, d)
	}
}

// claim raises the claim.
func (t *txn) claim(d dot) {
	if d.seq > t.r.known.at(claimed, d.origin) {
		t.raise(claimed, d)
	}
}

// lookup gives a key's state as this transaction has it so far.
func (t *txn) lookup(key []byte) (state, *stagedKey, error) {
	if k := t.staged.find(key); k != nil {
		return k.state, k, nil
	}
	rec, err := t.r.indexRecord(key)
	if len(rec) == 0 || err != nil {
		return nil, nil, err
	}
	s, err := t.r.decodeState(key, rec, &t.versions, &t.dots)
	return s, nil, err
}

// full gives a key's versions with values and times.
func (t *txn) full(key []byte, s state, k *stagedKey) (state, error) {
	if k != nil && k.full || len(s) == 0 {
		return s, nil
	}
	vs, err := readVersions(t.r.store, key, s, t.r)
	return vs, err
}

// write is one operation of a caller's batch.
type write struct {
	key, value []byte
	deleted    bool
}

// put stages the writes of one caller, which are one batch of the log. Of several
// writes of one key the last counts. It keeps no reference to keys and values
// beyond the transaction.
func (t *txn) put(writes []write) error {
	if len(writes) > 1 {
		writes = t.lastWrites(writes)
	}
	if size := sizeOf(writes); size > largeBatch {
		t.batch.enlarge(size)
		writes = inKeyOrder(writes)
	}
	logged := writes
	if slices.ContainsFunc(writes, func(w write) bool { return w.deleted || t.r.local != nil }) {
		logged = make([]write, 0, len(writes))
		for _, w := range writes {
			if t.r.local != nil && t.r.local(w.key) {
				t.raw(w)
				t.beside = true
				continue
			}
			if w.deleted {
				if absent, err := t.absent(w.key); err != nil {
					return err
				} else if absent {
					continue
				}
			}
			logged = append(logged, w)
		}
	}
	t.changes = slices.Grow(t.changes, len(logged))
	t.staged.list = slices.Grow(t.staged.list, len(logged))
	for i := range logged {
		if err := t.putOne(&logged[i], uint64(i), uint64(len(logged))); err != nil {
			return err
		}
	}
	return nil
}

// absent tells whether there is nothing to delete: no version but a tombstone, nor
// a value that was written past us. A bare deletion of the raw key will not do: a
// power failure could keep it and lose the batch before it, and a version would be
// left without its value.
func (t *txn) absent(key []byte) (bool, error) {
	s, k, err := t.lookup(key)
	if err != nil || len(s) > 1 || len(s) == 1 && !s[0].deleted {
		return false, err
	}
	if k != nil {
		return true, nil
	}
	_, err = t.r.store.Get(key, nil)
	if err == leveldb.ErrNotFound {
		return true, nil
	}
	return false, err
}

func (t *txn) raw(w write) {
	if w.deleted {
		t.batch.Delete(w.key)
	} else {
		t.batch.Put(w.key, w.value)
	}
}

// lastWrites leaves out those that are followed by another write of the same key.
func (t *txn) lastWrites(writes []write) []write {
	is := func(key []byte) func(at uint32) bool {
		return func(at uint32) bool { return bytes.Equal(writes[at].key, key) }
	}
	t.last.reset()
	for i := range writes {
		t.last.set(hashKey(writes[i].key), uint32(i), is(writes[i].key))
	}
	if t.last.used == len(writes) {
		return writes
	}
	kept := make([]write, 0, t.last.used)
	for i, w := range writes {
		if at, _ := t.last.find(hashKey(w.key), is(w.key)); int(at) == i {
			kept = append(kept, w)
		}
	}
	return kept
}

func (t *txn) putOne(w *write, offset, count uint64) error {
	old, k, err := t.lookup(w.key)
	if err != nil {
		return err
	}
	t.seq++
	seen := 0
	for i := range old {
		seen += len(old[i].vv) + 1
	}
	v := version{dot: dot{t.r.self, t.seq}, deleted: w.deleted, value: w.value, offset: offset, count: count}
	if seen > 0 {
		v.vv = t.dots.take(seen)
	}
	for i := range old {
		v.vv = v.vv.join(old[i].vv).raise(old[i].dot)
		v.clock = min(max(v.clock, old[i].clock+1), maxClock) // a hostile peer may have used it up
	}
	if len(v.vv) > pruneAbove {
		t.prune(&v)
	}
	v.stamp = t.r.clock.next(t.r.now())
	t.claim(v.dot)
	return t.replace(w.key, old, k, append(t.versions.take(1), v), true)
}

// pruneAbove is how many entries a vv may have before it is worth a proof to
// shorten it.
const pruneAbove = 4

// prune shortens the vv of a new version by what every member is known to have
// seen: that this server no longer holds it is proof enough from now on.
func (t *txn) prune(v *version) {
	stable := t.r.stable()
	v.vv = slices.DeleteFunc(v.vv, func(d dot) bool {
		n := stable.seq(d.origin)
		if d.seq > n {
			return false
		}
		if !t.r.secure(pruned, d) {
			// As it costs a sync, the proof is taken as far as it goes, and serves the
			// next keys too.
			t.rely(pruned, dot{d.origin, n})
		}
		return true
	})
}

// held tells whether all of a version is here: of some only the name was sent.
func (v *version) whole() bool { return !v.apart && v.large == 0 }

// merge takes in the state that a peer holds of one key; proof is what the peer could
// prove then. All siblings are named. What is missing of their contents is left to a
// later merge, and so is to drop what only the peer's proof is against: what has seen it
// may be what is missing.
func (t *txn) merge(key []byte, theirs []version, proof *knowledge) (fresh int, err error) {
	news, whole := false, true
	for i := range theirs {
		news = news || !t.has(theirs[i].dot)
		whole = whole && theirs[i].whole()
	}
	if !news { // it came with another session, say
		return 0, nil
	}
	old, k, err := t.lookup(key)
	if err != nil {
		return 0, err
	}
	now := old
	for i := range theirs {
		x := &theirs[i]
		if t.has(x.dot) || !x.whole() {
			continue // held, superseded or forgotten here; or not here yet
		}
		if slices.ContainsFunc(now, func(y version) bool { return y.dot == x.dot || y.saw(x.dot) }) {
			continue
		}
		if x.known && x.listed {
			continue // it was held, and is superseded
		}
		if x.known {
			return fresh, protocolErrorf("key %q: version %v was sent without its content", key, x.dot)
		}
		kept := state(t.versions.take(len(now) + 1))
		for j := range now {
			y := &now[j]
			if !x.saw(y.dot) {
				kept = append(kept, *y)
			}
		}
		now = append(kept, *x)
		fresh++
		t.r.clock.see(x.stamp)
		t.loose = t.loose.raise(x.dot)
	}
	if whole {
		now = t.dropProved(now, theirs, proof)
	}
	if fresh == 0 && len(now) == len(old) {
		return 0, nil
	}
	return fresh, t.replace(key, old, k, now, false)
}

// dropProved drops of a key what a peer knows and no longer holds, all of whose versions
// are merged: something there saw it.
func (t *txn) dropProved(now state, theirs []version, proof *knowledge) state {
	proved := func(y version) bool { return proof.proves(y.dot) && !state(theirs).has(y.dot) }
	if !slices.ContainsFunc(now, proved) {
		return now
	}
	kept := state(t.versions.take(len(now)))
	for _, y := range now {
		if !proved(y) {
			kept = append(kept, y)
			continue
		}
		for _, d := range y.vv {
			t.prove(pruned, d)
		}
		t.prove(pruned, y.dot)
	}
	return kept
}

// replace stages the new state of a key. New versions carry value and time; those
// that were held before need not.
func (t *txn) replace(key []byte, old state, k *stagedKey, now state, local bool) error {
	if len(old) > 0 && slices.ContainsFunc(now, func(v version) bool { return old.has(v.dot) }) {
		full, err := t.full(key, old, k)
		if err != nil {
			return err
		}
		for i := range now {
			if j := full.find(now[i].dot); j >= 0 {
				now[i] = full[j]
			}
		}
	}
	return t.stage(key, old, k, now, local)
}

// stage stages the new state of a key; all its versions carry value and time.
func (t *txn) stage(key []byte, old state, k *stagedKey, now state, local bool) error {
	now.sort()
	was := k != nil && k.disputed
	if k == nil && len(old) > 1 {
		has, err := t.hasKey(kindConflict, key)
		if err != nil {
			return err
		}
		was = has
	}
	for i := range old {
		if !now.has(old[i].dot) {
			t.keyBuf = appendLogKey(t.keyBuf[:0], t.r.alias[old[i].origin], old[i].seq)
			t.batch.Delete(t.keyBuf)
		}
	}
	next := stagedKey{key: key, state: now, full: true}
	c := change{key: key, old: old, local: local, was: was}
	switch {
	case len(now) == 0:
		t.batch.Delete(key)
	case len(now) == 1:
		t.raw(write{key, now[0].value, now[0].deleted})
	default:
		next.disputed = disputed(now)
		var shown version
		shown, c.panicked = t.resolve(key, now)
		c.resolved = &shown
		stageShown(&t.batch, key, shown)
	}
	t.stageLog(key, now)
	t.stageMarks(key, old, now, was, next.disputed, c.resolved)
	c.index = t.stageIndex(key, now)
	t.count(old, -1)
	t.count(now, +1)
	t.disputed += btoi(next.disputed) - btoi(was)
	c.versions, c.conflict = now, next.disputed
	t.changes = append(t.changes, c)
	if k != nil {
		*k = next
	} else {
		t.staged.add(next)
	}
	return nil
}

func btoi(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func (t *txn) hasKey(kind byte, key []byte) (bool, error) {
	_, err := t.r.store.Get(kindKey(kind, key), nil)
	if err == leveldb.ErrNotFound {
		return false, nil
	}
	return err == nil, err
}

// stageLog writes the log entries of all versions, also of those held before:
// a version beside others carries its value, a lone one has it at the raw key.
func (t *txn) stageLog(key []byte, now state) {
	counted := now.counted()
	for i := range now {
		e := entry{version: now[i], key: key, inline: len(now) > 1, counted: counted}
		t.buf = appendEntry(t.buf[:0], &e, t.r)
		t.keyBuf = appendLogKey(t.keyBuf[:0], uint32(t.r.number(e.origin)), e.seq)
		t.batch.Put(t.keyBuf, t.buf)
	}
}

// stageMarks keeps the lists of tombstones and of conflicts. They are hints: a
// crash may leave one behind, never lose one that is due.
func (t *txn) stageMarks(key []byte, old, now state, was, is bool, resolved *version) {
	mark := func(kind byte, was, is bool, value []byte) {
		if !was && !is {
			return
		}
		t.keyBuf = appendKey(t.keyBuf[:0], kind, key)
		if is {
			t.batch.Put(t.keyBuf, value)
		} else {
			t.batch.Delete(t.keyBuf)
		}
	}
	mark(kindTombstone, old.buried(), now.buried(), nil)
	var shown []byte
	if is {
		shown = shownOf(resolved.value, resolved.deleted).append(nil)
	}
	mark(kindConflict, was, is, shown)
}

// stageIndex writes the log-index and gives its record.
func (t *txn) stageIndex(key []byte, now state) []byte {
	t.keyBuf = appendKey(t.keyBuf[:0], kindIndex, key)
	if len(now) == 0 {
		t.batch.Delete(t.keyBuf)
		return nil
	}
	t.buf = appendIndex(t.buf[:0], now, t.r)
	t.batch.Put(t.keyBuf, t.buf)
	return append(t.records.take(len(t.buf)), t.buf...)
}

// finish stages what the transaction learnt of origins and gives the batch.
func (t *txn) finish() *leveldb.Batch {
	if t.ownSafe = t.sync && t.seq > t.r.seq && t.r.safe >= t.r.ownDirty; t.ownSafe {
		// All own writes are on disk with this batch: a crash takes no name from them.
		t.raise(durable, dot{t.r.self, t.seq})
	}
	for i := range t.known {
		w := &t.known[i]
		a, had := t.r.alias[w.origin]
		if !had {
			a = uint32(t.r.number(w.origin))
		}
		if had && int(a) < t.aliases && w.at[durable]|w.at[pruned]|w.at[purged] == 0 {
			continue // only the claim rose, and that is not stored
		}
		t.r.stageOrigin(&t.batch, w.origin, t.merged(*w))
	}
	if len(t.changes) > 0 {
		t.proofs = t.r.unprovedOrigins()
		for _, o := range t.proofs {
			t.r.stageOrigin(&t.batch, o, t.merged(row{origin: o}))
		}
	}
	for a := t.aliases; a < len(t.r.aliases); a++ {
		// A later batch may survive a power failure that loses this one, and
		// would make no sense without the alias.
		t.sync = true
		o := t.r.aliases[a]
		t.r.stageOrigin(&t.batch, o, t.merged(row{origin: o}))
	}
	return t.batch.whole()
}

// merged is a row as it will be once this is committed.
func (t *txn) merged(w row) row {
	for c := range columns {
		w.at[c] = t.at(c, w.origin)
	}
	return w
}

// apply takes in a transaction whose batch was committed.
func (r *replica) apply(t *txn, synced bool) {
	if !synced && t.seq > r.seq {
		r.ownDirty = r.commits + 1
	}
	if t.ownSafe {
		r.stableVec = nil
		r.moved++
	}
	r.seq, r.recorded = t.seq, len(r.aliases)
	r.known.take(t.known)
	if synced { // before the checkpoint rises below: that was not written
		r.secured(t)
	}
	r.figures.add(t.figures)
	for i := range t.changes { // in order, so that the same writes leave the same cache
		c := &t.changes[i]
		if len(c.old) == 0 {
			r.filter.add(c.key)
		}
		if c.local {
			r.cache.put(c.key, c.index)
		} else {
			r.cache.update(c.key, c.index)
		}
		r.buried(c)
		for o := range r.observers {
			o.note(c)
		}
	}
	r.savedRev = max(r.savedRev, t.saved)
	r.resume.saved = max(r.resume.saved, t.resumed)
	r.littered = r.littered && !t.swept
	r.loose = r.loose.join(t.loose)
	if len(r.loose) > 0 {
		r.loose = slices.DeleteFunc(r.loose, func(d dot) bool { return r.known.covers(d) || slices.Contains(t.gone, d) })
	}
	if r.commits++; !synced {
		r.dirty, r.unsynced = r.commits, true
		r.inDoubt.note(t)
	} else if t.secures {
		r.checkpoint(nil)
	}
	if !r.unsynced {
		for _, w := range t.known {
			r.known.raise(durable, dot{w.origin, w.at[claimed]})
		}
		r.stableVec = nil
		r.moved++
	}
}

// checkUser refuses what a caller may not write.
func (r *replica) checkUser(key, value []byte) error {
	switch {
	case reserved(key):
		return fmt.Errorf("%w: %.40q", ErrReservedKey, key)
	case len(key) > r.maxKey:
		return fmt.Errorf("%w: key of %d bytes, MaxKey is %d", ErrTooLarge, len(key), r.maxKey)
	case len(value) > r.maxValue:
		return fmt.Errorf("%w: value of %d bytes, MaxValue is %d", ErrTooLarge, len(value), r.maxValue)
	}
	return nil
}
