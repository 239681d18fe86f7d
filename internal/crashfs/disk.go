package crashfs

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	"github.com/syndtr/goleveldb/leveldb/storage"
)

// step is one completed mutation, small enough to log by the million. Replaying
// the first n steps on a copy of the base yields the disk as it was after n.
type step struct {
	op Op
	id int              // the file concerned; 0 for SetMeta
	fd storage.FileDesc // its name
	to storage.FileDesc // rename only: the new name
	// data is the whole content after the step, for writes and corruption. It shares
	// its array with the steps before, so it costs one slice header.
	// Invariant: nobody changes an element below len(data).
	data   []byte
	failed bool // a sync that reported an error
}

func (s step) String() string {
	switch {
	case s.op == OpWrite:
		return fmt.Sprintf("%v %v to %d bytes", s.op, s.fd, len(s.data))
	case s.op == OpRename:
		return fmt.Sprintf("%v %v to %v", s.op, s.fd, s.to)
	case s.failed:
		return fmt.Sprintf("failed %v %v", s.op, s.fd)
	}
	return fmt.Sprintf("%v %v", s.op, s.fd)
}

// span is a half-open range of byte offsets.
type span struct{ from, to int }

// inode is a file without its name.
type inode struct {
	data   []byte // what a reader sees: the page cache
	synced int    // so much of data has been promised by a successful fsync
	// lost are ranges that a failed fsync gave up on. Linux marks such pages
	// clean: a later fsync succeeds without having written them.
	lost []span
}

// change is one directory operation, atomic on disk: each name gets the file
// given, or none where the id is 0.
type change []binding

type binding struct {
	fd storage.FileDesc
	id int
}

func (c change) touches(names map[storage.FileDesc]bool) bool {
	return slices.ContainsFunc(c, func(b binding) bool { return names[b.fd] })
}

func (c change) names(id int) bool {
	return slices.ContainsFunc(c, func(b binding) bool { return b.id == id })
}

type directory map[storage.FileDesc]int

func (d directory) apply(c change) {
	for _, b := range c {
		if b.id == 0 {
			delete(d, b.fd)
		} else {
			d[b.fd] = b.id
		}
	}
}

// sorted returns the names in a fixed order, so that equal seeds draw equal images.
func (d directory) sorted() []storage.FileDesc {
	return slices.SortedFunc(maps.Keys(d), compareNames)
}

func compareNames(a, b storage.FileDesc) int {
	if a.Type != b.Type {
		return int(a.Type) - int(b.Type)
	}
	return cmp.Compare(a.Num, b.Num)
}

// disk is a directory of files as the kernel and as the medium know it. It is a
// pure state machine: the running storage and every replay drive the same code.
type disk struct {
	strict bool // an fsync of a file does not make its name durable

	files   map[int]*inode
	seen    directory // what List and Open see
	durable directory // what is surely on the medium
	// pending leads from durable to seen, in the order it was done.
	pending []change
	// meta needs no durable twin: goleveldb's SetMeta returns after CURRENT and
	// its directory have been synced.
	meta storage.FileDesc
}

func newDisk(strict bool) *disk {
	return &disk{strict: strict, files: map[int]*inode{}, seen: directory{}, durable: directory{}}
}

// clone shares the bytes and copies all the rest.
func (d *disk) clone() *disk {
	c := &disk{
		strict: d.strict, files: make(map[int]*inode, len(d.files)),
		seen: maps.Clone(d.seen), durable: maps.Clone(d.durable),
		pending: slices.Clone(d.pending), meta: d.meta,
	}
	for id, f := range d.files {
		copied := *f
		c.files[id] = &copied
	}
	return c
}

func (d *disk) apply(s step) {
	switch s.op {
	case OpCreate:
		// A create over an existing name gets a new file: after a power failure
		// the old content or the new one stands there, never a mixture.
		d.files[s.id] = &inode{}
		d.change(change{{s.fd, s.id}})
	case OpRemove:
		d.change(change{{s.fd, 0}})
	case OpRename:
		d.change(change{{s.fd, 0}, {s.to, s.id}})
	case OpSetMeta:
		d.meta = s.fd
		d.syncDirectory()
	default:
		// A file that was removed while open may be swept already.
		if f := d.files[s.id]; f != nil {
			d.applyContent(f, s)
		}
	}
}

func (d *disk) applyContent(f *inode, s step) {
	switch {
	case s.op == OpWrite:
		f.data = s.data
	case s.op == opCorrupt:
		f.data = s.data
		f.synced = min(f.synced, len(s.data))
	case s.failed:
		f.lost = append(slices.Clip(f.lost), span{f.synced, len(f.data)})
	case s.op == OpSync:
		f.synced = len(f.data)
		if s.fd.Type == storage.TypeManifest {
			d.syncDirectory() // goleveldb's file storage does so
		} else if !d.strict {
			d.syncName(s.id)
		}
	}
}

func (d *disk) change(c change) {
	d.seen.apply(c)
	d.pending = append(d.pending, c)
}

func (d *disk) syncDirectory() {
	for _, c := range d.pending {
		d.durable.apply(c)
	}
	d.pending = nil
	named := make(map[int]bool, len(d.seen))
	for _, id := range d.seen {
		named[id] = true
	}
	maps.DeleteFunc(d.files, func(id int, _ *inode) bool { return !named[id] })
}

// syncName persists the names of one file, and what was done to these names
// before, but nothing else. ext4 would commit every earlier directory operation
// too; btrfs would not, so neither do we.
func (d *disk) syncName(id int) {
	names := map[storage.FileDesc]bool{}
	chosen := make([]bool, len(d.pending))
	for i := len(d.pending) - 1; i >= 0; i-- {
		c := d.pending[i]
		if chosen[i] = c.names(id) || c.touches(names); chosen[i] {
			for _, b := range c {
				names[b.fd] = true
			}
		}
	}
	var rest []change
	for i, c := range d.pending {
		if chosen[i] {
			d.durable.apply(c)
		} else {
			rest = append(rest, c)
		}
	}
	d.pending = rest
}

// survive returns what one power failure leaves, everything in it durable.
func (d *disk) survive(mode Mode, rng *rand.Rand) *disk {
	left := newDisk(d.strict)
	left.meta = d.meta
	left.durable = d.survivingNames(mode, rng)
	for _, fd := range left.durable.sorted() {
		id := left.durable[fd]
		data := d.files[id].survive(mode, rng)
		left.files[id] = &inode{data: data, synced: len(data)}
	}
	left.seen = maps.Clone(left.durable)
	return left
}

func (d *disk) survivingNames(mode Mode, rng *rand.Rand) directory {
	if mode == Everything {
		return maps.Clone(d.seen)
	}
	names := maps.Clone(d.durable)
	if mode == DropUnsynced {
		return names
	}
	// A journalling file system replays directory operations in order; POSIX
	// promises nothing, so there any subset may have reached the disk.
	kept := rng.IntN(len(d.pending) + 1)
	for i, c := range d.pending {
		if d.strict && rng.IntN(2) == 0 || !d.strict && i < kept {
			names.apply(c)
		}
	}
	return names
}

const sectorSize = 512

func (f *inode) survive(mode Mode, rng *rand.Rand) []byte {
	if mode == Everything {
		return f.data
	}
	n := f.synced
	if mode != DropUnsynced {
		n += rng.IntN(len(f.data) - f.synced + 1)
	}
	var zero []span
	for _, l := range f.lost {
		zero = append(zero, span{min(l.from, n), min(l.to, n)})
	}
	if mode == RandomPrefixZeroed {
		for at := f.synced; at < n; {
			next := min(n, (at/sectorSize+1)*sectorSize)
			if rng.IntN(4) == 0 {
				zero = append(zero, span{at, next})
			}
			at = next
		}
	}
	// Shared with the source: no storage appends to a file that it did not create.
	data := f.data[:n]
	if len(zero) > 0 {
		data = slices.Clone(data)
	}
	for _, z := range zero {
		clear(data[z.from:z.to])
	}
	return data
}
