package sim

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// scaleSizes are how many replicas the tests of links have: few, and with -scale as many as is promised.
func scaleSizes() int {
	if *scale {
		return 1000
	}
	return 80
}

// late returns how long the latest of some writes took to be visible at all living replicas.
func (w *scaleWorld) late(writes []*scaleWrite) (late time.Duration) {
	for _, wr := range writes {
		require.GreaterOrEqual(w.t, len(wr.took), w.living()-1, "everybody has it")
		for i, took := range wr.took {
			if !wr.by[i].dead {
				late = max(late, took)
			}
		}
	}
	return late
}

// linkedWorld returns a cluster whose links have settled.
func linkedWorld(t *testing.T, n int) *scaleWorld {
	w := newScaleWorld(t, n, uint64(n))
	w.run(12 * time.Second)
	w.load(3*time.Second, 10, w.anybody)
	return w
}

func TestLinks_ATreeIsLeftOfThem(t *testing.T) {
	w := linkedWorld(t, scaleSizes())
	l := w.measure(3*time.Second, 10, w.anybody)
	require.LessOrEqual(t, l.copies, 1.3)
	require.Less(t, l.p99, 100*time.Millisecond)
	require.Less(t, l.bytes, 8000.0)
	require.Less(t, l.sessions, len(w.nodes))
}

func TestLinks_FirstWriteAfterSilenceLeavesOutNobody(t *testing.T) {
	for seed := range uint64(5) {
		w := newScaleWorld(t, 80, seed)
		w.run(12 * time.Second)
		took, _ := w.spread("k")
		require.Less(t, slices.Max(took), 100*time.Millisecond)
	}
}

// scaleFaults are what may happen to many links at once.
var scaleFaults = []struct {
	name   string
	strike func(w *scaleWorld)
}{
	{"a tenth of the replicas is killed", func(w *scaleWorld) { w.killTenth(false) }},
	{"a tenth falls silent, which is noticed after 10 s", func(w *scaleWorld) { w.killTenth(true) }},
	{"every eager link is cut", func(w *scaleWorld) {
		for _, x := range w.nodes {
			for _, e := range slices.Clone(x.links) {
				if !e.link.Lazy() {
					e.cut()
				}
			}
		}
	}},
}

func (w *scaleWorld) killTenth(silent bool) {
	for _, i := range w.rand.Perm(len(w.nodes))[:len(w.nodes)/10] {
		w.nodes[i].kill(silent)
	}
}

// recover lets writes go on, and returns how long the latest of them took to be at all replicas.
func (w *scaleWorld) recover() time.Duration {
	writes := w.load(15*time.Second, 10, w.anybody)
	w.run(2 * time.Second)
	return w.late(writes)
}

func TestLinks_NewsGoesOnWhenManyBreak(t *testing.T) {
	for _, fault := range scaleFaults {
		t.Run(fault.name, func(t *testing.T) {
			w := linkedWorld(t, scaleSizes())
			fault.strike(w)
			require.Less(t, w.recover(), 2*time.Second)
		})
	}
}

func TestLinks_NoneIsOpenWhenNothingIsWritten(t *testing.T) {
	w := linkedWorld(t, 40)
	w.run(scaleSilence + time.Second)
	for _, x := range w.nodes {
		require.Empty(t, x.conns)
	}
	w.run(5 * time.Minute) // in which everybody hears what everybody covers
	require.Less(t, w.measure(time.Minute, 0, nil).bytes, 110.0)
}

// burst has replicas each write a key at the same moment.
func burst(t *testing.T, n int) (took time.Duration, sessions int) {
	w := newScaleWorld(t, n, uint64(n))
	w.run(12 * time.Second)
	w.sessions = 0
	var writes []*scaleWrite
	for i, x := range w.nodes {
		writes = append(writes, x.put(fmt.Sprint("burst", i), "v"))
	}
	w.run(10 * time.Second)
	return w.late(writes), w.sessions
}

func TestLinks_BurstOfWritersAgreesSoon(t *testing.T) {
	took, sessions := burst(t, 50)
	require.Less(t, took, 3*time.Second)
	require.LessOrEqual(t, sessions, 2500)
}

// Two halves of a cluster have links among themselves only, as many as they may, though each knows of the other. Links
// are chosen again, so that does not last.
func TestLinks_TwoCliquesBecomeOne(t *testing.T) {
	const n = 40
	w := newScaleWorld(t, n, 0)
	apart := func(apart bool) {
		for i, x := range w.nodes {
			for j := range w.nodes {
				if (i < n/2) != (j < n/2) {
					x.peers[j].Answers = !apart
				}
			}
			x.survey()
		}
	}
	apart(true)
	w.run(12 * time.Second)
	w.load(2*time.Minute, 10, w.anybody)
	require.Equal(t, 2, w.components())
	apart(false)
	w.load(5*time.Second, 10, w.anybody)
	require.Equal(t, 1, w.components())
	require.Less(t, w.measure(5*time.Second, 10, w.anybody).p99, 500*time.Millisecond, "over links that are not all eager yet")
}

// components counts the parts that links fall into.
func (w *scaleWorld) components() (n int) {
	seen := map[*scaleNode]bool{}
	var visit func(x *scaleNode)
	visit = func(x *scaleNode) {
		if !seen[x] {
			seen[x] = true
			for _, e := range x.links {
				visit(e.peer)
			}
		}
	}
	for _, x := range w.nodes {
		if !x.dead && !seen[x] {
			n++
			visit(x)
		}
	}
	return n
}

func TestLinks_FewReplicasAreToldByTheWriter(t *testing.T) {
	for n := 2; n <= 9; n++ {
		w := linkedWorld(t, n)
		l := w.measure(5*time.Second, 10, w.anybody)
		require.Equal(t, scaleHop, l.p99, "at once")
		require.LessOrEqual(t, l.copies, 1.1)
	}
}

func TestLinks_RunAgainFromTheirSeed(t *testing.T) {
	run := func() (bytes []int64) {
		w := linkedWorld(t, 30)
		for _, x := range w.nodes {
			bytes = append(bytes, x.bytes)
		}
		return bytes
	}
	require.Equal(t, run(), run())
}
