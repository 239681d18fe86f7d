package schedule_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/schedule"
	"github.com/stretchr/testify/require"
)

const (
	least  = 20 * time.Millisecond
	most   = 10 * time.Second
	fanout = 4
)

var start = time.Unix(1_800_000_000, 0)

// held returns rounds of which one was just held, with that many sessions, and the next is far off.
func held(t *testing.T, changed bool, live, probed int) *schedule.Rounds {
	t.Helper()
	r := &schedule.Rounds{Config: schedule.Config{Least: least, Most: most, Fanout: fanout, Rand: rand.New(rand.NewPCG(1, 1))}}
	require.False(t, r.Next().After(start), "the first round is due at once")
	if changed {
		r.LocalChange()
	}
	round := r.Begin(start, true)
	require.True(t, round.First)
	require.True(t, round.Due)
	r.End(start, round, live, probed, most)
	return r
}

func TestRoundsAreHeldWhenAChangeAllows(t *testing.T) {
	local := func(r *schedule.Rounds, now time.Time) { r.LocalChange() }
	remote := func(r *schedule.Rounds, now time.Time) { r.RemoteChange(now, false) }
	passedOn := func(r *schedule.Rounds, now time.Time) { r.RemoteChange(now, true) }
	found := func(r *schedule.Rounds, now time.Time) { r.PeerFound() }
	for _, c := range []struct {
		name    string
		changed bool // the last round was
		live    int
		event   func(r *schedule.Rounds, now time.Time)
		after   time.Duration // the last round
		next    time.Duration
		starts  bool // the round is one of a change
	}{
		{"a write after silence", false, 0, local, time.Second, 0, true},
		{"a write soon after a round that told a change", true, 2, local, time.Millisecond, least, true},
		{"a write soon after a round that told nobody", true, 0, local, time.Millisecond, least / 10, true},
		{"a write soon after a round that no change started", false, 2, local, time.Millisecond, least / 10, true},
		{"news in a large cluster", false, 2, remote, time.Second, 0, true},
		{"news where the writer tells everybody", false, 2, passedOn, time.Second, time.Second + least/4, true},
		{"news soon after a round, where the writer tells everybody", true, 2, passedOn, time.Millisecond, least, true},
		{"an address is found", false, 2, found, time.Second, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := held(t, c.changed, c.live, 0)
			now := start.Add(c.after)
			c.event(r, now)
			next := r.Next()
			if c.next == 0 {
				require.False(t, next.After(now))
				next = now
			} else {
				require.Equal(t, start.Add(c.next), next)
			}
			round := r.Begin(next, true)
			require.Equal(t, c.starts, round.Changed)
			require.False(t, round.Due)
			require.False(t, round.First)
		})
	}
}

func TestFurtherNewsDoesNotPutOffPassingOn(t *testing.T) {
	r := held(t, true, 2, 0)
	at := start.Add(time.Second)
	r.RemoteChange(at, true)
	r.RemoteChange(at.Add(time.Millisecond), true)
	require.Equal(t, at.Add(least/4), r.Next())
	r.LocalChange()
	require.False(t, r.Next().After(at), "an own write takes the news along")
	require.True(t, r.Begin(at, true).Changed)
	require.True(t, r.Next().After(at.Add(time.Second)), "and then there is nothing left to pass on")
}

func TestRoundThatWaitsCannotBeBroughtForward(t *testing.T) {
	r := held(t, true, 2, 0)
	now := start.Add(time.Millisecond)
	require.False(t, r.Waits(now), "nothing is wanted")
	r.LocalChange()
	require.True(t, r.Waits(now))
	require.False(t, r.Waits(start.Add(least)))
}

func TestRoundIsDueThoughNothingChanges(t *testing.T) {
	r := held(t, false, 2, 0)
	next := r.Next()
	require.GreaterOrEqual(t, next.Sub(start), most*8/10)
	require.LessOrEqual(t, next.Sub(start), most*12/10)

	found := start.Add(time.Second)
	r.PeerFound()
	round := r.Begin(found, true)
	require.Zero(t, round.Live, "an address that was found is dialed alone")
	r.End(found, round, 0, 1, least)
	require.Equal(t, next, r.Next(), "and puts nothing off")

	round = r.Begin(next, true)
	require.True(t, round.Due)
	require.Equal(t, fanout, round.Live)
}

func TestRoundsAreRareWhileLinksCarryChanges(t *testing.T) {
	r := held(t, false, 2, 0)
	require.Equal(t, least, r.Pause(false, true, least), "there is news, and rounds have to spread it")
	require.Equal(t, most, r.Pause(false, false, least))
	sum, short := time.Duration(0), 0
	for range 1000 {
		pause := r.Pause(true, true, least)
		require.LessOrEqual(t, pause, most)
		require.GreaterOrEqual(t, pause, most/2)
		if sum += pause; pause < most*3/4 {
			short++
		}
	}
	require.InEpsilon(t, float64(most*3/4), float64(sum)/1000, 0.05)
	require.InDelta(t, 500, short, 60, "they are not all due at one time")
}

func TestAddressesAreProbedWhenTheyHaveRested(t *testing.T) {
	r := held(t, false, 2, 0)
	r.Probe(start, start.Add(time.Second))
	require.Equal(t, start.Add(time.Second), r.Next())
	r.Probe(start, start)
	require.Equal(t, start.Add(least), r.Next(), "but not at once")
	r = held(t, false, 2, 0)
	due := r.Next()
	r.Probe(start, start.Add(time.Hour))
	require.Equal(t, due, r.Next())
}

func TestRoundLeavesOutWhoNeedsNoTelling(t *testing.T) {
	now := start
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	r := &schedule.Rounds{Config: schedule.Config{Least: least, Most: most, Fanout: fanout}}
	quietFew, quiet := r.Begin(now, true), r.Begin(now, false)
	r.LocalChange()
	changed := r.Begin(now, true)
	steady := schedule.Candidate{Answers: true, Current: true, Reached: ago(time.Second / 2), Came: ago(3 * time.Second / 2)}
	with := func(f func(c *schedule.Candidate)) schedule.Candidate { c := steady; f(&c); return c }
	for _, c := range []struct {
		name  string
		round schedule.Round
		c     schedule.Candidate
		skips bool
	}{
		{"after a change: it has it", changed, schedule.Candidate{Answers: true, Current: true}, true},
		{"after a change: it is talking to us", changed, schedule.Candidate{Answers: true, Calling: true}, true},
		{"after a change: it lacks it", changed, schedule.Candidate{Answers: true}, false},
		{"after a change: nobody has answered there", changed, schedule.Candidate{Current: true, Calling: true}, false},
		{"among few: it dials us as we dial it", quietFew, steady, true},
		{"among few: it has something else", quietFew, with(func(c *schedule.Candidate) { c.Current = false }), false},
		{"among few: it has not come lately", quietFew, with(func(c *schedule.Candidate) { c.Came = ago(2 * time.Second) }), false},
		{"among few: it was not dialed lately", quietFew, with(func(c *schedule.Candidate) { c.Reached = ago(time.Second) }), false},
		{"among many", quiet, steady, false},
	} {
		require.Equal(t, c.skips, c.round.Skips(&c.c, now), c.name)
	}
}

func TestNextRoundCanBeBroughtForwardButNotPutOff(t *testing.T) {
	r := held(t, false, 0, 0)
	now := start.Add(time.Second)
	r.Sooner(now, least)
	next := r.Next()
	require.WithinRange(t, next, now.Add(least*8/10), now.Add(least*12/10))
	r.Sooner(now, most)
	require.Equal(t, next, r.Next())
	round := r.Begin(next, true)
	require.True(t, round.Due)
	require.False(t, round.Changed)
}
