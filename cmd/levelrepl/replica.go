package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/store"
)

// replica is a database that commands work on: one that is open here, or one that another
// process serves over HTTP.
type replica interface {
	status(ctx context.Context) (replicator.Status, error)
	// get also returns the key's tag, which a key without a value may have, too: see tagOf.
	get(ctx context.Context, key []byte) (value []byte, tag string, err error)
	put(ctx context.Context, key, value []byte, c condition, replicas int) error
	del(ctx context.Context, key []byte, c condition, replicas int) error
	scan(ctx context.Context, s span) (page, error)
	versions(ctx context.Context, key []byte) ([]version, error)
	conflicts(ctx context.Context, from []byte, limit int) (page, error)
	take(ctx context.Context, key []byte, name string, c condition) error
	changes(ctx context.Context, w wanted, each func(c change) error) error
	verify(ctx context.Context) (replicator.Report, error)
	repair(ctx context.Context) (replicator.Report, error)
	io.Closer
}

// span is what to list.
type span struct {
	from, to []byte // from inclusive, to exclusive; a nil to is the end
	limit    int    // entries of a page at most
	values   bool   // with values
	sums     bool   // with SHA-256 sums of values
	versions bool   // with the names of the versions
}

// page is a part of a listing.
type page struct {
	Entries []entry `json:"entries"`
	// Next is where to go on, or absent if this was the last page.
	Next octets `json:"next,omitempty"`
}

// entry is a key, with what was asked for about it. A key in conflict that shows a
// deletion has no value.
type entry struct {
	Key       octets    `json:"key"`
	Value     octets    `json:"value,omitzero"`
	ETag      string    `json:"etag,omitempty"`
	Sum       []byte    `json:"sha256,omitempty"`
	Versions  []version `json:"versions,omitempty"`
	Corrupted bool      `json:"corrupted,omitempty"` // its versions were asked for and do not fit together
}

// version is a replicator.Version in JSON.
type version struct {
	Origin  replicator.Origin `json:"origin"`
	Seq     uint64            `json:"seq"`
	Clock   uint64            `json:"clock"`
	Time    time.Time         `json:"time"`
	Deleted bool              `json:"deleted,omitempty"`
	Value   octets            `json:"value,omitzero"`
}

// name returns the name of a version on the command line: the first digits of its origin,
// and its seq.
func (v *version) name() string { return fmt.Sprintf("%s/%d", v.Origin.Short(), v.Seq) }

// is reports whether a version has that name, which may have more digits of the origin.
func (v *version) is(name string) bool {
	origin, seq, ok := strings.Cut(name, "/")
	return ok && len(origin) >= 8 && strings.HasPrefix(v.Origin.String(), origin) && seq == strconv.FormatUint(v.Seq, 10)
}

func versionsOf(vs []replicator.Version, values bool) []version {
	list := make([]version, len(vs))
	for i, v := range vs {
		list[i] = version{Origin: v.Origin, Seq: v.Seq, Clock: v.Clock, Time: v.Time, Deleted: v.Deleted}
		if values && !v.Deleted {
			list[i].Value = append(octets{}, v.Value...)
		}
	}
	return list
}

// Errors of replicas, beside those of the replicator.
var (
	errNoVersion  = errors.New("the key has no such version any more; list them again")
	errNoConflict = errors.New("the key is not in conflict")
)

const (
	pageEntries = 1000
	pageBytes   = 1 << 20 // after which a page ends; one value may pass it
)

// local is a database that is open in this process.
type local struct {
	// reader is db, or a directory that must not be changed and may never have been
	// replicated.
	reader interface {
		Get(key []byte, ro *opt.ReadOptions) ([]byte, error)
		NewIterator(r *util.Range, ro *opt.ReadOptions) iterator.Iterator
	}
	db     *replicator.DB // nil if only read
	stored bool           // reader has the values, not db
	sync   bool           // every write
	close  func() error
}

func (l *local) Close() error { return l.close() }

func (l *local) status(context.Context) (replicator.Status, error) { return l.db.Status(), nil }

func (l *local) get(_ context.Context, key []byte) (value []byte, tag string, err error) {
	value, seen, err := l.read(key)
	return value, tagOf(seen), err
}

// read returns a value and the names of the siblings that it stands for, if they are known.
func (l *local) read(key []byte) (value []byte, seen []replicator.VersionID, err error) {
	if store.Reserved(key) {
		return nil, nil, replicator.ErrReservedKey
	}
	if l.db == nil {
		value, err = l.reader.Get(key, nil)
		return value, nil, err
	}
	v, err := l.db.Read(key)
	if l.stored && (err == nil || isAbsent(err)) {
		v.Bytes, err = l.reader.Get(key, nil)
	}
	return v.Bytes, v.Seen, err
}

func isAbsent(err error) bool { return errors.Is(err, leveldb.ErrNotFound) }

func (l *local) put(ctx context.Context, key, value []byte, c condition, replicas int) error {
	wo := &opt.WriteOptions{Sync: l.sync}
	return l.write(ctx, key, c, replicas, func() error { return l.db.Put(key, value, wo) },
		func(seen []replicator.VersionID) error { return l.db.PutIf(key, value, seen, wo) })
}

func (l *local) del(ctx context.Context, key []byte, c condition, replicas int) error {
	wo := &opt.WriteOptions{Sync: l.sync}
	return l.write(ctx, key, c, replicas, func() error { return l.db.Delete(key, wo) },
		func(seen []replicator.VersionID) error { return l.db.DeleteIf(key, seen, wo) })
}

// write writes, on a condition if there is one, and waits for the replicas.
func (l *local) write(ctx context.Context, key []byte, c condition, replicas int, f func() error, on func(seen []replicator.VersionID) error) error {
	var err error
	if c.given() {
		err = l.on(ctx, key, c, on)
	} else {
		err = f()
	}
	if err != nil {
		return err
	}
	return l.replicated(ctx, replicas)
}

func (l *local) replicated(ctx context.Context, replicas int) error {
	if replicas == 0 {
		return nil
	}
	return l.db.WaitReplicated(ctx, replicas)
}

func (l *local) scan(ctx context.Context, s span) (page, error) {
	it := l.reader.NewIterator(store.Visible(&util.Range{Start: s.from, Limit: s.to}), nil)
	defer it.Release()
	p := page{Entries: []entry{}}
	for size := 0; it.Next(); {
		if len(p.Entries) >= s.limit || size >= pageBytes {
			p.Next = bytes.Clone(it.Key())
			break
		}
		e, err := l.entry(s, it.Key(), it.Value())
		if err != nil {
			return p, err
		}
		size += len(e.Key) + len(e.Value) + 100*len(e.Versions)
		p.Entries = append(p.Entries, e)
	}
	return p, errors.Join(it.Error(), ctx.Err())
}

func (l *local) entry(s span, key, value []byte) (entry, error) {
	e := entry{Key: bytes.Clone(key)}
	if s.values {
		e.Value = append(octets{}, value...)
	}
	if s.sums {
		sum := sha256.Sum256(value)
		e.Sum = sum[:]
	}
	if s.versions && l.db != nil {
		vs, err := l.db.Versions(key)
		if e.Corrupted = errors.Is(err, replicator.ErrCorrupted); err != nil && !e.Corrupted {
			return e, err
		}
		e.Versions = versionsOf(vs, false)
	}
	return e, nil
}

func (l *local) versions(_ context.Context, key []byte) ([]version, error) {
	vs, err := l.db.Versions(key)
	return versionsOf(vs, true), err
}

func (l *local) conflicts(ctx context.Context, from []byte, limit int) (page, error) {
	p, size := page{Entries: []entry{}}, 0
	for c, err := range l.db.Conflicts(ctx) {
		if err != nil {
			return p, err
		}
		if bytes.Compare(c.Key, from) < 0 {
			continue
		}
		if len(p.Entries) >= limit || size >= pageBytes {
			p.Next = c.Key
			break
		}
		e := entry{Key: c.Key, Versions: versionsOf(c.Versions, true)}
		e.ETag = tagOf(seenOf(e.Versions))
		// Not c.Value, which a stopped directory resolves with the resolver of this command.
		stored, err := l.reader.Get(c.Key, nil)
		switch {
		case err == nil:
			e.Value = append(octets{}, stored...)
		case !errors.Is(err, leveldb.ErrNotFound):
			return p, err
		}
		p.Entries = append(p.Entries, e)
		for _, v := range c.Versions {
			size += len(v.Value)
		}
	}
	return p, ctx.Err()
}

// take resolves a conflict: it writes the key's version of that name once more, which
// replaces those that it stood beside.
func (l *local) take(ctx context.Context, key []byte, name string, c condition) error {
	for {
		vs, err := l.versions(ctx, key)
		if err != nil {
			return err
		}
		seen := seenOf(vs)
		if err := l.check(c, key, seen); err != nil {
			return err
		}
		if len(vs) < 2 {
			return errNoConflict
		}
		i := slices.IndexFunc(vs, func(v version) bool { return v.is(name) })
		if i < 0 {
			return errNoVersion
		}
		wo := &opt.WriteOptions{Sync: l.sync}
		if vs[i].Deleted {
			err = l.db.DeleteIf(key, seen, wo)
		} else {
			err = l.db.PutIf(key, vs[i].Value, seen, wo)
		}
		if !errors.Is(err, replicator.ErrChanged) {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// seenOf returns the names of versions, or nil if none of them holds a value, as Read does.
func seenOf(vs []version) (seen []replicator.VersionID) {
	value := false
	for _, v := range vs {
		seen, value = append(seen, replicator.VersionID{Origin: v.Origin, Seq: v.Seq}), value || !v.Deleted
	}
	if !value {
		return nil
	}
	return seen
}

func (l *local) verify(ctx context.Context) (replicator.Report, error) { return l.db.Verify(ctx) }

func (l *local) repair(ctx context.Context) (replicator.Report, error) { return l.db.Repair(ctx) }

// each iterates over a listing, page by page.
func each(ctx context.Context, n replica, s span) iter.Seq2[entry, error] {
	return eachPage(func(from []byte) (page, error) {
		if from != nil {
			s.from = from
		}
		return n.scan(ctx, s)
	})
}

func eachConflict(ctx context.Context, n replica) iter.Seq2[entry, error] {
	return eachPage(func(from []byte) (page, error) { return n.conflicts(ctx, from, pageEntries) })
}

func eachPage(read func(from []byte) (page, error)) iter.Seq2[entry, error] {
	return func(yield func(entry, error) bool) {
		for from := []byte(nil); ; {
			p, err := read(from)
			if err != nil {
				yield(entry{}, err)
				return
			}
			for _, e := range p.Entries {
				if !yield(e, nil) {
					return
				}
			}
			if from = p.Next; from == nil {
				return
			}
		}
	}
}
