package replicator

import (
	"math"
	"math/rand/v2"
	"time"
)

// velocity is the rate of changes, own writes and news that arrived, in changes
// per second. It decays with a half-life of 5 s: a change adds ln 2 / 5 s, so that
// under a steady rate that rate is what it settles at.
type velocity struct {
	rate float64
	at   time.Time
}

const velocityHalfLife = 5 * time.Second

// add counts changes.
func (v *velocity) add(now time.Time, changes int) {
	v.rate = v.now(now) + float64(changes)*math.Ln2/velocityHalfLife.Seconds()
	v.at = now
}

// now is the velocity at a time.
func (v *velocity) now(now time.Time) float64 {
	if v.rate == 0 {
		return 0
	}
	past := max(now.Sub(v.at), 0)
	return v.rate * math.Exp2(-float64(past)/float64(velocityHalfLife))
}

// pause is how long to wait between two rounds: least / velocity (in changes per
// second), but at least least and at most most. A single change after silence has
// a velocity of 0.14 and a pause of 7 least; at one change per second and more the
// pause is least; it doubles with every 5 s of silence.
func (v *velocity) pause(now time.Time, least, most time.Duration) time.Duration {
	rate := v.now(now)
	if rate <= float64(least)/float64(most) {
		return most
	}
	return min(most, max(least, time.Duration(float64(least)/rate)))
}

// jitter spreads a pause by ±20 %, so that servers do not beat in time.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}

// recentSeconds is how far back changes are counted by the second.
const recentSeconds = 60

// recent counts changes by the second, for the last whole seconds and the one under
// way.
type recent struct {
	second int64 // the one under way when it was last touched
	counts [recentSeconds + 1]int64
}

// roll moves on to a time. A clock that went back stands still.
func (r *recent) roll(now time.Time) {
	if second := now.Unix(); second > r.second {
		for s := max(r.second+1, second-recentSeconds); s <= second; s++ {
			r.counts[s%(recentSeconds+1)] = 0
		}
		r.second = second
	}
}

func (r *recent) add(now time.Time, changes int) {
	r.roll(now)
	r.counts[r.second%(recentSeconds+1)] += int64(changes)
}

// list gives the counts of the whole seconds before now, the latest last.
func (r *recent) list(now time.Time) []int64 {
	r.roll(now)
	counts := make([]int64, recentSeconds)
	for i := range counts {
		counts[i] = r.counts[(r.second-recentSeconds+int64(i))%(recentSeconds+1)]
	}
	return counts
}
