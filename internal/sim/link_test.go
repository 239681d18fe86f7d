package sim

import (
	"slices"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/link"
	"github.com/level-replicator/replicator/internal/schedule"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/stretchr/testify/require"
)

// otherLinks are what a link is told of the others of its replica.
type otherLinks struct {
	small, receiving bool
	with             []causal.Origin
}

func (o *otherLinks) Small() bool     { return o.small }
func (o *otherLinks) Receiving() bool { return o.receiving }

func (o *otherLinks) Linked(origin causal.Origin) bool { return slices.Contains(o.with, origin) }

// What a peer reports comes another way as a rule. It is requested when it does not, and not while it may be on its way.
func TestLink_RequestsWhatDoesNotComeAnotherWay(t *testing.T) {
	now := time.Unix(1, 0)
	a, b, l := streaming(t)
	others := &otherLinks{small: true}
	k := link.New(l.stream(1), schedule.PaceConfig{Silence: time.Minute}, others, now, 0)
	report := func() {
		t.Helper()
		a.put("news", "v")
		l.stream(0).Report()
		l.say(0)
		for _, f := range l.in[1] {
			require.NoError(t, k.Receive(now, f.Kind, f.Payload))
		}
		l.in[1] = nil
	}
	// requests takes the next step and reports whether something is requested then.
	requests := func() bool {
		t.Helper()
		require.True(t, k.Next().After(now))
		require.Less(t, k.Next().Sub(now), time.Second)
		now = k.Next()
		k.Step(now)
		if k.More() {
			require.NoError(t, k.Produce())
		}
		return slices.ContainsFunc(k.Frames(), func(f session.Frame) bool { return f.Kind == session.FrameRequest })
	}

	report()
	require.True(t, requests(), "nothing has come")

	c := newNode(t)
	talk(t, a, c)
	report()
	talk(t, b, c) // it brings the first
	require.False(t, requests(), "some of it has come")
	require.True(t, requests(), "and no more")

	report()
	others.receiving = true
	require.False(t, requests(), "it may be on its way")
	others.receiving = false
	require.True(t, requests(), "it was not")

	waits := func() {
		t.Helper()
		report()
		for start := now; ; {
			if requests() {
				require.GreaterOrEqual(t, now.Sub(start), 2*time.Second)
				break
			}
			require.Less(t, now.Sub(start), 3*time.Second, "it waits for ever")
		}
	}
	others.receiving = true
	waits()
	others.receiving = false

	others.with = []causal.Origin{a.r.Self}
	waits() // its writer tells everybody
	c.put("more", "v")
	talk(t, a, c)
	report()
	require.True(t, requests(), "there is no link with the writer")
	others.small = false
	report()
	require.True(t, requests(), "a writer does not tell everybody")
	others.small = true

	report()
	talk(t, a, b)
	require.True(t, k.Next().After(now))
	now = k.Next()
	k.Step(now)
	require.Empty(t, k.Frames(), "it has come")
}

// A lazy link makes way for another long before an eager one does, so that no partition of the links lasts.
func TestLink_LazyOneIsLeftSooner(t *testing.T) {
	now := time.Unix(1, 0)
	for _, lazy := range []bool{false, true} {
		a, _, l := streaming(t)
		k := link.New(l.stream(0), schedule.PaceConfig{Silence: time.Hour, Life: time.Minute}, &otherLinks{}, now, 0.5)
		if lazy {
			require.NoError(t, k.Receive(now, session.FrameSpare, nil))
		}
		a.put("k", "v")
		k.Step(now.Add(time.Minute / 2))
		require.Equal(t, lazy, k.Leaving())
	}
}
