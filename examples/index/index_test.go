package main

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/opt"
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
	there := &Index{DB: db}
	if _, err := there.begin(); err != nil {
		return err
	}
	return there.clear()
}

func local(t *testing.T) *replicator.DB {
	db, err := replicator.Replicate(replicatortest.MemDB(t), &replicator.Options{Listen: "127.0.0.1:0",
		LocalRanges: []*util.Range{Local}, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	return db
}

// A consumer stands still with a change that it has been delivered, another takes over, and the first goes on.
func TestConsumerThatComesBackChangesNothing(t *testing.T) {
	db := local(t)
	put := func(text string) {
		value, err := json.Marshal(Document{Author: "ada", Text: text})
		require.NoError(t, err)
		require.NoError(t, db.Put([]byte(documents+"1"), value, &opt.WriteOptions{Sync: true}))
	}
	for _, withCursor := range []bool{true, false} {
		put("early")
		slow := &Index{DB: db}
		since, err := slow.begin()
		require.NoError(t, err)
		var at replicator.Cursor
		for c, err := range db.Changes(t.Context(), since, &replicator.ChangesOptions{Prefix: []byte(documents), Once: true}) {
			require.NoError(t, err)
			if c.Key != nil {
				slow.pending["1"] = &Document{Author: "ada", Text: "early"}
			}
			if !c.Cursor.IsZero() && withCursor {
				at = c.Cursor
			}
		}
		require.NotEmpty(t, slow.pending)
		put("late")
		other := &Index{DB: db}
		require.NoError(t, other.Run(t.Context(), true))
		stored, err := db.Get([]byte(cursorKey), nil)
		require.NoError(t, err)

		require.ErrorIs(t, slow.flush(at), ErrSuperseded)
		require.ErrorIs(t, slow.clear(), ErrSuperseded)
		still, err := db.Get([]byte(cursorKey), nil)
		require.NoError(t, err)
		require.Equal(t, stored, still)
		differ, err := other.Check()
		require.NoError(t, err)
		require.Zero(t, differ)
		found, err := other.Search("late")
		require.NoError(t, err)
		require.Equal(t, []string{"1"}, found)
	}
}

// Each of two consumers takes the index from the other again and again, while documents change.
func TestTwoConsumersRaceForOneIndex(t *testing.T) {
	db := local(t)
	ctx, end := context.WithCancel(t.Context())
	var consumers sync.WaitGroup
	var superseded atomic.Int32
	for range 2 {
		consumers.Go(func() {
			x := &Index{DB: db}
			for {
				err := x.Run(ctx, false)
				if ctx.Err() != nil {
					return
				}
				if !assert.ErrorIs(t, err, ErrSuperseded) {
					return
				}
				superseded.Add(1)
			}
		})
	}
	for superseded.Load() < 8 && !t.Failed() {
		write(db, 10)
		require.NoError(t, db.Put([]byte(documents+"last"), nil, &opt.WriteOptions{Sync: true})) // so that a cursor comes at once
	}
	end()
	consumers.Wait()
	index := &Index{DB: db}
	require.NoError(t, index.Run(t.Context(), true))
	differ, err := index.Check()
	require.NoError(t, err)
	require.Zero(t, differ)
}

func TestRun(t *testing.T) { run(t.Context()) }
