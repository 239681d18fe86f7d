package replicator

import (
	"sync"
	"time"
)

const (
	// waitEvery is well below progressTime, after which a silent peer is cut.
	waitEvery = 3 * time.Second
	// maxWaits bounds how often in a row a peer may say that it is still at work: for
	// three hours. Reading a log of a thousand million entries does not take so long.
	maxWaits = 3600
)

// patiently does work that may take long, such as adding up a whole log or committing
// while goleveldb is behind, and tells the peer now and then that it goes on. Nothing
// else is sent meanwhile.
func (t *conversation) patiently(work func() error) error {
	var mu sync.Mutex
	over := false
	var again *time.Timer
	mu.Lock()
	again = time.AfterFunc(waitEvery, func() {
		mu.Lock()
		defer mu.Unlock()
		if over {
			return
		}
		if _, err := t.w.Write(appendHead(t.w.AvailableBuffer(), frameWait, 0)); err != nil {
			return // whoever flushes next is told
		}
		if t.w.Flush() == nil {
			again.Reset(waitEvery)
		}
	})
	mu.Unlock()
	err := work()
	again.Stop()
	mu.Lock() // a word under way is ended first
	over = true
	mu.Unlock()
	return err
}
