package causal

import "time"

// Stamp is hybrid logical time (Kulkarni et al. 2014): 48 bits of milliseconds
// since 1970 above 16 bits of counter. It follows the wall clock where it can and
// never goes back, so that a later write of one server has a greater stamp.
type Stamp uint64

func StampOf(t time.Time) Stamp { return Stamp(max(t.UnixMilli(), 0)) << 16 }

func (s Stamp) Time() time.Time { return time.UnixMilli(int64(s >> 16)).UTC() }

// HybridClock gives stamps. The wall clock is handed in with each call.
type HybridClock struct{ Last Stamp }

// Next is a stamp greater than every one given or seen before.
func (c *HybridClock) Next(wall time.Time) Stamp {
	c.Last = max(c.Last+1, StampOf(wall))
	return c.Last
}

// See takes in the stamp of a write from elsewhere.
func (c *HybridClock) See(s Stamp) { c.Last = max(c.Last, s) }
