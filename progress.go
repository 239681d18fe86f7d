package replicator

import (
	"time"

	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/transport"
)

// progress keeps long work for Status and reports it to Events.
func (db *DB) progress(p Progress) {
	db.activity.progress(p)
	if f := db.opts.Events.Progress; f != nil {
		f(p)
	}
}

// pullWork follows what one session pulls, and reports it if it takes long.
type pullWork struct {
	db   *DB
	peer func() string // its address

	now      Progress  // Work is empty if nothing is under way
	began    time.Time // of it
	reported time.Time // when that was last reported
	bytes    int64     // of the connection, and
	keys     int64     // of the session, when it began
}

// reportAfter is how long work takes before it is worth reporting.
const reportAfter = time.Second

// follow is called after each frame that came.
func (w *pullWork) follow(s *session.Session, pace *transport.ProgressConn) {
	now := time.Now()
	work := Work("")
	at := s.Progress()
	switch {
	case at.Repairing:
		work = WorkRepair
	case at.Pulling:
		work = WorkPull
	}
	keys, bytes := at.Versions, pace.In.Load()
	w.now.Keys, w.now.Bytes = keys-w.keys, bytes-w.bytes
	if work != w.now.Work {
		w.end()
		w.now, w.began, w.reported, w.bytes, w.keys = Progress{Work: work}, now, now, bytes, keys
		if work == WorkPull {
			w.now.Total = s.Behind()
		}
	}
	if work == "" || now.Sub(w.reported) < reportAfter {
		return
	}
	w.reported, w.now.Peer, w.now.Remaining = now, w.peer(), 0
	if left := w.now.Total - w.now.Keys; left > 0 && w.now.Keys > 0 {
		w.now.Remaining = time.Duration(float64(now.Sub(w.began)) * float64(left) / float64(w.now.Keys))
	}
	w.db.progress(w.now)
}

// end reports that what was reported is over.
func (w *pullWork) end() {
	if w.now.Peer != "" {
		w.now.Done, w.now.Remaining = true, 0
		w.db.progress(w.now)
	}
	w.now = Progress{}
}
