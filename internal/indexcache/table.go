package indexcache

import "hash/maphash"

// Table maps keys to positions of entries that lie elsewhere. It is a hash table with linear
// probing that holds no pointers, which spares the garbage collector: a slot is 32 bits of the
// key's hash and 32 bits of position.
type Table struct {
	slots []uint64 // 0 is free; their number is a power of two
	Used  int      // slots taken
}

const (
	tableStart = 8  // slots
	tableSlack = 16 // slots per key, beyond which Reset drops them
	slotBytes  = 8
)

// hashSeed is random, so that nobody can choose keys that collide.
var hashSeed = maphash.MakeSeed()

// HashKey hashes a key for a Table.
func HashKey(key []byte) uint32 { return uint32(maphash.Bytes(hashSeed, key)) }

// Find returns the position of the key with a hash for which is reports true.
func (t *Table) Find(hash uint32, is func(at uint32) bool) (at uint32, ok bool) {
	if i, ok := t.slot(hash, is); ok {
		return uint32(t.slots[i]) - 1, true
	}
	return 0, false
}

// Set notes the position of a key, which must be below the greatest uint32.
func (t *Table) Set(hash, at uint32, is func(at uint32) bool) {
	if t.tight() {
		t.grow()
	}
	i, ok := t.slot(hash, is)
	if !ok {
		t.Used++
	}
	t.slots[i] = uint64(hash)<<32 | uint64(at+1)
}

// slot returns the slot of a key, or the free one where it belongs.
func (t *Table) slot(hash uint32, is func(at uint32) bool) (i int, ok bool) {
	if len(t.slots) == 0 {
		return 0, false
	}
	for i = int(hash) & (len(t.slots) - 1); t.slots[i] != 0; i = (i + 1) & (len(t.slots) - 1) {
		if s := t.slots[i]; uint32(s>>32) == hash && is(uint32(s)-1) {
			return i, true
		}
	}
	return i, false
}

// tight reports whether the table must grow before it takes another key.
func (t *Table) tight() bool { return 4*t.Used >= 3*len(t.slots) }

func (t *Table) grow() {
	old := t.slots
	t.slots = make([]uint64, max(tableStart, 2*len(old)))
	for _, s := range old {
		if s == 0 {
			continue
		}
		i := int(uint32(s>>32)) & (len(t.slots) - 1)
		for t.slots[i] != 0 {
			i = (i + 1) & (len(t.slots) - 1)
		}
		t.slots[i] = s
	}
}

// Reset empties the table. It keeps its memory unless most of that was unused: clearing it
// each time would cost more than allocating.
func (t *Table) Reset() {
	if len(t.slots) > tableSlack*max(t.Used, tableStart) {
		t.slots = nil
	}
	clear(t.slots)
	t.Used = 0
}
