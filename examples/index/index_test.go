package main

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/util"
)

func TestIndexIsWhatAScanReturns(t *testing.T) {
	replicatortest.Bubble(t, time.Hour, func(t *testing.T) {
		net := replicatortest.NewNetwork(1)
		start := func(name string, peers ...string) *replicator.DB {
			h := net.Host(name)
			l, err := h.Listen("9000")
			require.NoError(t, err)
			db, err := replicator.Replicate(replicatortest.MemDB(t), &replicator.Options{Name: name, Listener: l, Dial: h.Dial, Peers: peers, Insecure: true,
				LocalRanges: []*util.Range{Local}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
			require.NoError(t, err)
			t.Cleanup(func() { db.Close() })
			return db
		}
		a := start("a")
		b := start("b", "a:9000")
		at, other := a, b
		index := &Index{DB: at}
		for round := range 12 {
			write(a, 60)
			write(b, 30)
			cut, cancel := context.WithTimeout(t.Context(), time.Duration(round)*300*time.Millisecond)
			_ = index.Run(cut, false)
			cancel()
			if round%4 == 3 {
				require.NoError(t, index.clearAt(other))
				require.NoError(t, Move(at, other))
				at, other = other, at
				index = &Index{DB: at}
			}
			if round%5 == 4 { // long enough for deletions to be purged
				time.Sleep(time.Minute)
			}
		}
		require.NoError(t, a.WaitFor(t.Context(), b.Token()))
		require.NoError(t, b.WaitFor(t.Context(), a.Token()))
		require.NoError(t, index.Run(t.Context(), true))
		differ, err := index.Check()
		require.NoError(t, err)
		require.Zero(t, differ)
		found, err := index.Search("cursor")
		require.NoError(t, err)
		require.NotEmpty(t, found)
	})
}

// clearAt drops what another replica may have of an index.
func (x *Index) clearAt(db *replicator.DB) error {
	return (&Index{DB: db, pending: map[string]*Document{}}).clear()
}

func TestRun(t *testing.T) { run(t.Context()) }
