package replicator

import (
	"math"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/mdns"
	"github.com/level-replicator/replicator/internal/schedule"
	"github.com/stretchr/testify/require"
)

func TestPausesThatMeanNeverAreLongPauses(t *testing.T) {
	o, err := (&Options{MinInterval: math.MaxInt64, MaxInterval: math.MaxInt64}).withDefaults()
	require.NoError(t, err)
	for range 100 {
		require.Greater(t, schedule.Jitter(o.MaxInterval), 200*24*time.Hour)
		require.Greater(t, schedule.Jitter(o.MinInterval), 200*24*time.Hour)
	}
	require.Positive(t, 4*o.MaxInterval)
	for _, r := range []float64{0, 0.5, 1} {
		require.Greater(t, mdns.SpreadInterval(longest, r), 200*24*time.Hour)
	}
}
