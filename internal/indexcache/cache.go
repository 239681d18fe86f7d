// Package indexcache keeps log-index records in memory: a cache of those in use, a filter that
// knows which keys have none, and the hash table that both the cache and transactions use.
package indexcache

import (
	"bytes"
	"encoding/binary"
	"math"
)

// Cache keeps the log-index records of keys in use, also that a key has none.
// It has two generations: entries that are used move to the young one, and when that takes half
// the limit, it replaces the old one. So it evicts roughly the least recently used, at no cost
// per entry. It holds no pointers, which spares the garbage collector.
type Cache struct {
	Limit      int // bytes; not positive: no cache
	young, old generation
	moved      []byte // a record on its way from old to young
}

// generation has keys and records one after another in chunks of memory: the lengths of both,
// key, record. An empty record says that the key has none.
type generation struct {
	table  Table
	chunks [][]byte // all but the last are full
	spare  [][]byte // of an earlier use
}

const (
	chunkSize      = 256 << 10
	generationMost = math.MaxInt32 // bytes, which positions of 32 bits reach on every platform
)

// Get returns the record of a key, empty if the key is known to have none. It is valid
// until the cache is used again.
func (c *Cache) Get(key []byte) (rec []byte, ok bool) {
	if c.Limit <= 0 {
		return nil, false
	}
	hash := HashKey(key)
	if rec, ok = c.young.get(hash, key); ok {
		return rec, true
	}
	if rec, ok = c.old.get(hash, key); ok {
		c.moved = append(c.moved[:0], rec...)
		rec = c.moved
		c.set(hash, key, rec)
	}
	return rec, ok
}

// Peek is Get for readers beside the one that uses the cache: it changes nothing. They must keep away
// those that do.
func (c *Cache) Peek(key []byte) (rec []byte, ok bool) {
	if c.Limit <= 0 {
		return nil, false
	}
	hash := HashKey(key)
	if rec, ok = c.young.get(hash, key); ok {
		return rec, true
	}
	return c.old.get(hash, key)
}

// Update replaces the record of a key that is cached, and ignores others.
func (c *Cache) Update(key, rec []byte) {
	if _, ok := c.Get(key); ok {
		c.Put(key, rec)
	}
}

// Put caches a record.
func (c *Cache) Put(key, rec []byte) {
	if c.Limit > 0 {
		c.set(HashKey(key), key, rec)
	}
}

func (c *Cache) set(hash uint32, key, rec []byte) {
	most := min(c.Limit/2, generationMost)
	if c.young.sizeWith(key, rec) > most {
		c.old, c.young = c.young, c.old
		c.young.reset()
	}
	if c.young.sizeWith(key, rec) <= most && entrySize(key, rec) <= chunkSize {
		c.young.set(hash, key, rec, most)
	} else if c.young.has(hash, key) || c.old.has(hash, key) {
		c.young, c.old = generation{}, generation{} // what it had would be out of date
	}
}

func (g *generation) get(hash uint32, key []byte) (rec []byte, ok bool) {
	at, ok := g.table.Find(hash, g.is(key))
	if !ok {
		return nil, false
	}
	_, rec = g.entry(at)
	return rec, true
}

func (g *generation) has(hash uint32, key []byte) bool {
	_, ok := g.get(hash, key)
	return ok
}

func (g *generation) is(key []byte) func(at uint32) bool {
	return func(at uint32) bool {
		k, _ := g.entry(at)
		return bytes.Equal(k, key)
	}
}

// set keeps a record, in a generation of at most the given number of bytes.
func (g *generation) set(hash uint32, key, rec []byte, most int) {
	is := g.is(key)
	if at, ok := g.table.Find(hash, is); ok {
		if _, was := g.entry(at); len(was) == len(rec) {
			copy(was, rec)
			return
		}
	}
	if g.ended(key, rec) {
		g.addChunk(min(chunkSize, most))
	}
	last := &g.chunks[len(g.chunks)-1]
	at := (len(g.chunks)-1)*chunkSize + len(*last)
	*last = binary.AppendUvarint(*last, uint64(len(key)))
	*last = binary.AppendUvarint(*last, uint64(len(rec)))
	*last = append(*last, key...)
	*last = append(*last, rec...)
	g.table.Set(hash, uint32(at), is)
}

// ended reports whether the last chunk has no room for an entry.
func (g *generation) ended(key, rec []byte) bool {
	n := len(g.chunks)
	return n == 0 || len(g.chunks[n-1])+entrySize(key, rec) > chunkSize
}

func (g *generation) addChunk(size int) {
	var c []byte
	if n := len(g.spare); n > 0 {
		g.spare, c = g.spare[:n-1], g.spare[n-1]
	} else {
		c = make([]byte, 0, size)
	}
	g.chunks = append(g.chunks, c)
}

func (g *generation) entry(at uint32) (key, rec []byte) {
	b := g.chunks[at/chunkSize][at%chunkSize:]
	k, n := binary.Uvarint(b)
	b = b[n:]
	r, n := binary.Uvarint(b)
	b = b[n:]
	return b[:k:k], b[k : k+r : k+r]
}

// entrySize bounds the bytes of an entry.
func entrySize(key, rec []byte) int { return 2*binary.MaxVarintLen32 + len(key) + len(rec) }

// size returns the bytes of the generation, of the last chunk those in use.
func (g *generation) size() int {
	size := len(g.table.slots) * slotBytes
	if n := len(g.chunks); n > 0 {
		size += (n-1)*chunkSize + len(g.chunks[n-1])
	}
	return size
}

// sizeWith returns its bytes with one entry more.
func (g *generation) sizeWith(key, rec []byte) int {
	size := g.size() + entrySize(key, rec)
	if g.table.tight() {
		size += max(tableStart, len(g.table.slots)) * slotBytes
	}
	if n := len(g.chunks); n > 0 && g.ended(key, rec) {
		size += chunkSize - len(g.chunks[n-1])
	}
	return size
}

func (g *generation) reset() {
	g.table.Reset()
	for _, c := range g.chunks {
		g.spare = append(g.spare, c[:0])
	}
	g.chunks = g.chunks[:0]
}
