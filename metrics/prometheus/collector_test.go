package prometheus_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/level-replicator/replicator"
	replprom "github.com/level-replicator/replicator/metrics/prometheus"
	"github.com/level-replicator/replicator/replicatortest"
)

// open starts a replica with a registry of its own, one that checks what collectors send.
func open(t *testing.T, net *replicatortest.Network, name string, peers ...string) (*replicator.DB, *prometheus.Registry, *replprom.Collector) {
	c := replprom.NewCollector()
	h := net.Host(name)
	l, err := h.Listen("9000")
	require.NoError(t, err)
	db, err := replicator.Replicate(replicatortest.MemDB(t), &replicator.Options{
		Name: "name of " + name, Listener: l, Dial: h.Dial, Insecure: true, Peers: peers, Events: c.Events(nil), Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	c.Observe(db)
	r := prometheus.NewPedanticRegistry()
	require.NoError(t, r.Register(c))
	return db, r, c
}

// figures returns all values, by name and labels; of a histogram the count.
func figures(t *testing.T, g prometheus.Gatherer) map[string]float64 {
	families, err := g.Gather()
	require.NoError(t, err)
	m := map[string]float64{}
	for _, f := range families {
		for _, x := range f.Metric {
			id := f.GetName()
			for _, l := range x.Label {
				id += fmt.Sprintf(" %s=%s", l.GetName(), l.GetValue())
			}
			switch {
			case x.Gauge != nil:
				m[id] = x.Gauge.GetValue()
			case x.Counter != nil:
				m[id] = x.Counter.GetValue()
			default:
				m[id] = float64(x.Histogram.GetSampleCount())
			}
		}
	}
	return m
}

func TestFiguresAreThoseOfTheStatus(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		net := replicatortest.NewNetwork(1)
		a, ra, _ := open(t, net, "a")
		b, rb, _ := open(t, net, "b", "a:9000")
		net.Partition([]string{"a"}, []string{"b"})
		for i := range 5 {
			require.NoError(t, a.Put(fmt.Append(nil, i), []byte("of a"), nil))
		}
		require.NoError(t, b.Put([]byte("0"), []byte("of b"), nil))
		net.Heal()
		time.Sleep(time.Minute)
		const peer = " name=name of b peer=b:9000"
		m := figures(t, ra)
		s := a.Status()
		for name, want := range map[string]float64{
			"replicator_ready":                                      1,
			"replicator_failed":                                     0,
			"replicator_keys":                                       5,
			"replicator_conflicts":                                  1,
			"replicator_unsaved_writes":                             float64(s.NotDurable),
			"replicator_sessions_total":                             float64(s.Sessions),
			"replicator_pulled_versions_total":                      float64(s.Pulled),
			"replicator_served_versions_total":                      float64(s.Served),
			"replicator_received_bytes_total":                       float64(s.BytesIn),
			"replicator_sent_bytes_total":                           float64(s.BytesOut),
			"replicator_round_pause_seconds":                        10,
			"replicator_mismatched_versions_total":                  0,
			"replicator_live_sessions":                              0,
			"replicator_pushes_total":                               float64(s.Pushes),
			"replicator_duplicate_versions_total":                   float64(s.Duplicates),
			"replicator_peer_live" + peer:                           0,
			"replicator_conflict_changes_total change=arisen":       1,
			"replicator_conflict_changes_total change=resolved":     0,
			"replicator_peer_up" + peer:                             1,
			"replicator_peer_agrees" + peer:                         1,
			"replicator_peer_lag_versions" + peer:                   0,
			"replicator_peer_lag_seconds" + peer:                    0,
			"replicator_peer_received_bytes_total" + peer:           float64(s.Peers[0].BytesIn),
			"replicator_peer_last_session_timestamp_seconds" + peer: float64(s.Peers[0].Last.UnixMilli()) / 1000,
		} {
			got, ok := m[name]
			require.True(t, ok, name)
			require.InDelta(t, want, got, 1e-6, name)
		}
		sessions := m["replicator_session_duration_seconds result=ok"] + m["replicator_session_duration_seconds result=idle"] + m["replicator_session_duration_seconds result=failed"]
		require.Equal(t, m["replicator_sessions_total"], sessions)
		require.Positive(t, m["replicator_session_duration_seconds result=ok"])
		require.Positive(t, m["replicator_session_duration_seconds result=idle"])
		require.Positive(t, figures(t, rb)["replicator_session_duration_seconds result=failed"], "while the network was cut")

		require.NoError(t, b.Put([]byte("0"), []byte("resolved"), nil))
		time.Sleep(time.Minute)
		net.Partition([]string{"a"}, []string{"b"})
		require.NoError(t, a.Put([]byte("1"), []byte("new"), nil))
		time.Sleep(5 * time.Minute)
		m = figures(t, ra)
		require.EqualValues(t, 0, m["replicator_conflicts"])
		require.EqualValues(t, 1, m["replicator_conflict_changes_total change=resolved"])
		require.EqualValues(t, 0, m["replicator_peer_up"+peer])
		require.EqualValues(t, 0, m["replicator_peer_agrees"+peer])
		require.EqualValues(t, 1, m["replicator_peer_lag_versions"+peer])
		require.InDelta(t, 300, m["replicator_peer_lag_seconds"+peer], 30)
	})
}

func TestLiveSessionsAndDelaysAreExported(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		net := replicatortest.NewNetwork(1)
		net.Delay(3*time.Millisecond, 3*time.Millisecond)
		a, ra, _ := open(t, net, "a")
		_, rb, _ := open(t, net, "b", "a:9000")
		time.Sleep(time.Minute)
		for i := range 200 {
			require.NoError(t, a.Put(fmt.Append(nil, i), []byte("v"), nil))
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(100 * time.Millisecond)
		m := figures(t, ra)
		const peer = " name=name of b peer=b:9000"
		require.EqualValues(t, 1, m["replicator_live_sessions"])
		require.EqualValues(t, 1, m["replicator_peer_live"+peer])
		require.Zero(t, m["replicator_peer_lag_versions"+peer])
		require.Greater(t, m["replicator_pushes_total"], 50.0)
		require.Positive(t, m["replicator_session_duration_seconds result=ok"]+m["replicator_session_duration_seconds result=idle"])

		families, err := rb.Gather()
		require.NoError(t, err)
		found := false
		for _, f := range families {
			if f.GetName() != "replicator_replication_delay_seconds" {
				continue
			}
			found = true
			require.Len(t, f.Metric, 1)
			x := f.Metric[0]
			require.Equal(t, "name of a", x.Label[0].GetValue())
			require.Equal(t, a.Status().Origin.String(), x.Label[1].GetValue())
			require.EqualValues(t, 200, x.Histogram.GetSampleCount())
			require.InDelta(t, 0.6, x.Histogram.GetSampleSum(), 0.1)
			require.Len(t, x.Histogram.Bucket, 16)
			require.Equal(t, 0.001, x.Histogram.Bucket[0].GetUpperBound())
			require.Zero(t, x.Histogram.Bucket[0].GetCumulativeCount())
			require.Equal(t, 0.005, x.Histogram.Bucket[2].GetUpperBound())
			require.Greater(t, x.Histogram.Bucket[2].GetCumulativeCount(), uint64(190))
			require.EqualValues(t, 100, x.Histogram.Bucket[15].GetUpperBound())
		}
		require.True(t, found)
		time.Sleep(10 * time.Second)
		m = figures(t, ra)
		require.Zero(t, m["replicator_live_sessions"])
		require.Positive(t, m["replicator_session_duration_seconds result=live"])
	})
}

func TestNamesAreAsPrometheusWantsThem(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		net := replicatortest.NewNetwork(1)
		_, _, c := open(t, net, "a")
		open(t, net, "b", "a:9000")
		time.Sleep(time.Minute)
		problems, err := testutil.CollectAndLint(c)
		require.NoError(t, err)
		require.Empty(t, problems)
	})
}

func TestPeerMayCallItselfAnything(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		net := replicatortest.NewNetwork(1)
		_, r, _ := open(t, net, "a")
		h := net.Host("b")
		l, err := h.Listen("9000")
		require.NoError(t, err)
		b, err := replicator.Replicate(replicatortest.MemDB(t), &replicator.Options{
			Name: "\xff\"}\n", Listener: l, Dial: h.Dial, Insecure: true, Peers: []string{"a:9000"}, Logger: slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
		defer b.Close()
		time.Sleep(time.Minute)
		require.Contains(t, figures(t, r), "replicator_peer_up name=\uFFFD\"}? peer=b:9000")
	})
}

func TestPeersBehindOneAddressHaveFiguresOfTheirOwn(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		net := replicatortest.NewNetwork(1)
		_, r, _ := open(t, net, "a")
		for _, name := range []string{"b", "c", "d"} {
			h := net.Host(name)
			h.Behind(net.Host("router"))
			l, err := h.Listen("9000")
			require.NoError(t, err)
			db, err := replicator.Replicate(replicatortest.MemDB(t), &replicator.Options{
				Name: "same", Listener: l, Advertise: "0.0.0.0:9000", Dial: h.Dial, Insecure: true, Peers: []string{"a:9000"}, Logger: slog.New(slog.DiscardHandler),
			})
			require.NoError(t, err)
			defer db.Close()
		}
		time.Sleep(time.Minute)
		up := 0
		for id := range figures(t, r) {
			if strings.HasPrefix(id, "replicator_peer_up name=same peer=router:9000") {
				up++
			}
		}
		require.Equal(t, 3, up)
	})
}

func TestPeerWithoutASessionHasNoLag(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		_, r, _ := open(t, replicatortest.NewNetwork(1), "a", "nobody:9000")
		time.Sleep(time.Minute)
		m := figures(t, r)
		require.Contains(t, m, "replicator_peer_up name= peer=nobody:9000")
		require.NotContains(t, m, "replicator_peer_lag_seconds name= peer=nobody:9000")
	})
}

func TestCollectorWithoutDatabaseExportsEventsOnly(t *testing.T) {
	c := replprom.NewCollector()
	called := 0
	e := c.Events(&replicator.Events{
		Session:       func(replicator.SessionEvent) { called++ },
		Conflict:      func([]byte, []replicator.Version) { called++ },
		Resolved:      func([]byte) { called++ },
		ResolverPanic: func([]byte, any) { called++ },
		Failed:        func(error) { called++ },
	})
	e.Session(replicator.SessionEvent{Err: errors.New("cut"), Duration: time.Second})
	e.Conflict(nil, nil)
	e.Resolved(nil)
	e.ResolverPanic(nil, "oops")
	e.Failed(nil)
	require.Equal(t, 5, called, "the caller's own are called, too")
	r := prometheus.NewPedanticRegistry()
	require.NoError(t, r.Register(c))
	m := figures(t, r)
	require.EqualValues(t, 1, m["replicator_session_duration_seconds result=failed"])
	require.EqualValues(t, 1, m["replicator_resolver_panics_total"])
	require.NotContains(t, m, "replicator_keys")
}

// exported returns the names of all metrics.
func exported() map[string]bool {
	descs := make(chan *prometheus.Desc, 100)
	replprom.NewCollector().Describe(descs)
	close(descs)
	names := map[string]bool{}
	for d := range descs {
		name := regexp.MustCompile(`fqName: "([^"]+)"`).FindStringSubmatch(d.String())[1]
		names[name] = true
		if name == "replicator_session_duration_seconds" || name == "replicator_replication_delay_seconds" {
			for _, suffix := range []string{"_bucket", "_count", "_sum"} {
				names[name+suffix] = true
			}
		}
	}
	return names
}

var named = regexp.MustCompile(`replicator_[a-z_]+`)

func TestDashboardAsksOnlyForMetricsThatExist(t *testing.T) {
	text, err := os.ReadFile("dashboard.json")
	require.NoError(t, err)
	var board struct {
		Panels []struct {
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
		Templating struct {
			List []struct{ Query any }
		}
	}
	require.NoError(t, json.Unmarshal(text, &board))
	require.NotEmpty(t, board.Panels)
	names := exported()
	for _, p := range board.Panels {
		require.NotEmpty(t, p.Targets, p.Title)
		require.LessOrEqual(t, p.GridPos.X+p.GridPos.W, 24, p.Title)
		for _, q := range p.Targets {
			asked := named.FindAllString(q.Expr, -1)
			require.NotEmpty(t, asked, "%s: %s", p.Title, q.Expr)
			for _, name := range asked {
				require.True(t, names[name], "%s asks for %s", p.Title, name)
			}
		}
	}
	for _, v := range board.Templating.List {
		for _, name := range named.FindAllString(fmt.Sprint(v.Query), -1) {
			require.True(t, names[name], name)
		}
	}
}

func TestReadmeNamesOnlyMetricsThatExist(t *testing.T) {
	text, err := os.ReadFile("README.md")
	require.NoError(t, err)
	names := exported()
	for _, name := range named.FindAllString(string(text), -1) {
		require.True(t, names[name], name)
	}
}
