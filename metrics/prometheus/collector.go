package prometheus

import (
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/level-replicator/replicator"
)

// Collector is a [prometheus.Collector] for one database. Make it with
// [NewCollector]; all methods are safe for concurrent use.
type Collector struct {
	db atomic.Pointer[replicator.DB]

	sessions *prometheus.HistogramVec
	conflict *prometheus.CounterVec
	panics   prometheus.Counter
}

// NewCollector returns a collector, which has no values before [Collector.Events] and
// [Collector.Observe].
func NewCollector() *Collector {
	c := &Collector{
		sessions: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "replicator_session_duration_seconds",
			Help: "How long sessions with peers took, by how they ended: idle (both held the same), ok, failed; live: how long a connection stayed open after a session.",
			// From an idle session in one data centre to filling an empty replica, or five minutes live.
			Buckets:                        prometheus.ExponentialBuckets(0.0005, 4, 12),
			NativeHistogramBucketFactor:    1.1,
			NativeHistogramMaxBucketNumber: 100,
		}, []string{"result"}),
		conflict: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "replicator_conflict_changes_total",
			Help: "Keys that came into conflict (arisen) and out of it (resolved), as seen here.",
		}, []string{"change"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "replicator_resolver_panics_total",
			Help: "Panics of the resolver; the default decided.",
		}),
	}
	// Rates need a zero to start from.
	for _, result := range []string{"idle", "ok", "failed", "live"} {
		c.sessions.WithLabelValues(result)
	}
	for _, change := range []string{"arisen", "resolved"} {
		c.conflict.WithLabelValues(change)
	}
	return c
}

// Events returns functions for [replicator.Options] that count what Status does not have:
// durations of sessions, and conflicts that come and go. They call those of next, which
// may be nil, after their own work.
func (c *Collector) Events(next *replicator.Events) *replicator.Events {
	var e replicator.Events
	if next != nil {
		e = *next
	}
	session, conflict, resolved, panicked := e.Session, e.Conflict, e.Resolved, e.ResolverPanic
	e.Session = func(s replicator.SessionEvent) {
		c.sessions.WithLabelValues(result(s)).Observe(s.Duration.Seconds())
		if session != nil {
			session(s)
		}
	}
	e.Conflict = func(key []byte, versions []replicator.Version) {
		c.conflict.WithLabelValues("arisen").Inc()
		if conflict != nil {
			conflict(key, versions)
		}
	}
	e.Resolved = func(key []byte) {
		c.conflict.WithLabelValues("resolved").Inc()
		if resolved != nil {
			resolved(key)
		}
	}
	e.ResolverPanic = func(key []byte, recovered any) {
		c.panics.Inc()
		if panicked != nil {
			panicked(key, recovered)
		}
	}
	return &e
}

func result(s replicator.SessionEvent) string {
	switch {
	case s.Err != nil:
		return "failed"
	case s.Live:
		return "live"
	case s.Idle:
		return "idle"
	}
	return "ok"
}

// Observe sets the database whose Status each scrape exports, which takes microseconds and
// reads nothing from its store. With nil, scrapes export no Status.
func (c *Collector) Observe(db *replicator.DB) { c.db.Store(db) }

// Describe implements [prometheus.Collector].
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	c.sessions.Describe(ch)
	c.conflict.Describe(ch)
	c.panics.Describe(ch)
	for _, m := range ofReplicas {
		ch <- m.desc
	}
	for _, m := range ofPeers {
		ch <- m.desc
	}
	ch <- delay
}

// Collect implements [prometheus.Collector].
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	c.sessions.Collect(ch)
	c.conflict.Collect(ch)
	c.panics.Collect(ch)
	db := c.db.Load()
	if db == nil {
		return
	}
	s := db.Status()
	for _, m := range ofReplicas {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(&s))
	}
	for i := range s.Delays {
		ch <- delayOf(&s.Delays[i])
	}
	for i := range s.Peers {
		p := &s.Peers[i]
		if p.State == replicator.PeerSelf || p.Moved {
			continue
		}
		addr, name := label(p.Addr), label(p.Name)
		if p.NoAddr { // several may dial from there
			addr += " " + p.Origin.Short()
		}
		for _, m := range ofPeers {
			if m.met && p.Last.IsZero() {
				continue
			}
			ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(p), addr, name)
		}
	}
}

// label makes a label, which must be UTF-8, of what peers choose.
func label(text string) string { return strings.ToValidUTF8(text, "\uFFFD") }
