package replicator

import (
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/session"
	"github.com/stretchr/testify/require"
)

// TestEstimateOfAJoinIsRight plays joins whose entries take more or less of the time than is assumed. After the first
// tenth of it the estimate is right within a fifth.
func TestEstimateOfAJoinIsRight(t *testing.T) {
	const keys, assumed = 1000, 0.35
	for _, entry := range []float64{0.3, 0.35, 0.4} { // of the time of a row
		var j joinWork
		began := time.Now()
		now, all := began, time.Duration(float64(keys)*(1+entry))*time.Millisecond
		check := func(entries, rows int) {
			p := session.Progress{Versions: int64(rows), Part: (assumed*float64(entries) + float64(rows)) / (keys * (1 + assumed))}
			left := j.left(began, now, p)
			if past := now.Sub(began); past > all/10 {
				require.InDelta(t, all.Seconds(), (past + left).Seconds(), 0.2*all.Seconds(), "%d entries, %d rows", entries, rows)
			}
		}
		for i := range keys {
			now = now.Add(time.Duration(entry * float64(time.Millisecond)))
			check(i+1, 0)
		}
		for i := range keys {
			now = now.Add(time.Millisecond)
			check(keys, i+1)
		}
		require.InDelta(t, all.Seconds(), now.Sub(began).Seconds(), 0.01)
	}
}
