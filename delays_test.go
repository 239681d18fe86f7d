package replicator

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
)

var delaysBegan = time.UnixMilli(1_700_000_000_000)

func arrived(o causal.Origin, seq uint64, written time.Time) replica.Change {
	v := store.Version{Dot: causal.Dot{Origin: o, Seq: seq}, Stamp: causal.StampOf(written)}
	return replica.Change{Versions: store.Siblings{v}}
}

func TestDelayFallsIntoItsBucket(t *testing.T) {
	d := newDelays(delaysBegan)
	o := causal.Origin{1}
	now := delaysBegan.Add(time.Hour)
	for i, ago := range []time.Duration{0, time.Millisecond, 1500 * time.Microsecond, 3 * time.Millisecond, 100 * time.Second, 101 * time.Second, -5 * time.Second} {
		d.note([]replica.Change{arrived(o, uint64(i), now.Add(-ago))}, nil, now)
	}
	list := d.status(map[causal.Origin]*replica.Member{o: {Name: "one"}})
	require.Len(t, list, 1)
	x := list[0]
	require.Equal(t, "one", x.Name)
	require.Equal(t, Origin(o), x.Origin)
	require.EqualValues(t, 7, x.Count)
	require.EqualValues(t, 1, x.Early)
	require.Equal(t, 101*time.Second, x.Max)
	require.InDelta(t, 201*time.Second+5500*time.Microsecond, x.Sum, float64(time.Millisecond))
	counts := map[time.Duration]int64{}
	for _, b := range x.Buckets {
		counts[b.Bound] = b.Count
	}
	require.EqualValues(t, 3, counts[time.Millisecond], "and one that came early")
	require.EqualValues(t, 4, counts[2*time.Millisecond], "stamps are whole milliseconds: 1.5 ms counts as 2")
	require.EqualValues(t, 5, counts[5*time.Millisecond])
	require.EqualValues(t, 5, counts[50*time.Second])
	require.EqualValues(t, 6, counts[100*time.Second])
	require.Equal(t, 2*time.Millisecond, x.Quantile(0.5))
	require.Equal(t, 100*time.Second, x.Quantile(0.85))
	require.Equal(t, 101*time.Second, x.Quantile(1))
	require.Zero(t, Delay{}.Quantile(0.99))
}

func TestDelayIsOfNewVersionsOfOthersOnly(t *testing.T) {
	d := newDelays(delaysBegan)
	o, own := causal.Origin{1}, causal.Origin{2}
	now := delaysBegan.Add(time.Hour)
	c := func(change func(c *replica.Change)) replica.Change {
		c := arrived(o, 1, now)
		change(&c)
		return c
	}
	d.note([]replica.Change{
		c(func(c *replica.Change) { c.Local = true }),
		c(func(c *replica.Change) { c.Same = true }),
		c(func(c *replica.Change) { c.Quiet = true }),
		c(func(c *replica.Change) { c.Old = c.Versions }),
		c(func(c *replica.Change) { c.Versions = nil }),
		arrived(own, 1, now),
		arrived(o, 2, delaysBegan.Add(-time.Second)),
	}, map[causal.Origin]bool{own: true}, now)
	require.Empty(t, d.status(nil))
	both := arrived(o, 3, now)
	both.Old = store.Siblings{{Dot: causal.Dot{Origin: o, Seq: 2}}, {Dot: causal.Dot{Origin: o, Seq: 4}}}
	both.Versions = append(store.Siblings{{Dot: causal.Dot{Origin: o, Seq: 2}}}, both.Versions...)
	both.Versions = append(both.Versions, store.Version{Dot: causal.Dot{Origin: o, Seq: 4}}, store.Version{Dot: causal.Dot{Origin: causal.Origin{9}, Seq: 1}, Stamp: causal.StampOf(now)})
	d.note([]replica.Change{both}, nil, now)
	list := d.status(nil)
	require.Len(t, list, 2)
	require.EqualValues(t, 1, list[0].Count)
	require.EqualValues(t, 1, list[1].Count)
}

func TestDelaysOfManyOriginsAreBounded(t *testing.T) {
	d := newDelays(delaysBegan)
	origin := func(i int) (o causal.Origin) {
		binary.BigEndian.PutUint32(o[:], uint32(i+1))
		return o
	}
	now := delaysBegan
	count := func() (n int64) {
		for _, x := range d.status(nil) {
			n += x.Count
		}
		return n
	}
	for i := range 200 {
		now = now.Add(time.Second)
		d.note([]replica.Change{arrived(origin(i), 1, now)}, nil, now)
	}
	list := d.status(nil)
	require.Len(t, list, maxDelays+1)
	require.Zero(t, list[maxDelays].Origin)
	require.EqualValues(t, 200-maxDelays, list[maxDelays].Count)

	now = now.Add(2 * time.Hour)
	for i := range 3 { // of the first something comes at least
		d.note([]replica.Change{arrived(origin(0), uint64(2+i), now)}, nil, now)
	}
	d.note([]replica.Change{arrived(origin(999), 1, now)}, nil, now)
	list = d.status(nil)
	require.Len(t, list, maxDelays+1)
	named := map[Origin]int64{}
	for _, x := range list {
		named[x.Origin] = x.Count
	}
	require.EqualValues(t, 1, named[Origin(origin(999))], "one that was idle gave way")
	require.EqualValues(t, 4, named[Origin(origin(0))])
	require.NotContains(t, named, Origin(origin(1)), "that which was idle for longest")
	require.EqualValues(t, 204, count(), "nothing is lost")
}

func BenchmarkDelay(b *testing.B) {
	d := newDelays(delaysBegan)
	changes := make([]replica.Change, 100)
	now := delaysBegan.Add(time.Hour)
	for i := range changes {
		changes[i] = arrived(causal.Origin{byte(i % 4)}, uint64(i), now.Add(-3*time.Millisecond))
	}
	b.ReportAllocs()
	for b.Loop() {
		d.note(changes, nil, now)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(changes)), "ns/change")
}
