package replicator

import (
	"encoding/binary"
	"fmt"
	"maps"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
)

// store is what the replica needs of a database. Snapshots are short: none is
// held while anything waits for the network.
type store interface {
	reader
	snapshot() (snapshot, error)
}

type snapshot interface {
	reader
	Release()
}

// replica is the algorithm: what a server knows, and what follows from a write
// or from what a peer says. It starts no goroutine, opens no socket, reads no
// clock but the one handed in, and never commits: it stages transactions, and
// takes in those that were committed. All of it is used by one goroutine at a
// time; docs/design.md has the rules.
type replica struct {
	replicaConfig

	self  Origin // of this opening
	seq   uint64 // of the last write logged under it
	clock hybridClock
	known knowledge
	disk  knowledge // of it the checkpoint and the proofs, as far as they are on disk
	unproved
	aliases aliases
	alias   map[Origin]uint32 // replaced when it grows, so that it may be read while the replica goes on
	opened  bool
	// recorded are the aliases that are in the store. Those beyond were assigned by
	// a transaction that failed, and the next one must write them.
	recorded int
	own      map[Origin]bool // openings of this database
	cache    cache
	filter   filter
	members  map[Origin]*member
	// succeeded are members that were opened anew since they were last heard.
	succeeded map[Origin]bool

	// loose are the greatest dots held that are above the claim: of a pull that
	// is not whole, and orphans of earlier openings.
	loose vector

	rewound *rewound // how the store was found, if it was older than when it was closed

	// littered tells that a crash may have left log entries that their keys'
	// log-indexes do not name, until a sweep has gone through the log.
	littered bool

	figures

	pending  *pendingPull   // what an unfinished pull already brought
	above    spanMap        // what is held, superseded or forgotten here above the claim, as within it
	heldBack map[dot]uint64 // what is not taken here, with the sizes
	resume   resume         // what is stored of pending and above
	// observers are told of every change, as it is taken in: whoever reads states one after
	// another and must know what went between two of them.
	observers map[observer]struct{}

	marks     []mark // claims that will be durable once goleveldb has flushed often enough
	commits   uint64 // transactions since the opening
	dirty     uint64 // the last of them that was committed without Sync
	ownDirty  uint64 // the last of them that had own writes and was committed without Sync
	safe      uint64 // up to which they are known to be on disk
	unsynced  bool   // dirty is above safe: the checkpoint may be below the claim
	inDoubt   inDoubt
	savedRev  uint64 // revision up to which checkpoints are stored
	stableVec vector // see stable; nil if it must be worked out anew

	left  remaining // tombstones that are held, but for
	fresh remaining // those that came lately

	txn txn // reused: there is one at a time
}

// unproved are the origins of which a proof, as far as the checkpoint goes, may not be
// on disk. What a version rests on may have come in any earlier batch, and a power
// failure can lose that one and keep the version; so the batch of each version has these
// proofs along, until they are known to be on disk.
type unproved struct {
	origins []Origin
	asOf    [2]uint64 // changes of proofs, and of checkpoint and disk, when they were worked out
	moved   uint64    // changes of checkpoint and disk
}

// mark is a claim taken when goleveldb had flushed its memtable count times.
type mark struct {
	count   uint64
	claim   vector
	commits uint64
	resume  resumePoint
}

// member is a server whose reports count when something is to be forgotten: one
// that was seen within PeerTTL.
type member struct {
	origin   Origin
	name     string
	seen     time.Time
	saved    time.Time // seen as last written to the store
	met      bool      // a session with it has ended well, now or before it was written
	known    knowledge // what it last told us of its knowledge
	rev      uint64    // its revision then
	book     uint32    // sum of the addresses it last told us
	claims   sum       // what it claimed when last asked,
	digest   sum       // and of what it held then
	agreed   time.Time // when it last held what we did
	holding  time.Time // since when it is seen to hold back the forgetting of deletions; zero: it does not
	earlier  []Origin  // its earlier openings, the latest first, at most lineageLimit
	replaced bool      // somebody else answered where it did: it counts no more until it is heard again
}

// replicaConfig is what a replica is given when it is made.
type replicaConfig struct {
	store   store
	draw    func() Origin
	now     func() time.Time
	resolve resolveFunc
	local   func(key []byte) bool // keys that are neither logged nor taken from peers; may be nil

	maxKey, maxValue int
	maxSkew          time.Duration
	tombstoneTTL     time.Duration // negative: deletions are never forgotten by age
	peerTTL          time.Duration
	cacheSize        int // bytes for log-indexes that were read or written lately; 0 for none
	filterSize       int // bytes for the filter that knows which keys are new; 0 for none
}

// newReplica makes a replica. It must be opened before anything else.
func newReplica(c replicaConfig) *replica {
	return &replica{replicaConfig: c, cache: cache{limit: c.cacheSize}, filter: filter{limit: c.filterSize}}
}

var (
	metaFormat = kindKey(kindMeta, []byte("format"))
	metaClean  = kindKey(kindMeta, []byte("clean"))
	metaResume = kindKey(kindMeta, []byte("resume")) // what an unfinished pull brought
	metaFlush  = kindKey(kindMeta, []byte("flush"))
	metaAdopt  = kindKey(kindMeta, []byte("adopt")) // what was found at the first opening is not all logged yet
	metaLocal  = kindKey(kindMeta, []byte("local")) // the ranges that are neither logged nor sent
	metaOrder  = kindKey(kindMeta, []byte("order")) // and what follows: see checkOrder
)

// openReplica reads a database and stages what must be committed, with Sync,
// before anything else: the new origin, and that the database is no longer
// cleanly closed.
func (r *replica) open(cluster string) (*leveldb.Batch, error) {
	r.alias, r.own, r.members = map[Origin]uint32{}, map[Origin]bool{}, map[Origin]*member{}
	r.succeeded = map[Origin]bool{}
	if err := r.readFormat(cluster); err != nil {
		return nil, err
	}
	if err := r.readOrigins(); err != nil {
		return nil, err
	}
	if err := r.readMembers(); err != nil {
		return nil, err
	}
	clean, err := r.readClean()
	if err != nil {
		return nil, err
	}
	if clean {
		if clean, err = r.checkFlushed(); err != nil {
			return nil, err
		}
	}
	if !clean {
		named, err := r.recount()
		if err != nil {
			return nil, err
		}
		logged, err := r.readLog()
		if err != nil {
			return nil, err
		}
		r.littered = logged != named
		if r.rewound != nil {
			r.rewound.found = r.figures
		}
	}
	if err := r.readResume(); err != nil {
		return nil, err
	}
	b := new(leveldb.Batch)
	b.Put(metaFormat, append([]byte{formatVersion}, cluster...))
	b.Delete(metaClean)
	r.self, r.seq = r.draw(), 0
	r.assign(r.self)
	r.own[r.self] = true
	r.stageOrigins(b, clean)
	r.disk = r.known.clone()
	r.known.rev = max(r.known.rev, 1) // 0 means: never told
	r.savedRev, r.opened, r.recorded = r.known.rev, true, len(r.aliases)
	return b, nil
}

func (r *replica) readFormat(cluster string) error {
	v, err := r.store.Get(metaFormat, nil)
	switch {
	case err == leveldb.ErrNotFound:
		return nil
	case err != nil:
		return err
	case len(v) == 0 || v[0] != formatVersion:
		return errVersion
	case string(v[1:]) != cluster:
		return fmt.Errorf("replicator: the database belongs to cluster %q, not %q", v[1:], cluster)
	}
	return nil
}

// assign gives an origin the next alias.
func (r *replica) assign(o Origin) uint32 {
	a := uint32(len(r.aliases))
	r.aliases = append(r.aliases, o)
	if r.opened { // sessions may be reading the map
		r.alias = maps.Clone(r.alias)
	}
	r.alias[o] = a
	return a
}

// stageOrigin writes what is stored of an origin. The claim itself is not: after
// a crash only the checkpoint may be believed, and after a clean close the two
// are the same.
func (r *replica) stageOrigin(b leveldb.BatchReplay, o Origin, w row) {
	rec := append(make([]byte, 0, 48), formatVersion, 0)
	if r.own[o] {
		rec[1] = 1
	}
	rec = append(rec, o[:]...)
	for _, c := range []column{durable, pruned, purged} {
		rec = binary.AppendUvarint(rec, w.at[c])
	}
	b.Put(kindKey(kindOrigin, binary.BigEndian.AppendUint32(nil, r.alias[o])), rec)
}

// stageOrigins writes the new origin and, unless all was known to be on disk, those
// that were read. A record may stem from a batch whose Sync failed: what was read
// can still be lost, and what this opening writes builds on its aliases and proofs.
func (r *replica) stageOrigins(b leveldb.BatchReplay, clean bool) {
	os := r.aliases
	if clean {
		os = os[len(os)-1:]
	}
	for _, o := range os {
		w := row{origin: o}
		if i, ok := r.known.find(o); ok {
			w = r.known.rows[i]
		}
		r.stageOrigin(b, o, w)
	}
}

func (r *replica) readOrigins() error {
	it := r.store.NewIterator(kindRange(kindOrigin), nil)
	defer it.Release()
	for it.Next() {
		if len(it.Key()) != 7 || binary.BigEndian.Uint32(it.Key()[3:]) != uint32(len(r.aliases)) {
			return fmt.Errorf("replicator: origin record %d is missing; the database is damaged", len(r.aliases))
		}
		d := decoder{b: it.Value()}
		if d.byte() != formatVersion && d.err == nil {
			return errVersion
		}
		own := d.byte()&1 != 0
		w := row{origin: d.origin()}
		for _, c := range []column{durable, pruned, purged} {
			w.at[c] = d.seq()
		}
		if err := d.end(); err != nil {
			return fmt.Errorf("origin record %d: %w", len(r.aliases), err)
		}
		r.assign(w.origin)
		if own {
			r.own[w.origin] = true
		}
		// What lies above the checkpoint may be lost, so nothing above it is
		// claimed, and absence proves nothing about it.
		w.at[claimed] = w.at[durable]
		w.at[pruned] = min(w.at[pruned], w.at[claimed])
		w.at[purged] = min(w.at[purged], w.at[claimed])
		r.known.take([]row{w})
	}
	return it.Error()
}

// stageClean writes that everything is on disk and what need not be counted at
// the next opening. It must be committed with Sync, after a flush.
func (r *replica) stageClean(b leveldb.BatchReplay) {
	for _, d := range r.known.vector(claimed) {
		r.known.raise(durable, d)
	}
	r.stageOrigins(b, false)
	r.stageMembers(b)
	rec := appendSum([]byte{formatVersion}, r.digest)
	rec = binary.BigEndian.AppendUint64(rec, uint64(r.clock.last))
	for _, n := range []int64{r.keys, r.tombstones, r.disputed} {
		rec = binary.AppendUvarint(rec, uint64(n))
	}
	rec = append(rec, byte(btoi(r.littered)))
	rec = appendVector(rec, r.loose, r)
	b.Put(metaClean, rec)
	r.writeResume(b, r.resumePoint())
}

func (r *replica) readClean() (bool, error) {
	v, err := r.store.Get(metaClean, nil)
	if err == leveldb.ErrNotFound {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	d := decoder{b: v}
	if d.byte() != formatVersion && d.err == nil {
		return false, errVersion
	}
	r.digest = d.sum()
	r.clock.last = stamp(d.uint64())
	for _, n := range []*int64{&r.keys, &r.tombstones, &r.disputed} {
		*n = int64(d.upTo(maxSeq))
	}
	r.littered = d.byte() != 0
	r.loose = d.vector(r)
	if err := d.end(); err != nil {
		return false, fmt.Errorf("mark of the clean close: %w", err)
	}
	return true, nil
}

// recount reads the whole index: after a crash the figures in memory are gone. It
// gives the sum of all dots that the index names.
func (r *replica) recount() (named sum, err error) {
	it := r.store.NewIterator(kindRange(kindIndex), nil)
	defer it.Release()
	for it.Next() {
		s, err := decodeIndex(it.Value(), r)
		if err != nil {
			return named, fmt.Errorf("log-index of key %q: %w", it.Key()[3:], err)
		}
		r.count(s, +1)
		r.filter.add(it.Key()[3:])
		for i := range s {
			named = named.add(s[i].hash())
		}
	}
	if err := it.Error(); err != nil {
		return named, err
	}
	r.filter.whole = r.filter.limit >= blockBytes
	x := r.store.NewIterator(kindRange(kindConflict), nil)
	defer x.Release()
	for x.Next() {
		r.disputed++
	}
	return named, x.Error()
}

// readLog reads the whole log after a crash. It finds the entries above the claim
// and the latest stamp among them, and gives the sum of all dots.
func (r *replica) readLog() (logged sum, err error) {
	it := r.store.NewIterator(kindRange(kindLog), nil)
	defer it.Release()
	for it.Next() {
		d, err := logDot(it.Key(), r)
		if err != nil {
			return logged, fmt.Errorf("log entry %x: %w", it.Key(), err)
		}
		logged = logged.add(d.hash())
		if r.known.covers(d) {
			continue
		}
		e, err := decodeEntry(it.Key(), it.Value(), r)
		if err != nil {
			return logged, fmt.Errorf("log entry %x: %w", it.Key(), err)
		}
		r.clock.see(e.stamp)
		r.loose = r.loose.raise(d)
	}
	return logged, it.Error()
}

func stageShown(b leveldb.BatchReplay, key []byte, shown version) {
	if shown.deleted {
		b.Delete(key)
	} else {
		b.Put(key, shown.value)
	}
}

// number and origin make the replica the origins of what it stores.
func (r *replica) number(o Origin) uint64 {
	if a, ok := r.alias[o]; ok {
		return uint64(a)
	}
	return uint64(r.assign(o))
}

func (r *replica) origin(n uint64) (Origin, bool) { return r.aliases.origin(n) }

// lookup gives the state of a key as committed.
func (r *replica) lookup(key []byte) (state, error) {
	rec, err := r.indexRecord(key)
	if len(rec) == 0 || err != nil {
		return nil, err
	}
	return r.decodeState(key, rec, nil, nil)
}

// indexRecord gives the log-index of a key as committed, empty if it has none. It is
// valid until the next is asked for.
func (r *replica) indexRecord(key []byte) ([]byte, error) {
	if r.filter.lacks(key) {
		return nil, nil
	}
	if rec, ok := r.cache.get(key); ok {
		return rec, nil
	}
	rec, err := r.store.Get(kindKey(kindIndex, key), nil)
	if err != nil && err != leveldb.ErrNotFound {
		return nil, err
	}
	r.cache.put(key, rec)
	return rec, nil
}

func (r *replica) decodeState(key, rec []byte, versions *slab[version], dots *slab[dot]) (state, error) {
	s, err := decodeIndexIn(rec, r, versions, dots)
	if err != nil {
		return nil, fmt.Errorf("log-index of key %q: %w", key, err)
	}
	return s, nil
}

// namer gives the origins of what a store holds their aliases, and back.
type namer interface {
	origins
	aliasOf(Origin) (uint32, bool)
}

// readVersions reads the versions that a state names, with their values. If one of
// them is not what was logged the error is [ErrDamaged].
func readVersions(rd reader, key []byte, s state, os namer) ([]version, error) {
	vs := make([]version, 0, len(s))
	for i := range s {
		e, err := readEntry(rd, key, &s[i], os)
		if err == nil {
			err = e.readValue(rd)
		}
		if err != nil {
			return nil, err
		}
		vs = append(vs, e.version)
	}
	return vs, nil
}

func (r *replica) aliasOf(o Origin) (uint32, bool) {
	a, ok := r.alias[o]
	return a, ok
}
