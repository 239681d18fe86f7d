package replicator

import (
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
func (l *lag) changed(ours *causal.Knowledge, theirs *causal.Knowledge, has causal.Vector, now time.Time) (covered time.Time) {
	if l.stale || ours.VectorSum == l.sum {
		return covered
	}
	l.stale = true
	if l.coveredBy(theirs, has) {
		covered = now
	}
	return covered
}

// heard compares what is known here with what the peer covers, by its reports or because it is known to
// have it, and returns up to when it covers all that was known here, or zero if that is not known.
func (l *lag) heard(ours *causal.Knowledge, theirs *causal.Knowledge, has causal.Vector, now time.Time) (covered time.Time) {
	switch {
	case ours.VectorSum == theirs.VectorSum || ours.CoveredBy(theirs, has):
		covered = now
	case l.coveredBy(theirs, has):
		covered = l.at
	case !l.at.IsZero():
		return covered
	}
	if l.at.IsZero() || ours.VectorSum != l.sum {
		l.mark, l.sum = ours.Vector(causal.Covered), ours.VectorSum
	}
	l.at, l.stale = now, false
	return covered
}

// coveredBy reports whether the peer covers what is marked, by its reports or because it is known to have it.
func (l *lag) coveredBy(theirs *causal.Knowledge, has causal.Vector) bool {
	return !l.at.IsZero() && l.mark.CoveredBy(theirs, has)
}
