package replicator_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// The black box of these tests is ten replicas that count. The size that is documented:
//
//	go test -run TestCounter -counter.increments 1000 .
var counterIncrements = flag.Int("counter.increments", 40, "increments at each replica that counts")

const counterReplicas = 10

// tally is a counter that any replica may raise: how often each of them did. Merging takes the greatest
// count of each, so it does not matter how often, or in which order, values are merged.
type tally map[string]int

func parseTally(b []byte) (c tally, err error) {
	if c = (tally{}); len(b) > 0 {
		err = json.Unmarshal(b, &c)
	}
	return c, err
}

func (c tally) sum() (n int) {
	for _, m := range c {
		n += m
	}
	return n
}

// tallies is the resolver that counts.
func tallies(key []byte, a, b replicator.Version) replicator.Version {
	x, errX := parseTally(a.Value)
	y, errY := parseTally(b.Value)
	if errX != nil || errY != nil || a.Deleted || b.Deleted {
		return replicator.HighestClock(key, a, b)
	}
	for name, n := range y {
		x[name] = max(x[name], n)
	}
	v, _ := json.Marshal(x)
	return replicator.Version{Value: v}
}

// raise returns a function for Update that counts one more at a replica.
func raise(name string) func(v replicator.Value) ([]byte, bool, error) {
	return func(v replicator.Value) ([]byte, bool, error) {
		c, err := parseTally(v.Bytes)
		if err != nil {
			return nil, false, err
		}
		c[name]++
		b, err := json.Marshal(c)
		return b, true, err
	}
}

// counting starts the replicas, of which each knows the one before it.
func counting(t *testing.T) (c *cluster, dbs []*replicator.DB, names []string) {
	t.Helper()
	c = newCluster(t)
	for i := range counterReplicas {
		names = append(names, fmt.Sprint("r", i))
		o := &replicator.Options{Resolver: tallies}
		if i > 0 {
			o.Peers = []string{names[i-1] + ":9000"}
		}
		dbs = append(dbs, c.open(names[i], replicatortest.MemDB(t), o))
	}
	put(t, dbs[0], "ready", "yes")
	requireAgreement(t, dbs...)
	return c, dbs, names
}

// unrest cuts the replicas into two parts at random, or heals the network, until done.
func (c *cluster) unrest(names []string, done <-chan struct{}) {
	r := rand.New(rand.NewPCG(18, 1))
	for {
		select {
		case <-done:
			c.net.Heal()
			return
		case <-time.After(time.Duration(20+r.IntN(200)) * time.Millisecond):
		}
		c.net.Heal()
		if r.IntN(3) > 0 {
			shuffled := slices.Clone(names)
			r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
			cut := 1 + r.IntN(len(shuffled)-1)
			c.net.Partition(shuffled[:cut], shuffled[cut:])
		}
	}
}

// allAtOnce calls f at every replica as often as the flag says, while the network is cut and healed, and waits
// until all agree.
func allAtOnce(t *testing.T, f func(db *replicator.DB, name string) error) (dbs []*replicator.DB) {
	t.Helper()
	c, dbs, names := counting(t)
	done := make(chan struct{})
	var others, wg sync.WaitGroup
	others.Go(func() { c.unrest(names, done) })
	for i, db := range dbs {
		wg.Go(func() {
			for range *counterIncrements {
				if err := f(db, names[i]); err != nil {
					t.Error(err)
					return
				}
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	wg.Wait()
	close(done)
	others.Wait()
	requireAgreement(t, dbs...)
	return dbs
}

func TestCounter_IsExactWhereOneReplicaCounts(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		_, dbs, _ := counting(t)
		want := counterReplicas * *counterIncrements
		var wg sync.WaitGroup
		for range counterReplicas {
			wg.Go(func() {
				for range *counterIncrements {
					if err := dbs[0].Update(t.Context(), []byte("n"), increment); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		requireAgreement(t, dbs...)
		for _, db := range dbs {
			require.Equal(t, strconv.Itoa(want), value(t, db, "n"))
		}
	})
}

func TestCounter_IsExactWhereAllCountThroughPartitions(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		dbs := allAtOnce(t, func(db *replicator.DB, name string) error { return db.Update(t.Context(), []byte("n"), raise(name)) })
		for _, db := range dbs {
			c, err := parseTally([]byte(value(t, db, "n")))
			require.NoError(t, err)
			require.Equal(t, counterReplicas**counterIncrements, c.sum())
			require.Len(t, slices.Collect(maps.Values(c)), counterReplicas)
		}
	})
}

// Put alone loses: what a caller did not see when it read, it replaces all the same. The resolver is the same, and
// so are the replicas.
func TestCounter_LosesByPutAlone(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		dbs := allAtOnce(t, func(db *replicator.DB, name string) error {
			var wg sync.WaitGroup
			errs := make([]error, 2) // two handlers
			for i := range errs {
				wg.Go(func() {
					v, err := db.Get([]byte("n"), nil)
					if err == leveldb.ErrNotFound {
						err = nil
					}
					time.Sleep(time.Millisecond) // it computes
					if err == nil {
						v, _, err = raise(fmt.Sprint(name, " ", i))(replicator.Value{Bytes: v})
					}
					if err == nil {
						err = db.Put([]byte("n"), v, nil)
					}
					errs[i] = err
				})
			}
			wg.Wait()
			return errors.Join(errs...)
		})
		c, err := parseTally([]byte(value(t, dbs[0], "n")))
		require.NoError(t, err)
		t.Logf("%d of %d are left", c.sum(), 2*counterReplicas**counterIncrements)
		require.Less(t, c.sum(), 2*counterReplicas**counterIncrements)
	})
}
