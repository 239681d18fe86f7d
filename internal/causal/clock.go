// Package causal is the algebra of happened-before: dots, version vectors, the vectors of a
// replica, spans of logs, hybrid time, and sums of dots. It knows neither keys nor a store.
package causal

import "time"

// Stamp is hybrid logical time (Kulkarni et al. 2014): 48 bits of milliseconds
// since 1970 above 16 bits of counter. It follows the wall clock where it can and
// never goes back, so a later write of one replica has a greater stamp.
type Stamp uint64

// StampOf returns the first stamp of a time's millisecond.
func StampOf(t time.Time) Stamp { return Stamp(max(t.UnixMilli(), 0)) << 16 }

// Time returns the wall-clock part.
func (s Stamp) Time() time.Time { return time.UnixMilli(int64(s >> 16)).UTC() }

// HybridClock issues stamps. Callers pass the wall clock in.
type HybridClock struct{ Last Stamp }

// Next returns a stamp greater than all that it issued or saw before.
func (c *HybridClock) Next(wall time.Time) Stamp {
	c.Last = max(c.Last+1, StampOf(wall))
	return c.Last
}

// See takes in the stamp of another replica's write.
func (c *HybridClock) See(s Stamp) { c.Last = max(c.Last, s) }
