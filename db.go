package replicator

import (
	"context"
	"errors"
	"iter"
	"slices"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// Get gets the value of a key, or leveldb.ErrNotFound. The caller owns the slice.
func (db *DB) Get(key []byte, ro *opt.ReadOptions) (value []byte, err error) {
	return get(db.raw, key, ro)
}

// Has tells whether the database holds a value for a key.
func (db *DB) Has(key []byte, ro *opt.ReadOptions) (bool, error) { return has(db.raw, key, ro) }

func get(rd reader, key []byte, ro *opt.ReadOptions) ([]byte, error) {
	v, err := rd.Get(key, ro)
	if err == nil && reserved(key) {
		return nil, leveldb.ErrNotFound
	}
	return v, err
}

func has(rd interface {
	Has(key []byte, ro *opt.ReadOptions) (bool, error)
}, key []byte, ro *opt.ReadOptions) (bool, error) {
	ok, err := rd.Has(key, ro)
	return ok && !reserved(key), err
}

// NewIterator gives an iterator over the keys in a range, or over all if it is nil,
// with goleveldb's rules: it sees the database as it is now, must be released, and
// is used by one goroutine at a time.
func (db *DB) NewIterator(slice *util.Range, ro *opt.ReadOptions) iterator.Iterator {
	return db.raw.NewIterator(visible(slice), ro)
}

// visible cuts the reserved range, which is the end of the keyspace, off a range.
func visible(slice *util.Range) *util.Range {
	r := util.Range{Limit: reservedStart}
	if slice != nil {
		r.Start = slice.Start
		if slice.Limit != nil && string(slice.Limit) < string(reservedStart) {
			r.Limit = slice.Limit
		}
		if string(r.Start) > string(reservedStart) {
			r.Start = reservedStart
		}
	}
	return &r
}

// Put sets the value of a key. Value, log entry and log-index are committed in one
// batch. It is safe to modify key and value after Put returns.
//
// It waits until the first attempt to replicate is over, see [DB.Ready]. Beside
// goleveldb's errors it returns ErrReservedKey, ErrTooLarge, ErrFollower, and
// ErrFailed after the store once failed to write.
func (db *DB) Put(key, value []byte, wo *opt.WriteOptions) error {
	return db.write([]write{{key: key, value: value}}, wo)
}

// Delete deletes the value of a key. It is no error if there is none. The deletion
// is replicated; it waits and fails as Put does.
func (db *DB) Delete(key []byte, wo *opt.WriteOptions) error {
	return db.write([]write{{key: key, deleted: true}}, wo)
}

// Write applies a batch: all of it or, on an error, nothing. Of several writes of
// one key the last counts. Other servers see it at once, too, if it is not larger
// than 512 KiB, where each write counts as its value, four times its key and 160
// bytes, and if none of its keys was written again before it was pulled.
func (db *DB) Write(batch *leveldb.Batch, wo *opt.WriteOptions) error {
	if db.isClosing() {
		return leveldb.ErrClosed
	}
	if batch == nil || batch.Len() == 0 {
		return nil
	}
	ws := writes{make([]write, 0, batch.Len())}
	if err := batch.Replay(&ws); err != nil {
		return err
	}
	return db.write(ws.list, wo)
}

// writes collects the operations of a batch.
type writes struct{ list []write }

func (w *writes) Put(key, value []byte) { w.list = append(w.list, write{key: key, value: value}) }
func (w *writes) Delete(key []byte)     { w.list = append(w.list, write{key: key, deleted: true}) }

func (db *DB) write(ws []write, wo *opt.WriteOptions) error {
	if err := db.admit(ws); err != nil {
		return err
	}
	req := db.queue.request()
	req.writes, req.sync = ws, wo.GetSync()
	err := db.queue.do(req)
	if !req.answered {
		return err
	}
	db.tell(req.changes)
	req.writes, req.changes, req.answered = nil, nil, false
	db.queue.requests.Put(req)
	return err
}

// admit refuses writes that are not to be, and waits until the first attempt to
// replicate is over.
func (db *DB) admit(ws []write) error {
	if db.isClosing() {
		return leveldb.ErrClosed
	}
	if db.opts.Follower {
		return ErrFollower
	}
	for i := range ws {
		if err := db.queue.replica.checkUser(ws[i].key, ws[i].value); err != nil {
			return err
		}
	}
	select {
	case <-db.ready:
		return nil
	default:
	}
	select {
	case <-db.ready:
		return nil
	case <-db.ending:
		return leveldb.ErrClosed
	}
}

// CompactRange compacts the tables of a key range, as in goleveldb. A zero range
// is all.
func (db *DB) CompactRange(r util.Range) error { return db.raw.CompactRange(r) }

// SizeOf estimates the sizes of key ranges on disk, as in goleveldb. The log of
// their keys is not part of them.
func (db *DB) SizeOf(ranges []util.Range) (leveldb.Sizes, error) {
	cut := make([]util.Range, len(ranges))
	for i := range ranges {
		cut[i] = *visible(&ranges[i])
	}
	return db.raw.SizeOf(cut)
}

// GetProperty tells of the store, as in goleveldb.
func (db *DB) GetProperty(name string) (string, error) { return db.raw.GetProperty(name) }

// Stats fills in the store's statistics, as in goleveldb.
func (db *DB) Stats(s *leveldb.DBStats) error { return db.raw.Stats(s) }

// SetReadOnly makes the database read-only until it is opened again: writes fail
// with leveldb.ErrReadOnly. It goes on serving peers what it has, and takes nothing.
func (db *DB) SetReadOnly() error {
	db.queue.slot <- struct{}{}
	defer func() { <-db.queue.slot }()
	if err := db.raw.SetReadOnly(); err != nil {
		return err
	}
	db.queue.close(leveldb.ErrReadOnly)
	return nil
}

// Versions gives what the server holds of a key: one version, a tombstone perhaps,
// or several if their writers did not know of each other, in canonical order. It
// is empty for a key that was never written or whose deletion is forgotten. The
// caller owns the values.
func (db *DB) Versions(key []byte) ([]Version, error) {
	if db.isClosing() {
		return nil, leveldb.ErrClosed
	}
	st, err := db.look()
	if err != nil {
		return nil, err
	}
	defer st.Release()
	s, err := readIndex(st, key, st)
	if err != nil {
		return nil, err
	}
	vs, err := readVersions(st, key, s, st)
	if err != nil {
		return nil, err
	}
	return copyVersions(canonical(vs)), nil
}

// look takes a state of the database to read in.
func (db *DB) look() (st *view, err error) {
	st = &view{}
	db.at(func(r *replica) {
		st.aliases, st.index = r.aliases, r.alias
		st.snapshot, err = r.store.snapshot()
	})
	if st.snapshot == nil && err == nil {
		err = leveldb.ErrClosed
	}
	return st, err
}

// Conflicts goes through the keys in conflict, in key order, with all versions of
// each in canonical order: those that their writers wrote without knowing of each
// other, and whose content differs. Any write of the key settles the conflict.
//
// It reads the database as it was when the loop began. The caller owns what it gets.
// An error ends the loop early; [DB.Verify] would name it.
func (db *DB) Conflicts() iter.Seq2[[]byte, []Version] {
	return func(yield func([]byte, []Version) bool) {
		if db.isClosing() {
			return
		}
		st, err := db.look()
		if err != nil {
			return
		}
		defer st.Release()
		if err := st.eachConflict(yield); err != nil {
			db.opts.Logger.Error("replicator: cannot list conflicts", "error", err)
		}
	}
}

func (v *view) eachConflict(yield func([]byte, []Version) bool) error {
	it := v.NewIterator(kindRange(kindConflict), nil)
	defer it.Release()
	for it.Next() {
		key := slices.Clone(it.Key()[3:])
		s, err := readIndex(v, key, v)
		if err != nil {
			return err
		}
		vs, err := readVersions(v, key, s, v)
		if err != nil {
			return err
		}
		if len(vs) < 2 || !disputed(vs) {
			continue // left behind by a crash
		}
		if !yield(key, copyVersions(canonical(vs))) {
			return it.Error()
		}
	}
	return it.Error()
}

// Adopt logs what was written to the handle past this DB: keys whose value is not
// the one that was logged are logged as if they were written now, keys without a
// value as deleted now. Replicate does it for data that the handle already
// holds; call it only after writing past the wrapper. It may be interrupted and
// repeated; writes go on meanwhile.
func (db *DB) Adopt(ctx context.Context) error {
	if err := db.admit(nil); err != nil {
		return err
	}
	if err := db.queue.broken(); err != nil {
		return err
	}
	return db.adopt(ctx)
}

// adoptFirst logs what the handle held when it was first opened. A mark in the
// store says that this is still to be done, and goes only when all of it is on disk:
// a power failure could otherwise take what was logged and leave the mark's end.
func (db *DB) adoptFirst(ctx context.Context) error {
	if err := db.adopt(ctx); err != nil {
		return err
	}
	if err := db.flushAll(); err != nil {
		return err
	}
	return db.commit(func(t *txn) error {
		t.batch.Delete(metaAdopt)
		t.sync = true
		return nil
	})
}

const adoptStep = 1000 // keys in one transaction

func (db *DB) adopt(ctx context.Context) error {
	if err := db.adoptValues(ctx); err != nil {
		return err
	}
	return db.adoptDeletes(ctx)
}

// adoptValues goes through the values, and logs those that the log does not know.
func (db *DB) adoptValues(ctx context.Context) error {
	progress := Progress{Work: "adopt"}
	for from := []byte(nil); ; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		keys, next, err := db.strangers(from, &progress)
		if err != nil {
			return err
		}
		if len(keys) > 0 {
			if err := db.commit(func(t *txn) error { return t.adopt(keys) }); err != nil {
				return err
			}
		}
		progress.Done = next == nil
		db.progress(progress)
		if next == nil {
			return nil
		}
		from = next
	}
}

// strangers reads on in the values until it has found a transaction's worth that
// the log-index does not know, or does not know so.
func (db *DB) strangers(from []byte, p *Progress) (keys [][]byte, next []byte, err error) {
	st, err := db.look()
	if err != nil {
		return nil, nil, err
	}
	defer st.Release()
	values := st.NewIterator(visible(&util.Range{Start: from}), nil)
	defer values.Release()
	index := st.NewIterator(&util.Range{Start: kindKey(kindIndex, from), Limit: []byte{0xff, 0xff, kindIndex + 1}}, nil)
	defer index.Release()
	more := index.Next()
	size := 0 // of what will be committed
	for n := 0; values.Next(); n++ {
		key := values.Key()
		cost := len(values.Value()) + 4*len(key) + writeOverhead
		if len(keys) >= adoptStep || n >= 64*adoptStep || len(keys) > 0 && size+cost > batchLimit {
			return keys, slices.Clone(key), errors.Join(values.Error(), index.Error())
		}
		for more && string(index.Key()[3:]) < string(key) {
			more = index.Next()
		}
		known := false
		if more && string(index.Key()[3:]) == string(key) {
			if known, err = st.logged(key, values.Value(), index.Value()); err != nil {
				return nil, nil, err
			}
		}
		if !known && (db.queue.replica.local == nil || !db.queue.replica.local(key)) {
			keys, size = append(keys, slices.Clone(key)), size+cost
		}
		p.Keys++
		p.Bytes += int64(len(key) + len(values.Value()))
	}
	return keys, nil, errors.Join(values.Error(), index.Error())
}

// logged tells whether a value at the raw key is what the log says it is. Of a key
// in conflict any value may be shown.
func (v *view) logged(key, value, record []byte) (bool, error) {
	s, err := decodeIndex(record, v)
	if err != nil {
		return false, err
	}
	if len(s) > 1 {
		return true, nil
	}
	if s[0].deleted {
		return false, nil
	}
	a, _ := v.aliasOf(s[0].origin)
	logKey := appendLogKey(nil, a, s[0].seq)
	rec, err := v.Get(logKey, nil)
	if err != nil {
		return false, err
	}
	e, err := decodeEntry(logKey, rec, v)
	return e.check == checksum(value), err
}

// adopt logs the values at some keys, which are in order, as they are now. Of keys
// that lie close together values and log-index are read in passing: that takes a
// tenth of the time that looking each of them up would.
func (t *txn) adopt(keys [][]byte) error {
	span := &util.Range{Start: keys[0], Limit: append(slices.Clone(keys[len(keys)-1]), 0)}
	values := t.r.store.NewIterator(span, nil)
	defer values.Release()
	index := t.r.store.NewIterator(&util.Range{Start: kindKey(kindIndex, span.Start), Limit: kindKey(kindIndex, span.Limit)}, nil)
	defer index.Release()
	ws := make([]write, 0, len(keys))
	for _, key := range keys {
		if !seekNear(values, key) {
			if err := values.Error(); err != nil {
				return err
			}
			break // this and what follows was deleted meanwhile
		}
		if string(values.Key()) != string(key) {
			continue // deleted meanwhile
		}
		if !seekNear(index, kindKey(kindIndex, key)) || string(index.Key()[3:]) != string(key) {
			if err := index.Error(); err != nil {
				return err
			}
			t.r.cache.put(key, nil)
		}
		ws = append(ws, write{key: key, value: slices.Clone(values.Value())})
	}
	return t.put(ws)
}

// seekNear moves an iterator forward to a key, or the first above it: step by step,
// if it is near.
func seekNear(it iterator.Iterator, key []byte) bool {
	for n := 0; n < 16; n++ {
		if it.Valid() && string(it.Key()) >= string(key) {
			return true
		}
		if !it.Next() {
			return false
		}
	}
	return it.Seek(key)
}

// adoptDeletes goes through the log-index, and logs as deleted what has a value
// there and none at the raw key.
func (db *DB) adoptDeletes(ctx context.Context) error {
	for from := []byte(nil); ; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		keys, next, err := db.missing(from)
		if err != nil {
			return err
		}
		if len(keys) > 0 {
			err := db.commit(func(t *txn) error {
				var ws []write
				for _, k := range keys {
					switch _, err := t.r.store.Get(k, nil); err {
					case nil: // written meanwhile
					case leveldb.ErrNotFound:
						ws = append(ws, write{key: k, deleted: true})
					default:
						return err
					}
				}
				return t.put(ws)
			})
			if err != nil {
				return err
			}
		}
		if next == nil {
			return nil
		}
		from = next
	}
}

func (db *DB) missing(from []byte) (keys [][]byte, next []byte, err error) {
	st, err := db.look()
	if err != nil {
		return nil, nil, err
	}
	defer st.Release()
	values := st.NewIterator(visible(&util.Range{Start: from}), nil)
	defer values.Release()
	index := st.NewIterator(&util.Range{Start: kindKey(kindIndex, from), Limit: []byte{0xff, 0xff, kindIndex + 1}}, nil)
	defer index.Release()
	more := values.Next()
	size := 0
	for n := 0; index.Next(); n++ {
		key := index.Key()[3:]
		if len(keys) >= adoptStep || n >= 64*adoptStep || size > batchLimit {
			return keys, slices.Clone(key), errors.Join(values.Error(), index.Error())
		}
		for more && string(values.Key()) < string(key) {
			more = values.Next()
		}
		if more && string(values.Key()) == string(key) {
			continue
		}
		s, err := decodeIndex(index.Value(), st)
		if err != nil {
			return nil, nil, err
		}
		if len(s) == 1 && !s[0].deleted {
			keys, size = append(keys, slices.Clone(key)), size+4*len(key)+writeOverhead
		}
	}
	return keys, nil, errors.Join(values.Error(), index.Error())
}

// progress keeps long work for Status and tells Events of it.
func (db *DB) progress(p Progress) {
	db.mu.Lock()
	id := p.Work + " " + p.Peer
	if p.Done {
		delete(db.work, id)
	} else {
		db.work[id] = p
	}
	db.mu.Unlock()
	if f := db.opts.Events.Progress; f != nil {
		f(p)
	}
}

// Status is what this server knows of itself and of its peers.
func (db *DB) Status() Status {
	now := time.Now()
	s := Status{Name: db.opts.Name, Cluster: db.opts.Cluster, Origin: db.self, Addr: db.listener.Addr().String()}
	select {
	case <-db.ready:
		s.Ready = true
	default:
	}
	broken := db.queue.broken()
	s.ReadOnly = broken == leveldb.ErrReadOnly
	members := map[Origin]memberStatus{}
	db.at(func(r *replica) { db.ownStatus(r, &s, members) })
	db.mu.Lock()
	s.Velocity = db.velocity.now(now)
	s.Pause = db.velocity.pause(now, db.opts.MinInterval, db.opts.MaxInterval)
	s.Sessions, s.Pulled, s.Served = db.total.sessions, db.total.pulled, db.total.served
	s.BytesIn, s.BytesOut, s.Mismatches = db.total.in, db.total.out, db.total.mismatches
	if db.cause != nil {
		s.Failed = db.cause.Error()
	}
	for _, w := range db.work {
		s.Work = append(s.Work, w)
	}
	db.mu.Unlock()
	slices.SortFunc(s.Work, func(a, b Progress) int {
		if a.Work+a.Peer < b.Work+b.Peer {
			return -1
		}
		return 1
	})
	s.Refusals = db.refusals.status()
	s.Peers = []PeerStatus{}
	db.peers.each(func(p *peer) { s.Peers = append(s.Peers, p.status(members, s.Digest, now)) })
	return s
}

type memberStatus struct {
	lag    int64
	digest Digest
}

func (db *DB) ownStatus(r *replica, s *Status, members map[Origin]memberStatus) {
	s.Digest, s.Keys, s.Tombstones, s.Conflicts = r.digest.digest(), r.keys, r.tombstones, r.disputed
	s.Claims = []Claim{}
	for _, w := range r.known.rows {
		if w.at[claimed] > 0 {
			s.Claims = append(s.Claims, Claim{w.origin, w.at[claimed], w.at[durable], r.own[w.origin]})
		}
	}
	for o, m := range r.members {
		members[o] = memberStatus{m.known.behind(&r.known), m.digest.digest()}
	}
	s.Blockers = []PurgeBlocker{}
	if r.tombstones > 0 {
		for _, o := range r.settlement().blockers {
			m := r.members[o]
			s.Blockers = append(s.Blockers, PurgeBlocker{m.name, o, m.seen})
		}
	}
}

// behind counts the writes that other claims and k does not.
func (k *knowledge) behind(other *knowledge) (n int64) {
	for _, w := range other.rows {
		if d := int64(w.at[claimed]) - int64(k.at(claimed, w.origin)); d > 0 {
			n += d
		}
	}
	return n
}

func (p *peer) status(members map[Origin]memberStatus, digest Digest, now time.Time) PeerStatus {
	s := PeerStatus{
		Addr: p.addr, Name: p.name, Origin: p.origin, Source: p.source.String(), State: p.state, Last: p.last,
		Failures: p.failed, Next: p.next, Pulled: p.pulled, Served: p.served, BytesIn: p.in, BytesOut: p.out,
	}
	if p.err != nil {
		s.Error = p.err.Error()
	}
	if m, ok := members[p.origin]; ok {
		s.Lag, s.Digest = m.lag, m.digest
		s.Agrees = m.lag == 0 && m.digest == digest
		if m.lag > 0 && !p.last.IsZero() {
			s.Behind = now.Sub(p.last)
		}
	}
	return s
}
