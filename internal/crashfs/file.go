package crashfs

import (
	"io"
	"syscall"

	"github.com/syndtr/goleveldb/leveldb/storage"
)

// handle is an open file.
type handle struct {
	s      *Storage
	fd     storage.FileDesc
	id     int
	inode  *inode // kept here for readers of a file that has been removed
	closed bool
}

func (h *handle) Close() error {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	if h.closed {
		return storage.ErrClosed
	}
	h.closed = true
	h.s.open--
	return nil
}

func (h *handle) readyLocked(op Op) error {
	if h.closed {
		return storage.ErrClosed
	}
	return h.s.refuseLocked(op, h.fd.Type)
}

// ReadAt looks at the file as it is now, so that it shows corruption after the opening.
func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	h.s.mu.Lock()
	err, data := h.readyLocked(OpRead), h.inode.data
	h.s.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if off >= int64(len(data)) {
		return 0, io.EOF
	}
	n := copy(p, data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// reader has the size that the file had when it was opened, as has storage.NewMemStorage's.
type reader struct {
	*handle
	*io.SectionReader
}

// ReadAt says which of the two embedded ones is meant.
func (r *reader) ReadAt(p []byte, off int64) (int, error) { return r.SectionReader.ReadAt(p, off) }

type writer struct{ *handle }

func (w *writer) Write(p []byte) (int, error) {
	s := w.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := w.readyLocked(OpWrite); err != nil {
		return 0, err
	}
	var err error
	if s.limited {
		if int64(len(p)) > s.space {
			p, err = p[:s.space], syscall.ENOSPC
		}
		s.space -= int64(len(p))
	}
	if len(p) > 0 {
		s.doLocked(step{op: OpWrite, id: w.id, fd: w.fd, data: append(w.inode.data, p...)})
	}
	return len(p), err
}

func (w *writer) Sync() error {
	s := w.s
	s.mu.Lock()
	defer s.mu.Unlock()
	err := w.readyLocked(OpSync)
	if err == storage.ErrClosed || err == ErrPowerOff {
		return err
	}
	s.doLocked(step{op: OpSync, id: w.id, fd: w.fd, failed: err != nil})
	return err
}
