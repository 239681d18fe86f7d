package schedule

import (
	"cmp"
	"slices"
	"time"
)

// MaxDialing bounds the dials under way to addresses that are not known to answer: each
// may take until it times out, and holds a file handle for as long.
const MaxDialing = 64

// ProbesPerRound bounds the addresses not known to answer that a round begins to dial.
const ProbesPerRound = 16

// Candidate is what is known of an address that a round may dial.
type Candidate struct {
	Answers bool      // it did when it was last dialed
	Busy    bool      // a session that we dialed is under way
	Rests   time.Time // it is not dialed before
	Lately  bool      // a session with it ended well within the last hour
	Tried   bool      // a session with it has ended, well or not
	Next    bool      // it is picked before others: see causal.Ring

	Current bool      // it has the version vector that we have
	Calling bool      // it holds a session that it dialed
	Linked  bool      // a connection to it is open over which news goes
	Reached time.Time // end of the last good session that we dialed,
	Came    time.Time // and of the last that it dialed
}

// Pick chooses up to live of the candidates that answer, at random, and beside them up to probes
// others, and returns their indices. So addresses where nobody answers, however many they are,
// take the place of none that does. It leaves out those that are busy or rest, or that skip
// accepts; skip may be nil.
func (r *Rounds) Pick(cs []Candidate, live, probes int, now time.Time, skip func(i int) bool) (picked, probed []int) {
	dialing := 0
	for i := range cs {
		switch c := &cs[i]; {
		case c.Busy && !c.Answers:
			dialing++
		case c.Busy || now.Before(c.Rests) || skip != nil && skip(i):
		case c.Answers:
			picked = append(picked, i)
		default:
			probed = append(probed, i)
		}
	}
	r.shuffle(picked)
	if next := slices.IndexFunc(picked, func(i int) bool { return cs[i].Next }); next > 0 {
		picked[0], picked[next] = picked[next], picked[0]
	}
	r.shuffle(probed)
	slices.SortStableFunc(probed, func(a, b int) int { return cmp.Compare(cs[a].rank(), cs[b].rank()) })
	picked = picked[:min(live, len(picked))]
	probed = probed[:max(0, min(probes, len(probed), MaxDialing-dialing))]
	return picked, probed
}

// NextProbe returns when an address that is not known to answer is to be tried; it reports false if
// there is none, or if as many are being dialed as may be, which is full.
func NextProbe(cs []Candidate) (next time.Time, ok, full bool) {
	dialing := 0
	for i := range cs {
		switch c := &cs[i]; {
		case c.Answers:
		case c.Busy:
			dialing++
		case !ok || c.Rests.Before(next):
			next, ok = c.Rests, true
		}
	}
	full = ok && dialing >= MaxDialing
	return next, ok && !full, full
}

// rank orders the addresses that are not known to answer: those that did a while ago, those never
// tried, the rest.
func (c *Candidate) rank() int {
	switch {
	case c.Lately:
		return 0
	case !c.Tried:
		return 1
	}
	return 2
}
