// Package schedule decides when a replica gossips, and with which peers. It is pure: it is told
// of changes, outcomes and the time, and starts nothing itself.
package schedule

import (
	"math/rand/v2"
	"time"
)

// Config holds what does not change.
type Config struct {
	Least, Most time.Duration // pauses between rounds: Options.MinInterval and MaxInterval
	Fanout      int           // sessions in a round with peers that answer
	Rand        *rand.Rand    // nil: the global generator
}

const (
	// relayShare is the part of Least after which a replica passes on what a peer told it,
	// where a round reaches all of them: the replica that wrote tells all by itself, so by
	// then there is mostly nothing left to tell.
	relayShare = 4

	// changeShare is the part of Least that a change waits after a round that no change
	// started, or that told nobody.
	changeShare = 10

	// steadyPause is how long a round that no change started leaves out an up-to-date peer
	// that also dials us, where a round reaches all replicas.
	steadyPause = time.Second
)

// Rounds decides when rounds are held. One goroutine uses it.
type Rounds struct {
	Config

	notBefore time.Time // no round is held before
	due       time.Time // a round is held then though nothing has changed
	wake      time.Time // the sooner of due and of when an address may be probed
	relay     time.Time // when news of others are passed on; zero if there are none
	wanted    bool      // a round is held as soon as notBefore allows
	changed   bool      // since the last round
	begun     bool      // a round has been held
}

// LocalChange starts a round.
func (r *Rounds) LocalChange() { r.wanted, r.changed = true, true }

// RemoteChange has news of a peer passed on: by a round at once or, if few reports that a round
// reaches all replicas that answer, a little later.
func (r *Rounds) RemoteChange(now time.Time, few bool) {
	switch {
	case !few:
		r.wanted, r.changed = true, true
	case r.relay.IsZero():
		r.relay = now.Add(r.Least / relayShare)
	}
}

// PeerFound starts a round: an address is new, or may be tried again.
func (r *Rounds) PeerFound() { r.wanted = true }

// Few reports whether a round reaches all replicas, given how many answer.
func (r *Rounds) Few(answering int) bool { return answering <= r.Fanout }

// Next returns when the next round is to be held, if nothing happens before.
func (r *Rounds) Next() time.Time {
	if r.wanted {
		return r.notBefore
	}
	next := r.wake
	if !r.relay.IsZero() && r.relay.Before(next) {
		next = r.relay
	}
	if next.Before(r.notBefore) {
		return r.notBefore
	}
	return next
}

// Waits reports whether a round is wanted, and only the pause since the last one holds it up. Then no
// further event can bring it forward.
func (r *Rounds) Waits(now time.Time) bool {
	return now.Before(r.notBefore) && (r.wanted || !r.wake.After(now) || !r.relay.IsZero() && !r.relay.After(now))
}

// Round says what a round is for.
type Round struct {
	Changed bool // a change started it
	Due     bool // it is held though nothing may have changed
	few     bool // it reaches all replicas that answer
	First   bool
	Live    int // peers that answer, at most
	pause   time.Duration
}

// Begin begins the round that Next announced.
func (r *Rounds) Begin(now time.Time, few bool) Round {
	round := Round{
		Changed: r.changed || !r.relay.IsZero(), Due: !now.Before(r.due), few: few, First: !r.begun,
		pause: min(steadyPause, r.Most),
	}
	if round.Changed || round.Due {
		round.Live = r.Fanout
	}
	r.wanted, r.changed, r.relay, r.begun = false, false, time.Time{}, true
	return round
}

// Skips reports whether a round leaves out a candidate: after a change one that is known to have
// it, or that holds a session with us; else one that would tell us if it had news.
func (round *Round) Skips(c *Candidate, now time.Time) bool {
	switch {
	case !c.Answers:
		return false
	case round.Changed:
		return c.Calling || c.Current || c.Linked
	}
	return round.few && c.Current && now.Sub(c.Reached) < round.pause && now.Sub(c.Came) < 2*round.pause
}

// End ends a round that began now, in which live sessions were started with peers that answer, and
// probed addresses were probed. Pause is how long to wait for the next one at this velocity, see [Velocity.Pause].
func (r *Rounds) End(now time.Time, round Round, live, probed int, pause time.Duration) {
	// Only sessions that a change was the reason for keep the next change waiting long.
	switch {
	case round.Changed && live > 0:
		r.notBefore = now.Add(r.Least)
	case round.Changed || live+probed > 0:
		r.notBefore = now.Add(r.Least / changeShare)
	default:
		r.notBefore = now
	}
	if round.Changed || round.Due {
		r.due = now.Add(jitter(pause, r.float64()))
	}
	r.wake = r.due
}

// Sooner brings the next round that no change starts forward, to after a shorter pause.
func (r *Rounds) Sooner(now time.Time, pause time.Duration) {
	if due := now.Add(jitter(pause, r.float64())); due.Before(r.due) {
		r.due = due
	}
	if r.due.Before(r.wake) {
		r.wake = r.due
	}
}

// Pause returns how long to wait for the next round if no change starts one: for End. Links that are
// enough carry changes, and without news there are none to carry; else velocity is the pause, see
// [Velocity.Pause].
func (r *Rounds) Pause(enough, news bool, velocity time.Duration) time.Duration {
	switch {
	case enough: // drawn: the links of many replicas begin at one moment
		return time.Duration((0.5 + r.float64()/2) * float64(r.Most))
	case !news:
		return r.Most
	}
	return velocity
}

// Probe says when an address that is not known to answer may be tried, after End.
func (r *Rounds) Probe(now, at time.Time) {
	if soonest := now.Add(r.Least); at.Before(soonest) {
		at = soonest
	}
	if at.Before(r.wake) {
		r.wake = at
	}
}

func (c *Config) float64() float64 {
	if c.Rand == nil {
		return rand.Float64()
	}
	return c.Rand.Float64()
}

func (c *Config) shuffle(list []int) {
	swap := func(i, j int) { list[i], list[j] = list[j], list[i] }
	if c.Rand == nil {
		rand.Shuffle(len(list), swap)
	} else {
		c.Rand.Shuffle(len(list), swap)
	}
}
