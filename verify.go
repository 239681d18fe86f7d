package replicator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/netaddr"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

// Comparison is what [DB.Compare] found.
type Comparison struct {
	Peer        string       `json:"peer"` // its address
	Name        string       `json:"name"` // and what it calls itself
	Digest      Digest       `json:"digest"`
	Theirs      Digest       `json:"theirs"`      // the peer's digest, before the session brought both up to date
	Differences []Difference `json:"differences"` // the first 1,000
	Omitted     int64        `json:"omitted"`     // keys that differ beyond those
}

// Difference is a key of which one side holds versions that the other should hold,
// too: it covers them, and holds nothing that has seen them. Values are left out.
type Difference struct {
	Key   []byte    `json:"key"`
	Here  []Version `json:"here"`  // that only this replica holds
	There []Version `json:"there"` // that only the peer holds
}

// maxMends bounds the passes of one Repair, each of which repairs up to maxFaults keys.
const maxMends = 1000

// Report is what [DB.Verify] found.
type Report struct {
	Keys     int64   `json:"keys"`     // in the log-index
	Versions int64   `json:"versions"` // in the log
	Digest   Digest  `json:"digest"`   // recounted
	Faults   []Fault `json:"faults"`   // the first 1,000
	Omitted  int64   `json:"omitted"`  // faults beyond those
	Mended   int64   `json:"mended"`   // faults that [DB.Repair] found and put right
}

// Fault is something that does not fit together.
type Fault struct {
	Key     []byte `json:"key"` // nil if it is not of one key
	Problem string `json:"problem"`
}

const maxFaults = 1000

// verification is one run of Verify.
type verification struct {
	db            *DB
	ctx           context.Context // of the one call that this belongs to
	view          *replica.View
	report        Report
	damaged       map[string][]causal.Dot // keys to be repaired, with log entries that their log-index does not name
	counted       store.Counters
	kept          store.Counters // not known while the opening is still counting
	known         bool
	rewound       string     // how the store was found at the opening, if it was older than it was closed
	counting      bool       // all of it was counted, and can be compared with what is kept
	named, logged causal.Sum // dots in the index, in the log
	progress      Progress
	began         time.Time
	tidied        bool // Tidying is done: no stale entries are in the log, and conflicts show what they should
}

// OK reports whether both hold the same, apart from writes that are on their way.
func (c Comparison) OK() bool { return len(c.Differences) == 0 }

// Compare holds a session with the peer at addr, "host:port", and then compares all
// that the two hold, key by key where they differ. Writes that are still on their
// way are no difference. If nothing differs it costs one round trip beyond the
// session; both sides read their logs once. It changes nothing: what differs is
// reconciled in the usual sessions, whose digests show it, or by [DB.Repair].
// Values are not compared, but every replica can [DB.Verify] its own.
//
// It waits until this replica has counted what it holds (see [DB.Counted]), and returns an error if the peer has not.
// The error is a [*PeerError] if the peer could not be reached or the session failed.
func (db *DB) Compare(ctx context.Context, addr string) (Comparison, error) {
	if err := netaddr.CheckAddr(addr); err != nil {
		return Comparison{}, err
	}
	if err := errors.Join(db.admit(nil), db.queue.broken()); err != nil {
		return Comparison{}, err
	}
	select {
	case <-db.counted:
	case <-ctx.Done():
		return Comparison{}, ctx.Err()
	case <-db.ending:
		return Comparison{}, leveldb.ErrClosed
	}
	var found session.Comparison
	known := slices.Contains(db.peers.all(), addr)
	if !known {
		if err := db.AddPeer(addr); err != nil {
			return Comparison{}, err
		}
		defer db.RemovePeer(addr)
	}
	if _, err := db.syncOne(ctx, addr, session.Goal{Compare: &found}); err != nil && !isSelf(err) {
		return Comparison{Peer: addr}, err
	}
	if !found.Begun {
		return Comparison{Peer: addr}, fmt.Errorf("replicator: %s was not compared: it is this replica itself, or was removed meanwhile", addr)
	}
	if found.Counting {
		return Comparison{Peer: addr}, fmt.Errorf("replicator: %s was not compared: it is still counting what it holds since it was opened; try again later", addr)
	}
	c := Comparison{Peer: addr, Name: found.Name, Digest: Digest(found.Ours.Digest()), Theirs: Digest(found.Theirs.Digest()), Omitted: found.More}
	for _, d := range found.List {
		c.Differences = append(c.Differences, Difference{d.Key, publicVersions(d.Here), publicVersions(d.There)})
	}
	return c, nil
}

// Repair does what [DB.Verify] does and repairs what it finds: what log, log-index and
// value together still say is put right here, the rest is fetched from the peers,
// one after another, until one has it. A value that was changed past the wrapper is
// put back as it was logged: run [DB.Adopt] first if such values are to stay. Values
// that were never logged are left alone; they, too, are for Adopt.
//
// The report is of the database as it is then: what nobody could repair, and how many
// faults were repaired. Nothing is dropped that no peer had a replacement for. If the
// store itself cannot be read, because one of its files is corrupted, Repair cannot help;
// docs/operations.md says what to do.
func (db *DB) Repair(ctx context.Context) (Report, error) {
	if err := errors.Join(db.admit(nil), db.queue.broken()); err != nil {
		return Report{}, err
	}
	mended := int64(0)
	faults := func(v *verification) int64 { return int64(len(v.report.Faults)) + v.report.Omitted }
	v, err := db.verify(ctx)
	for range maxMends {
		if err != nil || faults(v) == 0 {
			break
		}
		if err = db.mend(ctx, v); err != nil {
			break
		}
		before := faults(v)
		if v, err = db.verify(ctx); faults(v) >= before {
			break
		}
		mended += before - faults(v)
	}
	v.report.Mended = mended
	return v.report, err
}

// mend repairs what a verification found.
func (db *DB) mend(ctx context.Context, v *verification) error {
	if err := db.commit(func(t *replica.Txn) error { t.Recount(v.counting, v.counted, v.kept); return nil }); err != nil {
		return err
	}
	var wanted [][]byte // that cannot be repaired with what is here
	for _, key := range slices.Sorted(maps.Keys(v.damaged)) {
		whole := false
		err := db.commit(func(t *replica.Txn) (err error) {
			whole, err = t.RepairLocal([]byte(key), v.damaged[key])
			return err
		})
		if err != nil {
			return err
		}
		if !whole {
			wanted = append(wanted, []byte(key))
		}
	}
	for _, addr := range db.peers.all() {
		if len(wanted) == 0 {
			break
		}
		if _, err := db.syncOne(ctx, addr, session.Goal{Repair: wanted}); ctx.Err() != nil {
			return ctx.Err()
		} else if err != nil {
			continue // it is in Status, and another may have them
		}
		var err error
		if wanted, err = db.stillDamaged(ctx, wanted); err != nil {
			return err
		}
	}
	if v.counting && v.counted.Digest != v.kept.Digest {
		db.Sync(ctx) // whole keys are missing here: the digest shows it now. Peers that fail are in Status
	}
	return ctx.Err()
}

func (db *DB) stillDamaged(ctx context.Context, keys [][]byte) (left [][]byte, err error) {
	damaged := map[string]bool{}
	err = db.inSlices(ctx, keys, replica.OneByOne(func(t *replica.Txn, key []byte) error {
		s, k, err := t.Lookup(key)
		if err != nil {
			return err
		}
		_, lost, err := t.Intact(key, s, k)
		damaged[string(key)] = len(lost) > 0
		return err
	}))
	return slices.DeleteFunc(slices.Clone(keys), func(key []byte) bool { return !damaged[string(key)] }), err
}

// OK reports whether nothing was wrong.
func (r Report) OK() bool { return len(r.Faults) == 0 }

func (r *Report) fault(key []byte, format string, args ...any) {
	if len(r.Faults) >= maxFaults {
		r.Omitted++
		return
	}
	r.Faults = append(r.Faults, Fault{slices.Clone(key), fmt.Sprintf(format, args...)})
}

// Verify compares log-index, log and values of this replica with each other, key by
// key, and counts the digest again. It reads everything, in one state of the
// database, and reports progress; writes go on meanwhile, but files that they
// replace are kept until it ends. While the opening is still counting what there is (see [DB.Counted]) there
// is no digest that could be compared with what Verify counts.
//
// What does not fit together is in the report. The error is for a verification that
// could not be carried through: ctx ended, or the store cannot be read, which
// the report names too.
func (db *DB) Verify(ctx context.Context) (Report, error) {
	v, err := db.verify(ctx)
	return v.report, err
}

func (db *DB) verify(ctx context.Context) (*verification, error) {
	v := &verification{db: db, ctx: ctx, damaged: map[string][]causal.Dot{}, progress: Progress{Work: WorkVerify}, began: time.Now()}
	if db.isClosing() {
		return v, leveldb.ErrClosed
	}
	select {
	case <-db.tidied:
		v.tidied = true
	default:
	}
	var err error
	v.view, err = replica.TakeView(db.with, func(r *replica.Replica) {
		_, counting := r.Counting()
		v.known, v.kept, v.rewound = !counting, r.Counters, r.Rewound()
		v.tidied = v.tidied && !r.Stale() // a join under way stages log entries ahead
	})
	if err != nil {
		return v, err
	}
	defer v.view.Release()
	if err = v.run(); err != nil && ctx.Err() == nil {
		v.report.fault(nil, "the store cannot be read: %v", err)
	}
	v.progress.Done = true
	db.progress(v.progress)
	return v, err
}

// fault reports what is wrong with a key, which can be repaired.
func (v *verification) fault(key []byte, format string, args ...any) {
	v.report.fault(key, format, args...)
	if len(v.damaged) < maxFaults {
		v.damaged[string(key)] = v.damaged[string(key)]
	}
}

func (v *verification) run() error {
	if v.rewound != "" {
		v.report.fault(nil, "%s; what no peer has is lost", v.rewound)
	}
	if err := v.checkIndex(); err != nil {
		return err
	}
	if err := v.checkLog(); err != nil {
		return err
	}
	if err := v.checkValues(); err != nil {
		return err
	}
	v.report.Digest = Digest(v.counted.Digest.Digest())
	if v.counting = v.known; !v.counting {
		return nil
	}
	if v.counted.Digest != v.kept.Digest {
		v.report.fault(nil, "the digest kept is %v, counted %v", v.kept.Digest.Digest(), v.report.Digest)
	}
	if v.counted.Keys != v.kept.Keys || v.counted.Tombstones != v.kept.Tombstones {
		v.report.fault(nil, "kept are %d keys and %d tombstones, counted %d and %d", v.kept.Keys, v.kept.Tombstones, v.counted.Keys, v.counted.Tombstones)
	}
	return nil
}

// tick reports progress now and then, and returns the error of a context that ended.
func (v *verification) tick(key, value []byte) error {
	v.progress.Keys++
	v.progress.Bytes += int64(len(key) + len(value))
	if v.progress.Keys%4096 != 0 {
		return nil
	}
	if v.progress.Total = v.kept.Keys + v.kept.Tombstones; v.known && v.progress.Keys < v.progress.Total {
		v.progress.Remaining = time.Since(v.began) * time.Duration(v.progress.Total-v.progress.Keys) / time.Duration(v.progress.Keys)
	}
	v.db.progress(v.progress)
	return v.ctx.Err()
}

// checkIndex checks every key of the log-index against its log entries and value. A value is read once, so the block cache
// is left to others.
func (v *verification) checkIndex() error {
	it := v.view.NewIterator(store.KindRange(store.KindIndex), nil)
	defer it.Release()
	values := v.view.NewIterator(store.Visible(nil), &opt.ReadOptions{DontFillCache: true})
	defer values.Release()
	for it.Next() {
		key := store.UserKey(it.Key())
		if err := v.tick(key, it.Value()); err != nil {
			return err
		}
		v.report.Keys++
		s, err := store.DecodeIndex(it.Value(), v.view)
		if err != nil {
			v.fault(key, "its log-index cannot be read: %v", err)
			continue
		}
		for i := range s {
			v.named = v.named.Add(s[i].Hash())
		}
		v.counted.Count(s, +1)
		there := store.SeekNear(values, key) && bytes.Equal(values.Key(), key)
		if err := values.Error(); err != nil {
			return err
		}
		var raw []byte
		if there {
			raw = values.Value()
		}
		if err := v.checkKey(key, s, raw, !there); err != nil {
			return err
		}
	}
	return it.Error()
}

// checkKey checks one key that has a raw value, or none. An error is one of reading; corruption is reported.
func (v *verification) checkKey(key []byte, s store.Siblings, raw []byte, absent bool) error {
	vs := make([]store.Version, 0, len(s))
	for i := range s {
		e, err := store.ReadEntry(v.view, key, &s[i], v.view)
		if err == nil {
			err = e.TakeValue(raw, !absent)
		}
		var damage *store.CorruptionError
		switch {
		case errors.As(err, &damage):
			v.fault(key, "%s", damage.Problem)
		case err != nil:
			return err
		case e.Inline != (len(s) > 1):
			v.fault(key, "log entry %v has its value in the wrong place", e.Dot)
		default:
			vs = append(vs, e.Version)
		}
	}
	switch {
	case len(s) == 1 && s[0].Deleted && !absent:
		v.fault(key, "it was deleted and has a value")
	case len(s) > 1 && len(vs) == len(s):
		v.checkShown(key, vs, raw, absent)
	}
	return nil
}

// checkShown checks what a key with several versions shows, unless its resolver
// cannot be relied upon to say the same twice.
func (v *verification) checkShown(key []byte, vs []store.Version, raw []byte, absent bool) {
	if !v.tidied {
		return
	}
	resolve := v.db.decider.resolve
	first, _ := replica.Resolve(resolve, key, vs)
	second, _ := replica.Resolve(resolve, key, vs)
	if !first.SameContent(&second) {
		return
	}
	if first.Deleted != absent || !absent && !bytes.Equal(first.Value, raw) {
		v.fault(key, "it shows another value than the resolver returns; if that was written past the wrapper and is to stay, run Adopt")
	}
}

// checkLog finds log entries that no log-index names.
func (v *verification) checkLog() error {
	look := func(each func(d causal.Dot, logKey, rec []byte) error) error {
		it := v.view.NewIterator(store.KindRange(store.KindLog), nil)
		defer it.Release()
		for it.Next() {
			d, err := store.LogDot(it.Key(), v.view)
			if err != nil {
				v.report.fault(nil, "log entry %x: %v", it.Key(), err)
				continue
			}
			if err := each(d, it.Key(), it.Value()); err != nil {
				return err
			}
		}
		return it.Error()
	}
	err := look(func(d causal.Dot, _, _ []byte) error {
		v.report.Versions++
		v.logged = v.logged.Add(d.Hash())
		return v.ctx.Err()
	})
	if err != nil || v.logged == v.named || !v.tidied {
		return err
	}
	return look(func(d causal.Dot, logKey, rec []byte) error {
		e, err := store.DecodeEntry(logKey, rec, v.view)
		if err != nil {
			v.report.fault(nil, "log entry %v: %v", d, err)
			return nil
		}
		s, err := store.ReadIndex(v.view, e.Key, v.view)
		if err != nil || !s.Has(d) { // one that cannot be read was reported, and names nothing
			v.fault(e.Key, "log entry %v is not in its log-index", d)
			if ds, ok := v.damaged[string(e.Key)]; ok && len(ds) < maxFaults {
				v.damaged[string(e.Key)] = append(ds, d)
			}
		}
		return v.ctx.Err()
	})
}

// checkValues finds values that the log does not know.
func (v *verification) checkValues() error {
	local := v.db.queue.replica.Local
	for row, err := range store.Rows(v.view, nil) {
		if err != nil {
			return err
		}
		if !row.HasValue || row.Indexed || local != nil && local(row.Key) {
			continue
		}
		v.report.fault(row.Key, "its value was never logged; if it was written past the wrapper, run Adopt")
		if err := v.ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}
