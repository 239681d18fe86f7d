// Package prometheus exports metrics of a replica: which peers are reached and which lag, how
// long writes take to arrive, conflicts, writes that are not on disk, traffic, and durations of sessions.
//
//	collector := replprom.NewCollector()
//	db, err := replicator.Replicate(raw, &replicator.Options{Events: collector.Events(nil)})
//	…
//	collector.Observe(db)
//	prometheus.MustRegister(collector)
//
// Import it under a name of its own, such as replprom, beside the client's package. It
// is a module of its own, so that programs that do not use it do not depend on the client.
//
// For several databases in one process, add a label that tells them apart:
//
//	prometheus.WrapRegistererWith(prometheus.Labels{"db": "orders"}, registry).MustRegister(collector)
//
// dashboard.json is a dashboard for Grafana. README.md has alerts, and shows how to export
// the metrics to OpenTelemetry.
//
// There are 11 series for each peer, and 19 for each origin whose writes arrived since the
// opening (the buckets of the replication delay, for at most 65 origins). So a cluster of n replicas that
// all know each other and all write has about 30 n² of them.
package prometheus
