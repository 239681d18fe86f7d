package replica

import (
	"encoding/binary"
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/fuzzing"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
)

// FuzzResumePoint decodes what is stored of an unfinished pull, and encodes it again.
func FuzzResumePoint(f *testing.F) {
	in := &fuzzing.Corpus{F: f}
	encode := func(p *pendingPull, above causal.SpanMap) []byte {
		r := New(Config{})
		r.Pending, r.Above, r.Resume.Rev = p, above, 1
		return r.resumePoint().record
	}
	in.Add(encode(
		&pendingPull{Done: causal.SpanMap{causal.Origin{1}: {{From: 1, To: 3}, {From: 5, To: 9}}}, Basis: causal.Vector{{Origin: causal.Origin{1}, Seq: 9}, {Origin: causal.Origin{2}, Seq: 1}}},
		causal.SpanMap{causal.Origin{2}: {{From: 4, To: 4}}}))
	in.Add([]byte{store.FormatVersion, 0, 0, 0})
	in.Add(binary.AppendUvarint([]byte{store.FormatVersion}, 1<<63))
	fuzzing.Run1(in, func(t testing.TB, rec []byte) {
		p, above, _, ok := decodeResume(rec)
		if !ok {
			return
		}
		for o, ss := range p.Done {
			for _, s := range ss {
				require.True(t, p.Done.Has(causal.Dot{Origin: o, Seq: s.From}) && p.Done.Has(causal.Dot{Origin: o, Seq: s.To}))
			}
		}
		if len(p.Done)+len(above) == 0 {
			return
		}
		q, again, _, ok := decodeResume(encode(p, above))
		require.True(t, ok)
		require.Equal(t, p, q)
		require.Equal(t, above, again)
	})
}
