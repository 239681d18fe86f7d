package main

import (
	"cmp"
	"errors"
	"math"
	"os"
	"path/filepath"
	"sync"

	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"

	"github.com/level-replicator/replicator"
)

// shadow is a storage that reads a directory and writes to memory. Opening a database always
// writes; over a shadow the directory stays the same, byte for byte.
type shadow struct {
	base            storage.Storage // read-only
	storage.Storage                 // in memory: what was written since
	links           string          // a directory to remove in the end, or ""

	mu   sync.Mutex
	gone map[storage.FileDesc]bool // of base: removed or replaced since
}

func openShadow(dir string) (*shadow, error) {
	links, err := linksTo(dir)
	if err != nil {
		return nil, err
	}
	base, err := storage.OpenFile(cmp.Or(links, dir), true)
	if err != nil {
		return nil, errors.Join(err, removeLinks(links))
	}
	return &shadow{base: base, Storage: storage.NewMemStorage(), links: links, gone: map[storage.FileDesc]bool{}}, nil
}

// linksTo returns a directory of links to the files of dir if that has no LOCK, else "".
// goleveldb makes that file even to read, which changes the directory, or fails where
// nothing may be written: in a backup without the empty file, in a snapshot, in another
// user's directory. No process has a directory without it open.
func linksTo(dir string) (links string, err error) {
	if _, err := os.Stat(filepath.Join(dir, "LOCK")); !errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	if links, err = os.MkdirTemp("", "levelrepl-"); err != nil {
		return "", err
	}
	for _, f := range files {
		if err := os.Symlink(filepath.Join(dir, f.Name()), filepath.Join(links, f.Name())); err != nil {
			return "", errors.Join(err, removeLinks(links))
		}
	}
	return links, nil
}

func removeLinks(links string) error {
	if links == "" {
		return nil
	}
	return os.RemoveAll(links) // only the links, not what they lead to
}

// shadowOptions keep goleveldb from compacting, which would bring tables into memory.
func shadowOptions() *opt.Options {
	const never = 1 << 30
	o := replicator.StoreOptions()
	o.ErrorIfMissing, o.DisableSeeksCompaction = true, true
	o.CompactionL0Trigger, o.WriteL0SlowdownTrigger, o.WriteL0PauseTrigger = never, never, never
	o.CompactionTotalSize, o.CompactionTotalSizeMultiplier = math.MaxInt, 1
	return o
}

// GetMeta prefers what was set since.
func (s *shadow) GetMeta() (storage.FileDesc, error) {
	if fd, err := s.Storage.GetMeta(); err == nil {
		return fd, nil
	}
	return s.base.GetMeta()
}

// List lists the files of both.
func (s *shadow) List(ft storage.FileType) ([]storage.FileDesc, error) {
	written, err := s.Storage.List(ft)
	if err != nil {
		return nil, err
	}
	found, err := s.base.List(ft)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, fd := range found {
		if !s.gone[fd] {
			written = append(written, fd)
		}
	}
	return written, nil
}

// Open opens the file that was written since, or the one in the directory.
func (s *shadow) Open(fd storage.FileDesc) (storage.Reader, error) {
	r, err := s.Storage.Open(fd)
	if !errors.Is(err, os.ErrNotExist) || s.isGone(fd) {
		return r, err
	}
	return s.base.Open(fd)
}

// Create makes a file in memory, in the place of one in the directory.
func (s *shadow) Create(fd storage.FileDesc) (storage.Writer, error) {
	s.hide(fd)
	return s.Storage.Create(fd)
}

// Remove hides a file of the directory.
func (s *shadow) Remove(fd storage.FileDesc) error {
	err := s.Storage.Remove(fd)
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	s.hide(fd)
	return nil
}

func (s *shadow) hide(fd storage.FileDesc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone[fd] = true
}

func (s *shadow) isGone(fd storage.FileDesc) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gone[fd]
}

// Close closes both storages and removes the links.
func (s *shadow) Close() error {
	return errors.Join(s.Storage.Close(), s.base.Close(), removeLinks(s.links))
}
