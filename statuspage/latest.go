package statuspage

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/level-replicator/replicator"
)

const (
	maxChanges = 10               // that are listed
	lookTime   = 30 * time.Second // after the last request for the page the changes are no longer followed
)

// Change is one of the latest changes of a key.
type Change struct {
	Key     []byte            `json:"key"`            // base64 in JSON; at most 4 KiB
	Text    string            `json:"text,omitempty"` // the key, if it is printable text
	Deleted bool              `json:"deleted,omitempty"`
	Local   bool              `json:"local,omitempty"` // this replica wrote it
	Time    time.Time         `json:"time"`            // by the clock of its writer
	Origin  replicator.Origin `json:"origin"`
	Replica string            `json:"replica,omitempty"` // name of its writer, if that is this replica or a peer in its current incarnation
}

// latest follows the changes while somebody looks at the page. It guards itself.
type latest struct {
	mu    sync.Mutex
	list  []Change // the newest first
	until *time.Timer
}

// look returns the latest changes since the page was first looked at, and has them followed.
func (l *latest) look(db *replicator.DB) []Change {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.until == nil {
		ctx, cancel := context.WithCancel(context.Background())
		l.until = time.AfterFunc(lookTime, cancel)
		go l.follow(ctx, db)
	}
	l.until.Reset(lookTime)
	return slices.Clone(l.list)
}

func (l *latest) follow(ctx context.Context, db *replicator.DB) {
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.until.Stop()
		l.until = nil
	}()
	for c, err := range db.Changes(ctx, db.Cursor(), &replicator.ChangesOptions{KeysOnly: true, NoCursors: true}) {
		switch {
		case err != nil: // the next request tries again
			return
		case c.Key != nil && !c.Resolver:
			l.add(Change{Key: clip(c.Key), Text: text(clip(c.Key)), Deleted: c.Deleted, Local: c.Local, Time: c.Version.Time, Origin: c.Version.Origin})
		}
	}
}

func (l *latest) add(c Change) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append([]Change{c}, l.list[:min(len(l.list), maxChanges-1)]...)
}
