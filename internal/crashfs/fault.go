package crashfs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"syscall"

	"github.com/syndtr/goleveldb/leveldb/storage"
)

// ErrPowerOff is the answer of a frozen storage; see [Storage.CrashAt].
var ErrPowerOff = errors.New("crashfs: power is off")

// Op is a kind of storage operation.
type Op uint8

// Those up to OpSetMeta change something: they are counted and recorded. The
// others can only be made to fail.
const (
	OpCreate Op = iota + 1
	OpWrite
	OpSync
	OpRemove
	OpRename
	OpSetMeta
	OpOpen
	OpRead
	opCorrupt
)

var opNames = [...]string{OpCreate: "create", OpWrite: "write", OpSync: "sync", OpRemove: "remove",
	OpRename: "rename", OpSetMeta: "set meta", OpOpen: "open", OpRead: "read", opCorrupt: "corrupt"}

func (o Op) String() string {
	if o > 0 && int(o) < len(opNames) {
		return opNames[o]
	}
	return fmt.Sprintf("op %d", uint8(o))
}

// Fault makes one operation fail, or every one from then on.
type Fault struct {
	Op   Op
	Type storage.FileType // of the file concerned, may be several or'ed; 0 is any
	Nth  int              // 1 is the next such operation; 0 means 1
	Err  error            // what it returns; nil means syscall.EIO
	// Sticky lets all later ones fail too, until [Storage.ClearFaults].
	Sticky bool
}

// Fail arranges a fault. Several may wait at a time, each counting by itself. The
// failed operation changes nothing, except that a failed sync gives up, for
// ever, what it should have written: a power failure later finds zeros there,
// though readers see it and later syncs succeed. That is how Linux does it.
func (s *Storage) Fail(f Fault) {
	if f.Type == 0 {
		f.Type = storage.TypeAll
	}
	if f.Err == nil {
		f.Err = syscall.EIO
	}
	f.Nth = max(f.Nth, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &f)
}

// ClearFaults removes all faults, waiting and sticky ones, and the limit on space.
func (s *Storage) ClearFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults, s.limited = nil, false
}

// SetSpace leaves room for n more bytes. The write that does not fit writes what
// does and returns syscall.ENOSPC. Removing files frees nothing: call SetSpace
// again, or [Storage.ClearFaults].
func (s *Storage) SetSpace(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limited, s.space = true, n
}

// FlipBit inverts one bit of a file, on disk and for readers that have it open
// (goleveldb may answer from its block cache). Bit 0 is the lowest of the first byte.
func (s *Storage) FlipBit(fd storage.FileDesc, bit int64) error {
	return s.corrupt(fd, func(data []byte) ([]byte, error) {
		if bit < 0 || bit/8 >= int64(len(data)) {
			return nil, fmt.Errorf("crashfs: flip bit %d of %v, which has %d bytes", bit, fd, len(data))
		}
		data = slices.Clone(data)
		data[bit/8] ^= 1 << (bit % 8)
		return data, nil
	})
}

// FlipRandomBit inverts a bit of a random file of the type, and says which.
func (s *Storage) FlipRandomBit(ft storage.FileType, rng *rand.Rand) (storage.FileDesc, int64, error) {
	s.mu.Lock()
	var fds []storage.FileDesc
	sizes := map[storage.FileDesc]int{}
	for _, fd := range s.disk.seen.sorted() {
		if size := len(s.disk.files[s.disk.seen[fd]].data); fd.Type&ft != 0 && size > 0 {
			fds = append(fds, fd)
			sizes[fd] = size
		}
	}
	s.mu.Unlock()
	if len(fds) == 0 {
		return storage.FileDesc{}, 0, fmt.Errorf("crashfs: flip a bit of a %v: no such file with content", ft)
	}
	fd := fds[rng.IntN(len(fds))]
	bit := rng.Int64N(int64(sizes[fd]) * 8)
	return fd, bit, s.FlipBit(fd, bit)
}

// Truncate cuts a file to size bytes, on disk and for its readers.
func (s *Storage) Truncate(fd storage.FileDesc, size int) error {
	return s.corrupt(fd, func(data []byte) ([]byte, error) {
		if size < 0 || size > len(data) {
			return nil, fmt.Errorf("crashfs: truncate %v to %d bytes, it has %d", fd, size, len(data))
		}
		return slices.Clip(data[:size]), nil
	})
}

func (s *Storage) corrupt(fd storage.FileDesc, change func([]byte) ([]byte, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, ok := s.disk.seen[fd]
	if !ok {
		return fmt.Errorf("crashfs: corrupt %v: %w", fd, os.ErrNotExist)
	}
	data, err := change(s.disk.files[id].data)
	if err == nil {
		s.doLocked(step{op: opCorrupt, id: id, fd: fd, data: data})
	}
	return err
}

// refuseLocked returns the error an operation must fail with, or nil.
func (s *Storage) refuseLocked(op Op, ft storage.FileType) error {
	if s.crashAt >= 0 && s.ops >= s.crashAt {
		return ErrPowerOff
	}
	var err error
	s.faults = slices.DeleteFunc(s.faults, func(f *Fault) bool {
		if f.Op != op || f.Type&ft == 0 {
			return false
		}
		f.Nth--
		if f.Nth > 0 {
			return false
		}
		if err == nil {
			err = f.Err
		}
		return !f.Sticky
	})
	return err
}
