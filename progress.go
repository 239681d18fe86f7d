package replicator

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/level-replicator/replicator/internal/schedule"
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
	join     joinWork  // of a join
}

// joinWork estimates what is left of a join. Log entries and rows take different times, which differ with the store, so
// as soon as some rows have come the estimate goes by these alone.
type joinWork struct {
	rows time.Time // when the first came
	part float64   // that was done by then
}

// enoughRows is the part of the work that must have come in rows.
const enoughRows = 0.03

// left returns how long the rest will take, if so much is done of work that began then.
func (j *joinWork) left(began, now time.Time, at session.Progress) time.Duration {
	if at.Versions > 0 && j.rows.IsZero() {
		j.rows, j.part = now, at.Part
	}
	part := 0.
	if !j.rows.IsZero() && at.Part-j.part >= enoughRows {
		began, part = j.rows, j.part
	}
	return time.Duration(float64(now.Sub(began)) * (1 - at.Part) / (at.Part - part))
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
	left := time.Duration(0)
	if at.Part > 0 {
		w.now.Total = at.Keys
		left = w.join.left(w.began, now, at)
	}
	if work != w.now.Work {
		w.end()
		w.now, w.began, w.reported, w.bytes, w.keys, w.join = Progress{Work: work}, now, now, bytes, keys, joinWork{}
		if work == WorkPull {
			w.now.Total = s.Behind()
		}
	}
	if work == "" || now.Sub(w.reported) < reportAfter {
		return
	}
	w.reported, w.now.Peer, w.now.Remaining = now, w.peer(), 0
	if at.Part > 0 {
		w.now.Remaining = left
	} else if left := w.now.Total - w.now.Keys; left > 0 && w.now.Keys > 0 {
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

// activity counts what goes on, for Status and for the pause between rounds. It guards itself.
type activity struct {
	mu       sync.Mutex
	velocity schedule.Velocity
	recent   schedule.Recent
	total    totals
	work     map[string]Progress // under way, by work and peer
}

// totals are since the opening.
type totals struct {
	sessions, pulled, served, in, out, mismatches, pushes, duplicates int64
}

// count counts changes.
func (a *activity) count(now time.Time, changes int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.velocity.Add(now, changes)
	a.recent.Add(now, changes)
}

// since is how long ago the last change was counted.
func (a *activity) since(now time.Time) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return now.Sub(a.velocity.Last())
}

// pause is how long to wait between two rounds, see [schedule.Velocity.Pause].
func (a *activity) pause(now time.Time, least, most time.Duration) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.velocity.Pause(now, least, most)
}

// ended counts a session, and the versions that it restored.
func (a *activity) ended(ev *SessionEvent, restored int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.total.sessions++
	a.total.pulled += int64(ev.Pulled)
	a.total.served += int64(ev.Served)
	a.total.in += ev.BytesIn
	a.total.out += ev.BytesOut
	a.total.mismatches += int64(restored)
}

// moved counts what went over a link.
func (a *activity) moved(more counts) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.total.pulled += more.pulled
	a.total.served += more.served
	a.total.in += more.in
	a.total.out += more.out
	a.total.pushes += more.pushes
	a.total.duplicates += more.duplicates
}

// progress notes how far long work is.
func (a *activity) progress(p Progress) {
	a.mu.Lock()
	defer a.mu.Unlock()
	id := string(p.Work) + " " + p.Peer
	if p.Done {
		delete(a.work, id)
		return
	}
	if a.work == nil {
		a.work = map[string]Progress{}
	}
	a.work[id] = p
}

// fill fills in the part of a status that is counted here.
func (a *activity) fill(s *Status, now time.Time, least, most time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.Velocity = a.velocity.Now(now)
	s.Recent = a.recent.List(now)
	s.Interval = a.velocity.Pause(now, least, most)
	s.Sessions, s.Pulled, s.Served = a.total.sessions, a.total.pulled, a.total.served
	s.BytesIn, s.BytesOut, s.Mismatches = a.total.in, a.total.out, a.total.mismatches
	s.Pushes, s.Duplicates = a.total.pushes, a.total.duplicates
	s.Work = []Progress{}
	for _, w := range a.work {
		s.Work = append(s.Work, w)
	}
	slices.SortFunc(s.Work, func(a, b Progress) int { return cmp.Or(cmp.Compare(a.Work, b.Work), cmp.Compare(a.Peer, b.Peer)) })
}
