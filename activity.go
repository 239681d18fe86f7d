package replicator

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/level-replicator/replicator/internal/schedule"
)

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
	sessions, pulled, served, in, out, mismatches int64
}

// count counts changes.
func (a *activity) count(now time.Time, changes int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.velocity.Add(now, changes)
	a.recent.Add(now, changes)
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
	s.Work = []Progress{}
	for _, w := range a.work {
		s.Work = append(s.Work, w)
	}
	slices.SortFunc(s.Work, func(a, b Progress) int { return cmp.Or(cmp.Compare(a.Work, b.Work), cmp.Compare(a.Peer, b.Peer)) })
}
