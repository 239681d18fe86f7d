package replicatortest

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

func TestResolversThatComeWithTheLibraryConform(t *testing.T) {
	t.Run("HighestClock", func(t *testing.T) { TestResolver(t, replicator.HighestClock) })
	t.Run("LastWriteWins", func(t *testing.T) { TestResolver(t, replicator.LastWriteWins, []byte(`{"a":1}`), []byte(`{"b":2}`)) })
}

func TestDiscoverersThatComeWithTheLibraryConform(t *testing.T) {
	TestDiscoverer(t, DiscovererTest{
		New:  func() replicator.Discoverer { return replicator.DNS("localhost:9000", nil) },
		Self: replicator.Self{Cluster: "c", Addr: "localhost:9001"},
		Want: []string{"127.0.0.1:9000"},
	})
}

func TestResolverThatBreaksTheContractIsFound(t *testing.T) {
	calls := 0
	var kept []byte
	for why, resolve := range map[string]replicator.Resolver{
		"panics": func(_ []byte, a, b replicator.Version) replicator.Version {
			return replicator.Version{Value: a.Value[:1]}
		},
		"not deterministic": func(_ []byte, a, b replicator.Version) replicator.Version {
			if calls++; calls%2 == 0 {
				return a
			}
			return b
		},
		"changes a value": func(_ []byte, a, b replicator.Version) replicator.Version {
			return replicator.Version{Value: append(a.Value[:0], b.Value...)}
		},
		"changes the key": func(key []byte, a, b replicator.Version) replicator.Version { key[0]++; return a },
		"keeps what it was given": func(_ []byte, a, b replicator.Version) replicator.Version {
			if kept == nil {
				kept = a.Value
			}
			return replicator.Version{Value: kept}
		},
	} {
		require.NotEmpty(t, resolverFaults(resolve, nil), why)
	}
	require.Empty(t, resolverFaults(replicator.HighestClock, nil))
}

func TestDiscovererThatBreaksTheContractIsFound(t *testing.T) {
	list := func(addrs ...string) replicator.DiscovererFunc {
		return func(ctx context.Context, _ replicator.Self, found func(string)) error {
			for _, a := range addrs {
				found(a)
			}
			<-ctx.Done()
			return nil
		}
	}
	synctest.Test(t, func(t *testing.T) {
		check := func(d replicator.DiscovererFunc) error {
			test := DiscovererTest{New: func() replicator.Discoverer { return d }, Want: []string{"a:1", "b:2"}, Timeout: time.Minute}
			err := test.finds(t.Context())
			if e := test.endsAtOnce(t.Context()); err == nil {
				err = e
			}
			return err
		}
		require.NoError(t, check(list("b:2", "a:1", "a:1")))
		require.ErrorContains(t, check(list("a:1")), `["b:2"] not found within 1m0s`)
		require.ErrorContains(t, check(list("a:1", "a", "b:2")), `found was called with "a"`)
		require.ErrorContains(t, check(func(context.Context, replicator.Self, func(string)) error { return nil }), "not found")
		require.ErrorContains(t, check(func(ctx context.Context, self replicator.Self, found func(string)) error {
			defer time.Sleep(5 * time.Second)
			return list("a:1", "b:2")(ctx, self, found)
		}), "had not returned 1s after its context ended")
		time.Sleep(time.Minute) // for what is still at work
	})
}
