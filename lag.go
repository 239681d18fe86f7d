package replicator

import (
	"slices"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
)

// lag follows since when a peer lacks something that is known here. There may be no moment at which it
// lacks nothing, so it is marked what is known at some time, and that counts once the peer covers it.
type lag struct {
	mark  causal.Vector // what was known here,
	sum   causal.Sum    // its sum,
	at    time.Time     // and when; zero: there is no mark
	stale bool          // something changed here since
}

// changed notes that something may just have changed here. It returns now if the peer covers all that was
// known before, else zero.
func (l *lag) changed(ours *causal.Knowledge, covers func(causal.Dot) bool, now time.Time) (covered time.Time) {
	if l.stale || ours.VectorSum == l.sum {
		return covered
	}
	l.stale = true
	if l.coveredBy(covers) {
		covered = now
	}
	return covered
}

// heard compares what is known here with what the peer covers, and returns up to when it covers all that
// was known here, or zero if that is not known.
func (l *lag) heard(ours *causal.Knowledge, covers func(causal.Dot) bool, now time.Time) (covered time.Time) {
	switch current := (lag{mark: ours.Vector(causal.Covered), sum: ours.VectorSum, at: now}); {
	case current.coveredBy(covers):
		covered, *l = now, current
	case l.coveredBy(covers):
		covered, *l = l.at, current
	case l.at.IsZero():
		*l = current
	}
	return covered
}

func (l *lag) coveredBy(covers func(causal.Dot) bool) bool {
	return !l.at.IsZero() && !slices.ContainsFunc(l.mark, func(d causal.Dot) bool { return !covers(d) })
}
