// Package prometheus tells Prometheus of a replicated database: who is reached and who
// lags, conflicts, what is not on disk, traffic, and how long sessions take.
//
//	collector := replprom.NewCollector()
//	db, err := replicator.Replicate(raw, &replicator.Options{Events: collector.Events(nil)})
//	…
//	collector.Observe(db)
//	prometheus.MustRegister(collector)
//
// Import it under a name of its own, such as replprom, beside the client's package. It
// is a module of its own, so that who does not use it does not depend on the client.
//
// Several databases in one process are told apart by a label of the registerer:
//
//	prometheus.WrapRegistererWith(prometheus.Labels{"db": "orders"}, registry).MustRegister(collector)
//
// dashboard.json is a dashboard for Grafana. README.md has alerts, and how to hand the
// same to OpenTelemetry.
//
// There are ten series for each peer, so a cluster where every server knows n others
// has 10 n² of them.
package prometheus
