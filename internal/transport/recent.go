package transport

import (
	"container/list"
	"sync"
)

// recent keeps the newest values, each until somebody takes it. Safe for concurrent use.
type recent[V any] struct {
	most int

	mu    sync.Mutex
	order list.List                // of recentEntry, the oldest first
	byKey map[string]*list.Element // Invariant: the elements of order
}

type recentEntry[V any] struct {
	key   string
	value V
}

func newRecent[V any](most int) *recent[V] {
	return &recent[V]{most: most, byKey: map[string]*list.Element{}}
}

// put replaces what is under key, and drops the oldest value if there are too many.
func (r *recent[V]) put(key string, v V) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.takeLocked(key)
	if len(r.byKey) >= r.most {
		r.takeLocked(r.order.Front().Value.(recentEntry[V]).key)
	}
	r.byKey[key] = r.order.PushBack(recentEntry[V]{key, v})
}

// take removes and returns what is under key.
func (r *recent[V]) take(key string) (v V, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.takeLocked(key)
}

func (r *recent[V]) takeLocked(key string) (v V, ok bool) {
	e, ok := r.byKey[key]
	if !ok {
		return v, false
	}
	delete(r.byKey, key)
	return r.order.Remove(e).(recentEntry[V]).value, true
}
