package replicator_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/crashfs"
	"github.com/level-replicator/replicator/replicatortest"
)

func localRange(prefix string) []*util.Range { return []*util.Range{util.BytesPrefix([]byte(prefix))} }

// A crash anywhere in the first adoption leaves nothing unlogged for good.
func TestAdoptionGoesOnAfterACrash(t *testing.T) {
	const keys = 3000
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		stor := crashfs.New(nil)
		raw, err := leveldb.Open(stor, &opt.Options{WriteBuffer: 64 << 10})
		require.NoError(t, err)
		for i := range keys {
			require.NoError(t, raw.Put(fmt.Appendf(nil, "%05d", i), []byte("v"), &opt.WriteOptions{Sync: i == keys-1}))
		}
		require.NoError(t, raw.CompactRange(util.Range{}))
		rec := stor.Record()
		a := c.open("a", raw, &replicator.Options{})
		<-a.Ready()
		last := rec.Last()
		require.NoError(t, a.Close())
		rng := rand.New(rand.NewPCG(1, 2))
		for n := range 12 {
			op := rec.First() + (last-rec.First())*n/11
			mode := crashfs.Modes[n%len(crashfs.Modes)]
			raw, err := leveldb.Open(rec.ImageAt(op, mode, rng), &opt.Options{WriteBuffer: 64 << 10})
			require.NoError(t, err)
			again := c.open(fmt.Sprint("again", n), raw, &replicator.Options{})
			<-again.Ready()
			require.EqualValues(t, keys, again.Status().Keys, "%s at operation %d of %d", mode, op, last)
			require.NoError(t, again.Close())
		}
	})
}

func TestEqualDataOnSeveralServersIsNoConflict(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		var dbs []*replicator.DB
		for _, name := range []string{"a", "b", "d"} {
			raw := replicatortest.MemDB(t)
			for i := range 500 {
				require.NoError(t, raw.Put(fmt.Append(nil, i), []byte("the same"), nil))
			}
			dbs = append(dbs, c.open(name, raw, &replicator.Options{Peers: []string{"a:9000", "b:9000"}}))
		}
		requireAgreement(t, dbs...)
		for _, db := range dbs {
			require.Zero(t, db.Status().Conflicts)
			require.Len(t, contents(t, db), 500)
			for range db.Conflicts() {
				t.Fatal("equal content is no conflict")
			}
		}
	})
}

func TestAdoptLogsChangesMadeOnTheHandle(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		raw := replicatortest.MemDB(t)
		a := c.open("a", raw, &replicator.Options{})
		b := c.start("b", "a:9000")
		for _, k := range []string{"changed", "deleted", "left alone"} {
			put(t, a, k, "logged")
		}
		requireAgreement(t, a, b)
		require.NoError(t, raw.Put([]byte("changed"), []byte("past it"), nil))
		require.NoError(t, raw.Put([]byte("new"), []byte("past it"), nil))
		require.NoError(t, raw.Delete([]byte("deleted"), nil))
		before, err := a.Versions([]byte("left alone"))
		require.NoError(t, err)
		require.NoError(t, a.Adopt(context.Background()))
		requireAgreement(t, a, b)
		require.Equal(t, map[string]string{"changed": "past it", "new": "past it", "left alone": "logged"}, contents(t, b))
		after, err := a.Versions([]byte("left alone"))
		require.NoError(t, err)
		require.Equal(t, before, after, "what is logged already is left alone")
	})
}
