package replicator

// cache keeps log-index records of keys in use: the record of a key, or nil for
// a key that is known to have none. It holds two generations: what is used moves
// to the young one, and when that is half the bound, the old one is dropped.
// So it evicts roughly what was used least recently, at no cost per entry.
type cache struct {
	limit      int // bytes; not positive: no cache
	young, old map[string][]byte
	size       int // of the young generation, in bytes
}

// cacheOverhead is what an entry takes beside key and record: string and slice
// header, and its share of the map.
const cacheOverhead = 72

func (c *cache) get(key []byte) ([]byte, bool) {
	if rec, ok := c.young[string(key)]; ok {
		return rec, true
	}
	rec, ok := c.old[string(key)]
	if ok {
		c.put(key, rec)
	}
	return rec, ok
}

// update changes the record of a key that is in use, and leaves others out.
func (c *cache) update(key, rec []byte) {
	if _, ok := c.get(key); ok {
		c.put(key, rec)
	}
}

// put keeps a record, which must not be changed afterwards.
func (c *cache) put(key, rec []byte) {
	if c.limit <= 0 {
		return
	}
	if c.young == nil {
		c.young = map[string][]byte{}
	}
	if was, ok := c.young[string(key)]; ok {
		c.size += len(rec) - len(was)
	} else {
		c.size += len(key) + len(rec) + cacheOverhead
	}
	c.young[string(key)] = rec
	if c.size > c.limit/2 {
		c.old, c.young, c.size = c.young, map[string][]byte{}, 0
	}
}
