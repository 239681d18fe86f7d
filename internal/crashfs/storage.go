// Package crashfs is a goleveldb storage in memory that knows what has been made
// durable. Tests use it to make the images that a power failure at any moment of
// a run could leave, and to inject I/O errors.
//
// One run, all its failures:
//
//	s := crashfs.New(nil)
//	rec := s.Record()
//	// … open a database on s, write, note s.Ops() after each acknowledgement …
//	for op := rec.First(); op <= rec.Last(); op++ {
//		image := rec.ImageAt(op, crashfs.RandomPrefix, rng)
//		// … open a database on image and judge it …
//	}
//
// The file system modelled is an ordinary local journalling one: fsync makes a
// file's bytes and its name durable, goleveldb syncs the directory with each
// manifest, and directory operations that were not synced survive in order.
// Torn writes are modelled in sectors of 512 bytes. Nothing here sleeps
// or waits, so a storage may be used in a synctest bubble.
package crashfs

import (
	"io"
	"os"
	"sync"

	"github.com/syndtr/goleveldb/leveldb/storage"
)

// Options of a storage. Nil and the zero value are an ordinary local file system.
type Options struct {
	// StrictDirectory is what POSIX promises and no more: the fsync of a file
	// does not make its name durable, and of directory operations that were not
	// synced any subset may survive.
	StrictDirectory bool
}

// Storage is a [storage.Storage]. All methods are safe for concurrent use.
//
// Unlike storage.NewMemStorage, and like storage.OpenFile, it allows a file to be
// open several times: goleveldb forgets to close files on some error paths.
type Storage struct {
	mu      sync.Mutex // never held over a call out of this package
	disk    *disk
	lock    *fileLock
	lastID  int
	ops     int
	open    int
	crashAt int // negative: never
	faults  []*Fault
	limited bool
	space   int64 // bytes left, if limited
	rec     *Recording
}

var _ storage.Storage = (*Storage)(nil)

// New returns an empty storage.
func New(o *Options) *Storage {
	return &Storage{disk: newDisk(o != nil && o.StrictDirectory), crashAt: -1}
}

// boot is the machine coming up again with what is left.
func (*Storage) boot(left *disk) *Storage {
	s := &Storage{disk: left, crashAt: -1}
	for id := range left.files {
		s.lastID = max(s.lastID, id)
	}
	return s
}

// Ops returns how many operations have changed the storage: each create, write,
// sync, remove, rename and set of the meta file that was not refused, and each
// sync made to fail.
func (s *Storage) Ops() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ops
}

// CrashAt turns the power off when n operations have been done, as counted by
// [Storage.Ops]; at once if they have been. From then on everything but closing
// fails with [ErrPowerOff], and [Storage.Image] shows that moment. Negative: never.
func (s *Storage) CrashAt(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.crashAt = n
}

// Crashed reports whether the power is off.
func (s *Storage) Crashed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.crashAt >= 0 && s.ops >= s.crashAt
}

// OpenFiles returns how many readers and writers have not been closed.
func (s *Storage) OpenFiles() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

func (s *Storage) doLocked(st step) {
	s.disk.apply(st)
	s.ops++
	if s.rec != nil {
		s.rec.steps = append(s.rec.steps, st)
	}
}

type fileLock struct{ s *Storage }

func (l *fileLock) Unlock() {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if l.s.lock == l {
		l.s.lock = nil
	}
}

// Lock implements [storage.Storage].
func (s *Storage) Lock() (storage.Locker, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lock != nil {
		return nil, storage.ErrLocked
	}
	s.lock = &fileLock{s}
	return s.lock, nil
}

// Log implements [storage.Storage]. It discards the message.
func (*Storage) Log(string) {}

// SetMeta implements [storage.Storage]. It is atomic and durable when it returns,
// and like that of a real directory does nothing if nothing would change.
func (s *Storage) SetMeta(fd storage.FileDesc) error {
	if !storage.FileDescOk(fd) {
		return storage.ErrInvalidFile
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refuseLocked(OpSetMeta, fd.Type); err != nil {
		return err
	}
	if s.disk.meta != fd {
		s.doLocked(step{op: OpSetMeta, fd: fd})
	}
	return nil
}

// GetMeta implements [storage.Storage].
func (s *Storage) GetMeta() (storage.FileDesc, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refuseLocked(OpRead, s.disk.meta.Type); err != nil {
		return storage.FileDesc{}, err
	}
	if s.disk.seen[s.disk.meta] == 0 {
		return storage.FileDesc{}, os.ErrNotExist
	}
	return s.disk.meta, nil
}

// List implements [storage.Storage]. The order is always the same.
func (s *Storage) List(ft storage.FileType) ([]storage.FileDesc, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refuseLocked(OpRead, 0); err != nil {
		return nil, err
	}
	var fds []storage.FileDesc
	for _, fd := range s.disk.seen.sorted() {
		if fd.Type&ft != 0 {
			fds = append(fds, fd)
		}
	}
	return fds, nil
}

// Open implements [storage.Storage].
func (s *Storage) Open(fd storage.FileDesc) (storage.Reader, error) {
	if !storage.FileDescOk(fd) {
		return nil, storage.ErrInvalidFile
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refuseLocked(OpOpen, fd.Type); err != nil {
		return nil, err
	}
	id, ok := s.disk.seen[fd]
	if !ok {
		return nil, os.ErrNotExist
	}
	s.open++
	f := &handle{s: s, fd: fd, id: id, inode: s.disk.files[id]}
	return &reader{handle: f, SectionReader: io.NewSectionReader(f, 0, int64(len(f.inode.data)))}, nil
}

// Create implements [storage.Storage].
func (s *Storage) Create(fd storage.FileDesc) (storage.Writer, error) {
	if !storage.FileDescOk(fd) {
		return nil, storage.ErrInvalidFile
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refuseLocked(OpCreate, fd.Type); err != nil {
		return nil, err
	}
	s.lastID++
	s.doLocked(step{op: OpCreate, id: s.lastID, fd: fd})
	s.open++
	return &writer{&handle{s: s, fd: fd, id: s.lastID, inode: s.disk.files[s.lastID]}}, nil
}

// Remove implements [storage.Storage]. Readers that have the file open keep it.
func (s *Storage) Remove(fd storage.FileDesc) error {
	if !storage.FileDescOk(fd) {
		return storage.ErrInvalidFile
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refuseLocked(OpRemove, fd.Type); err != nil {
		return err
	}
	id, ok := s.disk.seen[fd]
	if !ok {
		return os.ErrNotExist
	}
	s.doLocked(step{op: OpRemove, id: id, fd: fd})
	return nil
}

// Rename implements [storage.Storage]. It replaces what stood at the new name.
func (s *Storage) Rename(oldfd, newfd storage.FileDesc) error {
	if !storage.FileDescOk(oldfd) || !storage.FileDescOk(newfd) {
		return storage.ErrInvalidFile
	}
	if oldfd == newfd {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refuseLocked(OpRename, newfd.Type); err != nil {
		return err
	}
	id, ok := s.disk.seen[oldfd]
	if !ok {
		return os.ErrNotExist
	}
	s.doLocked(step{op: OpRename, id: id, fd: oldfd, to: newfd})
	return nil
}

// Close implements [storage.Storage]. It does nothing, so that a database can be
// opened again on the same storage.
func (*Storage) Close() error { return nil }
