package replica

import (
	"bytes"

	"github.com/level-replicator/replicator/internal/indexcache"
	"github.com/level-replicator/replicator/internal/store"
)

// stagedKey is a key as the transaction leaves it.
type stagedKey struct {
	Key      []byte
	state    store.Siblings // with values and times
	full     bool           // values and times are there
	conflict bool
}

// stagedKeys are the keys of a transaction. A few are compared one by one, many are
// found by their hash.
type stagedKeys struct {
	List  []stagedKey
	table indexcache.Table // of all, if they are more than a few
}

const stagedFew = 8

// find returns a key that was staged, or nil. It is valid until another key is added.
func (s *stagedKeys) find(key []byte) *stagedKey {
	if len(s.List) <= stagedFew {
		for i := range s.List {
			if bytes.Equal(s.List[i].Key, key) {
				return &s.List[i]
			}
		}
		return nil
	}
	if at, ok := s.table.Find(indexcache.HashKey(key), s.is(key)); ok {
		return &s.List[at]
	}
	return nil
}

func (s *stagedKeys) is(key []byte) func(at uint32) bool {
	return func(at uint32) bool { return bytes.Equal(s.List[at].Key, key) }
}

// add puts a key there that is not.
func (s *stagedKeys) add(k stagedKey) {
	s.List = append(s.List, k)
	from := len(s.List) - 1
	switch {
	case from < stagedFew:
		return
	case from == stagedFew:
		from = 0
	}
	for i := from; i < len(s.List); i++ {
		s.table.Set(indexcache.HashKey(s.List[i].Key), uint32(i), s.is(s.List[i].Key))
	}
}

func (s *stagedKeys) reset() {
	if len(s.List) > stagedFew {
		s.table.Reset()
	}
	s.List = store.Emptied(s.List)
}
