package statuspage_test

import (
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
)

// cluster is some replicas on a network in memory, in real time: no browser follows a
// virtual clock.
type cluster struct {
	t   testing.TB
	net *replicatortest.Network
	dbs []*replicator.DB
}

// newCluster starts replicas that know the first.
func newCluster(t testing.TB, names ...string) *cluster {
	c := &cluster{t: t, net: replicatortest.NewNetwork(1)}
	for i, name := range names {
		var peers []string
		if i > 0 {
			peers = []string{names[0] + ":9000"}
		}
		c.dbs = append(c.dbs, c.open(name, peers...))
	}
	for _, db := range c.dbs {
		<-db.Ready()
	}
	return c
}

func (c *cluster) open(name string, peers ...string) *replicator.DB {
	c.t.Helper()
	h := c.net.Host(name)
	l, err := h.Listen("9000")
	require.NoError(c.t, err)
	var idle time.Duration // the default
	if os.Getenv("STATUSPAGE_SHOTS") != "" {
		idle = 20 * time.Second // so that pictures show live sessions
	}
	db, err := replicator.Replicate(replicatortest.MemDB(c.t), &replicator.Options{
		Name: name, Cluster: "shop", Listener: l, Dial: h.Dial, Insecure: true, Peers: peers,
		MaxInterval: 500 * time.Millisecond, IdleTimeout: idle, Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(c.t, err)
	c.t.Cleanup(func() { db.Close() })
	return db
}

// agree waits until every replica has seen that all others hold the same.
func (c *cluster) agree() {
	c.t.Helper()
	require.Eventually(c.t, func() bool {
		for _, db := range c.dbs {
			n := 0
			for _, p := range db.Status().Peers {
				if p.Agrees {
					n++
				}
			}
			if n < len(c.dbs)-1 {
				return false
			}
		}
		return true
	}, time.Minute, 20*time.Millisecond)
}

// apart has each replica do something that the others see only when all have.
func (c *cluster) apart(do func(i int, db *replicator.DB)) {
	c.t.Helper()
	var groups [][]string
	for _, db := range c.dbs {
		groups = append(groups, []string{db.Status().Name})
	}
	c.net.Partition(groups...)
	for i, db := range c.dbs {
		do(i, db)
	}
	c.net.Heal()
	c.agree()
}

func put(t testing.TB, db *replicator.DB, key, value string) {
	t.Helper()
	require.NoError(t, db.Put([]byte(key), []byte(value), nil))
}
