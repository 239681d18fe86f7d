package replicator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
)

// Report is what [DB.Verify] found.
type Report struct {
	Keys     int64   `json:"keys"`     // in the log-index
	Versions int64   `json:"versions"` // in the log
	Digest   Digest  `json:"digest"`   // counted anew
	Faults   []Fault `json:"faults"`   // the first 1,000
	More     int64   `json:"more"`     // faults beyond those
	Mended   int64   `json:"mended"`   // faults that [DB.Repair] found and put right
}

// OK tells whether nothing was wrong.
func (r *Report) OK() bool { return len(r.Faults) == 0 }

// Fault is something that does not fit together.
type Fault struct {
	Key     []byte `json:"key"` // nil if it is not of one key
	Problem string `json:"problem"`
}

const maxFaults = 1000

func (r *Report) fault(key []byte, format string, args ...any) {
	if len(r.Faults) >= maxFaults {
		r.More++
		return
	}
	r.Faults = append(r.Faults, Fault{slices.Clone(key), fmt.Sprintf(format, args...)})
}

// Verify compares log-index, log and values of this server with each other, key by
// key, and counts the digest anew. It reads everything, in one state of the
// database, and reports progress; writes go on meanwhile, but files that they
// replace are kept until it ends.
//
// What does not fit together is in the report. The error is for a verification that
// could not be carried through: ctx ended, or the store cannot be read, which
// the report names too.
func (db *DB) Verify(ctx context.Context) (Report, error) {
	v, err := db.verify(ctx)
	return v.report, err
}

func (db *DB) verify(ctx context.Context) (*verification, error) {
	v := &verification{db: db, ctx: ctx, damaged: map[string][]dot{}, progress: Progress{Work: "verify"}, began: time.Now()}
	if db.isClosing() {
		return v, leveldb.ErrClosed
	}
	select {
	case <-db.tidied:
		v.tidied = true
	default:
	}
	var err error
	db.at(func(c *replica) {
		v.view.aliases, v.view.index = c.aliases, c.alias
		v.kept, v.rewound = c.figures, c.stillRewound()
		v.view.snapshot, err = c.store.snapshot()
	})
	if err != nil {
		return v, err
	}
	if v.view.snapshot == nil {
		return v, leveldb.ErrClosed
	}
	defer v.view.Release()
	if err = v.run(); err != nil && ctx.Err() == nil {
		v.report.fault(nil, "the store cannot be read: %v", err)
	}
	v.progress.Done = true
	db.progress(v.progress)
	return v, err
}

// verification is one run of Verify.
type verification struct {
	db            *DB
	ctx           context.Context // of the one call that this belongs to
	view          view
	report        Report
	damaged       map[string][]dot // keys to be mended, with log entries that their log-index does not name
	kept, counted figures
	rewound       *rewound
	counting      bool // all of it was counted
	named, logged sum  // dots in the index, in the log
	progress      Progress
	began         time.Time
	tidied        bool // what the opening has to do is done: no crash's entries are in the log, and conflicts show what they should
}

// fault reports what is wrong with a key, which can be mended.
func (v *verification) fault(key []byte, format string, args ...any) {
	v.report.fault(key, format, args...)
	if len(v.damaged) < maxFaults {
		v.damaged[string(key)] = v.damaged[string(key)]
	}
}

func (v *verification) run() error {
	if v.rewound != nil {
		v.report.fault(nil, "%v; what no peer has is lost", v.rewound)
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
	v.counting = true
	v.report.Digest = v.counted.digest.digest()
	if v.counted.digest != v.kept.digest {
		v.report.fault(nil, "the digest kept is %v, counted %v", v.kept.digest.digest(), v.report.Digest)
	}
	if v.counted.keys != v.kept.keys || v.counted.tombstones != v.kept.tombstones {
		v.report.fault(nil, "kept are %d keys and %d tombstones, counted %d and %d", v.kept.keys, v.kept.tombstones, v.counted.keys, v.counted.tombstones)
	}
	return nil
}

// tick reports progress now and then, and tells whether to go on.
func (v *verification) tick(key, value []byte) error {
	v.progress.Keys++
	v.progress.Bytes += int64(len(key) + len(value))
	if v.progress.Keys%4096 != 0 {
		return nil
	}
	if v.progress.Total = v.kept.keys + v.kept.tombstones; v.progress.Keys < v.progress.Total {
		v.progress.Left = time.Since(v.began) * time.Duration(v.progress.Total-v.progress.Keys) / time.Duration(v.progress.Keys)
	}
	v.db.progress(v.progress)
	return v.ctx.Err()
}

// checkIndex checks every key of the log-index against its log entries and value.
func (v *verification) checkIndex() error {
	it := v.view.NewIterator(kindRange(kindIndex), nil)
	defer it.Release()
	for it.Next() {
		key := it.Key()[3:]
		if err := v.tick(key, it.Value()); err != nil {
			return err
		}
		v.report.Keys++
		s, err := decodeIndex(it.Value(), &v.view)
		if err != nil {
			v.fault(key, "its log-index cannot be read: %v", err)
			continue
		}
		for i := range s {
			v.named = v.named.add(s[i].hash())
		}
		v.counted.count(s, +1)
		if err := v.checkKey(key, s); err != nil {
			return err
		}
	}
	return it.Error()
}

// checkKey checks one key. An error is one of reading; damage is reported.
func (v *verification) checkKey(key []byte, s state) error {
	raw, err := v.view.Get(key, nil)
	absent := errors.Is(err, leveldb.ErrNotFound)
	if err != nil && !absent {
		return err
	}
	vs := make([]version, 0, len(s))
	for i := range s {
		e, err := readEntry(&v.view, key, &s[i], &v.view)
		if err == nil {
			err = e.readValue(&v.view)
		}
		var damage *damageError
		switch {
		case errors.As(err, &damage):
			v.fault(key, "%s", damage.problem)
		case err != nil:
			return err
		case e.inline != (len(s) > 1):
			v.fault(key, "log entry %v has its value in the wrong place", e.dot)
		default:
			vs = append(vs, e.version)
		}
	}
	switch {
	case len(s) == 1 && s[0].deleted && !absent:
		v.fault(key, "it was deleted and has a value")
	case len(s) > 1 && len(vs) == len(s):
		v.checkShown(key, vs, raw, absent)
	}
	return nil
}

// checkShown checks what a key with several versions shows, unless its resolver
// cannot be relied upon to say the same twice.
func (v *verification) checkShown(key []byte, vs []version, raw []byte, absent bool) {
	if !v.tidied {
		return
	}
	resolve := v.db.resolve
	first, _ := resolveAll(resolve, key, vs)
	second, _ := resolveAll(resolve, key, vs)
	if !first.sameContent(&second) {
		return
	}
	if first.deleted != absent || !absent && !bytes.Equal(first.value, raw) {
		v.fault(key, "it shows another value than the resolver gives; if that was written past the wrapper and is to stay, run Adopt")
	}
}

// checkLog finds log entries that no log-index names.
func (v *verification) checkLog() error {
	look := func(each func(d dot, logKey, rec []byte) error) error {
		it := v.view.NewIterator(kindRange(kindLog), nil)
		defer it.Release()
		for it.Next() {
			d, err := logDot(it.Key(), &v.view)
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
	err := look(func(d dot, _, _ []byte) error {
		v.report.Versions++
		v.logged = v.logged.add(d.hash())
		return v.ctx.Err()
	})
	if err != nil || v.logged == v.named || !v.tidied {
		return err
	}
	return look(func(d dot, logKey, rec []byte) error {
		e, err := decodeEntry(logKey, rec, &v.view)
		if err != nil {
			v.report.fault(nil, "log entry %v: %v", d, err)
			return nil
		}
		s, err := readIndex(&v.view, e.key, &v.view)
		if err != nil || !s.has(d) { // one that cannot be read was reported, and names nothing
			v.fault(e.key, "log entry %v is not in its log-index", d)
			if ds, ok := v.damaged[string(e.key)]; ok && len(ds) < maxFaults {
				v.damaged[string(e.key)] = append(ds, d)
			}
		}
		return v.ctx.Err()
	})
}

// checkValues finds values that the log does not know.
func (v *verification) checkValues() error {
	values := v.view.NewIterator(visible(nil), nil)
	defer values.Release()
	index := v.view.NewIterator(kindRange(kindIndex), nil)
	defer index.Release()
	local := v.db.queue.replica.local
	more := index.Next()
	for values.Next() {
		key := values.Key()
		for more && string(index.Key()[3:]) < string(key) {
			more = index.Next()
		}
		if more && bytes.Equal(index.Key()[3:], key) || local != nil && local(key) {
			continue
		}
		v.report.fault(key, "its value was never logged; if it was written past the wrapper, run Adopt")
		if err := v.ctx.Err(); err != nil {
			return err
		}
	}
	return errors.Join(values.Error(), index.Error())
}
