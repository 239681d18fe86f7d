package store_test

import (
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// numbers are the aliases of five origins.
type numbers struct{ store.AliasTable }

func (n numbers) Number(o causal.Origin) uint64 { return uint64(o[0]) }

func table() numbers {
	var n numbers
	for i := range 5 {
		n.AliasTable = append(n.AliasTable, causal.Origin{byte(i), 15: 9})
	}
	return n
}

var (
	dots = rapid.Custom(func(t *rapid.T) causal.Dot {
		return causal.Dot{Origin: table().AliasTable[rapid.IntRange(0, 4).Draw(t, "origin")], Seq: rapid.Uint64Range(1, causal.MaxSeq).Draw(t, "seq")}
	})
	bytes    = rapid.SliceOfN(rapid.Byte(), 0, 40)
	versions = rapid.Custom(func(t *rapid.T) store.Version {
		v := store.Version{
			Dot:     dots.Draw(t, "dot"),
			Clock:   rapid.Uint64Range(0, store.MaxClock).Draw(t, "clock"),
			Stamp:   causal.Stamp(rapid.Uint64().Draw(t, "stamp")),
			Deleted: rapid.Bool().Draw(t, "deleted"),
		}
		for _, d := range rapid.SliceOfN(dots, 0, 4).Draw(t, "context") {
			if d.Origin != v.Origin || d.Seq < v.Seq {
				v.Context = v.Context.Raise(d)
			}
		}
		v.Count = rapid.Uint64Range(1, 9).Draw(t, "count")
		v.Offset = min(rapid.Uint64Range(0, v.Count-1).Draw(t, "offset"), v.Seq-1)
		if !v.Deleted {
			v.Value = bytes.Draw(t, "value")
		}
		return v
	})
)

// requireCutRefused reads every beginning of a record: none may be taken for a whole one.
func requireCutRefused(t *rapid.T, rec []byte, decode func([]byte) error) {
	n := rapid.IntRange(0, len(rec)-1).Draw(t, "cut at")
	require.Error(t, decode(rec[:n:n]))
	require.Error(t, decode(append(rec[:len(rec):len(rec)], 0)), "something behind its end")
}

func TestEntry_SurvivesItsRecord(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		os := table()
		e := store.Entry{Version: versions.Draw(t, "version"), Key: bytes.Draw(t, "key")}
		e.Inline, e.InDigest = rapid.Bool().Draw(t, "inline"), rapid.Bool().Draw(t, "in digest")
		rec := store.AppendEntry(nil, &e, os)
		logKey := store.AppendLogKey(nil, uint32(os.Number(e.Origin)), e.Seq)
		got, err := store.DecodeEntry(logKey, rec, os)
		require.NoError(t, err)
		require.Equal(t, e.Dot, got.Dot)
		require.Equal(t, []causal.Dot(e.Context), []causal.Dot(got.Context))
		require.Equal(t, [4]uint64{e.Clock, uint64(e.Stamp), e.Offset, e.Count}, [4]uint64{got.Clock, uint64(got.Stamp), got.Offset, got.Count})
		require.Equal(t, [3]bool{e.Deleted, e.Inline, e.InDigest}, [3]bool{got.Deleted, got.Inline, got.InDigest})
		require.Equal(t, string(e.Key), string(got.Key))
		if e.Inline {
			require.Equal(t, string(e.Value), string(got.Value))
		}
		if !e.Deleted {
			require.Equal(t, store.Checksum(e.Value), got.Check)
		}
		if e.Inline && !e.Deleted {
			return // the value has no length: what is cut off it is noticed by its checksum, and almost always
		}
		requireCutRefused(t, rec, func(b []byte) error { _, err := store.DecodeEntry(logKey, b, os); return err })
	})
}

func TestIndex_SurvivesItsRecord(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		os := table()
		s := store.Siblings(rapid.SliceOfNDistinct(versions, 1, 6, func(v store.Version) causal.Dot { return v.Dot }).Draw(t, "siblings"))
		rec := store.AppendIndex(nil, s, os)
		got, err := store.DecodeIndex(rec, os)
		require.NoError(t, err)
		require.True(t, s.SameDots(got))
		for _, v := range got {
			w := s[s.Find(v.Dot)]
			require.Equal(t, [2]any{w.Clock, w.Deleted}, [2]any{v.Clock, v.Deleted})
			require.Equal(t, []causal.Dot(w.Context), []causal.Dot(v.Context))
		}
		require.Equal(t, s.DotSum(), got.DotSum())
		requireCutRefused(t, rec, func(b []byte) error { _, err := store.DecodeIndex(b, os); return err })
	})
}

func TestVector_IsReadOnlyInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		os := table()
		var v causal.Vector
		for _, d := range rapid.SliceOfN(dots, 0, 5).Draw(t, "dots") {
			v = v.Raise(d)
		}
		d := store.Decoder{B: store.AppendVector(nil, v, os)}
		require.Equal(t, []causal.Dot(v), []causal.Dot(d.Vector(os)))
		require.NoError(t, d.End())
		if len(v) > 1 {
			v[0], v[1] = v[1], v[0]
			d = store.Decoder{B: store.AppendVector(nil, v, os)}
			d.Vector(os)
			require.Error(t, d.End())
		}
	})
}

func TestDecoder_NeverPanicsAndNumbersAreWrittenOneWayOnly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOf(rapid.Byte()).Draw(t, "record")
		os := table()
		_, _ = store.DecodeIndex(b, os)
		_, _ = store.DecodeEntry(store.AppendLogKey(nil, 1, 1), b, os)
		d := store.Decoder{B: b}
		n := d.Uint()
		if d.End() == nil {
			d = store.Decoder{B: append(b[:len(b)-1:len(b)-1], b[len(b)-1]|0x80, 0)}
			d.Uint()
			require.Error(t, d.End(), n)
		}
	})
}

func TestCounters_TakeAwayWhatTheyCounted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c store.Counters
		states := rapid.SliceOfN(rapid.SliceOfN(versions, 0, 3), 0, 5).Draw(t, "keys")
		values := int64(0)
		for _, s := range states {
			c.Count(s, +1)
			if store.Siblings(s).HasValue() {
				values++
			}
		}
		require.Equal(t, values, c.Keys)
		for _, s := range rapid.Permutation(states).Draw(t, "order") {
			c.Count(s, -1)
		}
		require.Equal(t, store.Counters{}, c)
	})
}

// AppendDots reads of a log-index what DecodeIndex does, and refuses the same.
func TestIndex_HasDotsThatAreReadByThemselves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		os := table()
		s := store.Siblings(rapid.SliceOfN(versions, 1, 5).Draw(t, "siblings"))
		rec := store.AppendIndex(nil, s, os)
		given := causal.Dot{Origin: causal.Origin{7}, Seq: 7}
		dots, hasValue, ok := store.AppendDots([]causal.Dot{given}, rec, os)
		require.True(t, ok)
		require.Equal(t, s.HasValue(), hasValue)
		require.Equal(t, given, dots[0])
		for i := range s {
			require.Equal(t, s[i].Dot, dots[i+1])
		}
		cut := rec[:rapid.IntRange(0, len(rec)-1).Draw(t, "cut at")]
		_, _, ok = store.AppendDots(nil, cut, os)
		require.False(t, ok)
		_, _, ok = store.AppendDots(nil, append(rec[:len(rec):len(rec)], 0), os)
		require.False(t, ok)
	})
}
