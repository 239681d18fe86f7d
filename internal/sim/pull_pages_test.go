package sim

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
)

// talkInWindows holds a session in which so many bytes are sent of one state.
func talkInWindows(t *testing.T, a, b *node, window int, between func()) (pages int) {
	p := session.Params{PageSize: 1 << 10, BatchSize: 1, Window: window, MaxValue: 1 << 26, MaxKey: 1 << 16}
	drive(t, session.New(a, true, p), session.New(b, false, p), func(_, to *session.Session, f session.Frame) {
		if f.Kind == session.FramePage {
			pages++
		}
		require.NoError(t, to.Receive(f.Kind, f.Payload))
		between()
	})
	return pages
}

// written are two replicas that have written much, some of it without knowing of each
// other, and have met: values of all sizes, overwrites, deletions, batches.
func written(t *testing.T) *node {
	a, b := newNode(t), newNode(t)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 600 {
		n := a
		if i%3 == 0 {
			n = b
		}
		var ws []store.Write
		for range 1 + r.IntN(6) {
			key := fmt.Appendf(nil, "%03d", r.IntN(900))
			value := bytes.Repeat([]byte{byte(i)}, r.IntN(40))
			if r.IntN(300) == 0 {
				value = make([]byte, 3000) // goes in chunks
			}
			ws = append(ws, store.Write{Key: key, Value: value, Deleted: r.IntN(8) == 0})
		}
		require.NoError(t, n.Commit(func(t *replica.Txn) error { return t.Put(ws) }))
	}
	talk(t, a, b)
	requireEqualNodes(t, a, b)
	require.Positive(t, a.r.Conflicts)
	return a
}

// design.md: P3
func TestPull_BringsTheSameForEveryWindow(t *testing.T) {
	a := written(t)
	for _, window := range []int{0, 5000, session.WindowSize} {
		for _, stale := range []bool{false, true} {
			a.r.MayHaveStale = stale
			b := newNode(t)
			pages := talkInWindows(t, b, a, window, func() {})
			requireEqualNodes(t, a, b)
			require.ElementsMatch(t, a.log(), b.log())
			require.NoError(t, CheckStore(b.db, b.r))
			require.Greater(t, pages, 10)
		}
	}
}

func TestPull_PagesOfOneStateTearNoBatch(t *testing.T) {
	for _, window := range []int{0, 5000, session.WindowSize} {
		a, b := newNode(t), newNode(t)
		const batches, size = 300, 7
		for i := range batches {
			var ws []store.Write
			for j := range size {
				ws = append(ws, store.Write{Key: fmt.Appendf(nil, "%d/%03d", j, i*77%batches), Value: []byte("v")})
			}
			require.NoError(t, a.Commit(func(t *replica.Txn) error { return t.Put(ws) }))
		}
		partly := 0
		talkInWindows(t, b, a, window, func() {
			count := map[string]int{}
			for k := range userData(t, b.db) {
				count[k[2:]]++
			}
			for k, n := range count {
				require.Equal(t, size, n, "batch %s is torn", k)
			}
			if len(count) > 0 && len(count) < batches {
				partly++
			}
		})
		require.Positive(t, partly, "all came at once")
		requireEqualNodes(t, a, b)
	}
}
