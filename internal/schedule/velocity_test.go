package schedule

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestVelocityOfASteadyRateIsThatRate(t *testing.T) {
	for _, every := range []time.Duration{10 * time.Millisecond, 100 * time.Millisecond, time.Second} {
		var v Velocity
		now := time.Unix(0, 0)
		for range int(time.Minute / every) {
			now = now.Add(every)
			v.Add(now, 1)
		}
		perSecond := float64(time.Second) / float64(every)
		// Just after a change it is up to half of one change's worth above.
		require.InEpsilon(t, perSecond, v.Now(now), 0.08, "one change every %v", every)
		require.InEpsilon(t, v.Now(now)/2, v.Now(now.Add(velocityHalfLife)), 1e-9)
	}
}

func TestManyChangesAtOnceCountAsMany(t *testing.T) {
	var one, many Velocity
	now := time.Unix(0, 0)
	for range 10 {
		one.Add(now, 1)
	}
	many.Add(now, 10)
	require.InEpsilon(t, one.Now(now), many.Now(now), 1e-9)
}

func TestPauseFollowsItsFormula(t *testing.T) {
	const least, most = 20 * time.Millisecond, 10 * time.Second
	var v Velocity
	now := time.Unix(0, 0)
	require.Equal(t, most, v.Pause(now, least, most), "at a velocity of 0")
	v.Add(now, 1)
	require.InDelta(t, 0.1386, v.Now(now), 0.0001)
	one := v.Pause(now, least, most)
	require.InEpsilon(t, 7.2*float64(least), float64(one), 0.01, "after one change")
	for range 6 {
		now = now.Add(velocityHalfLife)
		next := v.Pause(now, least, most)
		require.InEpsilon(t, 2*float64(one), float64(next), 0.001, "it doubles with every 5 s of silence")
		one = next
	}
	require.Equal(t, most, v.Pause(now.Add(velocityHalfLife), least, most))
	require.Equal(t, most, v.Pause(now.Add(1000*time.Hour), least, most))
	v.Add(now, 100)
	require.Equal(t, least, v.Pause(now, least, most), "at a high velocity")
	require.Equal(t, least, v.Pause(now.Add(-time.Hour), least, most), "a clock that goes back does no harm")
}

func TestJitterIsAFifthEitherWay(t *testing.T) {
	low, high := time.Hour, time.Duration(0)
	for range 1000 {
		d := Jitter(time.Second)
		low, high = min(low, d), max(high, d)
	}
	require.GreaterOrEqual(t, low, 800*time.Millisecond)
	require.Less(t, low, 850*time.Millisecond)
	require.LessOrEqual(t, high, 1200*time.Millisecond)
	require.Greater(t, high, 1150*time.Millisecond)
}

func TestRecentChangesAreCountedByTheSecond(t *testing.T) {
	at := func(s float64) time.Time { return time.UnixMilli(1_700_000_000_000 + int64(s*1000)) }
	var r Recent
	r.Add(at(0.1), 3)
	r.Add(at(0.9), 2)
	r.Add(at(2), 7)
	require.Equal(t, make([]int64, recentSeconds-2), r.List(at(2.5))[:recentSeconds-2])
	require.Equal(t, []int64{5, 0}, r.List(at(2.5))[recentSeconds-2:], "the second under way is left out")
	require.Equal(t, []int64{5, 0, 7, 0}, r.List(at(4))[recentSeconds-4:])
	require.Equal(t, []int64{5, 0, 7}, r.List(at(60))[:3])
	require.Equal(t, []int64{0, 7, 0}, r.List(at(61))[:3])
	r.Add(at(50), 1) // the clock went back
	require.EqualValues(t, 1, r.List(at(62))[recentSeconds-1])
	require.Equal(t, make([]int64, recentSeconds), r.List(at(1000)))
}
