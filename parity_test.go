package replicator_test

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"
	"pgregory.net/rapid"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
)

// What a caller of goleveldb uses, and what the DB must answer alike.
type (
	readable interface {
		Get(key []byte, ro *opt.ReadOptions) ([]byte, error)
		Has(key []byte, ro *opt.ReadOptions) (bool, error)
		NewIterator(slice *util.Range, ro *opt.ReadOptions) iterator.Iterator
	}
	writable interface {
		readable
		Put(key, value []byte, wo *opt.WriteOptions) error
		Delete(key []byte, wo *opt.WriteOptions) error
		Write(batch *leveldb.Batch, wo *opt.WriteOptions) error
	}
	snapshot interface {
		readable
		Release()
		String() string
	}
	transaction interface {
		writable
		Commit() error
		Discard()
	}
	drop interface {
		writable
		CompactRange(r util.Range) error
		SizeOf(ranges []util.Range) (leveldb.Sizes, error)
		GetProperty(name string) (string, error)
		Stats(s *leveldb.DBStats) error
		SetReadOnly() error
		Close() error
	}
)

var (
	_ drop        = (*leveldb.DB)(nil)
	_ drop        = (*replicator.DB)(nil)
	_ snapshot    = (*leveldb.Snapshot)(nil)
	_ snapshot    = (*replicator.Snapshot)(nil)
	_ transaction = (*leveldb.Transaction)(nil)
	_ transaction = (*replicator.Transaction)(nil)
)

// parity runs one history against a handle and against a DB.
type parity struct {
	t      *rapid.T
	net    *replicatortest.Host
	disks  [2]storage.Storage
	raw    *leveldb.DB
	db     *replicator.DB
	closed bool
	reads  []reading // snapshots
	iters  []walking
	staged [2]transaction // nil: none is open
	over   [][2]transaction
}

type reading [2]snapshot

type walking [2]iterator.Iterator

var parityOptions = &opt.Options{WriteBuffer: 16 << 10, BlockSize: 512, CompactionTableSize: 8 << 10}

func newParity(t *rapid.T) *parity {
	return &parity{t: t, net: replicatortest.NewNetwork(1).Host("a"), disks: [2]storage.Storage{storage.NewMemStorage(), storage.NewMemStorage()}}
}

func (p *parity) open() {
	var err error
	p.raw, err = leveldb.Open(p.disks[0], parityOptions)
	require.NoError(p.t, err)
	raw, err := leveldb.Open(p.disks[1], parityOptions)
	require.NoError(p.t, err)
	l, err := p.net.Listen("9000")
	require.NoError(p.t, err)
	p.db, err = replicator.Replicate(raw, &replicator.Options{Listener: l, Dial: p.net.Dial, Insecure: true, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(p.t, err)
	p.closed = false
}

func (p *parity) close() {
	for _, w := range p.iters {
		w[0].Release()
		w[1].Release()
	}
	p.iters = nil
	p.same("Close", p.raw.Close(), p.db.Close())
	p.closed = true
	if p.staged[0] != nil { // discarded by Close
		p.over, p.staged = append(p.over, p.staged), [2]transaction{}
	}
}

// same requires equal errors: the same values where goleveldb exports them, else
// the same text.
func (p *parity) same(op string, want, got error) bool {
	for _, known := range []error{leveldb.ErrNotFound, leveldb.ErrReadOnly, leveldb.ErrSnapshotReleased, leveldb.ErrIterReleased, leveldb.ErrClosed} {
		require.Equal(p.t, want == known, got == known, "%s: want error %v, got %v", op, want, got)
		require.Equal(p.t, errors.Is(want, known), errors.Is(got, known), op)
	}
	require.Equal(p.t, fmt.Sprint(want), fmt.Sprint(got), op)
	return want == nil
}

var parityKeys = []string{"", "\x00", "\x00\x00", "a", "a\x00", "aa", "ab", "b", "ba", "c", "m", "z", "\x7f", "\x80", "\xfe", "\xfe\xff", "\xff", "\xff\x00", "\xff\xfe", "\xff\xfe\xff\xff"}

var drawKey = rapid.Map(rapid.SampledFrom(parityKeys), func(s string) []byte { return []byte(s) })

var drawValue = rapid.Custom(func(t *rapid.T) []byte {
	n := rapid.SampledFrom([]int{0, 0, 1, 3, 10, 100, 1000}).Draw(t, "length")
	return slices.Repeat([]byte{rapid.Byte().Draw(t, "byte")}, n)
})

var drawRange = rapid.Custom(func(t *rapid.T) *util.Range {
	if rapid.Bool().Draw(t, "all") {
		return nil
	}
	a, b := drawKey.Draw(t, "start"), drawKey.Draw(t, "limit")
	if string(a) > string(b) {
		a, b = b, a
	}
	switch rapid.IntRange(0, 4).Draw(t, "ends") {
	case 0:
		a = nil
	case 1:
		b = nil
	case 2:
		return util.BytesPrefix(a)
	}
	return &util.Range{Start: a, Limit: b}
})

func drawBatch(t *rapid.T) *leveldb.Batch {
	b := new(leveldb.Batch)
	for range rapid.IntRange(0, 6).Draw(t, "operations") {
		key := drawKey.Draw(t, "key")
		if rapid.Bool().Draw(t, "put") {
			b.Put(key, drawValue.Draw(t, "value"))
		} else {
			b.Delete(key)
		}
	}
	return b
}

func drawSync(t *rapid.T) *opt.WriteOptions {
	if rapid.IntRange(0, 3).Draw(t, "sync") == 0 {
		return &opt.WriteOptions{Sync: true}
	}
	return nil
}

// read asks both sides for a key, and for a whole range in one direction.
func (p *parity) read(t *rapid.T, want, got readable) {
	key := drawKey.Draw(t, "key")
	wv, werr := want.Get(key, nil)
	gv, gerr := got.Get(key, nil)
	p.same("Get", werr, gerr)
	require.Equal(t, string(wv), string(gv), "Get(%q)", key)
	wh, werr := want.Has(key, nil)
	gh, gerr := got.Has(key, nil)
	p.same("Has", werr, gerr)
	require.Equal(t, wh, gh, "Has(%q)", key)
	r := drawRange.Draw(t, "range")
	w := walking{want.NewIterator(r, nil), got.NewIterator(r, nil)}
	defer w[0].Release()
	defer w[1].Release()
	move := iterator.Iterator.Next
	if rapid.Bool().Draw(t, "backward") {
		move = iterator.Iterator.Prev
		p.step(t, w, "Last", iterator.Iterator.Last)
	}
	for p.step(t, w, "on", move) {
	}
}

// step moves both iterators and requires that they stand alike.
func (p *parity) step(t *rapid.T, w walking, op string, move func(iterator.Iterator) bool) bool {
	ok := move(w[0])
	require.Equal(t, ok, move(w[1]), op)
	require.Equal(t, w[0].Valid(), w[1].Valid(), "Valid after %s", op)
	require.Equal(t, string(w[0].Key()), string(w[1].Key()), "Key after %s", op)
	require.Equal(t, string(w[0].Value()), string(w[1].Value()), "Value after %s", op)
	p.same("Error after "+op, w[0].Error(), w[1].Error())
	return ok
}

func (p *parity) walk(t *rapid.T, w walking) {
	for range rapid.IntRange(1, 8).Draw(t, "steps") {
		switch rapid.IntRange(0, 7).Draw(t, "move") {
		case 0:
			p.step(t, w, "First", iterator.Iterator.First)
		case 1:
			p.step(t, w, "Last", iterator.Iterator.Last)
		case 2:
			key := drawKey.Draw(t, "key")
			p.step(t, w, fmt.Sprintf("Seek(%q)", key), func(it iterator.Iterator) bool { return it.Seek(key) })
		case 3, 4, 5:
			p.step(t, w, "Next", iterator.Iterator.Next)
		default:
			p.step(t, w, "Prev", iterator.Iterator.Prev)
		}
	}
}

// write does one thing to both sides.
func (p *parity) write(t *rapid.T, want, got writable) {
	wo := drawSync(t)
	switch rapid.IntRange(0, 2).Draw(t, "operation") {
	case 0:
		key, value := drawKey.Draw(t, "key"), drawValue.Draw(t, "value")
		p.same("Put", want.Put(key, value, wo), got.Put(key, value, wo))
		for i := range key { // it is the caller's again
			key[i] ^= 0xff
		}
		clear(value)
	case 1:
		key := drawKey.Draw(t, "key")
		p.same("Delete", want.Delete(key, wo), got.Delete(key, wo))
	default:
		b := drawBatch(t)
		p.same("Write", want.Write(b, wo), got.Write(b, wo))
		b.Reset()
	}
}

func (p *parity) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"read":  func(t *rapid.T) { p.read(t, p.raw, p.db) },
		"write": p.writeDB,
		// Not in transactions: after goleveldb has discarded one that came to tables, the
		// next that is committed can be invisible. Ours keeps to memory.
		"write more than a memtable": func(t *rapid.T) {
			if p.staged[0] != nil {
				return
			}
			b := drawBatch(t)
			b.Put(drawKey.Draw(t, "key"), make([]byte, 2*parityOptions.WriteBuffer))
			p.same("Write", p.raw.Write(b, nil), p.db.Write(b, nil))
		},
		"batch of nothing": func(t *rapid.T) {
			p.same("Write(nil)", p.raw.Write(nil, nil), p.db.Write(nil, nil))
		},
		"snapshot":      p.takeSnapshot,
		"read snapshot": p.readSnapshot,
		"iterator": func(t *rapid.T) {
			r := drawRange.Draw(t, "range")
			w := walking{p.raw.NewIterator(r, nil), p.db.NewIterator(r, nil)}
			p.walk(t, w)
			p.keep(t, w)
		},
		"walk":             p.walkOn,
		"open transaction": p.openTransaction,
		"transaction":      p.inTransaction,
		"end transaction":  p.endTransaction,
		"compact": func(t *rapid.T) {
			if p.staged[0] == nil {
				p.same("CompactRange", p.raw.CompactRange(util.Range{}), p.db.CompactRange(util.Range{}))
			}
		},
		"property": func(t *rapid.T) {
			name := rapid.SampledFrom([]string{"leveldb.nothing", "nothing"}).Draw(t, "name")
			_, want := p.raw.GetProperty(name)
			_, got := p.db.GetProperty(name)
			p.same("GetProperty", want, got)
			ws, want := p.raw.SizeOf([]util.Range{{}, {Start: []byte("a"), Limit: []byte("b")}})
			gs, got := p.db.SizeOf([]util.Range{{}, {Start: []byte("a"), Limit: []byte("b")}})
			p.same("SizeOf", want, got)
			require.Len(t, gs, len(ws))
			p.same("Stats", p.raw.Stats(new(leveldb.DBStats)), p.db.Stats(new(leveldb.DBStats)))
		},
		"close": p.closeOrOpen,
		"read-only": func(t *rapid.T) {
			if p.staged[0] == nil && rapid.IntRange(0, 9).Draw(t, "really") == 0 {
				p.same("SetReadOnly", p.raw.SetReadOnly(), p.db.SetReadOnly())
				p.writeDB(t)
				p.openTransaction(t)
				p.close()
				p.open()
			}
		},
	}
}

func (p *parity) writeDB(t *rapid.T) {
	if p.staged[0] == nil { // goleveldb's writers wait for the transaction
		p.write(t, p.raw, p.db)
	}
}

func (p *parity) takeSnapshot(t *rapid.T) {
	want, werr := p.raw.GetSnapshot()
	got, gerr := p.db.GetSnapshot()
	if p.same("GetSnapshot", werr, gerr) {
		p.reads = append(p.reads, reading{want, got})
	}
}

func (p *parity) readSnapshot(t *rapid.T) {
	if len(p.reads) == 0 {
		return
	}
	i := rapid.IntRange(0, len(p.reads)-1).Draw(t, "snapshot")
	s := p.reads[i]
	p.read(t, s[0], s[1])
	switch rapid.IntRange(0, 3).Draw(t, "then") {
	case 0:
		s[0].Release()
		s[1].Release()
		if rapid.Bool().Draw(t, "forget") {
			p.reads = slices.Delete(p.reads, i, i+1)
		}
	case 1:
		w := walking{s[0].NewIterator(nil, nil), s[1].NewIterator(nil, nil)}
		p.walk(t, w)
		p.keep(t, w)
	}
}

// keep keeps iterators for later, or releases them; those of a closed database are
// empty and may stay.
func (p *parity) keep(t *rapid.T, w walking) {
	if rapid.Bool().Draw(t, "keep") {
		p.iters = append(p.iters, w)
		return
	}
	w[0].Release()
	w[1].Release()
	p.walk(t, w)
}

func (p *parity) walkOn(t *rapid.T) {
	if len(p.iters) == 0 {
		return
	}
	i := rapid.IntRange(0, len(p.iters)-1).Draw(t, "iterator")
	p.walk(t, p.iters[i])
	if rapid.IntRange(0, 2).Draw(t, "release") == 0 {
		w := p.iters[i]
		p.iters = slices.Delete(p.iters, i, i+1)
		w[0].Release()
		w[1].Release()
		w[1].Release()
		p.walk(t, w)
	}
}

func (p *parity) openTransaction(t *rapid.T) {
	if p.staged[0] != nil {
		return
	}
	want, werr := p.raw.OpenTransaction()
	got, gerr := p.db.OpenTransaction()
	if p.same("OpenTransaction", werr, gerr) {
		p.staged = [2]transaction{want, got}
		p.inTransaction(t)
	}
}

func (p *parity) inTransaction(t *rapid.T) {
	tr := p.staged
	if n := len(p.over); n > 0 && rapid.IntRange(0, 5).Draw(t, "over") == 0 {
		tr = p.over[rapid.IntRange(0, n-1).Draw(t, "which")]
	}
	if tr[0] == nil {
		return
	}
	for range rapid.IntRange(1, 8).Draw(t, "operations") {
		p.write(t, tr[0], tr[1])
		p.read(t, tr[0], tr[1])
	}
	r := drawRange.Draw(t, "range")
	w := walking{tr[0].NewIterator(r, nil), tr[1].NewIterator(r, nil)}
	p.walk(t, w)
	p.write(t, tr[0], tr[1]) // the iterator does not see it
	p.walk(t, w)
	p.keep(t, w)
}

func (p *parity) endTransaction(t *rapid.T) {
	tr := p.staged
	if tr[0] == nil {
		return
	}
	p.staged = [2]transaction{}
	if rapid.IntRange(0, 2).Draw(t, "discard") == 0 {
		tr[0].Discard()
		tr[1].Discard()
		// In goleveldb an iterator of a discarded transaction shows what is written
		// later, as its sequence numbers are given out again. Ours does not.
		for _, w := range p.iters {
			w[0].Release()
			w[1].Release()
		}
		p.iters = nil
	} else {
		p.same("Commit", tr[0].Commit(), tr[1].Commit())
	}
	p.same("Commit again", tr[0].Commit(), tr[1].Commit())
	tr[1].Discard()
	p.over = append(p.over, tr)
}

// closeOrOpen goes on with the closed database for a few steps, and opens it again.
func (p *parity) closeOrOpen(t *rapid.T) {
	if rapid.IntRange(0, 3).Draw(t, "really") != 0 {
		return
	}
	p.close()
	p.same("Close", p.raw.Close(), p.db.Close())
	actions := p.actions()
	names := []string{"read", "write", "batch of nothing", "snapshot", "read snapshot", "iterator", "open transaction", "transaction", "compact", "property"}
	for range rapid.IntRange(0, 6).Draw(t, "after close") {
		actions[rapid.SampledFrom(names).Draw(t, "action")](t)
	}
	for _, tr := range p.over {
		p.same("Commit after Close", tr[0].Commit(), tr[1].Commit())
	}
	p.same("SetReadOnly", p.raw.SetReadOnly(), p.db.SetReadOnly())
	p.iters, p.reads, p.over = nil, nil, nil
	p.open()
}

func TestEveryAnswerIsGoleveldbs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newParity(t)
		p.open()
		defer func() {
			if !p.closed {
				p.close()
			}
		}()
		actions := p.actions()
		actions[""] = func(t *rapid.T) { // after every action
			p.read(t, p.raw, p.db)
		}
		t.Repeat(actions)
	})
}
