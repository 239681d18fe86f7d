package indexcache

import (
	"math"

	"github.com/cespare/xxhash/v2"
)

// Filter knows keys that have no log-index, so that a new key costs no read of the store. It is
// a chain of blocked Bloom filters (Putze, Sanders, Singler 2007), each larger than the one
// before: a lookup reads one cache line of each. So it takes memory as keys come.
type Filter struct {
	Limit  int // bytes of all; less than a block: no filter
	levels [][]block
	blocks int // of all levels
	room   int // keys that the last level still takes

	// Whole says that every key with a log-index is in it. Until then it knows nothing.
	Whole bool
}

// block is a cache line.
type block [8]uint64

const (
	BlockBytes  = 64      // a cache line
	blockKeys   = 32      // of 16 bits each: about one key in 300 is taken for another
	filterStart = 4 << 10 // bytes of the first level
	filterLarge = 4 << 20 // bytes of all, from which on they double; before, each level is four times the last
)

// Add notes a key. At the limit it goes on taking keys and becomes less and less useful.
func (f *Filter) Add(key []byte) {
	if f.Limit < BlockBytes {
		return
	}
	if f.room == 0 {
		f.grow()
	}
	f.room--
	h := xxhash.Sum64(key)
	b := pickBlock(f.levels[len(f.levels)-1], h)
	for h = mixed(h); h >= 1<<10; h >>= 9 {
		b[h>>10&7] |= 1 << (h >> 13 & 63)
	}
}

func (f *Filter) grow() {
	next := filterStart / BlockBytes
	switch n := len(f.levels); {
	case f.blocks >= filterLarge/BlockBytes:
		next = f.blocks
	case n > 0:
		next = 4 * len(f.levels[n-1])
	}
	f.add(next)
}

// add adds a level, as large as the limit allows.
func (f *Filter) add(blocks int) {
	if blocks = min(blocks, f.Limit/BlockBytes-f.blocks); blocks <= 0 {
		f.room = math.MaxInt
		return
	}
	f.levels = append(f.levels, make([]block, blocks))
	f.blocks += blocks
	f.room = blocks * blockKeys
}

// Reserve makes room for so many keys at once, in an empty filter: a lookup then has one cache line to
// read.
func (f *Filter) Reserve(keys int64) {
	if blocks := min(keys/blockKeys, int64(f.Limit/BlockBytes)); f.blocks == 0 && blocks > filterStart/BlockBytes {
		f.add(int(blocks))
	}
}

// Lacks reports whether a key certainly has no log-index.
func (f *Filter) Lacks(key []byte) bool {
	if !f.Whole {
		return false
	}
	h := xxhash.Sum64(key)
	for _, level := range f.levels {
		if pickBlock(level, h).has(h) {
			return false
		}
	}
	return true
}

func (b *block) has(h uint64) bool {
	for h = mixed(h); h >= 1<<10; h >>= 9 {
		if b[h>>10&7]&(1<<(h>>13&63)) == 0 {
			return false
		}
	}
	return true
}

// pickBlock goes by the upper half of the hash, the bits in the block by another
// hash made of it: its upper 54 bits are six positions, of which the last few may
// be left out because they are zero.
func pickBlock(level []block, h uint64) *block {
	return &level[(h>>32)*uint64(len(level))>>32]
}

func mixed(h uint64) uint64 { return h * 0x9e3779b97f4a7c15 }

// Worth reports whether a filter of this many keys would be of use.
func (f *Filter) Worth(keys int64) bool {
	return f.Limit >= BlockBytes && int64(f.Limit)*blockKeys/BlockBytes >= keys
}

// FilterStep is the number of keys read at once to fill the filter.
const FilterStep = 4096
