package sim

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/indexcache"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
)

// design.md: M10
func TestMerge_HoldsBackAnOversizeValue(t *testing.T) {
	victim := newFixedNode(t, "victim")
	p := victim.params()
	p.MaxValue = 100
	for _, inChunks := range []bool{false, true} {
		a := newFixedNode(t, "alpha")
		a.put("k", strings.Repeat("x", 101))
		pa := a.params()
		if inChunks {
			pa.PageSize = 60
		}
		sa, sb := session.New(a, false, pa), session.New(victim, true, p)
		overhear(t, sb, sa)
		require.Equal(t, "-", victim.get("k"))
		require.Empty(t, victim.log())
		require.Zero(t, victim.r.Known.Seq(causal.Covered, a.r.Self))
		require.Len(t, victim.r.HeldBack, 1)
		victim.r.HeldBack = nil
	}
}

func TestPull_RefusesFramesThatWouldTakeQuadraticTime(t *testing.T) {
	d := newDry(t)
	// 60,000 origins in falling order.
	b := binary.AppendUvarint(nil, 60_000)
	for i := range 60_000 {
		o := causal.Origin{15: 1}
		binary.BigEndian.PutUint32(o[:], uint32(60_000-i))
		b = append(b, o[:]...)
	}
	b = append(b, 9, 0, 0)
	b = binary.AppendUvarint(b, 60_000)
	for i := range 60_000 {
		b = append(binary.AppendUvarint(b, uint64(i+2)), 1, 0, 0, 0)
	}
	require.ErrorContains(t, d.prepared(false, session.WaitPull).Receive(session.FrameVectors, b), "vectors are out of order")

	spans := append([]byte{0, 1, 0}, binary.AppendUvarint(nil, 1<<20)...)
	spans = append(spans, bytes.Repeat([]byte{9, 9}, 1<<20)...)
	require.ErrorContains(t, d.prepared(false, session.WaitPull).Receive(session.FramePull, spans), "spans")

	probe := append([]byte{0, 0}, binary.AppendUvarint(nil, 4096)...)
	for range 4096 { // each the whole log
		probe = append(probe, 0, 0)
		probe = append(append(probe, 1), binary.AppendUvarint(nil, causal.MaxSeq)...)
		probe = append(probe, make([]byte, 16)...)
	}
	require.ErrorContains(t, d.prepared(false, session.WaitTurn).Receive(session.FrameProbe, probe), "ranges overlap")
}

// design.md: P8
func TestPull_RefusesAPeerThatCoversMoreThanWeWrote(t *testing.T) {
	d := newDry(t)
	s := d.prepared(false, session.WaitPull)
	rows := append([]byte{0, 9, 0, 0, 1, 1}, 200, 1, 0, 0, 0) // origin 1, beta itself: covers 200
	require.ErrorContains(t, s.Receive(session.FrameVectors, rows), "covers write 200 of this replica")
}

// A clock at its bound, which a hostile peer may have brought, leaves the key usable.
func TestWrite_ClockAtItsBoundLeavesTheKeyUsable(t *testing.T) {
	a, b := newFixedNode(t, "alpha"), newFixedNode(t, "beta")
	a.put("k", "v")
	s, err := a.r.Lookup([]byte("k"))
	require.NoError(t, err)
	s[0].Clock, s[0].Stamp, s[0].Value = store.MaxClock, causal.StampOf(a.r.Now()), []byte("v")
	s[0].Offset, s[0].Count = 0, 1
	x := s[0]
	x.Dot = causal.Dot{Origin: causal.Origin{'e'}, Seq: 1}
	require.NoError(t, b.Commit(func(t *replica.Txn) error {
		_, err := t.Merge([]byte("k"), []store.Version{x}, &causal.Knowledge{})
		return err
	}))
	b.put("k", "next")
	b.put("k", "and next")
	b.r.Cache = indexcache.Cache{}
	require.Len(t, b.versions("k"), 1)
	converseFixed(t, a, b)
	requireEqualNodes(t, a.node, b.node)
}
