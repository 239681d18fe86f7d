package replicator_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// slow is a resolver that takes its time, and checks that it is called by one goroutine at
// a time.
type slow struct {
	t      *testing.T
	takes  time.Duration
	calls  atomic.Int64
	within atomic.Int64
}

func (s *slow) resolve(_ []byte, a, b replicator.Version) replicator.Version {
	if s.within.Add(1) != 1 {
		s.t.Error("two at a time")
	}
	defer s.within.Add(-1)
	s.calls.Add(1)
	time.Sleep(s.takes)
	if string(a.Value) < string(b.Value) {
		return b
	}
	return a
}

// conflicts has two replicas write the same n keys without hearing of each other.
func conflicts(t *testing.T, a, b *replicator.DB, n int) {
	t.Helper()
	for _, db := range []*replicator.DB{a, b} {
		batch := new(leveldb.Batch)
		for i := range n {
			batch.Put(fmt.Appendf(nil, "k%03d", i), fmt.Appendf(nil, "by %s", db.Status().Name))
		}
		require.NoError(t, db.Write(batch, &opt.WriteOptions{Sync: true}))
	}
}

// design.md: M8
func TestSlowResolverBlocksNoWriter(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		s := &slow{t: t, takes: 10 * time.Millisecond}
		a := c.open("a", replicatortest.MemDB(t), &replicator.Options{Resolver: s.resolve})
		b := c.start("b", "a:9000")
		requireAgreement(t, a, b)
		c.net.Partition([]string{"a"}, []string{"b"})
		conflicts(t, a, b, 100)
		changes := a.Watch(t.Context(), []byte("k"))
		c.net.Heal()
		var worst time.Duration
		for through := false; !through; time.Sleep(time.Millisecond) {
			began := time.Now()
			put(t, a, "mine", "v")
			through = a.Status().Conflicts == 100
			worst = max(worst, time.Since(began))
		}
		require.Less(t, worst, s.takes, "of a second that the resolver took")
		require.GreaterOrEqual(t, s.calls.Load(), int64(100))
		told := 0
		for ch, err := range changes { // what is told first is what the resolver says
			require.NoError(t, err)
			require.Equal(t, "by b", string(ch.Value))
			require.True(t, ch.Conflict)
			if told++; told == 100 {
				break
			}
		}
		for i := range 100 {
			require.Equal(t, "by b", value(t, a, fmt.Sprintf("k%03d", i)))
		}
	})
}

func TestSlowResolverBlocksNoOpening(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		disk := storage.NewMemStorage()
		raw, err := leveldb.Open(disk, nil)
		require.NoError(t, err)
		a, b := c.open("a", raw, &replicator.Options{}), c.start("b", "a:9000")
		requireAgreement(t, a, b)
		c.net.Partition([]string{"a"}, []string{"b"})
		conflicts(t, a, b, 100)
		c.net.Heal()
		requireAgreement(t, a, b)
		before := value(t, a, "k000")
		require.NoError(t, a.Close())

		raw, err = leveldb.Open(disk, nil)
		require.NoError(t, err)
		s := &slow{t: t, takes: 50 * time.Millisecond}
		other := func(key []byte, x, y replicator.Version) replicator.Version {
			s.resolve(key, x, y)
			if string(x.Value) == before {
				return y
			}
			return x
		}
		began := time.Now()
		a = c.open("again", raw, &replicator.Options{Resolver: other, ReadyTimeout: time.Millisecond})
		require.Less(t, time.Since(began), time.Second, "of five that the resolver takes")
		put(t, a, "mine", "v")
		require.Less(t, time.Since(began), time.Second)
		require.NotEqual(t, before, value(t, a, "k000"), "some are resolved by then")
		require.Equal(t, before, value(t, a, "k099"))
		report, err := a.Verify(t.Context())
		require.NoError(t, err)
		require.Empty(t, report.Faults, "that it is not through is no fault")
		time.Sleep(20 * time.Second)
		for i := range 100 {
			require.NotEqual(t, before, value(t, a, fmt.Sprintf("k%03d", i)))
		}
		require.EqualValues(t, 100, a.Status().Conflicts)
		report, err = a.Verify(t.Context())
		require.NoError(t, err)
		require.Empty(t, report.Faults)
		began = time.Now()
		require.NoError(t, a.Close())
		require.Less(t, time.Since(began), time.Second)
	})
}

func TestConflictsAreListedUntilSomebodyWritesTheKey(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b", "a:9000")
		requireAgreement(t, a, b)
		c.net.Partition([]string{"a"}, []string{"b"})
		put(t, a, "k", "a")
		put(t, b, "k", "b")
		c.net.Heal()
		requireAgreement(t, a, b)
		for _, db := range []*replicator.DB{a, b} {
			n := 0
			for c, err := range db.Conflicts(context.Background()) {
				require.NoError(t, err)
				require.Equal(t, "k", string(c.Key))
				require.Len(t, c.Versions, 2)
				require.Equal(t, value(t, db, "k"), string(c.Value))
				require.Equal(t, c.Value, c.Versions[c.Winner].Value)
				n++
			}
			require.Equal(t, 1, n)
			require.EqualValues(t, 1, db.Status().Conflicts)
		}
		put(t, b, "k", "settled")
		requireAgreement(t, a, b)
		for range a.Conflicts(context.Background()) {
			t.Fatal("still in conflict")
		}
	})
}

// design.md: M8
func TestPanickingResolverStopsNothing(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		var panics atomic.Int32
		o := func(peers ...string) *replicator.Options {
			return &replicator.Options{
				Peers:    peers,
				Resolver: func([]byte, replicator.Version, replicator.Version) replicator.Version { panic("no idea") },
				Events:   &replicator.Events{ResolverPanic: func([]byte, any) { panics.Add(1) }},
			}
		}
		a, b := c.open("a", replicatortest.MemDB(t), o()), c.open("b", replicatortest.MemDB(t), o("a:9000"))
		requireAgreement(t, a, b)
		c.net.Partition([]string{"a"}, []string{"b"})
		put(t, a, "k", "1")
		put(t, b, "k", "1")
		put(t, b, "k", "2")
		c.net.Heal()
		requireAgreement(t, a, b)
		require.Equal(t, "2", value(t, a, "k"), "the default decided")
		require.Positive(t, panics.Load())
	})
}

func TestConflictOfADeletionIsThereUntilSomebodyWritesTheKey(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b", "a:9000")
		put(t, a, "k", "v")
		requireAgreement(t, a, b)
		changes := a.Watch(t.Context(), []byte("k"))
		c.net.Partition([]string{"a"}, []string{"b"})
		require.NoError(t, a.Delete([]byte("k"), &opt.WriteOptions{Sync: true}))
		put(t, b, "k", "w")
		require.NoError(t, b.Put([]byte("k"), []byte("x"), &opt.WriteOptions{Sync: true})) // clock 2: shown
		c.net.Heal()
		requireAgreement(t, a, b)
		for range 3 { // everything is stable
			require.NoError(t, a.WaitReplicated(t.Context(), 1))
			require.NoError(t, b.WaitReplicated(t.Context(), 1))
			time.Sleep(time.Minute)
		}
		for _, db := range []*replicator.DB{a, b} {
			require.Equal(t, "x", value(t, db, "k"))
			require.EqualValues(t, 1, db.Status().Conflicts)
			require.Empty(t, db.Status().Blockers, "no member holds anything back")
		}
		put(t, b, "k", "chosen")
		requireAgreement(t, a, b)
		require.Zero(t, a.Status().Conflicts)
		var told []string
		for ch, err := range changes {
			require.NoError(t, err)
			told = append(told, fmt.Sprintf("%s %v", ch.Value, ch.Conflict))
			if string(ch.Value) == "chosen" {
				break
			}
		}
		require.Equal(t, []string{" false", "x true", "chosen false"}, told)
	})
}
