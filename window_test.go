package replicator

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// talkInWindows holds a session in which so many bytes are sent of one state.
func talkInWindows(t *testing.T, a, b *node, window int, between func()) (pages int) {
	p := sessionParams{pageSize: 1 << 10, batchSize: 1, window: window, maxValue: 1 << 26, maxKey: 1 << 16}
	drive(t, newSession(a, true, p), newSession(b, false, p), func(_, to *session, f frame) {
		if f.kind == framePage {
			pages++
		}
		require.NoError(t, to.receive(f.kind, f.payload))
		between()
	})
	return pages
}

// written are two servers that have written much, some of it without knowing of each
// other, and have met: values of all sizes, overwrites, deletions, batches.
func written(t *testing.T) *node {
	a, b := newNode(t), newNode(t)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 600 {
		n := a
		if i%3 == 0 {
			n = b
		}
		var ws []write
		for range 1 + r.IntN(6) {
			key := fmt.Appendf(nil, "%03d", r.IntN(900))
			value := bytes.Repeat([]byte{byte(i)}, r.IntN(40))
			if r.IntN(300) == 0 {
				value = make([]byte, 3000) // goes in chunks
			}
			ws = append(ws, write{key, value, r.IntN(8) == 0})
		}
		require.NoError(t, n.commit(func(t *txn) error { return t.put(ws) }))
	}
	talk(t, a, b)
	requireEqualNodes(t, a, b)
	require.Positive(t, a.r.disputed)
	return a
}

func TestPullBringsTheSameHoweverMuchIsSentOfOneState(t *testing.T) {
	a := written(t)
	for _, window := range []int{0, 5000, windowSize} {
		for _, littered := range []bool{false, true} {
			a.r.littered = littered
			b := newNode(t)
			pages := talkInWindows(t, b, a, window, func() {})
			requireEqualNodes(t, a, b)
			require.ElementsMatch(t, a.log(), b.log())
			require.NoError(t, checkStore(b.db, b.r))
			require.Greater(t, pages, 10)
		}
	}
}

func TestPagesOfOneStateTearNoBatch(t *testing.T) {
	for _, window := range []int{0, 5000, windowSize} {
		a, b := newNode(t), newNode(t)
		const batches, size = 300, 7
		for i := range batches {
			var ws []write
			for j := range size {
				ws = append(ws, write{key: fmt.Appendf(nil, "%d/%03d", j, i*77%batches), value: []byte("v")})
			}
			require.NoError(t, a.commit(func(t *txn) error { return t.put(ws) }))
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

func TestValuesAreReadTogetherOnlyUpToABound(t *testing.T) {
	a := newNode(t)
	for i := range 200 {
		a.put(fmt.Sprintf("%03d", i*77%200), fmt.Sprint("value", i))
	}
	s := newSession(a, false, sessionParams{})
	for _, most := range []int{1 << 20, 100} {
		st, err := s.view(func(*replica) {})
		require.NoError(t, err)
		v := &serving{}
		entries, all, err := v.readLog(&st, region{a.r.self, a.r.alias[a.r.self], 1, 200}, 1<<20)
		require.NoError(t, err)
		require.True(t, all)
		require.Len(t, entries, 200)
		require.NoError(t, readValues(&st, entries, most))
		read := 0
		for i := range entries {
			read += int(btoi(entries[i].read))
			require.NoError(t, readValue(&st, &entries[i]))
			require.Equal(t, a.get(string(entries[i].key)), string(entries[i].value))
		}
		if most == 100 {
			require.Less(t, read, 20)
		} else {
			require.Equal(t, 200, read)
		}
		st.Release()
	}
}

func TestManySessionsShareTheWindow(t *testing.T) {
	db := serve(t, Options{})
	require.Equal(t, windowSize, db.window())
	db.talking.Add(128)
	require.LessOrEqual(t, 128*db.window(), 4*windowSize)
	require.GreaterOrEqual(t, db.window(), pageSize)
	db.talking.Add(-128)
}
