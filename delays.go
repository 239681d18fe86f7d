package replicator

import (
	"slices"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
)

// Delay is the replication delay of one origin: how long its writes took to become visible
// here, from the stamp that the writer's clock gave them to the commit here by the clock of this
// replica. So it is as right as the two clocks are. Stamps are whole milliseconds, so a delay is
// up to 1 ms too long.
//
// Only what was written since this replica was opened counts, so filling an empty replica does
// not; what was written while the two were cut off does.
type Delay struct {
	Origin  Origin        `json:"origin"`  // zero: origins that have no entry of their own, together
	Name    string        `json:"name"`    // of the replica that the origin is of, if that was met
	Count   int64         `json:"count"`   // versions
	Early   int64         `json:"early"`   // of them, those stamped later than the time here: the clocks differ, and they count as 0
	Sum     time.Duration `json:"sum"`     // of all delays
	Max     time.Duration `json:"max"`     //
	Buckets []DelayBucket `json:"buckets"` // from 1 ms to 100 s, the same for all origins
}

// DelayBucket counts the versions that took no longer than a bound, those of the buckets before it
// included.
type DelayBucket struct {
	Bound time.Duration `json:"bound"`
	Count int64         `json:"count"`
}

// Quantile returns a delay that a share q of the versions, from 0 to 1, did not exceed: the bound of a
// bucket, or Max if that is less. It is 0 if there are none.
func (d Delay) Quantile(q float64) time.Duration {
	for _, b := range d.Buckets {
		if float64(b.Count) >= q*float64(d.Count) {
			return min(b.Bound, d.Max)
		}
	}
	return d.Max
}

// Delay returns the replication delay of all origins together.
func (s *Status) Delay() Delay {
	all := Delay{Buckets: []DelayBucket{}}
	for _, d := range s.Delays {
		all.Count, all.Early, all.Sum, all.Max = all.Count+d.Count, all.Early+d.Early, all.Sum+d.Sum, max(all.Max, d.Max)
		for i, b := range d.Buckets {
			if i == len(all.Buckets) {
				all.Buckets = append(all.Buckets, DelayBucket{Bound: b.Bound})
			}
			all.Buckets[i].Count += b.Count
		}
	}
	return all
}

// delayBounds begin where stamps no longer tell delays apart.
var delayBounds = [...]time.Duration{
	1 * time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond, 1 * time.Second, 2 * time.Second, 5 * time.Second,
	10 * time.Second, 20 * time.Second, 50 * time.Second, 100 * time.Second,
}

const (
	maxDelays   = 64        // origins that have an entry of their own
	delayIdle   = time.Hour // one of which nothing has come for so long may lose it
	delaySurvey = time.Minute
)

// delays counts the replication delay by origin. The queue's slot guards it.
type delays struct {
	began    causal.Stamp // what was stamped before does not count
	surveyed int64        // when an entry to be given up was last looked for
	origins  map[causal.Origin]*delayCounts
	others   delayCounts

	last  causal.Origin // of the version before: mostly the next is of the same
	entry *delayCounts  // its entry
}

// delayCounts are the delays of one origin.
type delayCounts struct {
	buckets  [len(delayBounds) + 1]int64 // not cumulative; the last has no bound
	early    int64
	sum, max time.Duration
	seen     int64 // when one last came, in nanoseconds since 1970
}

func newDelays(now time.Time) delays {
	return delays{began: causal.StampOf(now), origins: map[causal.Origin]*delayCounts{}}
}

// note counts the versions that a commit took in. own are the origins of this database.
func (d *delays) note(changes []replica.Change, own map[causal.Origin]bool, now time.Time) {
	at := now.UnixNano()
	for i := range changes {
		c := &changes[i]
		if c.Local || c.Same || c.Quiet || c.Ahead {
			continue
		}
		old := c.Old
		for j := range c.Versions { // both are in the order of their dots
			v := &c.Versions[j]
			for len(old) > 0 && old[0].Dot.Compare(v.Dot) < 0 {
				old = old[1:]
			}
			if v.Stamp < d.began || len(old) > 0 && old[0].Dot == v.Dot {
				continue
			}
			if e := d.of(v.Origin, own, at); e != nil {
				e.add(v.Stamp, at)
			}
		}
	}
}

// of returns the entry of an origin, or nil if the origin is of this database.
func (d *delays) of(o causal.Origin, own map[causal.Origin]bool, now int64) *delayCounts {
	if o == d.last && d.entry != nil {
		return d.entry
	}
	e := d.origins[o]
	if e == nil {
		if own[o] {
			return nil // it came back
		}
		e = d.admit(o, now)
	}
	d.last, d.entry = o, e
	return e
}

// admit makes an entry for an origin. If there are too many, one of which nothing came for long gives
// way and is added to the others; without one, the origin counts among those.
func (d *delays) admit(o causal.Origin, now int64) *delayCounts {
	if len(d.origins) >= maxDelays {
		if time.Duration(now-d.surveyed).Abs() < delaySurvey {
			return &d.others
		}
		d.surveyed = now
		var least causal.Origin
		var idle *delayCounts
		for o, e := range d.origins {
			if idle == nil || e.seen < idle.seen {
				least, idle = o, e
			}
		}
		if time.Duration(now-idle.seen) < delayIdle {
			return &d.others
		}
		delete(d.origins, least)
		d.others.join(idle)
	}
	e := new(delayCounts)
	d.origins[o] = e
	return e
}

func (e *delayCounts) add(stamp causal.Stamp, now int64) {
	e.seen = now
	var delay time.Duration
	if written := int64(stamp >> 16); written > now/int64(time.Millisecond) {
		e.early++
	} else {
		delay = time.Duration(now - written*int64(time.Millisecond))
	}
	i := 0
	for i < len(delayBounds) && delay > delayBounds[i] {
		i++
	}
	e.buckets[i]++
	e.sum += delay
	e.max = max(e.max, delay)
}

func (e *delayCounts) join(f *delayCounts) {
	for i, n := range f.buckets {
		e.buckets[i] += n
	}
	e.early, e.sum, e.max = e.early+f.early, e.sum+f.sum, max(e.max, f.max)
}

// status returns the delays as Status reports them, sorted by origin, the others last.
func (d *delays) status(members map[causal.Origin]*replica.Member) []Delay {
	list := make([]Delay, 0, len(d.origins)+1)
	for o, e := range d.origins {
		x := e.status(o)
		if m := members[o]; m != nil {
			x.Name = m.Name
		}
		list = append(list, x)
	}
	slices.SortFunc(list, func(a, b Delay) int { return causal.Origin(a.Origin).Compare(causal.Origin(b.Origin)) })
	if others := d.others.status(causal.Origin{}); others.Count > 0 {
		list = append(list, others)
	}
	return list
}

func (e *delayCounts) status(o causal.Origin) Delay {
	d := Delay{Origin: Origin(o), Early: e.early, Sum: e.sum, Max: e.max, Buckets: make([]DelayBucket, len(delayBounds))}
	for i, n := range e.buckets {
		if d.Count += n; i < len(d.Buckets) {
			d.Buckets[i] = DelayBucket{delayBounds[i], d.Count}
		}
	}
	return d
}
