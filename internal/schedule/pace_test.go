package schedule_test

import (
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/schedule"
	"github.com/stretchr/testify/require"
)

const silence = 2 * time.Second

func newPace() *schedule.Pace {
	return schedule.NewPace(schedule.PaceConfig{Silence: silence}, start, 0.5)
}

// runPace does what is due until something other than reports is, and returns when that was.
func runPace(t *testing.T, p *schedule.Pace, now time.Time) (schedule.Action, time.Time) {
	t.Helper()
	for range 100 {
		switch a := p.Due(now); a {
		case schedule.Nothing:
			require.True(t, p.Next().After(now), "it has nothing to do and does not wait")
			now = p.Next()
		case schedule.Report:
			p.Reported()
		default:
			return a, now
		}
	}
	require.Fail(t, "nothing but reports")
	return schedule.Nothing, now
}

func TestPacePushesAtOnceWherePushesAreWanted(t *testing.T) {
	for _, c := range []struct {
		name        string
		lazy, small bool
		local       bool
		push        bool
	}{
		{"own news", false, true, true, true},
		{"own news to a peer that hears others first, where the writer tells everybody", true, true, true, true},
		{"own news to a peer that hears others first, in a large cluster", true, false, true, false},
		{"news of others", false, true, false, true},
		{"news of others in a large cluster", false, false, false, true},
		{"news of others to a peer that hears others first", true, true, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPace()
			if c.lazy {
				p.Spare()
			}
			if c.local {
				p.LocalChange(start, c.small)
			} else {
				p.RemoteChange(start, c.small)
			}
			if c.push {
				require.Equal(t, schedule.Push, p.Due(start))
				require.False(t, p.Next().After(start))
				return
			}
			require.Equal(t, schedule.Nothing, p.Due(start))
			require.True(t, p.Next().After(start))
			require.Less(t, p.Next().Sub(start), silence/4)
			require.Equal(t, schedule.Report, p.Due(p.Next()), "it is reported a little later")
		})
	}
}

func TestPaceWaitsAsLongAsPushesTake(t *testing.T) {
	p := newPace()
	p.LocalChange(start, true)
	p.Pushing()
	end := start.Add(time.Millisecond)
	for range 100 {
		p.Pushed(end, time.Millisecond, 1)
	}
	require.Equal(t, schedule.Nothing, p.Due(end), "a push reports the vectors, too")
	p.LocalChange(end, true)
	require.Equal(t, schedule.Nothing, p.Due(end))
	require.WithinDuration(t, end.Add(4*time.Millisecond), p.Next(), 10*time.Microsecond)
	require.Equal(t, schedule.Push, p.Due(p.Next()))
	p.NothingToPush()
	require.NotEqual(t, schedule.Push, p.Due(p.Next()))

	p.Pushing()
	p.LocalChange(end, true)
	p.Pushed(end, time.Millisecond, 1)
	require.Equal(t, schedule.Push, p.Due(p.Next()), "what came after a push began is left to the next")
}

func TestPaceHasMuchPushedAtATime(t *testing.T) {
	for versions, pause := range map[int]time.Duration{1: 25 * time.Microsecond, 100: 2500 * time.Microsecond, 10_000: 20 * time.Millisecond} {
		p := newPace()
		p.Pushing()
		p.Pushed(start, 0, versions)
		p.LocalChange(start, true)
		require.Equal(t, start.Add(pause), p.Next())
	}
}

func TestPaceRequestsWhatDoesNotComeAnotherWay(t *testing.T) {
	p := newPace()
	p.Heard(start, true, true)
	require.Equal(t, schedule.Nothing, p.Due(start))
	at := p.Next()
	p.Heard(start.Add(time.Millisecond), true, true)
	require.Equal(t, at, p.Next(), "a further report does not put it off")
	require.Equal(t, schedule.Request, p.Due(at))
	p.Requested()
	require.Equal(t, schedule.Nothing, p.Due(at))

	p.Heard(start, true, true)
	p.Heard(start, false, true)
	require.Equal(t, schedule.Nothing, p.Due(at), "it came another way")

	p.Spare()
	p.Asked()
	require.False(t, p.Lazy())
	require.Equal(t, schedule.Push, p.Due(at))

	p.Spare()
	p.Requested()
	require.False(t, p.Lazy(), "both push to each other")
}

func TestPaceLeavesAfterSilence(t *testing.T) {
	p := newPace()
	action, at := runPace(t, p, start)
	require.Equal(t, schedule.Leave, action)
	require.Equal(t, start.Add(silence), at)

	p = newPace()
	p.Took(start.Add(silence / 2))
	p.Heard(start.Add(silence), true, true) // vectors are no news
	p.Requested()
	_, at = runPace(t, p, start.Add(silence))
	require.Equal(t, start.Add(silence+silence/2), at)

	for lazy, end := range map[bool]time.Duration{false: 72 * time.Second, true: 18 * time.Second} {
		p = schedule.NewPace(schedule.PaceConfig{Silence: silence, Life: time.Minute}, start, 1)
		if lazy {
			p.Spare()
		}
		now := start
		for left := false; !left; now = now.Add(silence / 2) {
			p.Took(now)
			action, at := runPace(t, p, now)
			if left = at.Before(now.Add(silence)); left {
				require.Equal(t, schedule.Leave, action)
				require.Equal(t, start.Add(end), at, "though there is always news")
			}
		}
	}
}
