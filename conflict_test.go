package replicator_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
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

// conflicts has two servers write the same keys apart.
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
