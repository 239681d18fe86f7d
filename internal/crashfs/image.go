package crashfs

import (
	"fmt"
	"math/rand/v2"
	"sync"
)

// Mode says what of the unsynced state a failure leaves behind.
type Mode uint8

const (
	// Everything is the death of the process alone: the kernel still has it all.
	Everything Mode = iota
	// DropUnsynced leaves what was synced and nothing else.
	DropUnsynced
	// RandomPrefix keeps a random part of each file's unsynced tail, and of the
	// directory operations that were not synced.
	RandomPrefix
	// RandomPrefixZeroed is RandomPrefix with a quarter of the unsynced sectors
	// zero, as after a size that reached the disk before its data.
	RandomPrefixZeroed
)

// Modes are the power failures, for tests that go through all of them.
var Modes = []Mode{DropUnsynced, RandomPrefix, RandomPrefixZeroed}

func (m Mode) String() string {
	switch m {
	case Everything:
		return "everything"
	case DropUnsynced:
		return "drop unsynced"
	case RandomPrefix:
		return "random prefix"
	case RandomPrefixZeroed:
		return "random prefix, zeroed sectors"
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// Image returns a new, independent, unlocked storage holding what a failure at
// this moment could leave. s goes on undisturbed. The image shares bytes with s
// until one of them changes them, so it costs little. Equal states, modes and
// rng yield equal images; rng may be nil for [Everything] and [DropUnsynced].
func (s *Storage) Image(mode Mode, rng *rand.Rand) *Storage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.boot(s.disk.survive(mode, rng))
}

// Record starts to log the operations on s. The recording grows for as long as s
// is in use: about 120 bytes an operation, beside the bytes written. A second
// call starts a new recording; the first one then stays as it is.
func (s *Storage) Record() *Recording {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rec = &Recording{source: s, base: s.disk.clone(), first: s.ops}
	return s.rec
}

// Recording is the log of a run, from which the images of every moment can be
// made. It is safe for concurrent use, also while the run goes on.
type Recording struct {
	source *Storage
	base   *disk
	first  int
	steps  []step // guarded by source.mu; append only

	mu sync.Mutex // guards the cursor; never taken with source.mu held
	// at is the disk after done steps, kept because tests walk forward: n images
	// in order cost one replay, not n.
	at   *disk
	done int
}

// First returns the earliest position an image can be made of: the value of
// [Storage.Ops] when the recording began.
func (r *Recording) First() int { return r.first }

// Last returns the latest position: the number of operations so far.
func (r *Recording) Last() int { return r.first + len(r.log()) }

// ImageAt is what [Storage.Image] would have returned when exactly op operations
// had been done. A write acknowledged when [Storage.Ops] was n had been
// acknowledged in every image with op ≥ n. Ascending positions are the cheap
// order. ImageAt panics if op is outside First…Last.
func (r *Recording) ImageAt(op int, mode Mode, rng *rand.Rand) *Storage {
	steps := r.log()
	n := op - r.first
	if n < 0 || n > len(steps) {
		panic(fmt.Sprintf("crashfs: image at operation %d of a recording of %d to %d",
			op, r.first, r.first+len(steps)))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at == nil || n < r.done {
		r.at, r.done = r.base.clone(), 0
	}
	for ; r.done < n; r.done++ {
		r.at.apply(steps[r.done])
	}
	return r.source.boot(r.at.survive(mode, rng))
}

// Describe names the operation after which ImageAt(op) was taken, for messages.
func (r *Recording) Describe(op int) string {
	steps := r.log()
	if n := op - r.first; n > 0 && n <= len(steps) {
		return fmt.Sprintf("operation %d (%v)", op, steps[n-1])
	}
	return fmt.Sprintf("operation %d", op)
}

func (r *Recording) log() []step {
	r.source.mu.Lock()
	defer r.source.mu.Unlock()
	return r.steps
}
