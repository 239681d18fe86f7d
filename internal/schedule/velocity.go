package schedule

import (
	"math"
	"math/rand/v2"
	"time"
)

// Velocity is the rate of changes, own writes and news that arrived, in changes
// per second. It decays with a half-life of 5 s: a change adds ln 2 / 5 s, so that
// under a steady rate that rate is what it settles at.
type Velocity struct {
	rate float64
	at   time.Time
}

const velocityHalfLife = 5 * time.Second

// Add counts changes.
func (v *Velocity) Add(now time.Time, changes int) {
	v.rate = v.Now(now) + float64(changes)*math.Ln2/velocityHalfLife.Seconds()
	v.at = now
}

// Now is the velocity at a time.
func (v *Velocity) Now(now time.Time) float64 {
	if v.rate == 0 {
		return 0
	}
	past := max(now.Sub(v.at), 0)
	return v.rate * math.Exp2(-float64(past)/float64(velocityHalfLife))
}

// Last is when changes were last counted.
func (v *Velocity) Last() time.Time { return v.at }

// Pause is how long to wait between two rounds: least / velocity (in changes per
// second), but at least least and at most most. A single change after silence has
// a velocity of 0.14 and a pause of 7 least; at one change per second and more the
// pause is least; it doubles with every 5 s of silence.
func (v *Velocity) Pause(now time.Time, least, most time.Duration) time.Duration {
	rate := v.Now(now)
	if rate <= float64(least)/float64(most) {
		return most
	}
	return min(most, max(least, time.Duration(float64(least)/rate)))
}

// Jitter spreads a pause by ±20 %, so that replicas do not fall into step.
func Jitter(d time.Duration) time.Duration { return jitter(d, rand.Float64()) }

// jitter spreads by a number drawn from 0 to 1.
func jitter(d time.Duration, drawn float64) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*drawn))
}

// recentSeconds is how far back changes are counted by the second.
const recentSeconds = 60

// Recent counts changes by the second, for the last whole seconds and the one under
// way.
type Recent struct {
	second int64 // the one under way when it was last touched
	counts [recentSeconds + 1]int64
}

// roll moves on to a time. A clock that went back stands still.
func (r *Recent) roll(now time.Time) {
	if second := now.Unix(); second > r.second {
		for s := max(r.second+1, second-recentSeconds); s <= second; s++ {
			r.counts[s%(recentSeconds+1)] = 0
		}
		r.second = second
	}
}

func (r *Recent) Add(now time.Time, changes int) {
	r.roll(now)
	r.counts[r.second%(recentSeconds+1)] += int64(changes)
}

// List returns the counts of the whole seconds before now, the latest last.
func (r *Recent) List(now time.Time) []int64 {
	r.roll(now)
	counts := make([]int64, recentSeconds)
	for i := range counts {
		counts[i] = r.counts[(r.second-recentSeconds+int64(i))%(recentSeconds+1)]
	}
	return counts
}
