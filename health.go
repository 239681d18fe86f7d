package replicator

import "sync"

// health is why the store takes no writes, if so. It guards itself.
type health struct {
	mu      sync.Mutex
	failed  error // of the write that failed; none is tried after it
	starved error // of the last write that failed for want of a file handle, until one succeeds
}

func (h *health) fail(cause error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failed = cause
}

// starve notes that the store lacks file handles, or with nil that it no longer does, and
// reports whether it did before.
func (h *health) starve(err error) (before bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before = h.starved != nil
	h.starved = err
	return before
}

func (h *health) errors() (failed, starved error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failed, h.starved
}
