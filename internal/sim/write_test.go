package sim

import (
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// quarrel holds a session that must end in an error, and gives it.
func quarrel(t testing.TB, a, b *node) error {
	p := session.Params{PageSize: 1 << 10, BatchSize: 1 << 16, MaxValue: 1 << 20, MaxKey: 1 << 16}
	sa, sb := session.NewSession(a, true, p), session.NewSession(b, false, p)
	sa.Start()
	for range 100 {
		for _, x := range []struct{ from, to *session.Session }{{sa, sb}, {sb, sa}} {
			for x.from.More() && len(x.from.Out) == 0 {
				require.NoError(t, x.from.Produce())
			}
			out := x.from.Out
			x.from.Out = nil
			for _, f := range out {
				if err := x.to.Receive(f.Kind, f.Payload); err != nil {
					require.True(t, x.to.Done, "it goes on after an error")
					return err
				}
			}
		}
	}
	return nil
}

func TestWriteHasALaterTimeThoughTheWallClockWentBack(t *testing.T) {
	a := newNode(t)
	now := time.Now()
	a.r.Now = func() time.Time { return now }
	a.put("first", "v")
	now = now.Add(-time.Hour)
	a.put("second", "v")
	require.Greater(t, a.versions("second")[0].Stamp, a.versions("first")[0].Stamp)
}

func TestWriteFromTheFutureEndsThePullAndIsNotTakenIn(t *testing.T) {
	a, b := newNode(t), newNode(t)
	b.r.Now = func() time.Time { return time.Now().Add(2 * time.Minute) }
	b.put("k", "v")
	require.ErrorIs(t, quarrel(t, a, b), replica.ErrClockSkew)
	require.Empty(t, a.versions("k"))
	require.Empty(t, a.r.Known.Vector(causal.Covered))
	a.r.Now = func() time.Time { return time.Now().Add(time.Minute + time.Second) }
	talk(t, a, b)
	require.Equal(t, "v", a.get("k"), "it was held back, not dropped")
}

func TestPeerCannotWriteReservedKeys(t *testing.T) {
	a, b := newNode(t), newNode(t)
	b.put("\xff\xffo\x00\x00\x00\x00", "an alias of the peer's choice") // past what a server would refuse its callers
	before, err := a.db.Get(store.KindKey(store.KindOrigin, []byte{0, 0, 0, 0}), nil)
	require.NoError(t, err)
	require.ErrorContains(t, quarrel(t, a, b), "reserved key")
	after, err := a.db.Get(store.KindKey(store.KindOrigin, []byte{0, 0, 0, 0}), nil)
	require.NoError(t, err)
	require.Equal(t, before, after)
}

func TestCallerCannotWriteReservedKeys(t *testing.T) {
	a := newNode(t)
	require.ErrorIs(t, a.r.CheckUser([]byte("\xff\xff"), nil), store.ErrReservedKey)
	require.NoError(t, a.r.CheckUser([]byte("\xff\xfe"), nil))
}

func TestServerDoesNotTalkToItself(t *testing.T) {
	a := newNode(t)
	require.ErrorIs(t, quarrel(t, a, a), session.ErrSelf)
}

func TestDeletingWhatIsNotThereLogsNothing(t *testing.T) {
	a := newNode(t)
	a.del("k")
	require.Empty(t, a.log())
	a.put("k", "v")
	a.del("k")
	a.del("k")
	require.Equal(t, []causal.Dot{{Origin: a.r.Self, Seq: 2}}, a.log())
}

func TestOpeningAfterACrashWritesTheOriginsThatItRead(t *testing.T) {
	a, b := newNode(t), newNode(t)
	b.put("k", "v")
	talk(t, a, b)
	r := replica.NewReplica(replica.ReplicaConfig{Store: a.r.Store, Draw: a.r.Draw, Now: a.r.Now, Resolve: replica.HighestClock})
	batch, err := r.Open("")
	require.NoError(t, err)
	rec := &originCounter{}
	require.NoError(t, batch.Replay(rec))
	require.Equal(t, 3, rec.n, "those of a, b and of the new opening")
}

// originCounter counts the origin records in a batch.
type originCounter struct{ n int }

func (c *originCounter) Put(key, _ []byte) {
	if key[2] == store.KindOrigin {
		c.n++
	}
}

func (c *originCounter) Delete([]byte) {}

var _ leveldb.BatchReplay = (*originCounter)(nil)
