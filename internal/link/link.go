// Package link is a live session as a pure state machine: [session.Stream] says what goes over it,
// [schedule.Pace] when. It is told the time and starts nothing itself.
package link

import (
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/schedule"
	"github.com/level-replicator/replicator/internal/session"
)

// Link is one live session. One goroutine uses it at a time.
type Link struct {
	*session.Stream
	Pushes     int64 // that went out
	Duplicates int64 // versions that came and were known

	pace    *schedule.Pace
	links   Links
	pushing time.Time // when the push under way began; zero: there is none
	served  int       // versions that had been sent before it
	late    int       // pushes of the peer in a row that brought nothing new
	awaited awaited
	until   time.Time // the peer has to say bye before; zero: nobody has yet
}

// Links are the links of a replica.
type Links interface {
	Small() bool     // all replicas have links with one another
	Receiving() bool // news is being received over one of them

	// Linked reports whether there is one with the replica that writes under an origin.
	Linked(o causal.Origin) bool
}

// awaited is what the peer had reported at some time and was missing here.
type awaited struct {
	writes int64 // that were missing when it was last looked at; 0: nothing is awaited
	since  time.Time
}

// byeTimeout is how long a peer that is leaving, or is left, may stay silent.
const byeTimeout = 5 * time.Second

// lateMost is how many pushes of a peer in a row may bring nothing new. One may come too late because a session
// happened to be ahead of it.
const lateMost = 2

// awaitMost is how long news that a peer has reported may be on its way from elsewhere, though all that comes
// are other news.
const awaitMost = 2 * time.Second

// New returns a link over a stream that has just begun, one of those of a replica. A number drawn from 0 to 1 spreads
// how long the link lasts.
func New(s *session.Stream, c schedule.PaceConfig, links Links, now time.Time, drawn float64) *Link {
	return &Link{Stream: s, pace: schedule.NewPace(c, now, drawn), links: links}
}

// LocalChange notes a write of this replica.
func (l *Link) LocalChange(now time.Time) { l.pace.LocalChange(now, l.links.Small()) }

// RemoteChange notes that another replica's write has arrived, over this link or elsewhere.
func (l *Link) RemoteChange(now time.Time) { l.pace.RemoteChange(now, l.links.Small()) }

// PushNow has the peer asked for a report at once: a caller waits for it.
func (l *Link) PushNow() { l.pace.PushNow() }

// Lazy reports whether news of others is reported to the peer rather than pushed.
func (l *Link) Lazy() bool { return l.pace.Lazy() }

// Receive takes in a frame. After an error the link is done.
func (l *Link) Receive(now time.Time, kind session.FrameType, payload []byte) error {
	err := l.Stream.Receive(kind, payload)
	l.until = time.Time{}
	e := l.Events()
	if e.Pushed {
		l.pace.Took(now)
		l.Duplicates += int64(e.Versions - e.New)
		switch {
		case 2*e.New > e.Versions:
			l.late = 0
		case e.Versions > 0 && (e.Relayed > 0 || !l.links.Small()): // whoever writes in a small cluster tells everybody
			if l.late++; l.late == lateMost {
				l.Spare()
				l.pace.Spare() // or this replica might come to have nobody to push to
				l.late = 0
			}
		}
	}
	if e.Heard {
		l.heard(now)
	}
	if e.Requested {
		l.pace.Asked()
	}
	if e.Spared {
		l.pace.Spare()
	}
	return err
}

// Step does what is due now. Frames may be to be sent after it, and More then reports whether Produce
// has to be called.
func (l *Link) Step(now time.Time) {
	if l.Leaving() {
		if l.until.IsZero() {
			l.until = now.Add(byeTimeout)
		}
		return
	}
	switch l.pace.Due(now) {
	case schedule.Push:
		if !l.pushing.IsZero() || l.More() {
			return // until that is sent
		}
		push := l.Push
		if l.pace.Lazy() {
			push = l.PushOwn
		}
		if !push() {
			l.pace.NothingToPush()
			return
		}
		l.pace.Pushing()
		l.pushing, l.served = now, l.Result().Served
	case schedule.Request:
		l.request(now)
	case schedule.Report:
		l.Report()
		l.pace.Reported()
	case schedule.Leave:
		l.Leave()
	}
}

// heard takes in a report of the peer. What it has of news is awaited from elsewhere for a while.
func (l *Link) heard(now time.Time) {
	behind := l.Behind()
	if behind == 0 {
		l.awaited = awaited{}
	} else if l.awaited.writes == 0 {
		l.Await()
		l.awaited = awaited{behind, now}
	}
	l.pace.Heard(now, behind > 0, l.links.Small())
}

// request asks the peer for what is awaited, unless that is on its way: where every replica has links with all others
// its writers tell it themselves. Under load something always is on its way, and if all of it were asked for, it
// would come several times, and add to the load.
func (l *Link) request(now time.Time) {
	before := l.awaited.writes
	l.awaited.writes = l.Awaited()
	coming := l.awaited.writes < before || l.links.Receiving() || l.links.Small() && l.AwaitedOf(l.links.Linked)
	switch {
	case l.awaited.writes == 0:
		l.pace.Heard(now, false, l.links.Small())
		l.heard(now) // of what it has reported since
	case coming && now.Sub(l.awaited.since) < awaitMost:
		l.pace.Coming(now, l.links.Small())
	default:
		l.awaited = awaited{}
		l.Request()
		l.pace.Requested()
	}
}

// Wrote notes that all frames have been sent that there were, and reports whether a push ended with them.
func (l *Link) Wrote(now time.Time) (pushed bool) {
	if l.pushing.IsZero() || l.More() {
		return false
	}
	l.pace.Pushed(now, now.Sub(l.pushing), l.Result().Served-l.served)
	l.pushing = time.Time{}
	l.Pushes++
	return true
}

// Next returns when Step will have something to do, if nothing happens before.
func (l *Link) Next() time.Time {
	if l.Leaving() {
		return l.until
	}
	return l.pace.Next()
}

// Overdue reports whether the peer has not said bye in time.
func (l *Link) Overdue(now time.Time) bool { return !l.until.IsZero() && !now.Before(l.until) }
