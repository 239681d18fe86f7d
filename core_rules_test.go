package replicator

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// quarrel holds a session that must end in an error, and gives it.
func quarrel(t testing.TB, a, b *node) error {
	p := sessionParams{pageSize: 1 << 10, batchSize: 1 << 16, maxValue: 1 << 20, maxKey: 1 << 16}
	sa, sb := newSession(a, true, p), newSession(b, false, p)
	sa.start()
	for range 100 {
		for _, x := range []struct{ from, to *session }{{sa, sb}, {sb, sa}} {
			for x.from.more() && len(x.from.out) == 0 {
				require.NoError(t, x.from.produce())
			}
			out := x.from.out
			x.from.out = nil
			for _, f := range out {
				if err := x.to.receive(f.kind, f.payload); err != nil {
					require.True(t, x.to.done, "it goes on after an error")
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
	a.r.now = func() time.Time { return now }
	a.put("first", "v")
	now = now.Add(-time.Hour)
	a.put("second", "v")
	require.Greater(t, a.versions("second")[0].stamp, a.versions("first")[0].stamp)
}

func TestWriteFromTheFutureEndsThePullAndIsNotTakenIn(t *testing.T) {
	a, b := newNode(t), newNode(t)
	b.r.now = func() time.Time { return time.Now().Add(2 * time.Minute) }
	b.put("k", "v")
	require.ErrorIs(t, quarrel(t, a, b), ErrClockSkew)
	require.Empty(t, a.versions("k"))
	require.Empty(t, a.r.known.vector(claimed))
	a.r.now = func() time.Time { return time.Now().Add(time.Minute + time.Second) }
	talk(t, a, b)
	require.Equal(t, "v", a.get("k"), "it was held back, not dropped")
}

func TestPeerCannotWriteReservedKeys(t *testing.T) {
	a, b := newNode(t), newNode(t)
	b.put("\xff\xffo\x00\x00\x00\x00", "an alias of the peer's choice") // past what a server would refuse its callers
	before, err := a.db.Get(kindKey(kindOrigin, []byte{0, 0, 0, 0}), nil)
	require.NoError(t, err)
	require.ErrorContains(t, quarrel(t, a, b), "reserved key")
	after, err := a.db.Get(kindKey(kindOrigin, []byte{0, 0, 0, 0}), nil)
	require.NoError(t, err)
	require.Equal(t, before, after)
}

func TestCallerCannotWriteReservedKeys(t *testing.T) {
	a := newNode(t)
	require.ErrorIs(t, a.r.checkUser([]byte("\xff\xff"), nil), ErrReservedKey)
	require.NoError(t, a.r.checkUser([]byte("\xff\xfe"), nil))
}

func TestServerDoesNotTalkToItself(t *testing.T) {
	a := newNode(t)
	require.ErrorIs(t, quarrel(t, a, a), errSelf)
}

func TestDeletingWhatIsNotThereLogsNothing(t *testing.T) {
	a := newNode(t)
	a.del("k")
	require.Empty(t, a.log())
	a.put("k", "v")
	a.del("k")
	a.del("k")
	require.Equal(t, []dot{{a.r.self, 2}}, a.log())
}

func TestOpeningAfterACrashWritesTheOriginsThatItRead(t *testing.T) {
	a, b := newNode(t), newNode(t)
	b.put("k", "v")
	talk(t, a, b)
	r := newReplica(replicaConfig{store: a.r.store, draw: a.r.draw, now: a.r.now, resolve: highestClock})
	batch, err := r.open("")
	require.NoError(t, err)
	rec := &originCounter{}
	require.NoError(t, batch.Replay(rec))
	require.Equal(t, 3, rec.n, "those of a, b and of the new opening")
}

// originCounter counts the origin records in a batch.
type originCounter struct{ n int }

func (c *originCounter) Put(key, _ []byte) {
	if key[2] == kindOrigin {
		c.n++
	}
}
func (c *originCounter) Delete([]byte) {}

var _ leveldb.BatchReplay = (*originCounter)(nil)
