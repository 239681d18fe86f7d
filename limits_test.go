package replicator

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator/internal/transport"
	"github.com/stretchr/testify/require"
)

func TestSmallFramesDoNotWaitForLargeValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const room = 64 << 20
		db := &DB{opts: Options{MaxInFlight: room}, inflight: transport.NewInflight(room - transport.SmallRoom(room)), small: transport.NewInflight(transport.SmallRoom(room)), large: make(chan struct{}, 1)}
		var slow [3]conversation
		for i := range slow { // slow peers in the midst of large values
			slow[i].db = db
			go func() {
				for range 1000 { // one of them goes beyond the bound
					if slow[i].reserve(t.Context(), 256<<10) != nil {
						return
					}
				}
			}()
		}
		synctest.Wait()
		began := time.Now()
		fast := conversation{db: db}
		for range 100 {
			require.NoError(t, fast.reserve(t.Context(), 300<<10))
			fast.keep(0)
		}
		require.Zero(t, time.Since(began))
	})
}
