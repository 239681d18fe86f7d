package replicator

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSlicesFollowTheTimeThatTheyTake(t *testing.T) {
	n := firstSlice
	for range 10 { // keys of 1 ms each
		n = nextSlice(n, time.Duration(n)*time.Millisecond)
	}
	require.Equal(t, 2, n)
	for range 10 { // of 1 µs
		n = nextSlice(n, time.Duration(n)*time.Microsecond)
	}
	require.Equal(t, mostSlice, n, "and never more, however quick they were")
	require.Equal(t, mostSlice/2, nextSlice(n, time.Hour), "an accident does not count for much")
	require.Equal(t, 1, nextSlice(1, time.Hour), "one at least")
	require.Equal(t, 2, nextSlice(1, 0))
}
