package replica

import (
	"bytes"

	"github.com/level-replicator/replicator/internal/indexcache"
	"github.com/level-replicator/replicator/internal/store"
)

// stagedKey is a key as the transaction leaves it.
type stagedKey struct {
	key      []byte
	state    store.Siblings // with values and times
	full     bool           // values and times are there
	conflict bool
}

// stagedKeys are the keys of a transaction. A few are compared one by one, many are
// found by their hash.
type stagedKeys struct {
	list  []stagedKey
	table indexcache.Table // of all, if they are more than a few
}

const stagedFew = 8

// find returns a key that was staged, or nil. It is valid until another key is added.
func (s *stagedKeys) find(key []byte) *stagedKey {
	if len(s.list) <= stagedFew {
		for i := range s.list {
			if bytes.Equal(s.list[i].key, key) {
				return &s.list[i]
			}
		}
		return nil
	}
	if at, ok := s.table.Find(indexcache.HashKey(key), s.is(key)); ok {
		return &s.list[at]
	}
	return nil
}

func (s *stagedKeys) is(key []byte) func(at uint32) bool {
	return func(at uint32) bool { return bytes.Equal(s.list[at].key, key) }
}

// add puts a key there that is not.
func (s *stagedKeys) add(k stagedKey) {
	s.list = append(s.list, k)
	from := len(s.list) - 1
	switch {
	case from < stagedFew:
		return
	case from == stagedFew:
		from = 0
	}
	for i := from; i < len(s.list); i++ {
		s.table.Set(indexcache.HashKey(s.list[i].key), uint32(i), s.is(s.list[i].key))
	}
}

func (s *stagedKeys) reset() {
	if len(s.list) > stagedFew {
		s.table.Reset()
	}
	s.list = store.Emptied(s.list)
}
